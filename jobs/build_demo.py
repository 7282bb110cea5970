"""Build the demo data: choreography and motion capture on a body, filmed, as Parquet shards with full ground truth."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from finephys.command_line import run
from finephys.data.clips import read_shard, write_shard
from finephys.gymnast.demo import Plan, make_clip, num_planned_clips, plan_clips

# Some seconds of work, lost at most when a worker is killed; and some 5 MB.
CLIPS_PER_PART, CLIPS_PER_SHARD = 8, 256


@dataclass(frozen=True, kw_only=True)
class BuildDemoConfig:
    """Where to, how many, and from which seed. The same seed gives the same files, whatever the number of workers."""

    output: Path = Path(__file__).parents[1] / "finephys" / "assets" / "clips"
    """Folder for train-00000.parquet and so on; other shards in it are removed."""
    num_clips: int = num_planned_clips()
    """Clips in all; about five in six are for training."""
    seed: int = 0
    """Chooses bodies, cameras, arenas and moments."""
    tumbled_share: float = 0.0
    """Of the clips, a few frames each of a body that has limbs of two motions, or is bent, and is turned any way: to
    train the detector on."""
    num_workers: int = os.cpu_count() or 1
    """Clips rendered at once, on a core each."""

    def __post_init__(self) -> None:
        for name in ("num_clips", "num_workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        if not 0 <= self.tumbled_share <= 1:
            raise ValueError(f"tumbled_share is {self.tumbled_share}, wanted 0 to 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, wanted 0 or more")
        if self.output.exists() and not self.output.is_dir():
            raise ValueError(f"output {self.output} is a file, wanted a folder")


def build_demo(config: BuildDemoConfig) -> list[str]:
    """Make what clips are missing on Ray, then the shards; returns the shards' names. Killed, it goes on where it was.

    A part is a few clips in a row; shards appear once all parts are made, and parts go once all shards are there.
    """
    plans = plan_clips(config.num_clips, config.seed)
    chunks = [plans[first : first + CLIPS_PER_PART] for first in range(0, len(plans), CLIPS_PER_PART)]
    parts = config.output / f"parts-seed{config.seed}-{config.num_clips}-{config.tumbled_share}"
    parts.mkdir(parents=True, exist_ok=True)
    paths = [parts / f"{number:05d}.parquet" for number in range(len(chunks))]
    num_done = sum(len(chunk) for chunk, path in zip(chunks, paths, strict=True) if path.exists())
    with tqdm(total=len(plans), initial=num_done, desc="clips", unit="clip") as progress:
        pending = [pair for pair in zip(chunks, paths, strict=True) if not pair[1].exists()]
        for num_clips in _made_on_ray(pending, config):
            progress.update(num_clips)
    names = []
    for split in ("train", "test"):
        clips = [clip for path in paths for clip in read_shard(path) if clip.split == split]
        for number, first in enumerate(range(0, len(clips), CLIPS_PER_SHARD)):
            names.append(f"{split}-{number:05d}.parquet")
            write_shard(clips[first : first + CLIPS_PER_SHARD], config.output / names[-1])
    for old in config.output.glob("*.parquet"):
        if old.name not in names:
            old.unlink()
    shutil.rmtree(parts)
    return names


def _made_on_ray(pending: list[tuple[list[Plan], Path]], config: BuildDemoConfig) -> Iterator[int]:
    """Make parts, as many at once as there are workers; yields the number of clips of each that is done."""
    if not pending:
        return
    import ray

    if not ray.is_initialized():
        local = {"address": "local", "num_cpus": config.num_workers, "include_dashboard": False}
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else local), log_to_driver=False, logging_level="ERROR")

    # The workers are the parallelism: none may use more than its one core.
    @ray.remote(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}})
    def make_part(plans: list[Plan], path: Path) -> int:
        import cv2

        cv2.setNumThreads(1)
        write_shard([make_clip(plan, config.seed, config.tumbled_share) for plan in plans], path)
        return len(plans)

    running = [make_part.remote(plans, path.absolute()) for plans, path in pending]
    while running:
        (done,), running = ray.wait(running)
        yield ray.get(done)


def main(config: BuildDemoConfig) -> None:
    for name in build_demo(config):
        path = config.output / name
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(
        main,
        BuildDemoConfig,
        description=(
            "Build the demo data on Ray: the 35 floor elements and motion capture on a body, filmed, and written as\n"
            "Parquet shards with full ground truth. Without options: the data that ship with the project."
        ),
        examples=(
            "--num-clips 12 --output /tmp/clips        (the first 12 of the same clips)",
            "--num-clips 2000 --seed 1 --output clips --num-workers 8",
            "--num-clips 1600 --seed 1 --tumbled-share 0.6 --output detector-clips     (for --stage pose2d)",
        ),
    )
