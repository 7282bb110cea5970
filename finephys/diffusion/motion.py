"""The hops from a driving video to the 3D joints that guide, and the checks on what comes in.

Path:    frames -> Pose2D -> Pose3D (S_dd) -> PhysicsPose (S_pp) -> fused 3D
Letters: T frames, J = 17 joints, H W pixels
Units:   pixel, metre, second
Frames:  camera of the middle frame, x right, y down, z forward; joints that come with a motion are each frame's own
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.guidance.fuse import fuse
from finephys.hops import hop
from finephys.physics.phys_net import PhysNet
from finephys.pose.camera import nominal_intrinsics, project
from finephys.pose.camera_estimation import estimate_camera_motion
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D, PoseEstimator
from finephys.pose.lifting import Lifter
from finephys.skeleton import NUM_JOINTS

# Above this the camera counts as static.
STATIC_PROBABILITY = 0.5


@dataclass(frozen=True)
class Motion:
    """A motion and the hops that it came by; the fields from a video are None where 3D joints were given.

    guiding_TJ3: what guides, absolute, metres, camera frame of the middle frame.  intrinsics (3,3) pixels, of that
    camera.  camera: how those of the other frames differ from it.  image_size (height, width).
    pose2d: detected, pixels of each frame.  joints_dd, joints_pp (T,17,3) metres, gravity_cam (3,) unit: as
    guiding_TJ3.  gate (T,17): share of S_dd.
    """

    guiding_TJ3: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    image_size: tuple[int, int]
    camera: CameraMotion
    pose2d: Pose2D | None = None
    joints_dd: NDArray[np.float32] | None = None
    joints_pp: NDArray[np.float32] | None = None
    gate: NDArray[np.float32] | None = None
    gravity_cam: NDArray[np.float32] | None = None

    def seen_TJ3(self, joints_cam_m: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """What guides, or other joints of this motion, in the camera frame of each frame."""
        return self.camera.to_frames(self.guiding_TJ3 if joints_cam_m is None else joints_cam_m)

    def seen_px(self, joints_cam_m: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Their pixels (T,17,2) in each frame."""
        seen = torch.from_numpy(self.seen_TJ3(joints_cam_m))
        return np.asarray(project(seen, torch.from_numpy(self.camera.intrinsics(self.intrinsics))), np.float32)


def estimate_motion(
    pose_estimator: PoseEstimator,
    lifter: Lifter,
    phys_net: PhysNet,
    video_THWC: NDArray[np.uint8],
    fps: float | None,
    intrinsics: NDArray[np.floating] | None = None,
) -> Motion:
    """Pose, the camera's motion, lifting, physics and fusion on one clip at its own rate.

    video_THWC (T,H,W,3) uint8 RGB, T >= 2; fps of it; intrinsics (3,3) pixels of the middle frame, nominal where None.
    Raises ValueError, naming the argument, on other shapes or types and values that are not finite.
    """
    if video_THWC.dtype != np.uint8 or video_THWC.ndim != 4 or video_THWC.shape[-1] != 3:
        raise ValueError(f"video_THWC is {video_THWC.dtype} {video_THWC.shape}, wanted uint8 (T, H, W, 3)")
    if len(video_THWC) < 2:
        raise ValueError(f"video_THWC has {len(video_THWC)} frames, wanted at least 2")
    fps = _check_fps(fps, "video_THWC")
    height, width = video_THWC.shape[1:3]
    with hop("pose2d"):
        pose2d = pose_estimator.estimate(video_THWC)
        known = _checked_intrinsics(intrinsics, height, width)
        camera = estimate_camera_motion(video_THWC, pose2d, known, fps)
    return motion_of_pose(lifter, phys_net, pose2d, (height, width), fps, known, camera)


