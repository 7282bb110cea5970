"""Build shards of the real FineGym from its annotations and your copy of the videos, on Ray Data."""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from tqdm import tqdm

from finephys.command_line import run
from finephys.data import storage
from finephys.data.finegym import DetectedPose, Element, find_leak, read_elements, read_poses
from finephys.data.trim import find_videos, pack_shards, part_bytes, trim_video

PLAN_NAME = "plan.json"


@dataclass(frozen=True, kw_only=True)
class BuildShardsConfig:
    # Official finegym_annotation_info_v1.1.json.
    annotation: Path
    # Official gym99_categories.txt.
    categories: Path
    # Official gym99_train_element_v1.1.txt ...
    train: Path
    # ... and gym99_val_element.txt.
    val: Path
    # Folder or URL of the videos, named by their YouTube ids.
    videos: str
    # Folder or URL of the shards.
    output: str
    # by-video puts no video into two splits; official is gym99's own, which does.
    splits: Literal["by-video", "official"] = "by-video"
    # PYSKL's gym_hrnet.pkl, for 2D poses.
    poses: Path | None = None
    # Of the clips, in pixels; even.
    height: int = 256
    # x264's quality, 0 (nearly lossless) to 51.
    crf: int = 18
    # A shard's size before it is closed.
    shard_mb: float = 128
    # Videos trimmed at once. Trimming one takes a core and holds one element's frames in memory.
    num_workers: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        if self.height < 16 or self.height % 2:
            raise ValueError(f"height is {self.height}, wanted an even number from 16 on")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}, wanted 0 to 51")
        if not self.shard_mb > 0 or self.num_workers < 1:
            raise ValueError(f"shard_mb {self.shard_mb} and num_workers {self.num_workers} must be positive")


def main(config: BuildShardsConfig) -> None:
    elements, unannotated = read_elements(
        config.annotation, config.categories, {"train": config.train, "val": config.val}
    )
    poses = {} if config.poses is None else read_poses(config.poses)
    videos = find_videos(config.videos)
    storage.check_writable(config.output)
    of_video: dict[str, list[Element]] = {}
    for element in elements:
        of_video.setdefault(element.video_id, []).append(element)
    missing = sorted(set(of_video) - set(videos))
    if len(missing) == len(of_video):
        raise ValueError(f"videos folder {config.videos} has none of the {len(of_video)} videos, such as {missing[0]}")
    _claim_output(config, elements)
    present = sorted(set(of_video) - set(missing))
    done = {url.rsplit("/", 1)[-1].removesuffix(".parquet") for url in storage.list_files(_parts(config), ".parquet")}
    pending = [video_id for video_id in present if video_id not in done]
    with tqdm(total=len(present), initial=len(present) - len(pending), desc="videos", unit="video") as progress:
        if pending:
            for _ in trim_on_ray(config, {video_id: videos[video_id] for video_id in pending}, of_video, poses):
                progress.update()
    parts = [storage.join(_parts(config), f"{video_id}.parquet") for video_id in present]
    counts, failures = pack_shards(parts, config.output, int(config.shard_mb * 1e6))
    failures += unannotated
    failures += [
        {"clip_id": element.clip_id, "error": f"video {video_id} is missing"}
        for video_id in missing
        for element in of_video[video_id]
    ]
    # Every element of the split files is a clip or a failure.
    assert sum(counts.values()) + len(failures) == len(elements) + len(unannotated)
    write_lists(config, counts, failures, elements, missing)
    storage.delete_folder(_parts(config))


