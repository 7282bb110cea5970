"""The hops from a driving video to the 3D joints that guide, and the checks on what comes in.

Path:    frames -> Pose2D -> Pose3D (S_dd) -> PhysicsPose (S_pp) -> fused 3D
Letters: T frames, J = 17 joints, H W pixels
Units:   pixel, metre, second
Frames:  camera, x right, y down, z forward
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.guidance.fuse import fuse
from finephys.hops import hop
from finephys.physics.phys_net import PhysNet
from finephys.pose.camera import nominal_intrinsics
from finephys.pose.estimator import Pose2D, PoseEstimator
from finephys.pose.lifting import Lifter
from finephys.skeleton import NUM_JOINTS

# Above this the camera counts as static.
STATIC_PROBABILITY = 0.5


@dataclass(frozen=True)
class Motion:
    """A motion and the hops that it came by; the fields from a video are None where 3D joints were given.

    guiding_TJ3: what guides, absolute, metres, camera frame.  intrinsics (3,3) pixels.  image_size (height, width).
    is_static: the camera stands still.
    pose2d: detected.  joints_dd, joints_pp (T,17,3) metres.  gate (T,17): share of S_dd.  gravity_cam (3,) unit.
    """

    guiding_TJ3: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    image_size: tuple[int, int]
    is_static: bool = True
    pose2d: Pose2D | None = None
    joints_dd: NDArray[np.float32] | None = None
    joints_pp: NDArray[np.float32] | None = None
    gate: NDArray[np.float32] | None = None
    gravity_cam: NDArray[np.float32] | None = None


def estimate_motion(
    pose_estimator: PoseEstimator,
    lifter: Lifter,
    phys_net: PhysNet,
    video_THWC: NDArray[np.uint8],
    fps: float | None,
    intrinsics: NDArray[np.floating] | None = None,
) -> Motion:
    """Pose, lifting, physics and fusion on one clip at its own rate.

    video_THWC (T,H,W,3) uint8 RGB, T >= 2; fps of it; intrinsics (3,3) pixels, nominal where None.
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
    return motion_of_pose(lifter, phys_net, pose2d, (height, width), fps, intrinsics)


def motion_of_pose(
    lifter: Lifter,
    phys_net: PhysNet,
    pose2d: Pose2D,
    image_size: tuple[int, int],
    fps: float | None,
    intrinsics: NDArray[np.floating] | None = None,
) -> Motion:
    """Lifting, physics and fusion of joints that were found in frames of image_size (height, width).

    pose2d: T >= 2 frames at `fps`; intrinsics (3,3) pixels, nominal where None.
    Raises ValueError, naming the argument, on other shapes and, as Lifter.lift does, on values that are not finite.
    """
    if pose2d.joints_px.ndim != 3 or pose2d.joints_px.shape[1:] != (NUM_JOINTS, 2) or len(pose2d.joints_px) < 2:
        raise ValueError(
            f"pose2d.joints_px has shape {pose2d.joints_px.shape}, wanted (T, {NUM_JOINTS}, 2) with T at least 2"
        )
    if pose2d.confidence.shape != pose2d.joints_px.shape[:2]:
        raise ValueError(f"pose2d.confidence has shape {pose2d.confidence.shape}, wanted {pose2d.joints_px.shape[:2]}")
    fps = _check_fps(fps, "pose2d")
    camera = _checked_intrinsics(intrinsics, *image_size)
    with hop("pose3d"):
        pose3d = lifter.lift(pose2d, camera, fps)
    device = phys_net.device

    def clip_batch(array: NDArray[np.float32]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32))[None].to(device)

    is_static = bool(pose3d.static_probability > STATIC_PROBABILITY)
    joints_dd = clip_batch(pose3d.joints_cam_m)
    with torch.no_grad(), hop("physics"):
        physics = phys_net(
            joints_dd,
            clip_batch(pose2d.joints_px),
            clip_batch(pose2d.confidence),
            clip_batch(camera),
            clip_batch(pose3d.gravity_cam),
            torch.tensor([1 / fps], device=device),
            torch.tensor([is_static], device=device),
        )
    with torch.no_grad(), hop("fuse"):
        fused = fuse(joints_dd, physics.joints_pp_BTJ3, physics.gate_BTJ)
    return Motion(
        guiding_TJ3=fused[0].float().cpu().numpy(),
        intrinsics=camera,
        image_size=image_size,
        is_static=is_static,
        pose2d=pose2d,
        joints_dd=pose3d.joints_cam_m,
        joints_pp=physics.joints_pp_BTJ3[0].float().cpu().numpy(),
        gate=physics.gate_BTJ[0].float().cpu().numpy(),
        gravity_cam=pose3d.gravity_cam,
    )


def given_motion(
    joints_cam_m: NDArray[np.floating],
    intrinsics: NDArray[np.floating] | None,
    image_size: tuple[int, int],
    is_camera_static: bool = True,
) -> Motion:
    """A 3D joint sequence as a motion; it guides as it is.

    joints_cam_m (T,17,3) metres, camera frame; intrinsics (3,3) for an image of image_size, nominal where None.
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
    return Motion(
        guiding_TJ3=np.ascontiguousarray(joints_cam_m, np.float32),
        intrinsics=_checked_intrinsics(intrinsics, *image_size),
        image_size=image_size,
        is_static=is_camera_static,
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
