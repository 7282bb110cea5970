"""What S_dd says of a motion, and how Phys-Net's network sees it.

Path:    inside PhysNet
Letters: B clips, T frames, J = 17 joints, P = 16 points (joints without the root), N features
Units:   metre, second
Frames:  camera, x right, y down, z forward; gravity as a vector in it
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from finephys.physics.body import NUM_POINTS, STANDARD_GRAVITY, Body, center_of_mass, on_body
from finephys.physics.trajectory import acceleration, velocity
from finephys.skeleton import NUM_JOINTS


@dataclass(frozen=True)
class Observed:
    """What S_dd says, smoothed and on constant bones.

    x_BTP3, v_BTP3, a_BTP3: points, m, m/s, m/s^2.  height_BTP: above the frame's lowest point.  up_B3 unit.
    gravity_B3: m/s^2.  center_a_BT3: of the centre of mass.
    """

    x_BTP3: Tensor
    v_BTP3: Tensor
    a_BTP3: Tensor
    height_BTP: Tensor
    up_B3: Tensor
    gravity_B3: Tensor
    center_a_BT3: Tensor


def observe(body: Body, smooth_BTP3: Tensor, bones_B: Tensor, gravity_B3: Tensor, dt_s_B: Tensor) -> Observed:
    """Of smoothed points (m, camera frame), put on bones_B (16 lengths of each clip); gravity_B3 points down."""
    x_BTP3 = on_body(smooth_BTP3, bones_B[:, None])
    up_B3 = -functional.normalize(gravity_B3, dim=-1)
    height_BTP = (x_BTP3 * up_B3[:, None, None]).sum(-1)
    a_BTP3 = acceleration(smooth_BTP3, dt_s_B)
    return Observed(
        x_BTP3=x_BTP3,
        v_BTP3=velocity(x_BTP3, dt_s_B),
        a_BTP3=a_BTP3,
        height_BTP=height_BTP - height_BTP.amin(-1, keepdim=True),
        up_B3=up_B3,
        gravity_B3=-STANDARD_GRAVITY * up_B3,
        center_a_BT3=center_of_mass(body, a_BTP3),
    )


def scaled(seen: Observed, scale_B: Tensor) -> Observed:
    """The same motion, larger and farther away."""
    scale_B111 = scale_B[:, None, None, None]
    return replace(
        seen,
        x_BTP3=scale_B111 * seen.x_BTP3,
        v_BTP3=scale_B111 * seen.v_BTP3,
        a_BTP3=scale_B111 * seen.a_BTP3,
        height_BTP=scale_B111[..., 0] * seen.height_BTP,
        center_a_BT3=scale_B111[..., 0] * seen.center_a_BT3,
    )


def features(
    seen: Observed, joints_dd_BTJ3: Tensor, rays_BTJ2: Tensor, confidence_BTJ: Tensor, is_static_B: Tensor
) -> Tensor:
    """What the network sees, each of order one. Nothing here says where the body is, only how it moves."""
    num_clips, num_frames = confidence_BTJ.shape[:2]
    root_BT13 = joints_dd_BTJ3[:, :, :1]
    depth_BT11 = root_BT13[..., 2:].clamp_min(0.1)
    scene_B = torch.cat([seen.gravity_B3 / STANDARD_GRAVITY, is_static_B[:, None].to(confidence_BTJ)], -1)
    parts = [
        ((joints_dd_BTJ3 - root_BT13) / 0.3).flatten(2),
        (seen.v_BTP3 / 3.0).flatten(2),
        (seen.a_BTP3 / 20.0).flatten(2),
        ((rays_BTJ2 - rays_BTJ2[:, :, :1]) * depth_BT11 / 0.3).flatten(2),
        ((seen_rays(joints_dd_BTJ3) - rays_BTJ2) * depth_BT11 / 0.05).flatten(2),
        confidence_BTJ,
        seen.height_BTP / 0.5,
        (seen.center_a_BT3 - seen.gravity_B3[:, None]) / STANDARD_GRAVITY,
        scene_B[:, None].expand(num_clips, num_frames, -1),
    ]
    # A lost joint can be anywhere in the image; its size must not drown the rest.
    return torch.cat(parts, -1).clamp(-5.0, 5.0)


def num_features() -> int:
    """N of `features`."""
    return NUM_JOINTS * (3 + 2 + 2 + 1) + NUM_POINTS * (3 + 3 + 1) + 3 + 4


def seen_rays(joints_BTJ3: Tensor) -> Tensor:
    """(X/Z, Y/Z) of joints in the camera frame; what is at the camera or behind it as if 0.1 m before it."""
    return joints_BTJ3[..., :2] / joints_BTJ3[..., 2:].clamp_min(0.1)
