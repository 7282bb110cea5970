"""The pinhole camera that lifting, physics and guidance share.

Path:    Pose3D -> joints_px
Letters: J joints; leading dimensions broadcast
Units:   pixel (x right, y down, centre of the first pixel at 0.5), metre
Frames:  camera, x right, y down, z forward
"""

import torch
from torch import Tensor

# Nearer than this a joint is taken to be at this depth: behind the camera there is no projection, and gradients
# must stay finite while a network still learns.
NEAREST_DEPTH_M = 0.05

# A side of the image over the focal length: 2 atan(1 / (2 * 1.5)) = 37 degrees, between a phone's main camera and a
# broadcast zoom. The demo's cameras see 20 to 45 degrees.
NOMINAL_FOCAL_OVER_SIDE = 1.5


def project(joints_cam_m: Tensor, intrinsics: Tensor) -> Tensor:
    """Where joints are seen: u = fx X/Z + cx, v = fy Y/Z + cy; differentiable.

    joints_cam_m (..., J, 3) metres in the camera frame, intrinsics (..., 3, 3) in pixels -> joints_px (..., J, 2).
    Depths below NEAREST_DEPTH_M are raised to it.
    """
    depth_m = joints_cam_m[..., 2:].clamp_min(NEAREST_DEPTH_M)
    focal_px, centre_px = focal_and_centre(intrinsics)
    return focal_px * joints_cam_m[..., :2] / depth_m + centre_px


def unproject(joints_px: Tensor, intrinsics: Tensor) -> Tensor:
    """The rays of pixels, as (X/Z, Y/Z): the inverse of project up to depth.

    joints_px (..., J, 2), intrinsics (..., 3, 3) -> (..., J, 2), no unit.
    """
    focal_px, centre_px = focal_and_centre(intrinsics)
    return (joints_px - centre_px) / focal_px


def focal_and_centre(intrinsics: Tensor) -> tuple[Tensor, Tensor]:
    """(fx, fy) and (cx, cy) of intrinsics (..., 3, 3), each (..., 1, 2) so that they broadcast over joints."""
    focal_px = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], -1)
    return focal_px[..., None, :], intrinsics[..., None, :2, 2]


def nominal_intrinsics(height: int, width: int) -> Tensor:
    """Intrinsics (3, 3) float32 to assume for an image of height x width pixels of which none are known."""
    focal_px = NOMINAL_FOCAL_OVER_SIDE * max(height, width)
    return torch.tensor([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
