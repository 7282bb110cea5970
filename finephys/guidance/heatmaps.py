"""Draw the projected skeleton as maps that a UNet can read: joints, limbs, and how near each limb is.

Path:    joints_px, depth -> maps
Letters: B clips, F frames, J = 17 joints, L = 16 limbs (the bones), C channels, H W cells of a map
Units:   pixel of the image (first pixel's centre at 0.5) in, cells of the map inside; depth in metres, root at 0
Draws:   joint  exp(-|p - x_j|^2 / 2 s_j^2)
         limb   exp(-dist(p, segment_l)^2 / 2 s_l^2)
         depth  limb * tanh(z / 0.5 m), z interpolated along the segment; negative is nearer than the root
Everything is float32 and differentiable in joints and depth, so that the denoising loss reaches whatever made them.

FinePhys (arXiv:2505.13437) draws joints and limbs from 2D. We add one depth map a limb: which of two crossing limbs is
in front is what 2D pose cannot say and 3D can, and the depth must stay with its limb to say it.
"""

import torch
from torch import Tensor

from finephys.skeleton import BONES, NUM_BONES, NUM_JOINTS

# A joint's and a limb's spread in cells: under a cell aliases, over one blurs neighbouring limbs into each other.
JOINT_SIGMA_CELLS = 0.8
LIMB_SIGMA_CELLS = 0.6

# Depth at which the drawn value reaches tanh(1) = 0.76: about an arm's length.
DEPTH_SCALE_M = 0.5

NUM_GUIDANCE_CHANNELS = NUM_JOINTS + 2 * NUM_BONES

# A limb's half-width as a share of the longest bone drawn (a thigh of 0.42 m is some 0.2 m wide with its margin).
BODY_RADIUS_SHARE = 0.25

# Segments shorter than this many cells count as points: keeps the projection on them finite.
_SHORT_SEGMENT_CELLS = 1e-2


def heatmaps(
    joints_px_BFJ2: Tensor, depth_BFJ: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]
) -> Tensor:
    """Joint, limb and depth maps of a skeleton.

    joints_px_BFJ2 (..., 17, 2), pixels of an image of image_size (height, width); depth_BFJ (..., 17), metres relative
    to the root, positive away from the camera; map_size (height, width) in cells.
    Returns maps (..., 49, height, width) float32: 17 joints in [0, 1], 16 limbs in [0, 1], 16 limb depths in (-1, 1).
    Any leading dimensions do, usually (B, F). A joint outside the image draws what of it reaches in.
    Raises ValueError on another joint count or shapes that do not belong together.
    """
    _check_joints(joints_px_BFJ2)
    if depth_BFJ.shape != joints_px_BFJ2.shape[:-1]:
        raise ValueError(f"depth has shape {tuple(depth_BFJ.shape)}, wanted {tuple(joints_px_BFJ2.shape[:-1])}")
    joints = _in_cells(joints_px_BFJ2, image_size, map_size)
    rows, columns = _cell_centres(map_size, joints.device)

    # A Gaussian is separable: exp over a row and a column instead of over every cell.
    across = torch.exp(-((columns - joints[..., 0:1]) ** 2) / (2 * JOINT_SIGMA_CELLS**2))
    along = torch.exp(-((rows - joints[..., 1:2]) ** 2) / (2 * JOINT_SIGMA_CELLS**2))
    joint_maps = along[..., :, None] * across[..., None, :]

    squared_distance, position = _distance_to_segments(joints, rows, columns)
    limb_maps = torch.exp(-squared_distance / (2 * LIMB_SIGMA_CELLS**2))

    depth = depth_BFJ.float()
    parents, children = _bone_ends(joints.device)
    depth_parent, depth_child = depth[..., parents, None, None], depth[..., children, None, None]
    limb_depth = torch.lerp(depth_parent, depth_child, position)
    depth_maps = limb_maps * torch.tanh(limb_depth / DEPTH_SCALE_M)

    return torch.cat([joint_maps, limb_maps, depth_maps], dim=-3)


