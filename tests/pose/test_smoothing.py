"""Smoothing over time keeps what moves smoothly, and forgets what one frame alone says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finephys.pose.estimator import Pose2D
from finephys.pose.smoothing import smooth_pose


def flight(num_frames: int = 20) -> NDArray[np.float32]:
    """17 joints that fly along parabolas (T, 17, 2)."""
    rng = np.random.default_rng(0)
    place, velocity, acceleration = (rng.normal(0, size, (17, 2)) for size in (20, 2, 0.2))
    frame_T11 = np.arange(num_frames)[:, None, None]
    return (60 + place + velocity * frame_T11 + 0.5 * acceleration * frame_T11**2).astype(np.float32)


def sure(joints_px: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.full(joints_px.shape[:2], 0.9, np.float32)


def test_a_flight_stays_as_it_is_to_its_ends() -> None:
    joints_px = flight()
    smooth = smooth_pose(Pose2D(joints_px, sure(joints_px)))
    np.testing.assert_allclose(smooth.joints_px, joints_px, atol=1e-2)
    assert smooth.joints_px.dtype == np.float32


def test_a_swapped_frame_and_a_joint_without_confidence_follow_their_neighbours() -> None:
    joints_px = flight()
    found_px, confidence = joints_px.copy(), sure(joints_px)
    found_px[9, 3], found_px[9, 6] = joints_px[9, 6], joints_px[9, 3]
    found_px[14, 10] += 40
    confidence[14, 10] = 0
    before_px = np.linalg.norm(found_px - joints_px, axis=-1)
    smooth = smooth_pose(Pose2D(found_px, confidence))
    after_px = np.linalg.norm(smooth.joints_px - joints_px, axis=-1)
    assert before_px[9, [3, 6]].min() > 15
    assert after_px[9, [3, 6]].max() < 0.15 * before_px[9, [3, 6]].max()
    assert after_px[14, 10] < 0.1
    # Their neighbours do not follow them.
    assert after_px[[8, 10]][:, [3, 6]].max() < 2


def test_noise_becomes_less() -> None:
    joints_px = flight(40)
    noise_px = np.random.default_rng(1).normal(0, 1, joints_px.shape).astype(np.float32)
    smooth = smooth_pose(Pose2D(joints_px + noise_px, sure(joints_px)))
    assert np.square(smooth.joints_px - joints_px).mean() < 0.6 * np.square(noise_px).mean()


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_few_frames_and_no_confidence_at_all(num_frames: int) -> None:
    joints_px = flight(num_frames)
    smooth = smooth_pose(Pose2D(joints_px, np.zeros(joints_px.shape[:2], np.float32)))
    np.testing.assert_allclose(smooth.joints_px, joints_px, atol=0.5)
