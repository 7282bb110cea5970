"""Smooth a body's motion in a frame that turns with it.

Path:    inside PhysNet
Letters: B clips, T frames, P = 16 points
Units:   metre, second

Smoothing places in the camera's frame pulls what turns towards the axis of its turning: over 0.06 s it takes a fifth
off the radius of what turns at 12 rad/s, as a tucked salto does, and half at 17. So the turning that all of the body
has in common is taken out first: its spin I^-1 L, angular momentum over inertia, of calmer points, integrated over
time. Any slowly changing frame will do, for what is left of the turning is smoothed as before. Errors of held-out
aerials over S_dd's went from 0.844 to 0.802 with it, and of their accelerations from 12.25 to 11.93 m/s^2.
"""

import torch
from torch import Tensor

from finephys.physics.body import Body, angular_momentum, center_of_mass, inertia
from finephys.physics.trajectory import per_clip, smooth, velocity

# Of the points that the spin is read off, and of the spin: what is left of their noise would shake the frame. From 0.04
# to 0.07 s errors of held-out aerials are the same to half a point.
SPIN_SMOOTHING_S = 0.05
# kg m^2, of a body of 50 kg; held-out ones have 0.4 or more about their long axis. One that was lifted to a line, and
# has none about it, does not spin about it.
LEAST_INERTIA = 0.005


def smooth_turning(body: Body, x_BTP3: Tensor, dt_s_B: Tensor, time_constant_s: float) -> Tensor:
    """trajectory.smooth of the centre of mass, and of the points about it in the frame that turns with the body.

    x_BTP3: m, the sixteen points, T >= 2. A rigid body that turns steadily passes unchanged but near its ends.
    Differentiable, the frame taken as given.
    """
    # Where the frame is shows only in what is smoothed away.
    with torch.no_grad():
        frame_BT33 = _turning_frame(body, x_BTP3, dt_s_B)
    center_BT13 = center_of_mass(body, x_BTP3)[:, :, None]
    turned_BTP3 = (x_BTP3 - center_BT13) @ frame_BT33
    return smooth(turned_BTP3, dt_s_B, time_constant_s) @ frame_BT33.mT + smooth(center_BT13, dt_s_B, time_constant_s)


def _turning_frame(body: Body, x_BTP3: Tensor, dt_s_B: Tensor) -> Tensor:
    """(B, T, 3, 3): its axes are columns, in the camera's frame, which it starts as."""
    eye_33 = torch.eye(3, dtype=x_BTP3.dtype, device=x_BTP3.device)
    calm_BTP3 = smooth(x_BTP3, dt_s_B, SPIN_SMOOTHING_S)
    momentum_BT3 = angular_momentum(body, calm_BTP3, velocity(calm_BTP3, dt_s_B))
    spin_BT3 = torch.linalg.solve(inertia(body, calm_BTP3) + LEAST_INERTIA * eye_33, momentum_BT3)
    spin_BT3 = smooth(spin_BT3[:, :, None], dt_s_B, SPIN_SMOOTHING_S)[:, :, 0]

    turn_BK3 = 0.5 * (spin_BT3[:, 1:] + spin_BT3[:, :-1]) * per_clip(dt_s_B, spin_BT3)
    # Row i is turn x e_i, column i of the matrix that turns.
    rate_BK33 = torch.linalg.cross(turn_BK3[:, :, None], eye_33[None, None]).mT
    frame_BT33 = torch.cat([eye_33.expand(len(x_BTP3), 1, 3, 3), torch.linalg.matrix_exp(rate_BK33)], 1)
    # The products of all steps up to each frame, of twice as many each time.
    reach = 1
    while reach < frame_BT33.shape[1]:
        frame_BT33 = torch.cat([frame_BT33[:, :reach], frame_BT33[:, reach:] @ frame_BT33[:, :-reach]], 1)
        reach *= 2
    return frame_BT33
