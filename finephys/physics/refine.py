"""Pull each frame's body towards what the image shows, on bones of constant length: one Gauss-Newton step.

Path:    inside PhysNet
Solves:  min over x of  sum_j u_j |Z (pi(x_j) - ray_j)|^2 + k sum_bones (|d| - L)^2 + sum_p r_p |x_p - x0_p|^2
Letters: B clips, T frames, J = 17 joints, P = 16 points
Units:   metre; rays are normalised image coordinates (X/Z, Y/Z)

Frames are independent here, so that the normal equations are one batch of 48x48 Cholesky factorisations; time is the
business of trajectory.py, and the two alternate. Each joint's image error counts in metres at the body's depth, through
a pseudo-Huber weight, since a mirrored or lost joint is off by decimetres.
"""

import torch
from torch import Tensor

from finephys.physics.body import NUM_POINTS, Body, joints_of
from finephys.pose.camera import NEAREST_DEPTH_M

# Image errors (m at the body) beyond this count linearly: three times what a good detector's noise is.
IMAGE_OUTLIER_M = 0.04


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
    weight = image_weight_BTJ * (1 + (error / IMAGE_OUTLIER_M).square().sum(-1)).rsqrt()
    # d error / d joint = (body_depth / depth) [1 0 -X/Z; 0 1 -Y/Z]
    eye = torch.eye(2, dtype=x_BTP3.dtype, device=x_BTP3.device).expand(*seen.shape[:-1], 2, 2)
    jacobian = (body_depth / depth)[..., None] * torch.cat([eye, -seen[..., None]], -1)
    weighted = weight[..., None, None] * jacobian
    curvature = weighted.transpose(-1, -2) @ jacobian
    gradient = spread.T @ (weighted.transpose(-1, -2) @ error[..., None])[..., 0]
    # Each joint is a fixed mixture of points, so its 3x3 block lands on each pair of them.
    pairs = (spread[:, :, None] * spread[:, None, :]).flatten(1)
    hessian = (curvature.flatten(-2).transpose(-1, -2) @ pairs).unflatten(-1, (NUM_POINTS, NUM_POINTS))
    hessian = hessian.unflatten(-3, (3, 3)).permute(0, 1, 4, 2, 5, 3).flatten(4).flatten(2, 3)

    along = body.incidence @ x_BTP3
    length = (along.square().sum(-1) + 1e-8).sqrt()
    direction = along / length[..., None]
    stretch = length - lengths_m_BC[:, None]
    bones = (body.incidence[:, :, None] * direction[..., :, None, :]).flatten(-2)  # (B, T, C, 48)
    hessian = hessian + length_weight * (bones.transpose(-1, -2) @ bones)
    gradient = gradient + length_weight * (body.incidence.T @ (stretch[..., None] * direction))

    hessian = hessian + torch.diag_embed(prior_weight_BTP.repeat_interleave(3, -1))
    factor = torch.linalg.cholesky(hessian)
    step = torch.cholesky_solve(gradient.flatten(-2)[..., None], factor)
    return x_BTP3 - step.reshape(x_BTP3.shape)
