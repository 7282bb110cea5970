"""The clip record: one labelled video with whatever ground truth is known, and its Parquet shard.

Path:    shard -> Clip
Letters: T frames, 17 H36M joints (finephys/skeleton.py)
Units:   pixel (x right, y down, centre of the first pixel at 0.5), metre, second
Frames:  world, y up; camera, x right, y down, z forward: x_cam = rotation @ x_world + translation

A file is a shard, a row a clip, a row group a few dozen clips. Arrays lie flattened in row-major order; their shape
follows from num_frames. The schema's version is in the Parquet metadata and an unknown one is refused.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from finephys.skeleton import NUM_JOINTS

SCHEMA_VERSION = "1"
VERSION_KEY = b"finephys.clip_schema"
CLIPS_PER_ROW_GROUP = 32

# Shorter, the generator has too few frames; longer, an annotation has joined several elements.
MIN_FRAMES, MAX_FRAMES = 16, 600

Split = Literal["train", "val", "test"]
Subset = Literal["FX-JUMP", "FX-TURN", "FX-SALTO", "other"]

_FLOATS = pa.list_(pa.float32())
_BOOLS = pa.list_(pa.bool_())
CLIP_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("label_name", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("video", pa.binary(), nullable=False),
        pa.field("fps", pa.float32(), nullable=False),
        pa.field("num_frames", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("performer", pa.string()),
        pa.field("joints_px", _FLOATS),
        pa.field("joints_confidence", _FLOATS),
        pa.field("joints_cam_m", _FLOATS),
        pa.field("intrinsics", _FLOATS),
        pa.field("rotation", _FLOATS),
        pa.field("translation", _FLOATS),
        pa.field("is_static", pa.bool_()),
        pa.field("in_flight", _BOOLS),
        pa.field("feet_in_contact", _BOOLS),
    ],
    metadata={VERSION_KEY: SCHEMA_VERSION.encode()},
)

# What one frame of each array column holds.
FRAME_SHAPES: dict[str, tuple[int, ...]] = {
    "joints_px": (NUM_JOINTS, 2),
    "joints_confidence": (NUM_JOINTS,),
    "joints_cam_m": (NUM_JOINTS, 3),
    "intrinsics": (3, 3),
    "rotation": (3, 3),
    "translation": (3,),
    "in_flight": (),
    "feet_in_contact": (2,),
}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip. Everything after `width` is ground truth and None where unknown.

    label: gym99 id, -1 for motions outside gym99.  video: an mp4 file's bytes.
    performer: who moves, as a name that only serves to keep splits apart.
    joints_px (T,17,2); joints_confidence (T,17), 1 visible, 0 hidden; joints_cam_m (T,17,3), camera frame.
    intrinsics (T,3,3) in pixels of this video, rotation (T,3,3), translation (T,3) in metres; is_static: neither
    changes over the clip.  in_flight (T,): nothing touches the floor.  feet_in_contact (T,2): right, left.
    """

    clip_id: str
    split: str
    subset: str
    label: int
    label_name: str
    prompt: str
    video: bytes
    fps: float
    num_frames: int
    height: int
    width: int
    performer: str | None = None
    joints_px: NDArray[np.float32] | None = None
    joints_confidence: NDArray[np.float32] | None = None
    joints_cam_m: NDArray[np.float32] | None = None
    intrinsics: NDArray[np.float32] | None = None
    rotation: NDArray[np.float32] | None = None
    translation: NDArray[np.float32] | None = None
    is_static: bool | None = None
    in_flight: NDArray[np.bool_] | None = None
    feet_in_contact: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        for name, frame_shape in FRAME_SHAPES.items():
            value, wanted = getattr(self, name), (self.num_frames, *frame_shape)
            if value is not None and value.shape != wanted:
                raise ValueError(f"clip {self.clip_id}: {name} has shape {value.shape}, wanted {wanted}")

    def to_row(self) -> dict[str, Any]:
        """This clip as a row of CLIP_SCHEMA: arrays flattened."""
        row = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in FRAME_SHAPES:
            row[name] = None if row[name] is None else row[name].reshape(-1)
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Clip":
        """A clip from a row as to_row wrote it or as Ray Data or pyarrow hand it on.

        Raises ValueError, naming the clip, where an array's length contradicts num_frames.
        """
        values = {field.name: row[field.name] for field in fields(cls)}
        for name, frame_shape in FRAME_SHAPES.items():
            if values[name] is None:
                continue
            dtype = np.bool_ if name in ("in_flight", "feet_in_contact") else np.float32
            flat: NDArray[Any] = np.asarray(values[name], dtype).reshape(-1)
            wanted = (int(values["num_frames"]), *frame_shape)
            if flat.size != int(np.prod(wanted)):
                raise ValueError(f"clip {values['clip_id']}: {name} has {flat.size} values, wanted shape {wanted}")
            values[name] = flat.reshape(wanted)
        for name in ("label", "num_frames", "height", "width"):
            values[name] = int(values[name])
        values["fps"] = float(values["fps"])
        values["video"] = bytes(values["video"])
        return cls(**values)


def write_shard(clips: Sequence[Clip], path: str | os.PathLike[str]) -> None:
    """Write clips as one Parquet shard on a local path; a reader sees the whole file or none."""
    table = pa.Table.from_pylist([clip.to_row() for clip in clips], schema=CLIP_SCHEMA)
    temporary = f"{os.fspath(path)}.writing"
    write_table(table, temporary)
    os.replace(temporary, path)


def write_table(table: pa.Table, sink: Any) -> None:
    """Write a table of clip records as Parquet, to a path or an Arrow output stream."""
    # The videos are compressed already. Of floats, the bytes of one significance side by side compress by a half more.
    floats = [f"{field.name}.list.element" for field in CLIP_SCHEMA if field.type == _FLOATS]
    pq.write_table(
        table,
        sink,
        row_group_size=CLIPS_PER_ROW_GROUP,
        compression="zstd",
        use_dictionary=False,
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    )


def check_schema(schema: pa.Schema, name: str) -> None:
    """Raise ValueError unless `schema`, of the shard called `name`, is this version of the clip record."""
    seen = (schema.metadata or {}).get(VERSION_KEY)
    if seen is None:
        raise ValueError(f"{name} is not a clip shard: its metadata has no {VERSION_KEY.decode()}")
    if seen.decode() != SCHEMA_VERSION:
        raise ValueError(f"{name} has clip schema version {seen.decode()}, this program reads version {SCHEMA_VERSION}")


def read_shard(path: str | os.PathLike[str]) -> Iterator[Clip]:
    """The clips of one local shard, a row group in memory at a time. Raises ValueError on an unknown schema."""
    with pq.ParquetFile(path) as file:
        check_schema(file.schema_arrow, os.fspath(path))
        for batch in file.iter_batches(batch_size=CLIPS_PER_ROW_GROUP):
            for row in batch.to_pylist():
                yield Clip.from_row(row)
