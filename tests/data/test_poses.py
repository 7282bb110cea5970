"""Sources become shards with poses; what cannot be read is listed and loses nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import read_shard, write_shard
from finephys.data.poses import EstimateShard, list_sources, output_of
from finephys.data.video import encode_video

ASSETS = Path("finephys/assets")


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> EstimateShard:
    return EstimateShard(str(ASSETS / "pipeline"), str(tmp_path_factory.mktemp("poses")), "cpu")


def test_a_shard_is_filled_and_bad_clips_are_listed(actor: EstimateShard, tmp_path: Path) -> None:
    clip = next(iter(read_shard(ASSETS / "clips/test-00000.parquet")))
    black = encode_video(np.zeros((8, 64, 64, 3), np.uint8), 30)
    unknown = dict.fromkeys(
        ("joints_px", "joints_confidence", "joints_cam_m", "intrinsics", "rotation", "translation", "is_static")
    )
    unknown |= dict.fromkeys(("in_flight", "feet_in_contact"))
    bare = replace(clip, **unknown)
    small = {"num_frames": 8, "height": 64, "width": 64}
    one = encode_video(np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8), 30)
    write_shard(
        [
            bare,
            replace(bare, clip_id="corrupt", video=b"nonsense"),
            replace(bare, clip_id="black", video=black, **small),
            replace(bare, clip_id="one-frame", video=one, **{**small, "num_frames": 1}),
        ],
        tmp_path / "in.parquet",
    )
    source = str(tmp_path / "in.parquet")
    assert actor.convert(source) == (1, 3)
    (filled,) = read_shard(output_of(source, actor.output))
    assert filled.joints_cam_m is not None
    assert np.isfinite(filled.joints_cam_m).all()
    assert filled.intrinsics is not None
    assert filled.is_static is not None
    lines = Path(output_of(source, actor.output).replace(".parquet", ".failures.jsonl")).read_text().splitlines()
    errors = {entry["clip_id"]: entry["error"] for entry in map(json.loads, lines)}
    assert set(errors) == {"corrupt", "black", "one-frame"}
    assert "nobody" in errors["black"]
    assert "T >= 2" in errors["one-frame"]


def test_a_video_becomes_a_clip(actor: EstimateShard, tmp_path: Path) -> None:
    clip = next(iter(read_shard(ASSETS / "clips/test-00000.parquet")))
    (tmp_path / "mine.mp4").write_bytes(clip.video)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    sources = list_sources(str(tmp_path))
    assert [actor.convert(source) for source in sources] == [(0, 1), (1, 0)]
    (filled,) = read_shard(output_of(sources[1], actor.output))
    assert filled.clip_id == "mine"
    assert filled.num_frames == clip.num_frames


def test_an_empty_or_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no"):
        list_sources(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_sources(str(tmp_path / "missing.mp4"))
