"""The camera's motion from the background: on a painted panorama, on rendered clips, and where there is none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from finephys.data.clips import Clip, read_shard
from finephys.data.steady import steadied, true_camera_motion
from finephys.data.video import decode_video
from finephys.evaluation.camera import camera_errors
from finephys.evaluation.motion_errors import to_world
from finephys.pose.camera import project
from finephys.pose.camera_estimation import estimate_camera_motion
from finephys.pose.camera_motion import CameraMotion, seen_by_frames, zoomed
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Pose3D

SIDE, FOCAL = 96, 150.0
INTRINSICS = np.array([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1]])


def somebody(num_frames: int) -> Pose2D:
    """A small person in the middle of the image."""
    joints_px = SIDE / 2 + np.random.default_rng(0).normal(0, 6, (1, 17, 2))
    return Pose2D(np.repeat(joints_px, num_frames, 0).astype(np.float32), np.ones((num_frames, 17), np.float32))


def panorama(rotations: np.ndarray, zooms: np.ndarray) -> np.ndarray:
    """Frames (T,SIDE,SIDE,3) of a camera that turns and zooms before a painted wall, with the noise of a sensor."""
    rng = np.random.default_rng(1)
    wall = cv2.GaussianBlur(rng.uniform(0, 255, (400, 400)).astype(np.float32), (0, 0), 3)
    wall = 127 + 6 * (wall - wall.mean())
    to_wall = np.array([[FOCAL, 0, 200], [0, FOCAL, 200], [0, 0, 1]])
    frames = []
    for rotation, zoom in zip(rotations, zooms, strict=True):
        # Pixel centres lie at a half.
        half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
        to_ray = np.linalg.inv(np.diag([zoom, zoom, 1]) @ np.diag([FOCAL, FOCAL, 1])) @ [
            [1, 0, -SIDE / 2],
            [0, 1, -SIDE / 2],
            [0, 0, 1],
        ]
        mapping = np.linalg.inv(half) @ to_wall @ rotation.T @ to_ray @ half
        seen = cv2.warpPerspective(wall, mapping, (SIDE, SIDE), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        frames.append(seen + rng.normal(0, 2, seen.shape))
    return np.repeat(np.clip(frames, 0, 255).astype(np.uint8)[..., None], 3, -1)


def of_label(name: str, *, moves: bool, zooms: bool = False) -> Clip:
    """A held-out clip of the shipped ones."""
    for clip in read_shard(Path("finephys/assets/clips/test-00000.parquet")):
        assert clip.intrinsics is not None
        changes = np.ptp(clip.intrinsics[:, 0, 0]) > 1
        if clip.label_name.startswith(name) and clip.is_static is not moves and changes == zooms:
            return clip
    raise AssertionError(name)


def test_a_painted_wall_gives_the_motion_away() -> None:
    time = np.linspace(-1, 1, 25)
    # On a tripod: panned about the vertical, then tilted.
    turns = Rotation.from_euler("yx", np.stack([14 * time, 3 * np.sin(2 * time)], -1), degrees=True).as_matrix()
    # It looks down by 12 degrees in the middle.
    tilt = Rotation.from_euler("x", 12, degrees=True).as_matrix()
    turns = tilt @ turns @ tilt.T
    zooms = np.exp(0.12 * time)
    camera = estimate_camera_motion(panorama(turns, zooms), somebody(25), INTRINSICS, 30.0)
    assert camera.is_known
    assert not camera.is_static
    true = CameraMotion(turns, zooms, np.zeros(25), True, False)
    turn_deg, zoom = camera_errors(camera, true)
    assert turn_deg.max() < 0.15
    assert zoom.max() < 0.01
    # Where down is follows from what it pans about.
    down = tilt @ [0, 1, 0]
    assert camera.gravity_cam is not None
    lifted = Pose3D(np.zeros((25, 17, 3), np.float32), np.float32([0, 0, 1]), 0.5)
    assert np.degrees(np.arccos(camera.gravity(lifted, 30.0) @ down)) < 0.7
    # The error is about what it says.
    assert turn_deg.mean() < 3 * camera.spread_deg.max()


def test_a_camera_that_stands_is_found_to_stand() -> None:
    camera = estimate_camera_motion(
        panorama(np.repeat(np.eye(3)[None], 20, 0), np.ones(20)), somebody(20), INTRINSICS, 30.0
    )
    assert camera.is_static
    assert np.array_equal(camera.rotation, np.repeat(np.eye(3)[None], 20, 0))


@pytest.mark.parametrize(("name", "zooms"), [("double salto backward tucked", False), ("arabian", True)])
def test_rendered_cameras_that_pan_and_zoom(name: str, zooms: bool) -> None:
    clip = of_label(name, moves=True, zooms=zooms)
    assert clip.joints_px is not None
    assert clip.intrinsics is not None
    true = true_camera_motion(clip)
    assert true is not None
    pose = Pose2D(clip.joints_px, np.ones(clip.joints_px.shape[:2], np.float32))
    middle = clip.intrinsics[clip.num_frames // 2]
    camera = estimate_camera_motion(decode_video(clip.video).frames_THWC, pose, middle, clip.fps)
    assert camera.is_known
    assert not camera.is_static
    turn_deg, zoom = camera_errors(camera, true)
    assert turn_deg.mean() < 0.15 * np.degrees(Rotation.from_matrix(true.rotation).magnitude()).max()
    assert zoom.mean() < 0.05
    # Its own camera takes the motion out of the joints: they are where the middle frame's camera would see them.
    seen_px = camera.stabilise(pose, middle).joints_px
    wanted_px = steadied(clip).joints_px
    assert wanted_px is not None
    moved_px = np.linalg.norm(clip.joints_px - wanted_px, axis=-1).mean()
    assert np.linalg.norm(seen_px - wanted_px, axis=-1).mean() < 0.2 * moved_px


def test_without_background_nothing_is_known() -> None:
    grey = np.full((20, SIDE, SIDE, 3), 128, np.uint8)
    camera = estimate_camera_motion(grey, somebody(20), INTRINSICS, 30.0)
    assert not camera.is_known
    assert not camera.is_static
    assert camera.stabilise(somebody(20), INTRINSICS).joints_px is not None
    assert not estimate_camera_motion(grey[:2], somebody(2), INTRINSICS, 30.0).is_known
    with pytest.raises(ValueError, match="pose has 3 frames, the video 20"):
        estimate_camera_motion(grey, somebody(3), INTRINSICS, 30.0)


def test_steadied_truth_is_the_same_motion_seen_by_one_camera() -> None:
    clip = of_label("arabian", moves=True, zooms=True)
    steady = steadied(clip)
    for one in (clip, steady):
        assert one.joints_cam_m is not None
        assert one.rotation is not None
        assert one.translation is not None
    world, steady_world = (
        to_world(one.joints_cam_m.astype(np.float64), one.rotation, one.translation)  # type: ignore[union-attr,arg-type]
        for one in (clip, steady)
    )
    np.testing.assert_allclose(steady_world, world, atol=1e-4)
    assert steady.intrinsics is not None
    seen_px = project(torch.from_numpy(steady.joints_cam_m), torch.from_numpy(steady.intrinsics))
    np.testing.assert_allclose(steady.joints_px, seen_px, atol=0.02)
    # And back: each frame's camera sees it where it is.
    true = true_camera_motion(clip)
    assert true is not None
    assert clip.intrinsics is not None
    back = seen_by_frames(torch.from_numpy(steady.joints_cam_m), torch.from_numpy(true.rotation))
    middle = torch.from_numpy(clip.intrinsics[clip.num_frames // 2])
    intrinsics = zoomed(middle, torch.from_numpy(true.zoom))
    np.testing.assert_allclose(intrinsics, true.intrinsics(middle.numpy()), rtol=1e-6)
    np.testing.assert_allclose(project(back, intrinsics), clip.joints_px, atol=0.02)
