"""The physics evaluation: errors of motions known in closed form, and one page from shipped clips."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import Clip, read_shard, write_shard
from finephys.evaluation import evaluate_physics
from finephys.evaluation.evaluate_physics import GROUPS, evaluate, group_of
from finephys.evaluation.figures import write_figures
from finephys.evaluation.motion_errors import (
    acceleration_error,
    flight_calls,
    flight_f1,
    floor_f1,
    interval,
    motion_errors,
    ratio_of,
    to_world,
)
from finephys.physics.phys_net import PhysNet
from tests.evaluation.conftest import _STANDING

ASSETS = Path("finephys/assets")
FPS = 30.0


def _falling_clip() -> tuple[np.ndarray, Clip]:
    """A stiff body in free fall, before a camera that turns meanwhile; its joints in the world, and the clip."""
    time_s = np.arange(20) / FPS
    body = np.array(list(_STANDING.values()))
    path = np.stack([0.5 * time_s, 3 * time_s - 0.5 * 9.80665 * time_s**2, 0 * time_s], -1)
    world = body + path[:, None]
    angle = 0.8 * time_s
    zero, one = np.zeros_like(angle), np.ones_like(angle)
    turn = np.stack(
        [np.cos(angle), zero, -np.sin(angle), zero, -one, zero, np.sin(angle), zero, np.cos(angle)], -1
    ).reshape(-1, 3, 3)
    translation = np.broadcast_to([0.1, 1.0, 5.0], (20, 3))
    camera = np.einsum("tab,tjb->tja", turn, world) + translation[:, None]
    clip = Clip(
        clip_id="falling",
        split="test",
        subset="FX-JUMP",
        label=12,
        label_name="split jump",
        prompt="",
        video=b"",
        fps=FPS,
        num_frames=20,
        height=128,
        width=128,
        joints_cam_m=camera.astype(np.float32),
        rotation=turn.astype(np.float32),
        translation=translation.astype(np.float32),
        is_static=False,
        in_flight=np.ones(20, bool),
    )
    return world, clip


def test_the_truth_of_a_fall_seen_by_a_turning_camera_obeys_gravity() -> None:
    world, clip = _falling_clip()
    assert clip.joints_cam_m is not None
    assert clip.rotation is not None
    assert clip.translation is not None
    np.testing.assert_allclose(to_world(clip.joints_cam_m, clip.rotation, clip.translation), world, atol=1e-5)
    errors = motion_errors(clip.joints_cam_m, clip)
    assert errors.mpjpe_mm == pytest.approx(0, abs=1e-3)
    assert errors.flight_residual_m_s2 < 0.01
    assert errors.bone_std_mm < 0.001


def test_errors_put_in_are_measured() -> None:
    _, clip = _falling_clip()
    assert clip.joints_cam_m is not None
    assert clip.rotation is not None
    time_s = np.arange(20) / FPS
    # The whole body pushed up at 2 m/s^2 in the world: nothing else changes.
    lift = np.einsum("tab,b->ta", clip.rotation, [0, 1, 0]) * time_s[:, None] ** 2
    errors = motion_errors(clip.joints_cam_m + lift[:, None], clip)
    assert errors.flight_residual_m_s2 == pytest.approx(2, abs=0.02)
    assert errors.mpjpe_mm == pytest.approx(0, abs=1e-3)
    # One of 17 joints accelerated by 6 m/s^2.
    truth = clip.joints_cam_m.astype(np.float64)
    moved = truth.copy()
    moved[:, 9, 0] += 3 * time_s**2
    assert acceleration_error(moved, truth, FPS) == pytest.approx(6 / 17)


def test_flight_f1_and_intervals() -> None:
    _, clip = _falling_clip()
    called = np.arange(20) < 15
    assert flight_calls(called, clip) == (15, 0, 5, 0)
    counts = np.array([[15, 0, 5, 0], [0, 5, 0, 45]])
    assert flight_f1(counts) == pytest.approx(0.75)
    assert floor_f1(counts) == pytest.approx(0.9)
    assert np.isnan(flight_f1(np.zeros((2, 4), np.int64)))
    values = np.random.default_rng(0).normal(10, 1, 400)
    low, high = interval(values)
    # The standard error of the mean is 0.05.
    assert low == pytest.approx(values.mean() - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * 0.05, abs=0.02)
    assert interval(values) == (low, high)
    # Clips that are all worse by the same share have no spread in their ratio.
    np.testing.assert_allclose(interval(1.1 * values, values), 1.1)
    assert ratio_of(1.1 * values, values) == pytest.approx(1.1)
    assert np.isnan(interval(np.array([1.0, np.nan]))).all()


def test_groups() -> None:
    assert group_of(_falling_clip()[1]) == "aerials"
    assert set(GROUPS) == {"ground", "aerials", "real_flight"}


def test_a_run_writes_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_physics, "NUM_TUNING_CLIPS", 1)
    clips = sorted(read_shard(ASSETS / "clips/test-00000.parquet"), key=lambda clip: clip.num_frames)
    chosen = [next(clip for clip in clips if group_of(clip) == group) for group in ("ground", "real_flight")]
    train = min(read_shard(ASSETS / "clips/train-00000.parquet"), key=lambda clip: clip.num_frames)
    (tmp_path / "data").mkdir()
    write_shard([*chosen, train], tmp_path / "data/clips.parquet")
    pipeline = tmp_path / "pipeline"
    for part in ("pose_estimator", "lifter", "phys_net"):
        shutil.copytree(ASSETS / "pipeline" / part, pipeline / part)
    PhysNet().save_pretrained(pipeline / "phys_net_seed_1")
    # A black box that has not learned anything is S_dd.
    PhysNet(recursion="none").save_pretrained(pipeline / "refiner")
    figures = evaluate(pipeline, str(tmp_path / "data"), tmp_path / "page")
    write_figures(figures, tmp_path / "physics.json")
    of = {figure.name: figure for figure in figures}
    assert of["mpjpe_over_black_box_ground"].value == pytest.approx(of["mpjpe_ratio_ground"].value, rel=1e-5)
    assert of["mpjpe_ratio_ground"].at_most == 0.90
    assert of["flight_residual_m_s2_real_flight"].at_most == 1.5
    assert of["bone_std_mm_real_flight"].value < 15
    assert of["mpjpe_ratio_ground_seed_1"].at_most == 0.90
    assert of["mpjpe_ratio_ground_seed_1"].value != of["mpjpe_ratio_ground"].value
    # No such clip was there: not known, not met, and no error.
    assert of["momentum_drift_aerials"].met is False
    assert json.loads((tmp_path / "physics.json").read_text())["momentum_drift_aerials"]["value"] is None
    page = (tmp_path / "page/index.html").read_text()
    for row in (
        "Savitzky-Golay",
        "One-Euro",
        "Whittaker",
        "both directions",
        "without bones",
        "without forces",
        "fused_seed_1",
    ):
        assert row in page
    assert (tmp_path / "page/comparison.png").is_file()


def test_missing_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "lifter").mkdir()
    with pytest.raises(FileNotFoundError, match="phys_net"):
        evaluate(tmp_path, "finephys/assets/clips", tmp_path / "page")
