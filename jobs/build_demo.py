"""Build the demo data: motion capture posed on a body, filmed, and written as Parquet shards with full ground truth."""

import concurrent.futures
import functools
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from finephys.command_line import run
from finephys.data.clips import write_shard
from finephys.gymnast.demo import make_clip, num_planned_clips, plan_clips


@dataclass(frozen=True, kw_only=True)
class BuildDemoConfig:
    """Where to, how many, and from which seed. The same seed gives the same files, whatever the number of workers."""

    output: Path = Path(__file__).parents[1] / "finephys" / "assets" / "clips"
    """Folder for train-00000.parquet and test-00000.parquet."""
    num_clips: int = num_planned_clips()
    """Clips in all; about five in six are for training."""
    seed: int = 0
    """Chooses bodies, cameras, arenas and moments."""
    num_workers: int = os.cpu_count() or 1
    """Processes that render."""

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, wanted 0 or more")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"output {self.output} is a file, wanted a folder")


def build_demo(config: BuildDemoConfig) -> list[Path]:
    """Make the clips and write one shard a split; returns the shards' paths. Files appear once all clips are made."""
    config.output.mkdir(parents=True, exist_ok=True)
    plans = plan_clips(config.num_clips, config.seed)
    make = functools.partial(make_clip, seed=config.seed)
    # The workers are the parallelism; they read these when they start.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    # Spawned, because a forked child of a process with torch threads may hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(config.num_workers, context, _use_one_thread) as pool:
        clips = list(tqdm(pool.map(make, plans), total=len(plans), desc="clips", unit="clip"))
    paths = []
    for split in sorted({clip.split for clip in clips}):
        path = config.output / f"{split}-00000.parquet"
        write_shard([clip for clip in clips if clip.split == split], path)
        paths.append(path)
    return paths


def _use_one_thread() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def main(config: BuildDemoConfig) -> None:
    for path in build_demo(config):
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(
        main,
        BuildDemoConfig,
        description=(
            "Build the demo data: motion capture posed on a body, filmed, and written as Parquet shards with full\n"
            "ground truth. Without options: the data that ship with the project."
        ),
        examples=(
            "--num-clips 12 --output /tmp/clips        (the first 12 of the same clips)",
            "--num-clips 2000 --seed 1 --output clips --num-workers 8",
        ),
    )
