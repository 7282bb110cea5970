"""Cut FineGym's elements out of its videos and pack them as shards: exactly once, the same bytes on every run.

Path:    video + its Elements -> parts/VIDEO.parquet -> SPLIT-*.parquet, failures.jsonl, summary.json
Units:   second, pixel, byte

A video is a unit of work: it is opened once, each element is decoded on its own, and its part is published whole. A run
that was killed takes up what has no part. Shards are then filled from the parts in the order of the videos' ids, so
that their bytes depend on neither the order nor the place in which parts were made.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finephys.data import storage
from finephys.data.clips import CLIP_SCHEMA, MAX_FRAMES, MIN_FRAMES, Clip, write_table
from finephys.data.finegym import DetectedPose, Element
from finephys.data.gym99 import GYM99_FLOOR
from finephys.data.video import decode_span, encode_video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")

_FAILURES_KEY = b"finephys.failures"


def find_videos(url: str) -> dict[str, str]:
    """The URL of each video in the folder `url` by its YouTube id, its name without the suffix.

    Raises FileNotFoundError without a folder; ValueError where an id has two files.
    """
    if not storage.exists(url):
        raise FileNotFoundError(f"videos folder {url} does not exist")
    found: dict[str, str] = {}
    for file in storage.list_files(url):
        name = file.rsplit("/", 1)[-1]
        stem, dot, suffix = name.rpartition(".")
        if f"{dot}{suffix}".lower() not in VIDEO_SUFFIXES:
            continue
        if stem in found:
            raise ValueError(f"videos folder {url} has two files of {stem}: {found[stem]} and {file}")
        found[stem] = file
    return found


def trim_video(
    url: str,
    elements: Sequence[Element],
    poses: Mapping[str, DetectedPose],
    *,
    height: int,
    crf: int,
    splits_are_official: bool,
) -> tuple[list[Clip], list[dict[str, str]]]:
    """The clips of one video, and the failures (clip_id, error) among its elements."""
    clips, failures = [], []
    filesystem, path = storage.open_filesystem(url)
    with filesystem.open_input_file(path) as file:
        for element in elements:
            try:
                clips.append(_trim(file, element, poses.get(element.clip_id), height, crf, splits_are_official))
            except ValueError as error:
                failures.append({"clip_id": element.clip_id, "error": str(error)})
    return clips, failures


def part_bytes(clips: Sequence[Clip], failures: Sequence[Mapping[str, str]]) -> bytes:
    """Clips and failures of one video as a Parquet file."""
    table = pa.Table.from_pylist([clip.to_row() for clip in clips], schema=CLIP_SCHEMA)
    metadata = {**(CLIP_SCHEMA.metadata or {}), _FAILURES_KEY: json.dumps(list(failures)).encode()}
    sink = pa.BufferOutputStream()
    write_table(table.replace_schema_metadata(metadata), sink)
    return bytes(sink.getvalue().to_pybytes())


def pack_shards(
    parts: Sequence[str], output: str, shard_bytes: int
) -> tuple[Counter[tuple[str, int]], list[dict[str, str]]]:
    """Fill OUTPUT/SPLIT-00000.parquet and so on from the parts, in their order; shards close above shard_bytes.

    Returns how many clips there are by (split, label), and the parts' failures. One open shard a split is in memory.
    """
    counts: Counter[tuple[str, int]] = Counter()
    failures: list[dict[str, str]] = []
    waiting: dict[str, list[pa.Table]] = {}
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()

    def close(split: str) -> None:
        table = pa.concat_tables(waiting.pop(split)).replace_schema_metadata(CLIP_SCHEMA.metadata)
        sink = pa.BufferOutputStream()
        write_table(table, sink)
        storage.write_bytes(storage.join(output, f"{split}-{numbers[split]:05d}.parquet"), sink.getvalue().to_pybytes())
        numbers[split] += 1
        sizes[split] = 0

    for part in parts:
        table = pq.read_table(pa.BufferReader(storage.read_bytes(part)))
        failures += json.loads((table.schema.metadata or {})[_FAILURES_KEY])
        for split, row in _rows(table):
            counts[split, row["label"][0].as_py()] += 1
            waiting.setdefault(split, []).append(row)
            sizes[split] += row.nbytes
            if sizes[split] >= shard_bytes:
                close(split)
    for split in sorted(waiting):
        close(split)
    return counts, failures


def _rows(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    plain = table.replace_schema_metadata(None)
    for index, split in enumerate(table["split"].to_pylist()):
        yield split, plain.slice(index, 1)


def _trim(
    file: Any, element: Element, pose: DetectedPose | None, height: int, crf: int, splits_are_official: bool
) -> Clip:
    name = f"video {element.video_id}"
    video = decode_span(file, element.start_s, element.end_s, name=name, height=height)
    num_frames, height, width, _ = video.frames_THWC.shape
    if not MIN_FRAMES <= num_frames <= MAX_FRAMES:
        raise ValueError(f"{name}: element has {num_frames} frames, wanted {MIN_FRAMES} to {MAX_FRAMES}")
    joints_px, confidence = (None, None) if pose is None else pose.at(num_frames, height, width)
    known = GYM99_FLOOR[element.label]
    return Clip(
        clip_id=element.clip_id,
        split=element.official_split if splits_are_official else element.split_by_video,
        subset=known.subset,
        label=element.label,
        label_name=known.name,
        prompt=element.prompt,
        video=encode_video(video.frames_THWC, video.fps, crf),
        fps=video.fps,
        num_frames=num_frames,
        height=height,
        width=width,
        joints_px=joints_px,
        joints_confidence=confidence,
    )
