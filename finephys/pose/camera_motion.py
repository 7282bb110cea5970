"""How the camera of each frame differs from the middle frame's, and joints as one still camera would see them.

Path:    Pose2D -> Pose2D of a still camera -> lifting, physics -> back to each frame
Letters: B clips, T frames, J = 17 joints
Units:   pixel (x right, y down, centre of the first pixel at 0.5), metre
Frames:  camera of the middle frame, the clip's reference: x_t = rotation[t] @ x_middle. The camera does not travel, as
         on a tripod: then pixels of one frame follow from those of another whatever their depth.

Where the motion comes from: camera_estimation.py; the true one from a clip's record: finephys/data/steady.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finephys.pose.estimator import Pose2D
from finephys.pose.floor import level_floor
from finephys.pose.lifting import Pose3D


@dataclass(frozen=True)
class CameraMotion:
    """How the camera of each frame differs from the middle frame's.

    rotation (T,3,3) float32; zoom (T,) float32, focal length over the middle frame's; spread_deg (T,) float32, expected
    error of the turn.  is_known: whether the background showed it; if not, rotation and zoom are those of a still
    camera and mechanics must not be asked of what they stabilise.  is_static: it neither turns nor zooms.
    gravity_cam (3,) float32 unit: down, where the axis about which a level camera pans shows it; else None.
    """

    rotation: NDArray[np.float32]
    zoom: NDArray[np.float32]
    spread_deg: NDArray[np.float32]
    is_known: bool
    is_static: bool
    gravity_cam: NDArray[np.float32] | None = None

    @classmethod
    def still(cls, num_frames: int, *, is_known: bool = True) -> "CameraMotion":
        """A camera that does not move, or of which nothing is known."""
        return cls(
            rotation=np.repeat(np.eye(3, dtype=np.float32)[None], num_frames, 0),
            zoom=np.ones(num_frames, np.float32),
            spread_deg=np.full(num_frames, 0.0 if is_known else np.inf, np.float32),
            is_known=is_known,
            is_static=is_known,
        )

    @classmethod
    def of_cameras(cls, rotation: NDArray[np.floating], intrinsics: NDArray[np.floating]) -> "CameraMotion":
        """The true one, from each frame's world-to-camera rotation (T,3,3) and intrinsics (T,3,3)."""
        middle = len(rotation) // 2
        turn = rotation.astype(np.float64) @ rotation[middle].T.astype(np.float64)
        zoom = intrinsics[:, 0, 0].astype(np.float64) / float(intrinsics[middle, 0, 0])
        if np.abs(turn - np.eye(3)).max() < 1e-5 and np.abs(zoom - 1).max() < 1e-5:
            return cls.still(len(turn))
        return cls(
            rotation=turn.astype(np.float32),
            zoom=zoom.astype(np.float32),
            spread_deg=np.zeros(len(turn), np.float32),
            is_known=True,
            is_static=False,
        )

    def intrinsics(self, middle: NDArray[np.floating]) -> NDArray[np.float32]:
        """Each frame's intrinsics (T,3,3), from those of the middle frame (3,3)."""
        each = np.repeat(np.asarray(middle, np.float32)[None], len(self.zoom), 0)
        each[:, [0, 1], [0, 1]] *= self.zoom[:, None]
        return each

    def stabilise(self, pose: Pose2D, intrinsics: NDArray[np.floating]) -> Pose2D:
        """Joints as the middle frame's camera would see them: pixels of its image, also outside of it.

        intrinsics (3,3) of the middle frame. A joint that lies behind that camera becomes NaN, not seen.
        """
        if self.is_static or not self.is_known:
            return pose
        each = self.intrinsics(intrinsics).astype(np.float64)
        rays = (pose.joints_px - each[:, None, :2, 2]) / each[:, [0, 1], [0, 1]][:, None]
        rays = np.concatenate([rays, np.ones((*pose.confidence.shape, 1))], -1)
        turned = np.einsum("tba,tjb->tja", self.rotation.astype(np.float64), rays)
        depth = np.where(turned[..., 2:] > 0.05, turned[..., 2:], np.nan)
        middle = np.asarray(intrinsics, np.float64)
        px = turned[..., :2] / depth * middle[[0, 1], [0, 1]] + middle[:2, 2]
        return Pose2D(px.astype(np.float32), pose.confidence)

    def gravity(self, lifted: Pose3D, fps: float) -> NDArray[np.float32]:
        """Down (3,): as panning shows it, or as lifted and, where the camera's motion is known, with a level floor."""
        if self.gravity_cam is not None:
            return self.gravity_cam
        return level_floor(lifted, fps) if self.is_known else lifted.gravity_cam

    def to_middle(self, joints_cam_m: NDArray[np.floating]) -> NDArray[np.float32]:
        """Joints (T,J,3), each frame's in its own camera's frame, in the middle frame's."""
        return np.asarray(np.einsum("tba,tjb->tja", self.rotation, joints_cam_m), np.float32)

    def to_frames(self, joints_cam_m: NDArray[np.floating]) -> NDArray[np.float32]:
        """Joints (T,J,3) in the middle frame's camera frame, each frame's in its own."""
        return np.asarray(np.einsum("tab,tjb->tja", self.rotation, joints_cam_m), np.float32)


def seen_by_frames(joints_BTJ3: Tensor, rotation_BT33: Tensor) -> Tensor:
    """CameraMotion.to_frames on tensors: joints of the middle frame's camera in each frame's own; differentiable."""
    return joints_BTJ3 @ rotation_BT33.transpose(-1, -2)


def zoomed(intrinsics_33: Tensor, zoom: Tensor) -> Tensor:
    """CameraMotion.intrinsics on tensors: intrinsics (..., 3, 3) with focal lengths times zoom (...)."""
    scale = torch.stack([zoom, zoom, torch.ones_like(zoom)], -1)[..., None, :]
    return intrinsics_33 * (torch.where(torch.eye(3, dtype=torch.bool, device=zoom.device), scale, 1.0))
