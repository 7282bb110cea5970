"""The held-out clips as the shipped detector sees them: what the evaluations of pose, lifting and physics start from.

Path:    shards -> frames -> Pose2D, beside the ground truth
Letters: T frames
Units:   pixel, metre
"""

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from finephys.data import storage
from finephys.data.clips import CLIPS_PER_ROW_GROUP, Clip, check_schema
from finephys.data.video import decode_video
from finephys.pose.estimator import Pose2D
from finephys.pose.rtmpose import RTMPose


@dataclass(frozen=True, kw_only=True)
class Detection:
    """A clip with its ground truth, its frames (T, H, W, 3) uint8, and what the detector found in them."""

    clip: Clip
    frames_THWC: NDArray[np.uint8]
    pose: Pose2D


def detect_split(pipeline: Path, data: str, split: str = "test") -> list[Detection]:
    """detect_clips of every clip of `split`. Raises as it does, and FileNotFoundError without shards."""
    return detect_clips(pipeline, read_split(data, split), f"data {data} in split {split!r}")


def detect_clips(pipeline: Path, clips: Iterable[Clip], source: str) -> list[Detection]:
    """Each clip that has joints in 2D and 3D and a camera, with the poses found by pipeline/pose_estimator.

    Raises FileNotFoundError without the detector; ValueError, naming `source`, where there is no such clip.
    """
    if not (pipeline / "pose_estimator").is_dir():
        raise FileNotFoundError(f"{pipeline} has no folder pose_estimator")
    estimator = RTMPose.from_pretrained(pipeline, subfolder="pose_estimator", torch_dtype=torch.float32).fuse()
    found = []
    for clip in tqdm(list(clips), desc="detecting", unit="clip"):
        if clip.joints_px is None or clip.joints_cam_m is None or clip.intrinsics is None or clip.rotation is None:
            continue
        frames_THWC = decode_video(clip.video).frames_THWC
        found.append(Detection(clip=clip, frames_THWC=frames_THWC, pose=estimator.estimate(frames_THWC)))
    if not found:
        raise ValueError(f"{source} has no clip with ground truth")
    return found


def read_split(url: str, split: str) -> Iterator[Clip]:
    """The clips of one split of all shards at `url`. Raises as storage.list_shards and clips.check_schema do."""
    for shard in storage.list_shards(url):
        with pq.ParquetFile(io.BytesIO(storage.read_bytes(shard))) as file:
            check_schema(file.schema_arrow, shard)
            for batch in file.iter_batches(batch_size=CLIPS_PER_ROW_GROUP):
                yield from (Clip.from_row(row) for row in batch.to_pylist() if row["split"] == split)


def safe_name(clip_id: str) -> str:
    """A file name for a clip, whatever its id holds."""
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in clip_id)[:60]
    return f"{plain}-{hashlib.sha256(clip_id.encode()).hexdigest()[:8]}"
