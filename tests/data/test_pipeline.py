"""The rows between hops, what index_clips refuses, and the feature chain over clips of every kind."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from finephys.data import decoding
from finephys.data.clips import VERSION_KEY, write_shard
from finephys.data.decoding import decode, decode_with_truth
from finephys.data.features import MakeFeatures, use_truth
from finephys.data.index import index_clips
from finephys.data.rows import ROW_SCHEMA, collect_rows, guarded, to_rows, to_table
from finephys.data.video import decode_video, encode_video
from finephys.diffusion.joint import collate, collate_frames
from finephys.diffusion.vae import VAEConfig, build_vae
from finephys.pose.lifting import Lifter, LifterConfig
from finephys.pose.rtmpose import RTMPose, RTMPoseConfig
from tests.training.made_clips import make_clip, write_clips


def test_rows_survive_the_table() -> None:
    rows = [
        {
            "clip_id": "a",
            "x": np.arange(6, dtype=np.float16).reshape(2, 3),
            "n": np.int64(3),
            "name": "é",
            "none": None,
        },
        {
            "clip_id": "b",
            "x": np.zeros((0, 3), np.uint8),
            "flags": np.array([True, False]),
            "is_static": np.bool_(True),
        },
    ]
    back = to_rows(to_table(rows))
    assert back[0]["name"] == "é"
    assert back[0]["n"] == 3
    assert back[0]["none"] is None
    assert back[1]["is_static"] is True
    for ours, theirs in zip(back, rows, strict=True):
        assert set(ours) == set(theirs)
        np.testing.assert_array_equal(ours["x"], theirs["x"])
        assert ours["x"].dtype == theirs["x"].dtype
    back[0]["x"][:] = 0  # torch.from_numpy wants arrays that can be written


def test_an_array_in_another_layout_keeps_its_values() -> None:
    transposed = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(to_rows(to_table([{"clip_id": "a", "x": transposed}]))[0]["x"], transposed)


def _records(*clips):
    import pyarrow as pa

    from finephys.data.clips import CLIP_SCHEMA

    return pa.Table.from_pylist([clip.to_row() for clip in clips], schema=CLIP_SCHEMA)


def _whole(tables):
    import pyarrow as pa

    return pa.concat_tables(list(tables))


def _with_truth(table):
    return to_table([guarded(use_truth, row) for row in to_rows(table)])


def test_bad_clips_become_errors_and_pass_by() -> None:
    sound = make_clip(0, "train", 16)
    cut = replace(sound, clip_id="cut", video=sound.video[:200])
    empty = replace(sound, clip_id="empty", video=b"")
    lying = replace(make_clip(1, "train", 16), clip_id="lying", height=64)
    long = replace(make_clip(4, "train", 601), clip_id="long")
    short = replace(make_clip(2, "train", 15), clip_id="short")
    table = _whole(decode_with_truth(_records(sound, cut, empty, long, lying, short)))
    sound_rows, failures = collect_rows([_with_truth(table)])
    assert [row["clip_id"] for row in sound_rows] == [sound.clip_id]
    assert [row["clip_id"] for row in failures] == ["cut", "empty", "long", "lying", "short"]
    assert "clip has 601 frames, wanted 16 to 600" in failures[2]["error"]
    assert "(16, 32, 32, 3), the record says (16, 64, 32, 3)" in failures[3]["error"]
    assert "clip has 15 frames, wanted 16 to 600" in failures[4]["error"]
    assert set(failures[0]) == {"clip_id", "error"}


def test_decoded_rows_hold_frames_and_joints() -> None:
    clip = make_clip(0, "train")
    row = to_rows(_whole(decode(_records(clip))))[0]
    assert row["frames"].shape == (8, 32, 32, 3)
    np.testing.assert_array_equal(row["joints_px"], clip.joints_px)
    bare = replace(clip, joints_px=None, joints_confidence=None)
    assert "joints_px" not in to_rows(_whole(decode(_records(bare))))[0]


def test_blocks_are_small_and_hold_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray admits tasks by the size of their blocks: one of 128 MB would leave room for one task."""
    clips = [make_clip(number, "train", 16) for number in range(7)]
    monkeypatch.setattr(decoding, "BLOCK_BYTES", 2 * 16 * 32 * 32 * 3)
    blocks = list(decode(_records(*clips)))
    # The joints beside them take the second clip's block over the limit.
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    assert [row["clip_id"] for row in to_rows(_whole(blocks))] == [clip.clip_id for clip in clips]


# A process with two Ray sessions can die at its exit: the first one's metrics exporter outlives it (Ray 2.60).
SEVERAL_ROW_GROUPS = """
import sys

import ray

from finephys.data import pipeline
from finephys.data.index import index_clips

pipeline.FEWEST_TASKS = 2
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
rows = pipeline.decoded_rows(index_clips(sys.argv[1], "train"))
rows.context.execution_options.preserve_order = True
print(*(row["clip_id"] for row in rows.iter_rows()))
"""


@pytest.mark.ray
def test_tasks_of_several_row_groups_give_every_clip_once_and_in_order(tmp_path: Path) -> None:
    # Three tasks: of four row groups, four and one.
    for shard in range(9):
        write_shard([make_clip(2 * shard + clip, "train") for clip in range(2)], tmp_path / f"train-{shard}.parquet")
    command = [sys.executable, "-c", SEVERAL_ROW_GROUPS, str(tmp_path)]
    output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    assert output.split() == [f"train-{clip:03d}" for clip in range(18)]


ACTORS_ON_A_GPU = """
import sys
import ray
from finephys.config import RowsConfig
from finephys.data import pipeline
from finephys.data.index import index_clips
ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
rows = pipeline.feature_rows(index_clips(sys.argv[1], "train"), "no-such-folder", RowsConfig(actor_gpus=0.5))
try:
    rows.take_all()
except Exception as error:
    print(error)
"""


@pytest.mark.ray
def test_actors_with_a_share_of_a_gpu_start(tmp_path: Path) -> None:
    """Without a GPU that is as far as it goes: Ray accepts the chain, and the actor misses its weights."""
    write_shard([make_clip(0, "train")], tmp_path / "train.parquet")
    command = [sys.executable, "-c", ACTORS_ON_A_GPU, str(tmp_path)]
    output = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
    assert "no-such-folder" in output


def test_truth_in_place_of_detection() -> None:
    clip = make_clip(0, "train", 16)
    row = to_rows(_with_truth(_whole(decode_with_truth(_records(clip)))))[0]
    np.testing.assert_array_equal(row["joints_dd"], clip.joints_cam_m)
    np.testing.assert_array_equal(row["joints_px"], clip.joints_px)
    # rotation is diag(1, -1, -1): the world's down is the camera's +y, as in every upright camera.
    np.testing.assert_array_equal(row["gravity"], [0, 1, 0])
    assert row["is_static"] is True
    assert row["has_truth"] is True
    without = replace(clip, joints_cam_m=None)
    assert "no joints_cam_m" in to_rows(_with_truth(_whole(decode_with_truth(_records(without)))))[0]["error"]


def test_a_clip_without_camera_gets_the_nominal_one() -> None:
    clip = replace(make_clip(0, "train", 16), intrinsics=None, joints_cam_m=None)
    row = to_rows(_whole(decode_with_truth(_records(clip))))[0]
    np.testing.assert_allclose(row["intrinsics"], [[48, 0, 16], [0, 48, 16], [0, 0, 1]])
    assert row["has_truth"] is False
    assert not row["truth_joints_cam_m"].any()


def test_index_clips_finds_the_split(tmp_path: Path) -> None:
    write_clips(tmp_path)
    index = index_clips(str(tmp_path), "train")
    assert index.clip_ids == tuple(f"train-{number:03d}" for number in range(12))
    assert [Path(shard).name for shard in index.shards] == ["train-00.parquet", "train-01.parquet"]
    assert index.evenly(3).clip_ids == ("train-000", "train-006", "train-011")
    assert index.evenly(100) is index


def test_index_clips_refuses_by_name(tmp_path: Path) -> None:
    write_clips(tmp_path)
    with pytest.raises(ValueError, match="no clip in split 'val', it has test, train"):
        index_clips(str(tmp_path), "val")
    write_shard([make_clip(0, "train")], tmp_path / "train-02.parquet")
    with pytest.raises(ValueError, match="clip_id train-000 twice"):
        index_clips(str(tmp_path), "train")
    table = pq.read_table(tmp_path / "train-01.parquet").replace_schema_metadata({VERSION_KEY: b"7"})
    pq.write_table(table, tmp_path / "train-01.parquet")
    with pytest.raises(ValueError, match=r"train-01\.parquet has clip schema version 7"):
        index_clips(str(tmp_path), "train")
    (tmp_path / "train-01.parquet").write_bytes((tmp_path / "train-00.parquet").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"train-01\.parquet cannot be read"):
        index_clips(str(tmp_path), "train")


def test_rows_come_back_from_tables_as_they_were() -> None:
    """Any strides and types, nothing, a scalar; and the bytes are a safetensors file, as the schema says."""
    row = {
        "clip_id": "a",
        "fps": np.float32(2.5),
        "turned": np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 3), np.float16),
        "frame": np.array(7),
    }
    table = to_table([row, {"clip_id": "b", "error": "decode: broken"}])
    back, bad = to_rows(table)
    assert set(back) == set(row)
    for name in ("turned", "flags", "none", "frame"):
        np.testing.assert_array_equal(back[name], row[name], strict=True)
        assert back[name].flags.writeable
    assert back["fps"] == 2.5
    assert bad == {"clip_id": "b", "error": "decode: broken"}
    np.testing.assert_array_equal(safetensors.numpy.load(table["arrays"][0].as_py())["turned"], row["turned"])


def test_hops_keep_errors_untouched() -> None:
    table = to_table([{"clip_id": "bad", "error": "decode: broken"}])
    assert to_rows(_with_truth(table)) == [{"clip_id": "bad", "error": "decode: broken"}]
    assert ROW_SCHEMA.equals(table.schema)


def test_the_feature_chain_feeds_both_stages_of_the_generator(tmp_path: Path) -> None:
    """Hop after hop with untrained parts, a bad clip among good ones; then the stages' own collates."""
    RTMPose(**asdict(RTMPoseConfig())).save_pretrained(tmp_path / "pose_estimator")
    lifter = Lifter(**asdict(LifterConfig()))
    lifter.save_pretrained(tmp_path / "lifter")
    build_vae(VAEConfig()).half().save_pretrained(tmp_path / "vae")
    sound = [make_clip(index, "train", num_frames=36, side=128) for index in range(2)]
    cut = replace(sound[0], clip_id="cut", video=sound[0].video[:200])
    moving = replace(sound[1], clip_id="moving", is_static=None, intrinsics=None, joints_px=None)

    frames = decode_video(sound[0].video).frames_THWC
    frames[7] = 90
    blank = replace(sound[0], clip_id="blank", video=encode_video(frames, 30.0))

    clip_of = {clip.clip_id: clip for clip in (*sound, moving)}
    table = _whole(decode_with_truth(_records(*sound, cut, moving, blank)))
    rows, failures = collect_rows([MakeFeatures(str(tmp_path))(table)])
    assert [row["clip_id"] for row in failures] == ["blank", "cut"]
    assert failures[0]["error"] == "estimate: nobody is seen in frame 7 of 36"
    assert [row["clip_id"] for row in rows] == ["moving", "train-000", "train-001"]
    for row in rows:
        assert row["latents"].shape == (36, 4, 32, 32)
        assert row["latents"].dtype == np.float16
        assert row["joints_px"].shape == (36, 17, 2)
        assert row["confidence"].shape == (36, 17)
        assert row["joints_dd"].shape == (36, 17, 3)
        assert row["joints_dd"].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(row["gravity"]), 1, atol=1e-5)
        assert row["is_static"] in (True, False)
        assert row["camera_rotation"].shape == (36, 3, 3)
        assert row["camera_zoom"].shape == (36,)
        # Where the body is: as the record says, else as detected (nothing moves in these clips).
        of_record = clip_of[row["clip_id"]].joints_px
        np.testing.assert_array_equal(row["body_px"], row["joints_px"] if of_record is None else of_record)
        assert "frames" not in row

    rng = np.random.default_rng(0)
    assert collate_frames(rows, rng)["latents_BFChw"].shape == (3, 1, 4, 32, 32)
    batch = collate(rows, rng)
    assert batch["latents_BFChw"].shape == (3, 16, 4, 32, 32)
    assert batch["joints_dd_BTJ3"].shape[1] in (16, 32)
    assert all(value.isfinite().all() for value in batch.values() if value.is_floating_point())
