"""Estimate 2D and 3D poses of shards or videos, on Ray Data: python jobs/estimate_poses.py DATA --output FOLDER."""

import os
import sys
from dataclasses import dataclass

import tyro

from finephys.command_line import run
from finephys.config import RowsConfig
from finephys.data import storage
from finephys.data.poses import list_sources, output_of


@dataclass(frozen=True, kw_only=True)
class EstimatePosesConfig:
    """What to read, where to write, and what an actor takes."""

    data: tyro.conf.Positional[str]
    """A shard, a video, or a folder of either; a local path or s3://."""
    output: str = "outputs/poses"
    """Folder for one shard per source; sources whose shard is there are left out."""
    pipeline: str = "finephys/assets/pipeline"
    """Folder of the weights, on every node."""
    actors: int = 1
    """Actors of the chain."""
    actor_cpus: float = 1.0
    """Logical CPUs that an actor takes."""
    actor_gpus: float = 0.0
    """Share of a GPU that an actor takes; 0 runs on the CPU."""

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise ValueError(f"actors is {self.actors}, wanted at least 1")
        if not self.actor_cpus > 0 or self.actor_gpus < 0:
            raise ValueError(
                f"actor_cpus is {self.actor_cpus} and actor_gpus {self.actor_gpus}, wanted above 0 and at least 0"
            )


def main(config: EstimatePosesConfig) -> None:
    if not os.path.isdir(config.pipeline):
        raise FileNotFoundError(f"pipeline folder {config.pipeline} does not exist")
    sources = list_sources(config.data)
    storage.check_writable(config.output)
    pending = [source for source in sources if not storage.exists(output_of(source, config.output))]
    if len(pending) < len(sources):
        print(f"{len(sources) - len(pending)} of {len(sources)} sources are done already")
    clips = failures = 0
    if pending:
        import ray

        from finephys.data.pipeline import estimated_shards

        if not os.environ.get("RAY_ADDRESS"):
            # Ray Data reads and shuffles on logical CPUs of its own; the machine's real ones bound the speed.
            ray.init(
                num_cpus=max(4, os.cpu_count() or 1, round(config.actors * config.actor_cpus) + 2),
                include_dashboard=False,
                log_to_driver=False,
            )
        rows = RowsConfig(actors=config.actors, actor_cpus=config.actor_cpus, actor_gpus=config.actor_gpus)
        pipeline = os.path.abspath(config.pipeline)
        output = os.path.abspath(config.output) if storage.is_local(config.output) else config.output
        # The output's name follows from the source's as it was given.
        for row in estimated_shards(pending, pipeline, output, rows).iter_rows():
            clips, failures = clips + int(row["num_clips"]), failures + int(row["num_failures"])
    if failures:
        print(f"{failures} clips failed; see *.failures.jsonl beside their shards", file=sys.stderr)
    print(f"done: {clips} clips in {config.output}")


if __name__ == "__main__":
    run(
        main,
        EstimatePosesConfig,
        description="Estimate poses: shards or videos in, shards with 2D joints and S_dd out; resumes.",
        examples=(
            "finephys/assets/clips --output outputs/poses",
            "driving.mp4 --output outputs/poses",
            "s3://bucket/clips --output s3://bucket/poses --actors 8 --actor-gpus 0.25",
        ),
    )
