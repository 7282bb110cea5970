"""Boxes and crops: pixels land where they should, and boxes follow the body."""

import cv2
import numpy as np
import pytest

from finephys.pose.crops import boxes_from_motion, boxes_from_pose, crop_to_frame, cut_crop, rotation, trunk_angle
from finephys.pose.estimator import Pose2D
from finephys.skeleton import JOINT_NAMES

CROP_SIZE = (128, 96)


def test_a_crop_of_the_whole_frame_is_the_frame() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    to_frame = crop_to_frame(np.array([24.0, 32.0]), 64.0, (64, 48))
    np.testing.assert_array_equal(cut_crop(frame, to_frame, (64, 48)), frame)


@pytest.mark.parametrize("height_px", [40.0, 90.0, 400.0, 700.0])
def test_a_blob_is_seen_where_the_matrix_says(height_px: float) -> None:
    """Also where the frame is averaged before it is sampled (400 and 700 px into 128)."""
    place_px = np.array([203.3, 171.7])
    rows, columns = np.mgrid[:360, :420] + 0.5
    sigma = max(3.0, height_px / 60)
    blob = np.exp(-((columns - place_px[0]) ** 2 + (rows - place_px[1]) ** 2) / (2 * sigma**2))
    frame = np.repeat((255 * blob).round().astype(np.uint8)[..., None], 3, 2)
    to_frame = crop_to_frame(place_px + np.array([0.11, -0.07]) * height_px, height_px, CROP_SIZE)
    crop = cut_crop(frame, to_frame, CROP_SIZE)[..., 0].astype(float)
    crop_rows, crop_columns = np.mgrid[: CROP_SIZE[0], : CROP_SIZE[1]] + 0.5
    seen = np.array([(crop * crop_columns).sum(), (crop * crop_rows).sum()]) / crop.sum()
    np.testing.assert_allclose(to_frame[:, :2] @ seen + to_frame[:, 2], place_px, atol=0.02 * height_px / 8)


def test_motion_finds_the_one_who_moves_in_a_large_frame() -> None:
    rng = np.random.default_rng(0)
    background = rng.integers(60, 90, (360, 640, 3), np.uint8)
    cv2.rectangle(background, (40, 60), (120, 330), (240, 240, 240), -1)  # a bright spectator who rests
    centres = np.stack([np.linspace(250, 560, 40), 200 + 60 * np.sin(np.linspace(0, 6, 40))], -1)
    frames = np.stack([background] * 40)
    for frame, (x, y) in zip(frames, centres.astype(int)):
        cv2.ellipse(frame, (int(x), int(y)), (25, 60), 0, 0, 360, (200, 30, 40), -1)
    boxes = boxes_from_motion(frames, CROP_SIZE)
    assert np.abs(boxes.centre_px - centres).max() < 30
    assert (boxes.height_px > 120).all()
    assert (boxes.height_px < 330).all()


def test_a_small_or_still_video_is_seen_whole() -> None:
    small = boxes_from_motion(np.zeros((5, 128, 200, 3), np.uint8), CROP_SIZE)
    np.testing.assert_allclose(small.centre_px, np.tile([100, 64], (5, 1)))
    np.testing.assert_allclose(small.height_px, 200 * 128 / 96)
    still = boxes_from_motion(np.full((5, 720, 480, 3), 77, np.uint8), CROP_SIZE)
    np.testing.assert_allclose(still.height_px, 720)


def test_boxes_follow_the_pose_through_frames_where_it_was_lost_or_wrong() -> None:
    rng = np.random.default_rng(1)
    body = rng.uniform(-30, 30, (17, 2))
    centres = np.stack([np.linspace(100, 200, 30), np.full(30, 150.0)], -1)
    joints = (centres[:, None] + body).astype(np.float32)
    confidence = np.full((30, 17), 0.9, np.float32)
    confidence[10] = 0.05  # not seen
    joints[20] += 400  # someone else
    before = boxes_from_motion(np.zeros((30, 300, 300, 3), np.uint8), CROP_SIZE)
    boxes = boxes_from_pose(Pose2D(joints, confidence), before, CROP_SIZE)
    from_centre = (centres[:, None] + body) - boxes.centre_px[:, None]
    inside = np.abs(np.einsum("tab,tja->tjb", rotation(boxes.angle), from_centre)).max(1)
    assert (inside[:, 1] < boxes.height_px / 2).all()
    assert (inside[:, 0] < boxes.height_px / 2 * 96 / 128).all()
    assert (boxes.height_px < 200).all()


def test_a_body_that_turns_over_is_upright_in_its_boxes() -> None:
    rng = np.random.default_rng(2)
    body = rng.uniform(-20, 20, (17, 2))
    body[0], body[JOINT_NAMES.index("thorax")] = [0, 10], [0, -15]
    angle = np.linspace(0, 2 * np.pi, 20)  # as a somersault: 19 degrees a frame
    joints = (np.einsum("tab,jb->tja", rotation(angle), body) + 150).astype(np.float32)
    confidence = np.full((20, 17), 0.9, np.float32)
    joints[7] = joints[7] * [1, -1] + [0, 300]  # one frame the wrong way up, and the detector not sure of it
    confidence[7] = 0.31
    before = boxes_from_motion(np.zeros((20, 300, 300, 3), np.uint8), CROP_SIZE)
    boxes = boxes_from_pose(Pose2D(joints.astype(np.float32), confidence), before, CROP_SIZE)
    for frame in range(20):
        to_frame = crop_to_frame(boxes.centre_px[frame], boxes.height_px[frame], CROP_SIZE, boxes.angle[frame])
        true_px = body @ rotation(angle[frame]).T + 150
        seen_px = (true_px - to_frame[:, 2]) @ np.linalg.inv(to_frame[:, :2]).T
        assert abs(np.degrees(trunk_angle(seen_px))) < 20
        assert (seen_px > 0).all()
        assert (seen_px < np.array(CROP_SIZE)[::-1]).all()


def test_boxes_stay_where_no_pose_was_found() -> None:
    before = boxes_from_motion(np.zeros((4, 300, 300, 3), np.uint8), CROP_SIZE)
    nothing = Pose2D(np.zeros((4, 17, 2), np.float32), np.zeros((4, 17), np.float32))
    assert boxes_from_pose(nothing, before, CROP_SIZE) is before
