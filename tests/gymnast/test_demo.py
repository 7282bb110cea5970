"""The demo clips: what the camera sees agrees with the joints, and a seed makes the same clips every time."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import Clip, read_shard
from finephys.data.video import decode_video
from finephys.gymnast.body import performer_mesh, rest_body
from finephys.gymnast.demo import make_clip, num_planned_clips, plan_clips
from finephys.gymnast.mocap import load_capture
from finephys.gymnast.motions import MOTIONS, performers, prompt_for
from finephys.gymnast.render import Renderer, fit_camera, joint_visibility, to_camera, to_pixels

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "finephys" / "assets" / "clips"


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A cartwheel."""
    plan = next(plan for plan in plan_clips(80, 0) if plan.label_name == "cartwheel")
    return make_clip(plan, 0)


def test_joints_project_into_the_silhouette() -> None:
    performer = performers("train", 0)[0]
    size = rest_body(performer.shape).size
    motion = load_capture("cartwheel").motion(10, 48, fps=30, size=size)
    joints_m, mesh = performer_mesh(motion, performer)
    camera = fit_camera(mesh, 128, np.random.default_rng(0))
    renderer = Renderer(performer, "blue", camera, 128, motion.root_m[:, [0, 2]].mean(0))
    num_visible = []
    for frame in range(0, 48, 6):
        image, depth_m = renderer.draw(mesh.vertices_m[frame], mesh.normals[frame])
        assert image.shape == (128, 128, 3)
        pixels = to_pixels(mesh.vertices_m[frame], camera)
        assert pixels.min() > 0
        assert pixels.max() < 128
        joints_px = to_pixels(joints_m[frame], camera)
        column, row = np.floor(2 * joints_px).astype(int).T
        depth_there_m = depth_m[row, column]
        assert (depth_there_m < 50).all(), "a joint lies outside the body's silhouette"
        # Every joint is under the surface that the camera sees, never in front of it.
        assert (to_camera(joints_m[frame], camera)[:, 2] > depth_there_m - 0.01).all()
        num_visible.append(joint_visibility(joints_m[frame], depth_m, renderer).sum())
    assert 8 < np.mean(num_visible) < 17


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


def test_a_clip_depends_on_the_seed_and_its_number_alone() -> None:
    assert plan_clips(3, 0) == plan_clips(50, 0)[:3]
    assert plan_clips(3, 0) != plan_clips(3, 1)
    plan = plan_clips(1, 0)[0]
    first, second = make_clip(plan, 0), make_clip(plan, 0)
    assert first.video == second.video
    assert first.prompt == second.prompt
    np.testing.assert_array_equal(first.joints_px, second.joints_px)


@pytest.mark.xfail(reason="the shipped shards are older than the 35 floor classes: rebuild them, then remove this mark")
def test_shipped_clips_are_whole_and_splits_stay_apart() -> None:
    clips = {split: list(read_shard(SHIPPED / f"{split}-00000.parquet")) for split in ("train", "test")}
    assert sum(map(len, clips.values())) == num_planned_clips()
    assert not {clip.performer for clip in clips["train"]} & {clip.performer for clip in clips["test"]}
    held_out = {name for name, motion in MOTIONS.items() if motion.num_train == 0}
    assert {clip.label_name for clip in clips["test"]} == set(MOTIONS)
    assert {clip.label_name for clip in clips["train"]} == set(MOTIONS) - held_out
    assert max(Counter(clip.clip_id for split in clips.values() for clip in split).values()) == 1
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
def test_bad_input_is_one_line_and_exit_code_2(option: str, value: str, tmp_path: Path) -> None:
    output = [] if option == "--output" else ["--output", str(tmp_path)]
    command = [sys.executable, str(ROOT / "jobs" / "build_demo.py"), option, value, *output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert value in done.stderr
    assert not list(tmp_path.iterdir())
