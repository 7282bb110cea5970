"""Clips that no gymnastics hall ever saw: a correct result or a ValueError that says what was wrong."""

import cv2
import numpy as np
import pytest
import torch

from finephys.pose.lifting import Lifter
from finephys.pose.rtmpose import RTMPose

ASSETS = "finephys/assets/pipeline"


@pytest.fixture(scope="module")
def estimator() -> RTMPose:
    return RTMPose.from_pretrained(ASSETS, subfolder="pose_estimator", torch_dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "shape", [(1, 128, 128, 3), (3, 97, 61, 3), (4, 640, 360, 3), (2, 20, 300, 3)], ids=["one", "odd", "tall", "wide"]
)
def test_any_size_gives_finite_joints(estimator: RTMPose, shape: tuple[int, ...]) -> None:
    pose = estimator.estimate(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    assert pose.joints_px.shape == (shape[0], 17, 2)
    assert np.isfinite(pose.joints_px).all()
    assert ((pose.confidence >= 0) & (pose.confidence <= 1)).all()


def test_boxes_stay_with_the_one_who_moves_among_several(estimator: RTMPose) -> None:
    """Two dummies rest and one crosses the hall: the crops follow that one."""
    from finephys.pose.crops import boxes_from_motion

    frames = np.full((30, 300, 600, 3), 90, np.uint8)
    for x in (60, 540):
        cv2.ellipse(frames[0], (x, 150), (30, 90), 0, 0, 360, (230, 200, 180), -1)
    frames[:] = frames[0]
    xs = np.linspace(150, 450, 30)
    for frame, x in zip(frames, xs):
        cv2.ellipse(frame, (int(x), 150), (25, 70), 0, 0, 360, (200, 30, 40), -1)
    boxes = boxes_from_motion(frames, estimator.crop_size)
    assert np.abs(boxes.centre_px[:, 0] - xs).max() < 40


def test_ten_thousand_frames_with_gaps_are_lifted() -> None:
    from finephys.pose.estimator import Pose2D

    lifter = Lifter.from_pretrained(ASSETS, subfolder="lifter", torch_dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    joints_px = (64 + rng.normal(0, 15, (17, 2)) + rng.normal(0, 1, (10_000, 17, 2))).astype(np.float32)
    joints_px[3000:3100] = np.nan
    intrinsics = np.array([[190, 0, 64], [0, 190, 64], [0, 0, 1]], np.float32)
    lifted = lifter.lift(Pose2D(joints_px, np.full((10_000, 17), 0.9, np.float32)), intrinsics, 30.0)
    assert np.isfinite(lifted.joints_cam_m).all()
