"""Body shapes as joint angles: what a tuck, a pike or a split is, and how far joints go.

Path:    (before the path) named angles -> part rotations relative to their parents
Letters: N poses, D = 24 angles, P = 13 parts (finephys/gymnast/mocap.py)
Units:   degree in tables and names, radian in arrays

Angles are zero standing upright with the arms hanging. hip, arm: forward and up;  open, out: sideways, away from the
body;  turnout: the leg outward about its own axis;  arm_in: the arm inward about its own;  knee, elbow: bent;
point: toes pointed;  chest_flex, head_flex: bent forward;  chest_side: to the right;  chest_turn, head_turn: to the
left. A ball joint first turns about the limb's axis, then sideways, then forward: legs that are `open` by a each have
2 a between them whatever their `hip` angle.
"""

import numpy as np
from numpy.typing import NDArray

from finephys.gymnast.mocap import PART_NAMES

FLOATS = NDArray[np.float64]

_TRUNK = ("chest_flex", "chest_side", "chest_turn", "head_flex", "head_side", "head_turn")
_LIMBS = ("hip", "open", "turnout", "knee", "point", "arm", "out", "arm_in", "elbow")
ANGLE_NAMES = (*_TRUNK, *(f"{side}_{name}" for side in ("right", "left") for name in _LIMBS))
NUM_ANGLES = len(ANGLE_NAMES)

# Lowest and highest, degrees. Ordinary people's: hip -30..120, abduction 45, knee 0..145, ankle -20..50, shoulder
# -60..180, elbow 0..150 (Norkin and White, Measurement of Joint Motion, after the AAOS). Gymnasts': the Code of Points
# (FIG, women's artistic gymnastics) wants leaps of 180 degrees and more, ring positions with the foot at the head and
# standing splits, so hips and spine get the room that those need, and pointed toes 80. Under the body's weight ankles
# bend further than lying: up to 50 in lunges (Konor et al., Int. J. Sports Phys. Ther. 7, 2012). Arms beyond sideways
# are arms raised forward.
ANGLE_LIMITS_DEG: dict[str, tuple[float, float]] = {
    "chest_flex": (-75, 75),
    "chest_side": (-35, 35),
    "chest_turn": (-45, 45),
    "head_flex": (-65, 55),
    "head_side": (-40, 40),
    "head_turn": (-80, 80),
    "hip": (-85, 170),
    "open": (-30, 88),
    "turnout": (-55, 80),
    "knee": (0, 155),
    "point": (-50, 80),
    "arm": (-65, 190),
    "out": (-50, 88),
    "arm_in": (-95, 95),
    "elbow": (0, 150),
}


def limits_of(angle_name: str) -> tuple[float, float]:
    """Lowest and highest of one of ANGLE_NAMES, degrees."""
    return ANGLE_LIMITS_DEG[angle_name.removeprefix("right_").removeprefix("left_")]


LOWEST = np.radians([limits_of(name)[0] for name in ANGLE_NAMES])
HIGHEST = np.radians([limits_of(name)[1] for name in ANGLE_NAMES])


def body_shape(base: FLOATS | None = None, /, **degrees: float) -> FLOATS:
    """Angles (24,) radians: `base` (or standing) with some changed, in degrees.

    A limb's angle without "right_" or "left_" before its name goes to both sides.
    Raises ValueError on an unknown name or an angle outside its limits.
    """
    shape = np.zeros(NUM_ANGLES) if base is None else base.copy()
    for name, value in degrees.items():
        places = [index for index, known in enumerate(ANGLE_NAMES) if known in (name, f"right_{name}", f"left_{name}")]
        if not places:
            raise ValueError(f"unknown angle {name!r}, wanted one of: {', '.join((*_TRUNK, *_LIMBS))}")
        low, high = limits_of(name)
        if not low <= value <= high:
            raise ValueError(f"{name} is {value} degrees, wanted {low}..{high}")
        shape[places] = np.radians(value)
    return shape


def _turns() -> FLOATS:
    """(24,39): which angle turns which part about which axis (z, x, y; parts fastest), and with which sign."""
    turns = np.zeros((NUM_ANGLES, 3, len(PART_NAMES)))

    def turn(angle: str, part: str, axis: str, sign: float) -> None:
        turns[ANGLE_NAMES.index(angle), "zxy".index(axis), PART_NAMES.index(part)] = sign

    for trunk in ("chest", "head"):
        for name, axis, sign in (("flex", "z", -1.0), ("side", "x", 1.0), ("turn", "y", 1.0)):
            turn(f"{trunk}_{name}", trunk, axis, sign)
    for side, outward in (("right", -1.0), ("left", 1.0)):
        for name, part, axis, sign in (
            ("hip", "thigh", "z", 1.0),
            ("open", "thigh", "x", outward),
            ("turnout", "thigh", "y", outward),
            ("knee", "shin", "z", -1.0),
            ("point", "foot", "z", -1.0),
            ("arm", "upper_arm", "z", 1.0),
            ("out", "upper_arm", "x", outward),
            ("arm_in", "upper_arm", "y", -outward),
            ("elbow", "forearm", "z", 1.0),
        ):
            turn(f"{side}_{name}", f"{side}_{part}", axis, sign)
    return turns.reshape(NUM_ANGLES, -1)


_TURNS = _turns()


def local_rotations(angles: FLOATS) -> FLOATS:
    """Rotations (N,13,3,3) of parts relative to their parents, of angles (N,24); the pelvis has the identity."""
    turns = (angles @ _TURNS).reshape(len(angles), 3, len(PART_NAMES))
    (cz, cx, cy), (sz, sx, sy) = (np.moveaxis(of(turns), 1, 0) for of in (np.cos, np.sin))
    # Rz Rx Ry.
    rows = [
        [cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy],
        [sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy],
        [-cx * sy, sx, cx * cy],
    ]
    return np.moveaxis(np.array(rows), (0, 1), (-2, -1))


def angles_of(local: FLOATS) -> FLOATS:
    """The angles (N,24) of part rotations (N,13,3,3) relative to their parents: local_rotations undone.

    Hinges: the turn about their axis alone.
    """
    about_z = np.arctan2(-local[..., 0, 1], local[..., 1, 1])
    about_x = np.arcsin(np.clip(local[..., 2, 1], -1, 1))
    about_y = np.arctan2(-local[..., 2, 0], local[..., 2, 2])
    angles: FLOATS = np.concatenate([about_z, about_x, about_y], -1) @ _TURNS.T
    return angles
