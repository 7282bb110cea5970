"""A floor that slopes under who walks on it tells how gravity is tilted."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from finephys.pose.camera_motion import CameraMotion
from finephys.pose.floor import level_floor
from finephys.pose.lifting import Pose3D
from finephys.skeleton import JOINT_NAMES

FPS = 30.0
RIGHT, LEFT = JOINT_NAMES.index("right_ankle"), JOINT_NAMES.index("left_ankle")


def walked(
    travel_m: float, down: np.ndarray, tilt_deg: float, spread_deg: float | None = 8.0, jump_m: float = 0.0
) -> Pose3D:
    """Somebody walks travel_m away from a camera that looks down by 15 degrees, swinging one foot over the other, and
    jumps on the way; gravity as lifted is tilt_deg off, about the camera's x axis."""
    time_s = np.arange(75) / FPS
    joints = np.zeros((75, 17, 3))
    joints[..., 1] = -1.0
    for ankle, phase in ((RIGHT, 0.0), (LEFT, np.pi)):
        joints[:, ankle, 1] = -0.08 - 0.15 * np.maximum(0.0, np.sin(2 * np.pi * time_s + phase))
        joints[:, ankle, 0] = 0.1 * np.cos(phase)
    joints[30:45, :, 1] -= jump_m
    joints[..., 2] += 5.0 + travel_m * (time_s / time_s[-1] - 0.5)[:, None]
    joints += np.random.default_rng(0).normal(0.0, 0.005, joints.shape)
    camera = Rotation.align_vectors(down[None], [[0.0, 1.0, 0.0]])[0]
    lifted = Rotation.from_euler("x", tilt_deg, degrees=True).apply(down)
    return Pose3D(
        camera.apply(joints.reshape(-1, 3)).reshape(joints.shape).astype(np.float32),
        lifted.astype(np.float32),
        0.9,
        gravity_spread_deg=spread_deg,
    )


def error_deg(gravity: np.ndarray, down: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip(gravity @ down, -1, 1))))


DOWN = np.array([0.0, np.cos(np.radians(15)), np.sin(np.radians(15))])


@pytest.mark.parametrize("tilt_deg", [-10.0, 6.0, 10.0])
def test_who_walks_shows_where_down_is(tilt_deg):
    lifted = walked(2.0, DOWN, tilt_deg)
    gravity = level_floor(lifted, FPS)
    assert error_deg(lifted.gravity_cam, DOWN) == pytest.approx(abs(tilt_deg), abs=0.01)
    assert error_deg(gravity, DOWN) < 0.25 * abs(tilt_deg)
    assert np.linalg.norm(gravity) == pytest.approx(1, abs=1e-6)
    assert gravity.dtype == np.float32


def test_a_jump_is_not_a_ramp():
    assert error_deg(level_floor(walked(2.0, DOWN, 8.0, jump_m=0.4), FPS), DOWN) < 3
    assert error_deg(level_floor(walked(2.0, DOWN, 0.0, jump_m=0.4), FPS), DOWN) < 1


def test_who_stays_or_is_sure_is_left_alone():
    assert error_deg(level_floor(walked(0.0, DOWN, 8.0), FPS), DOWN) == pytest.approx(8, abs=0.5)
    assert error_deg(level_floor(walked(2.0, DOWN, 8.0, spread_deg=0.2), FPS), DOWN) == pytest.approx(8, abs=0.5)
    untold = walked(2.0, DOWN, 8.0, spread_deg=None)
    assert np.array_equal(level_floor(untold, FPS), untold.gravity_cam)


def test_only_one_camera_has_one_floor():
    lifted = walked(2.0, DOWN, 8.0)
    still, unknown = CameraMotion.still(75), CameraMotion.still(75, is_known=False)
    assert np.array_equal(still.gravity(lifted, FPS), level_floor(lifted, FPS))
    assert np.array_equal(unknown.gravity(lifted, FPS), lifted.gravity_cam)
    panned = replace(still, gravity_cam=DOWN.astype(np.float32))
    assert np.array_equal(panned.gravity(lifted, FPS), DOWN.astype(np.float32))


def test_a_camera_that_looks_straight_down():
    down = np.array([0.0, 0.0, 1.0])
    assert error_deg(level_floor(walked(2.0, down, 8.0), FPS), down) < 3
