"""Where the pelvis is and how it is turned: attitudes, their rates, and curves between two states.

Path:    flights and stances -> Posed
Letters: N times
Units:   metre, second, radian;  Frames: world, y up; an attitude is yaw, pitch, roll of Ry Rz Rx
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

FLOATS = NDArray[np.float64]
BOOLS = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class State:
    """Where the pelvis is and how it moves: root_m (3,), velocity_mps (3,), attitude (3,), its rates (3,) a second."""

    root_m: FLOATS
    velocity_mps: FLOATS
    attitude: FLOATS
    rates: FLOATS

    @property
    def rotation(self) -> FLOATS:
        """(3,3)."""
        rotation: FLOATS = rotations_of(self.attitude[None])[0]
        return rotation


@dataclass(frozen=True, kw_only=True)
class Posed:
    """What a performance is at some times: rotations (N,13,3,3) of parts in the world, root_m (N,3), in_flight (N,),
    feet (N,2) on the floor."""

    rotations: FLOATS
    root_m: FLOATS
    in_flight: BOOLS
    feet: BOOLS


def rotations_of(attitude: FLOATS) -> FLOATS:
    """Ry(yaw) Rz(pitch) Rx(roll) (N,3,3) of attitudes (N,3)."""
    matrices: FLOATS = Rotation.from_euler("YZX", attitude).as_matrix()
    return matrices


def attitude_of(rotation: FLOATS) -> FLOATS:
    """yaw, pitch, roll (3,) of (3,3)."""
    attitude: FLOATS = Rotation.from_matrix(rotation).as_euler("YZX")
    return attitude


def attitude_rates(attitude: FLOATS, spin: FLOATS) -> FLOATS:
    """Rates (3,) of yaw, pitch, roll at which a body turns with the world angular velocity spin (3,)."""
    yaw = Rotation.from_euler("Y", attitude[0])
    yaw_pitch = yaw * Rotation.from_euler("Z", attitude[1])
    axes = np.stack([[0.0, 1.0, 0.0], yaw.apply([0.0, 0.0, 1.0]), yaw_pitch.apply([1.0, 0.0, 0.0])], -1)
    rates: FLOATS = np.linalg.solve(axes, spin)
    return rates


def hermite(
    times_s: FLOATS, start_s: float, end_s: float, first: FLOATS, last: FLOATS, first_rate: FLOATS, last_rate: FLOATS
) -> FLOATS:
    """The cubic (N,D) from `first` (D,) to `last` with these rates at its ends."""
    span_s = end_s - start_s
    s = ((times_s - start_s) / span_s)[:, None]
    curve: FLOATS = (
        (1 + 2 * s) * (1 - s) ** 2 * first
        + s * (1 - s) ** 2 * span_s * first_rate
        + s**2 * (3 - 2 * s) * last
        + s**2 * (s - 1) * span_s * last_rate
    )
    return curve


def between(first: FLOATS, second: FLOATS, share: FLOATS) -> FLOATS:
    """Rotations (N,3,3) the share (N,) of the way from one to the other."""
    turn = Rotation.from_matrix(np.swapaxes(first, -1, -2) @ second).as_rotvec()
    matrices: FLOATS = first @ Rotation.from_rotvec(turn * share[:, None]).as_matrix()
    return matrices