def relative_depth(joints_cam_m: Tensor) -> Tensor:
    """Depth of joints (..., J, 3) in the camera frame relative to the root, (..., J), metres; positive is farther."""
    depth: Tensor = joints_cam_m[..., 2] - joints_cam_m[..., :1, 2]
    return depth


def body_mask(joints_px_BFJ2: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Where the body is, roughly: 1 inside BODY_RADIUS_SHARE of the longest bone around any limb, fading to 0 outside.

    joints_px_BFJ2 (..., 17, 2) as for `heatmaps`. Returns (..., 1, height, width) float32 in [0, 1], without gradient:
    it weighs losses, so that no rendered silhouette is needed.
    """
    with torch.no_grad():
        distance, longest = limb_distances(joints_px_BFJ2, image_size, map_size)
        # Never thinner than half a cell, or a far body would weigh nothing.
        radius = (BODY_RADIUS_SHARE * longest).clamp_min(0.5)[..., None, None]
        # One cell of fade outside the radius.
        mask: Tensor = (1.0 - (distance.amin(-3) - radius)).clamp(0.0, 1.0).unsqueeze(-3)
        return mask


def limb_distances(
    joints_px_BFJ2: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """How far each cell is from each limb, (..., 16, height, width), and the longest limb drawn, (...); both in cells.

    joints_px_BFJ2 (..., 17, 2) as for `heatmaps`.
    """
    _check_joints(joints_px_BFJ2)
    joints = _in_cells(joints_px_BFJ2, image_size, map_size)
    rows, columns = _cell_centres(map_size, joints.device)
    squared_distance, _ = _distance_to_segments(joints, rows, columns)
    parents, children = _bone_ends(joints.device)
    longest: Tensor = (joints[..., children, :] - joints[..., parents, :]).norm(dim=-1).amax(-1)
    return squared_distance.sqrt(), longest


def _check_joints(joints_px: Tensor) -> None:
    if joints_px.ndim < 2 or joints_px.shape[-2:] != (NUM_JOINTS, 2):
        raise ValueError(f"joints_px has shape {tuple(joints_px.shape)}, wanted (..., {NUM_JOINTS}, 2)")


def _in_cells(joints_px: Tensor, image_size: tuple[int, int], map_size: tuple[int, int]) -> Tensor:
    """Pixel positions (x, y) as positions in cells: the image's edge is the map's edge."""
    (image_height, image_width), (map_height, map_width) = image_size, map_size
    if min(*image_size, *map_size) < 1:
        raise ValueError(f"image_size {image_size} and map_size {map_size} must be at least 1 by 1")
    scale = joints_px.new_tensor([map_width / image_width, map_height / image_height], dtype=torch.float32)
    return joints_px.float() * scale


def _cell_centres(map_size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    height, width = map_size
    return torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5


def _bone_ends(device: torch.device) -> tuple[Tensor, Tensor]:
    parents, children = torch.tensor(BONES, device=device).unbind(1)
    return parents, children


def _distance_to_segments(joints: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance (..., L, H, W) of each cell's centre to each limb, and where along it (0 parent, 1 child)."""
    parents, children = _bone_ends(joints.device)
    start = joints[..., parents, :]
    direction = joints[..., children, :] - start
    squared_length = (direction**2).sum(-1).clamp_min(_SHORT_SEGMENT_CELLS**2)[..., None, None]
    start_x, start_y = start[..., 0, None, None], start[..., 1, None, None]
    direction_x, direction_y = direction[..., 0, None, None], direction[..., 1, None, None]
    from_start_x = columns[None, :] - start_x
    from_start_y = rows[:, None] - start_y
    position = ((from_start_x * direction_x + from_start_y * direction_y) / squared_length).clamp(0.0, 1.0)
    squared_distance = (from_start_x - position * direction_x) ** 2 + (from_start_y - position * direction_y) ** 2
    return squared_distance, position