def trim_on_ray(
    config: BuildShardsConfig,
    videos: dict[str, str],
    of_video: dict[str, list[Element]],
    poses: dict[str, DetectedPose],
) -> Any:
    """Make each video's part; yields once for each that is done, in whatever order."""
    import ray

    if not ray.is_initialized():
        local = {"address": "local", "num_cpus": config.num_workers + 2, "include_dashboard": False}
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else local), log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    held = ray.put((of_video, poses))

    def trim(table: pa.Table) -> pa.Table:
        elements, known_poses = ray.get(held)
        for row in table.to_pylist():
            clips, failures = trim_video(
                row["url"],
                elements[row["video_id"]],
                known_poses,
                height=config.height,
                crf=config.crf,
                splits_are_official=config.splits == "official",
            )
            part = storage.join(_parts(config), f"{row['video_id']}.parquet")
            storage.write_bytes(part, part_bytes(clips, failures))
        return table.select(["video_id"])

    items = [{"video_id": video_id, "url": url} for video_id, url in videos.items()]
    # 1. videos, a block each
    done = ray.data.from_items(items, override_num_blocks=len(items))
    # 2. video -> parts/VIDEO.parquet, 1:1
    done = done.map_batches(
        trim, batch_size=1, batch_format="pyarrow", num_cpus=1, compute=ray.data.TaskPoolStrategy(config.num_workers)
    )
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch["video_id"].to_pylist()


def write_lists(
    config: BuildShardsConfig,
    counts: Counter[tuple[str, int]],
    failures: list[dict[str, str]],
    elements: list[Element],
    missing: list[str],
) -> None:
    """failures.jsonl and summary.json, and what a person wants to know of them on stdout."""
    failures.sort(key=lambda failure: failure["clip_id"])
    text = "".join(json.dumps(failure) + "\n" for failure in failures)
    storage.write_bytes(storage.join(config.output, "failures.jsonl"), text.encode())
    leak = find_leak(elements)
    splits: dict[str, int] = {}
    for (split, _), count in sorted(counts.items()):
        splits[split] = splits.get(split, 0) + count
    summary = {
        "splits": splits,
        "classes": {f"{split}/{label}": count for (split, label), count in sorted(counts.items())},
        "failures": len(failures),
        "missing_videos": missing,
        "official_leak": asdict(leak),
    }
    storage.write_bytes(storage.join(config.output, "summary.json"), json.dumps(summary, indent=2).encode())
    print(f"done: {', '.join(f'{count} {split}' for split, count in splits.items())} clips in {config.output}")
    if missing:
        print(f"{len(missing)} videos are missing, such as {', '.join(missing[:3])}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} elements are not there and are listed in failures.jsonl", file=sys.stderr)
    print(
        f"the official splits share {leak.num_shared_videos} of {leak.num_videos} videos and "
        f"{leak.num_shared_events} of {leak.num_events} routines; these shards use the {config.splits} splits",
        file=sys.stderr,
    )


def _claim_output(config: BuildShardsConfig, elements: list[Element]) -> None:
    """Raise ValueError where the output holds another build: its parts and shards must not mix with these."""
    plan = {
        "elements": len(elements),
        "splits": config.splits,
        "height": config.height,
        "crf": config.crf,
        "shard_mb": config.shard_mb,
        "has_poses": config.poses is not None,
    }
    url = storage.join(config.output, PLAN_NAME)
    if storage.exists(url):
        old = json.loads(storage.read_bytes(url))
        for name, value in plan.items():
            if old.get(name) != value:
                raise ValueError(
                    f"output {config.output} is of another build: its {name} is {old.get(name)!r}, this one's "
                    f"{value!r}; wanted another output"
                )
    storage.write_bytes(url, json.dumps(plan, indent=2).encode())


def _parts(config: BuildShardsConfig) -> str:
    return storage.join(config.output, "parts")


if __name__ == "__main__":
    run(
        main,
        BuildShardsConfig,
        description="Cut FineGym's floor elements out of its videos, exactly to the frame, and pack them as shards.",
        examples=(
            "--annotation finegym_annotation_info_v1.1.json --categories gym99_categories.txt "
            "--train gym99_train_element_v1.1.txt --val gym99_val_element.txt --videos videos --output data/finegym",
            "... --videos s3://bucket/videos --output s3://bucket/finegym --poses gym_hrnet.pkl --splits official",
        ),
    )