def motion_of_pose(
    lifter: Lifter,
    phys_net: PhysNet,
    pose2d: Pose2D,
    image_size: tuple[int, int],
    fps: float | None,
    intrinsics: NDArray[np.floating] | None = None,
    camera: CameraMotion | None = None,
) -> Motion:
    """Lifting, physics and fusion of joints that were found in frames of image_size (height, width).

    pose2d: T >= 2 frames at `fps`; intrinsics (3,3) pixels of the middle frame, nominal where None.
    camera: how it moves; where None it counts as one that does not, if the lifter takes it for still.
    Raises ValueError, naming the argument, on other shapes and, as Lifter.lift does, on values that are not finite.
    """
    if pose2d.joints_px.ndim != 3 or pose2d.joints_px.shape[1:] != (NUM_JOINTS, 2) or len(pose2d.joints_px) < 2:
        raise ValueError(
            f"pose2d.joints_px has shape {pose2d.joints_px.shape}, wanted (T, {NUM_JOINTS}, 2) with T at least 2"
        )
    if pose2d.confidence.shape != pose2d.joints_px.shape[:2]:
        raise ValueError(f"pose2d.confidence has shape {pose2d.confidence.shape}, wanted {pose2d.joints_px.shape[:2]}")
    fps = _check_fps(fps, "pose2d")
    middle = _checked_intrinsics(intrinsics, *image_size)
    steady = pose2d if camera is None else camera.stabilise(pose2d, middle)
    with hop("pose3d"):
        pose3d = lifter.lift(steady, middle, fps)
    if camera is None:
        is_still = bool(pose3d.static_probability > STATIC_PROBABILITY)
        camera = CameraMotion.still(len(pose2d.joints_px), is_known=is_still)
    gravity_cam = camera.gravity(pose3d, fps)
    device = phys_net.device

    def clip_batch(array: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None].to(device)

    joints_dd = clip_batch(pose3d.joints_cam_m)
    with torch.no_grad(), hop("physics"):
        physics = phys_net(
            joints_dd,
            clip_batch(steady.joints_px),
            clip_batch(steady.confidence),
            clip_batch(middle),
            clip_batch(gravity_cam),
            torch.tensor([1 / fps], device=device),
            torch.tensor([camera.is_known], device=device),
        )
    with torch.no_grad(), hop("fuse"):
        fused = fuse(joints_dd, physics.joints_pp_BTJ3, physics.gate_BTJ)
    return Motion(
        guiding_TJ3=fused[0].float().cpu().numpy(),
        intrinsics=middle,
        image_size=image_size,
        camera=camera,
        pose2d=pose2d,
        joints_dd=pose3d.joints_cam_m,
        joints_pp=physics.joints_pp_BTJ3[0].float().cpu().numpy(),
        gate=physics.gate_BTJ[0].float().cpu().numpy(),
        gravity_cam=gravity_cam,
    )


def given_motion(
    joints_cam_m: NDArray[np.floating],
    intrinsics: NDArray[np.floating] | None,
    image_size: tuple[int, int],
    is_camera_static: bool = True,
) -> Motion:
    """A 3D joint sequence as a motion; it guides as it is.

    joints_cam_m (T,17,3) metres, in the camera frame of each frame; intrinsics (3,3), or (T,3,3) of a camera that
    zooms, for an image of image_size, nominal where None.
    Raises ValueError, naming the argument, on other shapes, values that are not finite, and persons behind the camera.
    """
    if joints_cam_m.ndim != 3 or joints_cam_m.shape[1:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints_cam_m has shape {joints_cam_m.shape}, wanted (T, {NUM_JOINTS}, 3)")
    if len(joints_cam_m) == 0:
        raise ValueError("joints_cam_m has 0 frames, wanted at least 1")
    bad = ~np.isfinite(joints_cam_m).all((1, 2))
    if bad.any():
        raise ValueError(f"joints_cam_m is not finite in frame {int(bad.argmax())}")
    if (joints_cam_m[..., 2] <= 0).all():
        raise ValueError("joints_cam_m is behind the camera in all frames, wanted positive z")
    num_frames = len(joints_cam_m)
    zoom = np.ones(num_frames, np.float32)
    if intrinsics is not None and np.ndim(intrinsics) == 3:
        if len(intrinsics) != num_frames or not np.isfinite(intrinsics).all():
            raise ValueError(f"intrinsics have shape {np.shape(intrinsics)}, wanted finite ({num_frames}, 3, 3)")
        zoom = np.asarray(intrinsics[:, 0, 0] / intrinsics[num_frames // 2, 0, 0], np.float32)
        intrinsics = intrinsics[num_frames // 2]
    return Motion(
        guiding_TJ3=np.ascontiguousarray(joints_cam_m, np.float32),
        intrinsics=_checked_intrinsics(intrinsics, *image_size),
        image_size=image_size,
        # Each frame's joints are in its own camera's frame already: only the zoom is left to draw by.
        camera=replace(CameraMotion.still(num_frames, is_known=is_camera_static), zoom=zoom),
    )


def _check_fps(fps: float | None, of: str) -> float:
    if fps is None or not np.isfinite(fps) or fps <= 0:
        raise ValueError(f"fps is {fps}, wanted the frames per second of {of}")
    return fps


def _checked_intrinsics(intrinsics: NDArray[np.floating] | None, height: int, width: int) -> NDArray[np.float32]:
    if intrinsics is None:
        return np.asarray(nominal_intrinsics(height, width).numpy(), np.float32)
    if np.shape(intrinsics) != (3, 3) or not np.isfinite(intrinsics).all():
        raise ValueError(f"intrinsics are {np.asarray(intrinsics).tolist()}, wanted a finite (3, 3) matrix")
    return np.asarray(intrinsics, np.float32)
