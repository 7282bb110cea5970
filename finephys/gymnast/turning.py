"""Turns on one leg: step, rise, spin about the ball of the foot, come to a stand; classes 17 to 23 of gym99.

Path:    (before the path) Turn + Rig -> Turning -> part rotations, mid-hip, contacts at any times
Letters: N times;  side: 0 right, 1 left
Units:   metre, second, radian;  Frames: world, y up, floor at y = 0; she faces +x at first, stands on her left foot

The ball of the supporting foot stays on its spot of the floor; the foot turns with her. The mid-hip is where it puts
the centre of mass above that spot (between both feet while both stand), for nobody spins off balance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation

from finephys.gymnast.attitude import Posed, between, rotations_of
from finephys.gymnast.elements import REFERENCE_HEIGHT_M
from finephys.gymnast.mocap import PART_NAMES
from finephys.gymnast.rig import (
    SIDES,
    Rig,
    bend_leg,
    centre_of_mass,
    chain,
    joints_of_parts,
    reachable_height_m,
    sole_depth_m,
)
from finephys.gymnast.shapes import ANGLE_NAMES, HIGHEST, LOWEST, body_shape, local_rotations

FLOATS = NDArray[np.float64]

_FREE, _SUPPORT = 0, 1
_PUSH_S = 0.16
_CATCH_SHARE = 0.5
# The share of a spin in which she speeds up, and in which she slows down.
_RAMP = 0.22
_ANKLE = {_FREE: 3, _SUPPORT: 6}
_NUM_BALANCING = 6


@dataclass(frozen=True, kw_only=True)
class Turn:
    """A turn: `num_turns` to the left, free leg as in `spinning` all the while.

    ready, raised: angles before the turn, on both feet, and when the free leg has been brought up before it (None: it
    comes up with the first quarter);  rise_deg: how high on the ball of the foot;  lean_deg: the pelvis's, backward;
    prepare_s, spin_s, stop_s: the three parts.
    """

    num_turns: float
    spinning: FLOATS
    ready: FLOATS
    stopped: FLOATS
    prepare_s: float
    spin_s: float
    stop_s: float
    raise_s: float = 0.12
    rise_deg: float = 42.0
    lean_deg: float = 0.0


_READY = body_shape(
    left_hip=38, left_knee=46, right_hip=-22, right_knee=16, right_point=20, chest_flex=6,
    right_arm=62, left_arm=4, out=36, left_out=76, elbow=14,
)  # fmt: skip
_STOPPED = body_shape(left_knee=42, left_hip=31, right_hip=-14, right_knee=16, arm=20, out=80)
_PASSE = body_shape(
    left_knee=3, left_hip=-2, right_hip=62, right_open=12, right_turnout=25, right_knee=112, right_point=62,
    arm=66, out=22, arm_in=35, elbow=62,
)  # fmt: skip
_LEG_AHEAD = body_shape(
    left_knee=4, left_hip=-6, right_hip=92, right_knee=3, right_point=66, arm=84, out=74, elbow=5, chest_flex=8
)
_SPLIT = body_shape(
    left_knee=4, left_hip=-22, right_hip=150, right_open=6, right_knee=3, right_point=66, chest_flex=-4,
    right_arm=158, right_out=4, left_arm=160, left_out=20, elbow=10,
)  # fmt: skip
_TUCK_STAND = body_shape(
    left_hip=118, left_knee=146, right_hip=102, right_knee=5, right_point=62, chest_flex=34, arm=74, out=28, elbow=8
)

TURNS: Mapping[int, Turn] = {
    17: Turn(
        num_turns=2, spinning=_SPLIT, ready=_READY, stopped=_STOPPED, prepare_s=0.45, raise_s=0.36, spin_s=0.95,
        stop_s=0.58, rise_deg=38, lean_deg=16,
    ),
    18: Turn(
        num_turns=2, spinning=_TUCK_STAND, ready=_READY, stopped=_STOPPED, prepare_s=0.55, raise_s=0.36, spin_s=1.1,
        stop_s=0.5, rise_deg=58, lean_deg=-18,
    ),
    19: Turn(
        num_turns=3, spinning=_PASSE, ready=_READY, stopped=_STOPPED, prepare_s=0.4, spin_s=1.4, stop_s=0.36
    ),
    20: Turn(
        num_turns=2, spinning=_PASSE, ready=_READY, stopped=_STOPPED, prepare_s=0.42, spin_s=1.0, stop_s=0.4
    ),
    21: Turn(
        num_turns=1, spinning=_PASSE, ready=_READY, stopped=_STOPPED, prepare_s=0.42, spin_s=0.68, stop_s=0.42
    ),
    22: Turn(
        num_turns=2, spinning=_LEG_AHEAD, ready=_READY, stopped=_STOPPED, prepare_s=0.45, raise_s=0.2, spin_s=1.2,
        stop_s=0.4, lean_deg=6,
    ),
    23: Turn(
        num_turns=1, spinning=_LEG_AHEAD, ready=_READY, stopped=_STOPPED, prepare_s=0.45, raise_s=0.2, spin_s=0.75,
        stop_s=0.4, lean_deg=6,
    ),
}  # fmt: skip


def varied_turn(turn: Turn, rng: np.random.Generator, height_m: float) -> Turn:
    """The turn as somebody of this height does it this time."""
    pace = np.sqrt(height_m / REFERENCE_HEIGHT_M)
    loose = np.radians(rng.uniform(-4, 4, len(turn.spinning)))
    return replace(
        turn,
        spinning=np.clip(turn.spinning + loose * (np.abs(turn.spinning) > 0.2), LOWEST, HIGHEST),
        prepare_s=turn.prepare_s * pace * rng.uniform(0.95, 1.1),
        spin_s=turn.spin_s * pace * rng.uniform(0.95, 1.1),
        stop_s=turn.stop_s * rng.uniform(0.95, 1.2),
        rise_deg=turn.rise_deg * rng.uniform(0.8, 1.1),
    )


class Turning:
    """One performance of a turn; `at` gives it at any times from 0 to duration_s."""

    def __init__(self, rig: Rig, turn: Turn) -> None:
        self.rig, self.turn = rig, turn
        self.spin_s = turn.prepare_s
        self.stop_s = turn.prepare_s + turn.spin_s
        self.duration_s = self.stop_s + turn.stop_s
        # The free foot leaves in time to be up when the spin needs it, and comes down when it is over.
        self.lift_s = self.spin_s - turn.raise_s
        self.catch_s = self.stop_s + 0.45 * turn.stop_s
        self.rest_s = self.stop_s + 0.9 * turn.stop_s
        knots_s = (0.0, self.lift_s, self.spin_s + 0.1 * turn.spin_s, self.stop_s, self.rest_s)
        if turn.raise_s > 0.3:
            knots_s = (0.0, self.lift_s, self.spin_s, self.stop_s, self.rest_s)
        shapes = (turn.ready, turn.ready, turn.spinning, turn.spinning, turn.stopped)
        self._angles = PchipInterpolator(knots_s, np.stack(shapes), axis=0)
        self._up = PchipInterpolator(knots_s, [0.0, 0.0, 1.0, 1.0, 0.0])
        hip_m = abs(float(rig.part_offsets_m[PART_NAMES.index("right_thigh"), 2]))
        thigh_m = rig.leg_m[0]
        # Where the balls of the feet stand: the free foot behind, before the turn and after it.
        self._pivot_m = np.array([0.0, 0.0, -hip_m])
        behind_m = np.array([-0.75 * thigh_m, 0.0, 1.7 * hip_m])
        after = self._yaw(np.array([self.duration_s]))[0]
        self._spots_m = (
            self._pivot_m + behind_m,
            self._pivot_m + _about_y(np.array([after]))[0] @ (0.5 * behind_m),
        )

    def at(self, times_s: FLOATS) -> Posed:
        """The performance at times (N,)."""
        yaw, up = self._yaw(times_s), self._up(np.minimum(times_s, self.rest_s))
        angles = self._angles(np.minimum(times_s, self.rest_s))
        attitude = np.stack([yaw, np.radians(self.turn.lean_deg) * up, np.zeros(len(yaw))], -1)
        pelvis = rotations_of(attitude)
        local = local_rotations(angles)
        local[:, 0] = pelvis
        free = chain(self.rig, local)
        support_foot = _about_y(yaw) @ _about_z(-np.radians(self.turn.rise_deg) * up)
        support_ankle_m = self._ankle_over(self._pivot_m, support_foot, _SUPPORT)
        planted, spot_m, flat_yaw = self._free_foot(times_s)
        flat = _about_y(flat_yaw)
        root_m = self._first_root(angles, pelvis, support_ankle_m)
        target_m = self._pivot_m + 0.5 * planted[:, None] * (spot_m - self._pivot_m)
        for _ in range(_NUM_BALANCING):
            height_m = reachable_height_m(self.rig, _SUPPORT, pelvis, root_m, support_ankle_m)
            root_m[:, 1] = np.minimum(root_m[:, 1], height_m)
            rotations = free.copy()
            bend_leg(self.rig, _SUPPORT, rotations, root_m, support_ankle_m, support_foot, self._hinge(free, _SUPPORT))
            # The free foot between where its angles put it and its spot on the floor.
            ankle_m = joints_of_parts(self.rig, rotations, root_m)[:, _ANKLE[_FREE]]
            foot = between(free[:, _FOOT[_FREE]], flat, planted)
            on_spot_m = self._ankle_over(spot_m, foot, _FREE)
            ankle_m = ankle_m + planted[:, None] * (on_spot_m - ankle_m)
            ankle_m[:, 1] = np.maximum(ankle_m[:, 1], sole_depth_m(self.rig, _FREE, foot))
            bend_leg(self.rig, _FREE, rotations, root_m, ankle_m, foot, self._hinge(free, _FREE))
            centre_m = centre_of_mass(self.rig, joints_of_parts(self.rig, rotations, root_m))
            off_m = target_m - centre_m
            off_m[:, 1] = 0
            root_m = root_m + off_m
        root_m = root_m - off_m
        feet = np.stack([planted > 1 - 1e-9, np.ones(len(times_s), bool)], -1)
        return Posed(rotations=rotations, root_m=root_m, in_flight=np.zeros(len(times_s), bool), feet=feet)

    def _yaw(self, times_s: FLOATS) -> FLOATS:
        """Speeds up, spins evenly, slows down: the integral of a trapezium with rounded shoulders."""
        share = np.clip((times_s - self.spin_s + 0.04) / (self.turn.spin_s + 0.04), 0, 1)
        up = np.minimum(share, _RAMP) / _RAMP
        down = np.maximum(share - 1 + _RAMP, 0) / _RAMP
        # Integrals of a smooth step up, the plateau, and the same step down.
        area = _RAMP * (up**3 - up**4 / 2) + np.clip(share - _RAMP, 0, 1 - 2 * _RAMP)
        area += _RAMP * (down - down**3 + down**4 / 2)
        yaw: FLOATS = 2 * np.pi * self.turn.num_turns * area / (1 - _RAMP)
        return yaw

    def _free_foot(self, times_s: FLOATS) -> tuple[FLOATS, FLOATS, FLOATS]:
        """How far it stands on its spot (N,), 0..1; the spot (N,3); and where its toes point there, yaw (N,)."""
        leaving = np.clip((times_s - self.lift_s) / _PUSH_S, 0, 1)
        landing = np.clip((times_s - self.catch_s) / (_CATCH_SHARE * self.turn.stop_s), 0, 1)
        planted = 1 - leaving**2 * (3 - 2 * leaving) + landing**2 * (3 - 2 * landing)
        is_after = times_s > 0.5 * (self.spin_s + self.stop_s)
        spot_m = np.where(is_after[:, None], self._spots_m[1], self._spots_m[0])
        # Turned out a little.
        yaw = np.where(is_after, 2 * np.pi * self.turn.num_turns, 0.0) - 0.3
        return planted, spot_m, yaw

    def _first_root(self, angles: FLOATS, pelvis: FLOATS, ankle_m: FLOATS) -> FLOATS:
        """Above the supporting ankle as high as the knee's angle says."""
        upper_m, lower_m = self.rig.leg_m
        knee = angles[:, _KNEE]
        length_m = np.sqrt(upper_m**2 + lower_m**2 + 2 * upper_m * lower_m * np.cos(knee))
        hip = pelvis @ self.rig.part_offsets_m[PART_NAMES.index("left_thigh")]
        root_m: FLOATS = ankle_m - hip
        root_m[:, 1] += length_m
        return root_m

    def _ankle_over(self, spot_m: FLOATS, foot: FLOATS, side: int) -> FLOATS:
        ankle_m: FLOATS = spot_m - foot @ self.rig.balls_m[side]
        ankle_m[:, 1] = sole_depth_m(self.rig, side, foot)
        return ankle_m

    def _hinge(self, rotations: FLOATS, side: int) -> FLOATS:
        return rotations[:, PART_NAMES.index(f"{SIDES[side]}_thigh"), :, 2]


_FOOT = tuple(PART_NAMES.index(f"{side}_foot") for side in SIDES)
_KNEE = ANGLE_NAMES.index("left_knee")


def _about_y(angle: FLOATS) -> FLOATS:
    matrices: FLOATS = Rotation.from_rotvec(angle[:, None] * [0.0, 1.0, 0.0]).as_matrix()
    return matrices


def _about_z(angle: FLOATS) -> FLOATS:
    matrices: FLOATS = Rotation.from_rotvec(angle[:, None] * [0.0, 0.0, 1.0]).as_matrix()
    return matrices
