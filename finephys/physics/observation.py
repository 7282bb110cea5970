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

from finephys.physics.body import NUM_POINTS, STANDARD_GRAVITY, Body, center_of_mass, on_body, points_of
from finephys.physics.trajectory import acceleration, smooth, velocity
from finephys.skeleton import NUM_JOINTS

# A foot that leaves the floor was on it within this time, before or after.
FLOOR_S = 0.5
# What the floor's push is read off, which takes a frame or two to vanish: the centre of mass shakes little.
PUSH_SMOOTHING_S = 0.02


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
    body: Body,
    seen: Observed,
    joints_dd_BTJ3: Tensor,
    rays_BTJ2: Tensor,
    confidence_BTJ: Tensor,
    is_static_B: Tensor,
    dt_s_B: Tensor,
) -> Tensor:
    """What the network sees, (B, T, N), each of order one: how the body moves, and nothing of where it is but how high
    above its floor. Joints in metres, rays_BTJ2 X/Z and Y/Z, confidence 0 to 1, is_static_B bool, dt_s_B seconds."""
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
        _clearance(joints_dd_BTJ3, seen.up_B3, dt_s_B)[..., None] / 0.1,
        _push(body, joints_dd_BTJ3, seen, dt_s_B)[..., None] / STANDARD_GRAVITY,
    ]
    # A lost joint can be anywhere in the image; its size must not drown the rest.
    return torch.cat(parts, -1).clamp(-5.0, 5.0)


def num_features() -> int:
    """N of `features`."""
    return NUM_JOINTS * (3 + 2 + 2 + 1) + NUM_POINTS * (3 + 3 + 1) + 3 + 4 + 2


def _clearance(joints_BTJ3: Tensor, up_B3: Tensor, dt_s_B: Tensor) -> Tensor:
    """(B, T) metres: of the lowest joint, above the lowest of all frames within FLOOR_S."""
    height_BT = (joints_BTJ3 * up_B3[:, None, None]).sum(-1).amin(-1)
    frame_T = torch.arange(height_BT.shape[1], device=height_BT.device)
    apart_s_BTT = (frame_T[:, None] - frame_T).abs() * dt_s_B[:, None, None]
    floor_BT = torch.where(apart_s_BTT > FLOOR_S, torch.inf, height_BT[:, None]).amin(-1)
    return height_BT - floor_BT


def _push(body: Body, joints_BTJ3: Tensor, seen: Observed, dt_s_B: Tensor) -> Tensor:
    """(B, T) m/s^2: how hard the floor pushes up, by the centre of mass; 0 in flight, STANDARD_GRAVITY standing."""
    center_BT13 = center_of_mass(body, points_of(joints_BTJ3))[:, :, None]
    a_BT3 = acceleration(smooth(center_BT13, dt_s_B, PUSH_SMOOTHING_S), dt_s_B)[:, :, 0]
    return ((a_BT3 - seen.gravity_B3[:, None]) * seen.up_B3[:, None]).sum(-1)


def seen_rays(joints_BTJ3: Tensor) -> Tensor:
    """(X/Z, Y/Z) of joints in the camera frame; what is at the camera or behind it as if 0.1 m before it."""
    return joints_BTJ3[..., :2] / joints_BTJ3[..., 2:].clamp_min(0.1)
