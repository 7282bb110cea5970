"""New motions out of old ones: the upper body, arms and legs of one motion on the pelvis of another.

Path:    (training only) joints in the world of several motions of one performer -> joints of one new motion
Letters: T frames, J = 17 joints
Units:   metre, radian
Frames:  world

Some twenty recordings are few: a lifter learns them by heart, and what stands behind it to trust it too much. Parts
exchanged between motions are never seen twice (Li et al., "Cascaded deep monocular 3D human pose estimation with
evolutionary training data", CVPR 2020, does it to single poses). Bones keep their lengths, since all is of one
performer. Whoever keeps their legs keeps their contacts with the floor.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from finephys.skeleton import JOINT_NAMES

FLOATS = NDArray[np.float64]
Limb = Literal["upper_body", "left_arm", "right_arm", "left_leg", "right_leg"]

# Standard deviation of how far a part is turned at its joint besides, about each axis; half of it comes and goes.
_SWING = 0.3
# Times a second that it comes and goes.
_SWING_HZ = (0.2, 1.2)


@dataclass(frozen=True)
class _Part:
    """joints hang on `anchor`, and are carried in a frame of the axis from `right` to `left` and of that from `base` to
    `top`."""

    joints: tuple[int, ...]
    anchor: int
    left: int
    right: int
    base: int
    top: int


def _part(anchor: str, joints: tuple[str, ...], across: str, base: str, top: str) -> _Part:
    names = [anchor, f"left_{across}", f"right_{across}", base, top]
    anchor_joint, left, right, base_joint, top_joint = (JOINT_NAMES.index(name) for name in names)
    return _Part(tuple(JOINT_NAMES.index(name) for name in joints), anchor_joint, left, right, base_joint, top_joint)


_PARTS: dict[Limb, _Part] = {
    "upper_body": _part("root", JOINT_NAMES[JOINT_NAMES.index("spine") :], "hip", "root", "spine"),
    "left_arm": _part("left_shoulder", ("left_elbow", "left_wrist"), "shoulder", "spine", "thorax"),
    "right_arm": _part("right_shoulder", ("right_elbow", "right_wrist"), "shoulder", "spine", "thorax"),
    "left_leg": _part("left_hip", ("left_knee", "left_ankle"), "hip", "root", "spine"),
    "right_leg": _part("right_hip", ("right_knee", "right_ankle"), "hip", "root", "spine"),
}
# Whole before part: an arm hangs on the upper body.
LIMBS = tuple(_PARTS)


def graft(rng: np.random.Generator, limb: Limb, joints_m: FLOATS, donor_m: FLOATS, fps: float) -> FLOATS:
    """joints_m (T,17,3) with a limb of donor_m (T,17,3), of the same performer, turned a little besides.

    The limb moves against the pelvis, or the chest, as the donor's does.
    """
    part = _PARTS[limb]
    joints, anchor = list(part.joints), part.anchor
    time_s = np.arange(len(joints_m)) / fps
    phase, rate = rng.uniform(0, 2 * np.pi, 3), 2 * np.pi * rng.uniform(*_SWING_HZ, 3)
    come_and_go = np.sin(phase + rate * time_s[:, None])
    swing = Rotation.from_rotvec(_SWING * np.sqrt(0.5) * (rng.normal(size=3) + np.sqrt(2) * come_and_go)).as_matrix()
    turned = _frame(joints_m, part) @ swing @ _frame(donor_m, part).transpose(0, 2, 1)
    limb_m = np.einsum("tab,tjb->tja", turned, donor_m[:, joints] - donor_m[:, [anchor]])
    grafted_m = joints_m.copy()
    grafted_m[:, joints] = joints_m[:, [anchor]] + limb_m
    return grafted_m


def _frame(joints_m: FLOATS, part: _Part) -> FLOATS:
    """Axes (T,3,3) in columns: across, up, ahead."""
    across = _unit(joints_m[:, part.left] - joints_m[:, part.right])
    ahead = _unit(np.cross(across, joints_m[:, part.top] - joints_m[:, part.base]))
    return np.stack([across, np.cross(ahead, across), ahead], -1)


def _unit(vectors: FLOATS) -> FLOATS:
    unit: FLOATS = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit
