"""The demo clips: what the camera sees agrees with the joints, and a seed makes the same clips every time."""

import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from finephys.data.clips import Clip
from finephys.data.gym99 import GYM99_FLOOR
from finephys.data.video import decode_video
from finephys.gymnast.demo import TUMBLED_FRAMES, make_clip, num_planned_clips, plan_clips
from finephys.gymnast.motions import MOTIONS, performers, prompt_for

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "finephys" / "assets" / "clips"


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A cartwheel."""
    plan = next(plan for plan in plan_clips(80, 0) if plan.label_name == "cartwheel")
    return make_clip(plan, 0)


def read_columns(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of a shard without its videos and arrays."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    return rows


def test_the_record_is_consistent(clip: Clip) -> None:
    assert clip.joints_cam_m is not None
    assert clip.intrinsics is not None
    assert clip.joints_px is not None
    homogeneous = np.einsum("tab,tjb->tja", clip.intrinsics, clip.joints_cam_m)
    np.testing.assert_allclose(homogeneous[..., :2] / homogeneous[..., 2:], clip.joints_px, atol=1e-2)
    assert clip.joints_cam_m[..., 2].min() > 1.6
    frames = decode_video(clip.video).frames_THWC
    assert frames.shape == (clip.num_frames, 128, 128, 3)
    assert 32 <= clip.num_frames <= 64
    assert "cartwheel" in clip.prompt


def test_a_plan_depends_on_the_seed_and_its_number_alone() -> None:
    assert plan_clips(3, 0) == plan_clips(50, 0)[:3]
    assert plan_clips(3, 0) != plan_clips(3, 1)


def test_clips_come_the_same_again_and_tumbled_ones_are_others() -> None:
    plan = plan_clips(1, 0)[0]
    before, after = make_clip(plan, 0), make_clip(plan, 0, 1.0)
    # The same clip each time, and each kind its own.
    again, again_tumbled = make_clip(plan, 0, 0.0), make_clip(plan, 0, 1.0)
    assert again.video == before.video != again_tumbled.video == after.video
    assert again.prompt == before.prompt
    np.testing.assert_array_equal(again.joints_px, before.joints_px)
    assert after.num_frames == TUMBLED_FRAMES < before.num_frames
    up = [trunk_up(clip)[:TUMBLED_FRAMES] for clip in (before, after)]
    angle = np.degrees(np.arccos(np.clip((up[0] * up[1]).sum(-1), -1, 1)))
    assert angle.max() > 20
    assert world_joints_m(after)[..., 1].min() > 0


def trunk_up(clip: Clip) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The direction from the root to the thorax (T,3), world."""
    joints_m = world_joints_m(clip)
    up = joints_m[:, 8] - joints_m[:, 0]
    return np.asarray(up / np.linalg.norm(up, axis=-1, keepdims=True))


def world_joints_m(clip: Clip) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert clip.joints_cam_m is not None
    assert clip.rotation is not None
    assert clip.translation is not None
    return np.einsum("tba,tjb->tja", clip.rotation, clip.joints_cam_m - clip.translation[:, None])


def test_shipped_clips_are_whole_and_splits_stay_apart() -> None:
    columns = ["clip_id", "split", "label", "label_name", "performer", "height", "width"]
    clips = {
        split: [row for path in sorted(SHIPPED.glob(f"{split}-*.parquet")) for row in read_columns(path, columns)]
        for split in ("train", "test")
    }
    every = [clip for split in clips.values() for clip in split]
    assert len(every) == num_planned_clips()
    assert all(clip["split"] == split for split in clips for clip in clips[split])
    assert max(Counter(clip["clip_id"] for clip in every).values()) == 1
    # 20 and more of each floor element, and motion capture.
    labels = Counter(clip["label"] for clip in every)
    assert set(labels) == {-1, *GYM99_FLOOR}
    assert min(labels.values()) >= 20
    assert min(clip[side] for clip in every for side in ("height", "width")) >= 128
    assert sum(path.stat().st_size for path in SHIPPED.glob("*.parquet")) < 30e6
    assert not {clip["performer"] for clip in clips["train"]} & {clip["performer"] for clip in clips["test"]}
    held_out = {name for name, motion in MOTIONS.items() if motion.num_train == 0}
    assert {clip["label_name"] for clip in clips["test"]} == set(MOTIONS)
    assert {clip["label_name"] for clip in clips["train"]} == set(MOTIONS) - held_out
    shapes = {split: {person.shape for person in performers(split, 0)} for split in ("train", "test")}  # type: ignore[arg-type]
    assert not shapes["train"] & shapes["test"]


def test_prompts_name_the_looks_and_refuse_unknown_motions() -> None:
    performer = performers("test", 0)[0]
    prompt = prompt_for("backflip", performer, "blue")
    assert prompt.startswith("A gymnast with ")
    assert f"{performer.leotard} leotard" in prompt
    assert prompt.endswith("in a blue hall.")
    assert prompt_for("10") == prompt_for("switch leap")
    assert prompt_for("jump") == "A gymnast crouches, jumps forward with both feet and lands in a squat."
    with pytest.raises(
        ValueError, match=r"unknown motion 'somersault', wanted a gym99 id from 6 to 40 or one of: .*; backfl"
    ):
        prompt_for("somersault")


@pytest.mark.parametrize(("option", "value"), [("--num-clips", "0"), ("--seed", "-1"), ("--output", __file__)])
def test_bad_input_is_one_line_and_exit_code_2(
    option: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if option == "--output" else ["--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["jobs/build_demo.py", option, value, *output])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "jobs" / "build_demo.py"), run_name="__main__")
    assert leaving.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert value in line
    assert not list(tmp_path.iterdir())
