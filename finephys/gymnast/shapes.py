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


def local_rotations(angles: FLOATS) -> FLOATS:
    """Rotations (N,13,3,3) of parts relative to their parents, of angles (N,24); the pelvis has the identity."""
    angle = dict(zip(ANGLE_NAMES, angles.T, strict=True))
    zero = np.zeros(len(angles))
    local = {
        "pelvis": _ball(zero, zero, zero),
        "chest": _ball(-angle["chest_flex"], angle["chest_side"], angle["chest_turn"]),
        "head": _ball(-angle["head_flex"], angle["head_side"], angle["head_turn"]),
    }
    for side, sign in (("right", -1.0), ("left", 1.0)):

        def of(name: str, side: str = side) -> FLOATS:
            values: FLOATS = angle[f"{side}_{name}"]
            return values

        local[f"{side}_thigh"] = _ball(of("hip"), sign * of("open"), sign * of("turnout"))
        local[f"{side}_shin"] = _ball(-of("knee"), zero, zero)
        local[f"{side}_foot"] = _ball(-of("point"), zero, zero)
        local[f"{side}_upper_arm"] = _ball(of("arm"), sign * of("out"), -sign * of("arm_in"))
        local[f"{side}_forearm"] = _ball(of("elbow"), zero, zero)
    rotations: FLOATS = np.stack([local[name] for name in PART_NAMES], 1)
    return rotations


def angles_of(local: FLOATS) -> FLOATS:
    """The angles (N,24) of part rotations (N,13,3,3) relative to their parents: local_rotations undone.

    Hinges: the turn about their axis alone.
    """
    found: dict[str, FLOATS] = {}
    part = {name: _ball_angles(local[:, index]) for index, name in enumerate(PART_NAMES)}
    for trunk in ("chest", "head"):
        flex, found[f"{trunk}_side"], found[f"{trunk}_turn"] = part[trunk]
        found[f"{trunk}_flex"] = -flex
    for side, sign in (("right", -1.0), ("left", 1.0)):
        hip, opened, turned = part[f"{side}_thigh"]
        arm, out, inward = part[f"{side}_upper_arm"]
        found |= {f"{side}_hip": hip, f"{side}_open": sign * opened, f"{side}_turnout": sign * turned}
        found |= {f"{side}_arm": arm, f"{side}_out": sign * out, f"{side}_arm_in": -sign * inward}
        found[f"{side}_knee"] = -part[f"{side}_shin"][0]
        found[f"{side}_point"] = -part[f"{side}_foot"][0]
        found[f"{side}_elbow"] = part[f"{side}_forearm"][0]
    return np.stack([found[name] for name in ANGLE_NAMES], -1)


def _ball(about_z: FLOATS, about_x: FLOATS, about_y: FLOATS) -> FLOATS:
    """Rz Rx Ry (N,3,3)."""
    cz, sz, cx, sx, cy, sy = (f(a) for a in (about_z, about_x, about_y) for f in (np.cos, np.sin))
    rows = [
        [cz * cy - sz * sx * sy, -sz * cx, cz * sy + sz * sx * cy],
        [sz * cy + cz * sx * sy, cz * cx, sz * sy - cz * sx * cy],
        [-cx * sy, sx, cx * cy],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _ball_angles(rotation: FLOATS) -> tuple[FLOATS, FLOATS, FLOATS]:
    """about_z, about_x, about_y of _ball."""
    about_x = np.arcsin(np.clip(rotation[:, 2, 1], -1, 1))
    about_z = np.arctan2(-rotation[:, 0, 1], rotation[:, 1, 1])
    about_y = np.arctan2(-rotation[:, 2, 0], rotation[:, 2, 2])
    return about_z, about_x, about_y
