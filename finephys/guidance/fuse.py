"""Blend the data-driven and the physical motion, joint by joint, about the physical centre of mass.

Path:    Pose3D + PhysicsPose -> fused joints
Letters: B clips, T frames, J = 17 joints
Units:   metre, camera frame

The gate decides on shape only: both motions are taken relative to their own centre of mass, and the fused one is put
back on the physical one, so that what mechanics fixed about the flight of the body survives the fusion.
"""

import torch
from torch import Tensor

from finephys.physics.body import Body, center_of_mass, points_of

# Weights of the centre of mass do not depend on the body's size.
_BODY = Body.from_anthropometry(mass_kg=50.0, height_m=1.6)


def fuse(joints_dd_BTJ3: Tensor, joints_pp_BTJ3: Tensor, gate_BTJ: Tensor) -> Tensor:
    """fused_BTJ3: gate * S_dd + (1 - gate) * S_pp about the centre of mass, which stays that of S_pp.

    joints_*_BTJ3 in metres, camera frame; gate_BTJ in 0..1, the share of S_dd. Differentiable in all three.
    Raises ValueError where the shapes disagree.
    """
    if joints_dd_BTJ3.shape != joints_pp_BTJ3.shape or gate_BTJ.shape != joints_dd_BTJ3.shape[:-1]:
        raise ValueError(
            f"joints_dd {tuple(joints_dd_BTJ3.shape)}, joints_pp {tuple(joints_pp_BTJ3.shape)} and gate "
            f"{tuple(gate_BTJ.shape)} do not belong together, wanted (B, T, 17, 3) twice and (B, T, 17)"
        )
    center_pp_BT13 = _center(joints_pp_BTJ3)
    shape_dd_BTJ3 = joints_dd_BTJ3 - _center(joints_dd_BTJ3)
    shape_pp_BTJ3 = joints_pp_BTJ3 - center_pp_BT13
    shape_BTJ3 = torch.lerp(shape_pp_BTJ3, shape_dd_BTJ3, gate_BTJ[..., None].to(shape_pp_BTJ3))
    return shape_BTJ3 - _center(shape_BTJ3) + center_pp_BT13


def _center(joints_BTJ3: Tensor) -> Tensor:
    return center_of_mass(_BODY, points_of(joints_BTJ3))[..., None, :]
