"""The clip record: what goes into a shard comes out, and what is no clip is refused by name."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finephys.data.clips import CLIP_SCHEMA, VERSION_KEY, Clip, read_shard, write_shard


def make_clip(**changes: object) -> Clip:
    rng = np.random.default_rng(0)
    clip = Clip(
        clip_id="clip-0",
        split="train",
        subset="other",
        label=-1,
        label_name="noise",
        prompt="a person",
        video=b"no video",
        fps=30.0,
        num_frames=3,
        height=8,
        width=6,
        joints_cam_m=rng.normal(size=(3, 17, 3)).astype(np.float32),
        intrinsics=rng.normal(size=(3, 3, 3)).astype(np.float32),
        is_static=True,
        in_flight=np.array([True, False, True]),
        feet_in_contact=rng.random((3, 2)) > 0.5,
    )
    return replace(clip, **changes)


def test_round_trip(tmp_path: Path) -> None:
    clips = [make_clip(), make_clip(clip_id="clip-1", joints_cam_m=None, is_static=None)]
    write_shard(clips, tmp_path / "a.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    for ours, theirs in zip(read_shard(tmp_path / "a.parquet"), clips, strict=True):
        for field in fields(Clip):
            got, wanted = getattr(ours, field.name), getattr(theirs, field.name)
            if isinstance(wanted, np.ndarray):
                assert got.dtype == wanted.dtype
                np.testing.assert_array_equal(got, wanted)
            else:
                assert got == wanted


def test_an_unknown_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    write_shard([make_clip()], tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet")
    pq.write_table(table.replace_schema_metadata({VERSION_KEY: b"99"}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has clip schema version 99, this program reads version 1"):
        next(read_shard(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet is not a clip shard"):
        next(read_shard(tmp_path / "b.parquet"))


def test_a_wrong_shape_names_clip_and_field() -> None:
    with pytest.raises(ValueError, match=r"clip clip-0: in_flight has shape \(2,\), wanted \(3,\)"):
        make_clip(in_flight=np.array([True, False]))
    row = make_clip().to_row()
    row["joints_cam_m"] = row["joints_cam_m"][:-1]
    with pytest.raises(ValueError, match="clip clip-0: joints_cam_m has 152 values"):
        Clip.from_row(row)


def test_every_field_is_a_column() -> None:
    assert [field.name for field in fields(Clip)] == CLIP_SCHEMA.names
