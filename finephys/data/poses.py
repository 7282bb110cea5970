"""Fill shards with estimated poses: a shard or a video in, a shard with 2D and 3D joints out.

Path:    shard or video -> decode -> pose2d -> pose3d -> shard
Letters: T frames
Units:   pixel, metre

Output shards hold the clip record with joints_px and joints_confidence as detected, joints_cam_m as lifted (S_dd) and
in the camera frame of each frame, intrinsics as known or assumed (their zoom as estimated), and is_static as known or
estimated. What was ground truth is replaced: these shards are not to be mixed with rendered ones.
One output file follows from one input name, appears whole, and is left alone when it is there: a run that was stopped
continues with the same command.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from finephys.data import storage
from finephys.data.clips import CLIP_SCHEMA, CLIPS_PER_ROW_GROUP, Clip, check_schema
from finephys.data.video import decode_video, encode_video

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")
FAILURES_SUFFIX = ".failures.jsonl"


def output_of(source: str, output: str) -> str:
    """The URL of the shard that `source` becomes: its own name, and a digest so that two folders do not collide."""
    name = PurePosixPath(source).stem
    return storage.join(output, f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:8]}.parquet")


def list_sources(url: str) -> list[str]:
    """The shards and videos at `url`, a file or a folder, sorted. Raises FileNotFoundError where there are none."""
    if url.endswith((".parquet", *VIDEO_SUFFIXES)):
        if not storage.exists(url):
            raise FileNotFoundError(f"{url} does not exist")
        return [url]
    found = [path for suffix in (".parquet", *VIDEO_SUFFIXES) for path in storage.list_files(url, suffix)]
    if not found:
        raise FileNotFoundError(f"{url} holds no .parquet shard and no video ({', '.join(VIDEO_SUFFIXES)})")
    return sorted(found)


class EstimateShard:
    """One source after the other through both estimators; device: "cpu" or "cuda"."""

    def __init__(self, init: str, output: str, device: str) -> None:
        from finephys.pose.lifting import Lifter
        from finephys.pose.rtmpose import RTMPose

        torch.set_num_threads(1)
        self.output = output
        self.estimator = RTMPose.from_pretrained(init, subfolder="pose_estimator", torch_dtype=torch.float32)
        self.estimator.fuse().to(device)
        self.lifter = Lifter.from_pretrained(init, subfolder="lifter", torch_dtype=torch.float32).eval().to(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        counts = [self.convert(str(source)) for source in batch["source"]]
        return {
            "source": batch["source"],
            "num_clips": np.array([clips for clips, _ in counts]),
            "num_failures": np.array([failures for _, failures in counts]),
        }

    def convert(self, source: str) -> tuple[int, int]:
        """Write the output shard of one source and the list of its failures: how many clips of either."""
        rows, failures = [], []
        for clip_id, clip in _clips(source):
            try:
                if isinstance(clip, ValueError):
                    raise clip
                rows.append(self.estimate(clip).to_row())
            except ValueError as error:
                failures.append({"clip_id": clip_id, "error": str(error)})
        target = output_of(source, self.output)
        if failures:
            lines = "".join(json.dumps(failure) + "\n" for failure in failures)
            storage.write_bytes(target.removesuffix(".parquet") + FAILURES_SUFFIX, lines.encode())
        buffer = io.BytesIO()
        table = pa.Table.from_pylist(rows, schema=CLIP_SCHEMA)
        pq.write_table(table, buffer, row_group_size=CLIPS_PER_ROW_GROUP, compression="zstd")
        # The shard last: it says that this source is done.
        storage.write_bytes(target, buffer.getvalue())
        return len(rows), len(failures)

    def estimate(self, clip: Clip) -> Clip:
        """The clip with estimated joints. Raises ValueError on a video that cannot be read or lifted."""
        from finephys.pose.camera import nominal_intrinsics
        from finephys.pose.camera_estimation import estimate_camera_motion

        frames_THWC = decode_video(clip.video).frames_THWC
        if frames_THWC.shape[:3] != (clip.num_frames, clip.height, clip.width):
            raise ValueError(
                f"video decodes to shape {frames_THWC.shape}, the record says "
                f"{(clip.num_frames, clip.height, clip.width, 3)}"
            )
        intrinsics = clip.intrinsics
        if intrinsics is None:
            nominal = np.asarray(nominal_intrinsics(clip.height, clip.width), np.float32)
            intrinsics = np.repeat(nominal[None], clip.num_frames, 0)
        pose = self.estimator.estimate(frames_THWC)
        if not (pose.confidence > 0).any():
            raise ValueError("nobody is seen in any frame")
        middle = intrinsics[clip.num_frames // 2]
        camera = estimate_camera_motion(frames_THWC, pose, middle, clip.fps)
        lifted = self.lifter.lift(camera.stabilise(pose, middle), middle, clip.fps)
        return replace(
            clip,
            joints_px=pose.joints_px,
            joints_confidence=pose.confidence,
            joints_cam_m=camera.to_frames(lifted.joints_cam_m),
            intrinsics=camera.intrinsics(middle) if clip.intrinsics is None else intrinsics,
            is_static=camera.is_static if clip.is_static is None else clip.is_static,
        )


def _clips(source: str) -> Iterator[tuple[str, Clip | ValueError]]:
    """(clip_id, clip or why there is none) of a shard or a video."""
    name = PurePosixPath(source).stem
    content = storage.read_bytes(source)
    if not source.endswith(".parquet"):
        try:
            yield name, _clip_of_video(name, content)
        except ValueError as error:
            yield name, error
        return
    try:
        file = pq.ParquetFile(io.BytesIO(content))
    except pa.ArrowException as error:
        yield name, ValueError(f"shard cannot be read: {str(error).splitlines()[0]}")
        return
    check_schema(file.schema_arrow, source)
    for batch in file.iter_batches(batch_size=CLIPS_PER_ROW_GROUP):
        for row in batch.to_pylist():
            try:
                yield row["clip_id"], Clip.from_row(row)
            except ValueError as error:
                yield row["clip_id"], error


def _clip_of_video(name: str, content: bytes) -> Clip:
    """A video as a clip without label; H.264 wants even sides, so an odd one loses its last row or column."""
    video = decode_video(content)
    num_frames, height, width = (int(side) for side in video.frames_THWC.shape[:3])
    even = (height // 2 * 2, width // 2 * 2)
    if (height, width) != even or content[4:8] != b"ftyp":
        content = encode_video(np.ascontiguousarray(video.frames_THWC[:, : even[0], : even[1]]), video.fps)
    return Clip(
        clip_id=name,
        split="test",
        subset="other",
        label=-1,
        label_name="",
        prompt="",
        video=content,
        fps=video.fps,
        num_frames=num_frames,
        height=even[0],
        width=even[1],
    )
