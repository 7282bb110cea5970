"""What a judge counts, measured on joint trajectories alone: turns, somersaults, twists, angles; and momentum.

Letters: T frames, J = 17 joints;  Units: metre, second, degree;  Frames: world, y up
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from finephys.physics.body import Body, angular_momentum, center_of_mass, points_of
from finephys.skeleton import JOINT_NAMES

FLOATS = NDArray[np.float64]


def joint(joints_m: FLOATS, name: str) -> FLOATS:
    """One joint's path (T,3)."""
    return joints_m[:, JOINT_NAMES.index(name)]


def unit(vectors: FLOATS) -> FLOATS:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def angle_deg(first: FLOATS, second: FLOATS) -> FLOATS:
    """Angles (T,) between vectors (T,3)."""
    return np.degrees(np.arccos(np.clip((unit(first) * unit(second)).sum(-1), -1, 1)))


def limb(joints_m: FLOATS, start: str, end: str) -> FLOATS:
    return joint(joints_m, end) - joint(joints_m, start)


def split_deg(joints_m: FLOATS) -> FLOATS:
    """Angle (T,) between the thighs."""
    return angle_deg(limb(joints_m, "right_hip", "right_knee"), limb(joints_m, "left_hip", "left_knee"))


def knee_deg(joints_m: FLOATS, side: str) -> FLOATS:
    """Inner angle (T,) of a knee: 180 straight."""
    return angle_deg(limb(joints_m, f"{side}_knee", f"{side}_hip"), limb(joints_m, f"{side}_knee", f"{side}_ankle"))


def hip_deg(joints_m: FLOATS, side: str) -> FLOATS:
    """Angle (T,) between trunk and thigh: 180 stretched."""
    return angle_deg(limb(joints_m, "root", "thorax"), limb(joints_m, f"{side}_hip", f"{side}_knee"))


def pelvis_frames(joints_m: FLOATS) -> FLOATS:
    """Forward, up, right (T,3,3) in columns, of the pelvis."""
    up, right = unit(limb(joints_m, "root", "spine")), unit(limb(joints_m, "left_hip", "right_hip"))
    up = unit(up - (up * right).sum(-1, keepdims=True) * right)
    return np.stack([np.cross(up, right), up, right], -1)


def forward_deg(joints_m: FLOATS, side: str) -> FLOATS:
    """How far (T,) a thigh is in front of the pelvis's own down, negative behind."""
    thigh = np.einsum("tab,ta->tb", pelvis_frames(joints_m), unit(limb(joints_m, f"{side}_hip", f"{side}_knee")))
    return np.degrees(np.arctan2(thigh[:, 0], -thigh[:, 1]))


def turns(joints_m: FLOATS) -> float:
    """How often the hips turn about the vertical, positive to the left."""
    right = limb(joints_m, "left_hip", "right_hip")
    return float(np.ptp(np.unwrap(np.arctan2(right[:, 0], right[:, 2]))[[0, -1]])) / (2 * np.pi)


def somersaults_and_twists(joints_m: FLOATS, fps: float) -> tuple[float, float]:
    """Counts of a flight, unsigned: of the trunk about the angular momentum, of the hips about the trunk.

    A twist is what the hips turn about the body's length beyond what going over on a cone turns them.
    """
    frames = pelvis_frames(joints_m)
    towards = unit(momentum(joints_m, fps).mean(0))
    length = frames[..., 1]
    across = length - (length @ towards)[:, None] * towards
    sweep = np.arctan2(np.cross(across[:-1], across[1:]) @ towards, (across[:-1] * across[1:]).sum(-1))
    steps = Rotation.from_matrix(np.swapaxes(frames[:-1], -1, -2) @ frames[1:]).as_rotvec()
    somersaults = sweep.sum() / (2 * np.pi)
    twists = steps[:, 1].sum() / (2 * np.pi) - somersaults * (length @ towards).mean()
    return abs(float(somersaults)), abs(float(twists))


def centre(joints_m: FLOATS) -> FLOATS:
    """Centre of mass (T,3) by finephys.physics."""
    x = torch.from_numpy(joints_m)
    return center_of_mass(Body.from_joints(x), points_of(x)).numpy()


def momentum(joints_m: FLOATS, fps: float) -> FLOATS:
    """Angular momentum (T-2,3) of a body of 50 kg by finephys.physics, from central differences."""
    x = torch.from_numpy(joints_m)
    body = Body.from_joints(x)
    v = 0.5 * fps * (points_of(x)[2:] - points_of(x)[:-2])
    return angular_momentum(body, points_of(x)[1:-1], v).numpy()


def momentum_held(joints_m: FLOATS, fps: float) -> FLOATS:
    """Sums (T-2,) of the sizes of the points' own angular momenta about the centre of mass, of 50 kg."""
    x = torch.from_numpy(joints_m)
    body = Body.from_joints(x)
    points = points_of(x)[1:-1]
    moving = body.mass @ (0.5 * fps * (points_of(x)[2:] - points_of(x)[:-2]))
    arms = points - center_of_mass(body, points)[:, None]
    return torch.linalg.vector_norm(torch.linalg.cross(arms, moving), dim=-1).sum(-1).numpy()


def flights(in_flight: NDArray[np.bool_]) -> list[slice]:
    """The stretches of flight."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], in_flight.astype(int), [0]])))
    return [slice(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
