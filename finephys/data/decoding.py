"""Hop decode: clip records to frames, with the ground truth that a stage wants beside them.

Path:    shard -> decode -> rows
Letters: T frames
Units:   pixel, metre, second; uint8 RGB

The hop runs in tasks: a process that decodes imports no torch, unless the camera's motion is to be taken out of the
ground truth.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from finephys.data.clips import MAX_FRAMES, MIN_FRAMES, Clip
from finephys.data.rows import Row, guarded, to_table
from finephys.data.video import decode_video

# Decoded rows leave a task in blocks of this size, or of one clip where that is larger. Ray admits tasks by what their
# blocks may take of the object store: at its own 128 MB one task decoded at a time, however many cores were idle.
BLOCK_BYTES = 16 * 2**20


def decode(table: pa.Table) -> Iterator[pa.Table]:
    """Clip rows -> frames and 2D ground truth, a few clips at a time."""
    yield from _decoded(_decode_clip, table)


def decode_with_truth(table: pa.Table) -> Iterator[pa.Table]:
    """Clip rows -> frames, everything that feature rows keep of the record, and the ground truth there is."""
    import torch

    # Ray counts CPUs, not threads.
    torch.set_num_threads(1)
    yield from _decoded(_decode_clip_with_truth, table)


def _decoded(hop: Callable[[Row], Row], table: pa.Table) -> Iterator[pa.Table]:
    """The rows of some clips, BLOCK_BYTES of them at a time."""
    rows: list[Row] = []
    num_bytes = 0
    for position in range(len(table)):
        (clip,) = table.slice(position, 1).to_pylist()
        rows.append(guarded(hop, clip))
        num_bytes += sum(value.nbytes for value in rows[-1].values() if isinstance(value, np.ndarray))
        if num_bytes > BLOCK_BYTES:
            yield to_table(rows)
            rows, num_bytes = [], 0
    if rows:
        yield to_table(rows)


def _decode_clip(record: Row) -> Row:
    clip = Clip.from_row(record)
    row: Row = {"clip_id": clip.clip_id, "frames": _decoded_frames(clip)}
    if clip.joints_px is not None:
        row["joints_px"] = clip.joints_px
    if clip.joints_confidence is not None:
        row["joints_confidence"] = clip.joints_confidence
    return row


def _decode_clip_with_truth(record: Row) -> Row:
    from finephys.data.steady import steadied, true_camera_motion
    from finephys.pose.camera import nominal_intrinsics
    from finephys.pose.camera_motion import CameraMotion

    clip = Clip.from_row(record)
    if not MIN_FRAMES <= clip.num_frames <= MAX_FRAMES:
        raise ValueError(f"clip has {clip.num_frames} frames, wanted {MIN_FRAMES} to {MAX_FRAMES}")
    frames = _decoded_frames(clip)
    has_truth = clip.joints_cam_m is not None and clip.in_flight is not None
    row: Row = {
        "clip_id": clip.clip_id,
        "prompt": clip.prompt,
        "frames": frames,
        "fps": clip.fps,
        "height": clip.height,
        "width": clip.width,
        "is_static": clip.is_static,
        "has_truth": has_truth,
        "truth_joints_cam_m": np.zeros((clip.num_frames, 17, 3), np.float32),
        "in_flight": np.zeros(clip.num_frames, np.bool_),
    }
    if clip.intrinsics is not None:
        row["intrinsics"] = clip.intrinsics[clip.num_frames // 2]
    else:
        row["intrinsics"] = np.asarray(nominal_intrinsics(clip.height, clip.width), np.float32)
    true_camera = true_camera_motion(clip) or CameraMotion.still(clip.num_frames)
    row["truth_rotation"], row["truth_zoom"] = true_camera.rotation, true_camera.zoom
    if has_truth:
        row["truth_joints_cam_m"] = steadied(clip).joints_cam_m
        row["in_flight"] = clip.in_flight
    if clip.joints_px is not None:
        row["truth_joints_px"] = clip.joints_px
    if clip.rotation is not None:
        # World y is up: gravity points along -y, seen by the camera of the middle frame.
        row["gravity"] = clip.rotation[clip.num_frames // 2] @ np.array([0, -1, 0], np.float32)
    return row


def _decoded_frames(clip: Clip) -> np.ndarray[Any, np.dtype[np.uint8]]:
    frames = decode_video(clip.video).frames_THWC
    wanted = (clip.num_frames, clip.height, clip.width, 3)
    if frames.shape != wanted:
        raise ValueError(f"video decodes to shape {frames.shape}, the record says {wanted}")
    return frames
