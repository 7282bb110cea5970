"""Pull each frame's body towards what the image shows, on bones of constant length: one Gauss-Newton step.

Path:    inside PhysNet
Solves:  min over x of  sum_j u_j |Z (pi(x_j) - ray_j)|^2 + k sum_bones (|d| - L)^2 + sum_p r_p |x_p - x0_p|^2
Letters: B clips, T frames, J = 17 joints, P = 16 points
Units:   metre; rays are normalised image coordinates (X/Z, Y/Z)

Frames are independent here, so that the normal equations are one batch of 48x48 Cholesky factorisations; time is the
business of trajectory.py, and the two alternate. Each joint's image error counts in metres at the body's depth, through
Geman and McClure's weight: a mirrored or lost joint is off by decimetres and is to count for nothing in the end.
"""

import torch
from torch import Tensor

from finephys.physics.body import NUM_POINTS, Body, joints_of
from finephys.pose.camera import NEAREST_DEPTH_M

# An image error (m at the body) of this counts a quarter: nine times what a good detector's noise is. With the linear
# growth of pseudo-Huber's loss beyond 0.04 m, corrupted detections left the projected joints 2.37 px from the true
# ones, and 2.33 px so (72 corruptions of 24 clips; 1.18 and 1.17 px of the clean ones).
IMAGE_OUTLIER_M = 0.12


def refine(
    body: Body,
    x_BTP3: Tensor,
    rays_BTJ2: Tensor,
    image_weight_BTJ: Tensor,
    lengths_m_BC: Tensor,
    length_weight: float,
    prior_weight_BTP: Tensor,
) -> Tensor:
    """One Gauss-Newton step from x_BTP3 (m, camera frame); weights in 1/m^2; lengths_m_BC of body.CONSTRAINTS."""
    joints = joints_of(x_BTP3)
    spread = joints_of(torch.eye(NUM_POINTS, dtype=x_BTP3.dtype, device=x_BTP3.device))  # (J, P): joints = spread @ x

    depth = joints[..., 2:].clamp_min(NEAREST_DEPTH_M)
    body_depth = depth[..., :1, :].detach()
    seen = joints[..., :2] / depth
    error = body_depth * (seen - rays_BTJ2)
    weight = image_weight_BTJ * (1 + (error / IMAGE_OUTLIER_M).square().sum(-1)).pow(-2)
    # d error / d joint = (body_depth / depth) [1 0 -X/Z; 0 1 -Y/Z], and each joint is a fixed mixture of points.
    eye = torch.eye(2, dtype=x_BTP3.dtype, device=x_BTP3.device).expand(*seen.shape[:-1], 2, 2)
    by_joint = (body_depth / depth)[..., None] * torch.cat([eye, -seen[..., None]], -1)
    image = (by_joint[..., None, :] * spread[:, None, :, None]).flatten(-2).flatten(2, 3)  # (B, T, 2 J, 48)

    along = body.incidence @ x_BTP3
    length = (along.square().sum(-1) + 1e-8).sqrt()
    stretch = length - lengths_m_BC[:, None]
    bones = (body.incidence[:, :, None] * (along / length[..., None])[..., None, :]).flatten(-2)  # (B, T, C, 48)

    rows = torch.cat([image, bones], 2)
    weights = torch.cat([weight.repeat_interleave(2, -1), torch.full_like(stretch, length_weight)], 2)
    errors = torch.cat([error.flatten(2), stretch], 2)
    weighted = (weights[..., None] * rows).transpose(-1, -2)
    hessian = weighted @ rows + torch.diag_embed(prior_weight_BTP.repeat_interleave(3, -1))
    step = torch.cholesky_solve(weighted @ errors[..., None], torch.linalg.cholesky(hessian))
    return x_BTP3 - step.reshape(x_BTP3.shape)
