"""A body in flight: its centre of mass falls, its angular momentum stays, and its shape turns it.

Path:    (before the path) joint angles over time + angular momentum -> where the body is and how it is turned
Solves:  R' = R [w],  w = I^-1 (R^T L - h),  h = sum r x (M r')    with L constant;  centre c'' = -g
Letters: N times, J joints, B angular momenta integrated at once
Units:   metre, second, kilogram, radian;  Frames: the pelvis's (r, I, h, w) and the world (R, L)

r(t) are the sixteen points about their centre of mass at the prescribed angles; I(t) is their inertia and h(t) the
angular momentum of changing shape alone, both with the mass matrix M of finephys/physics/body.py. Whatever the limbs
do, momentum is kept; what they do decides how far the body turns. The take-off is found by Newton's method on L.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from finephys.gymnast.rig import Rig, centre_of_mass, pose
from finephys.physics.body import STANDARD_GRAVITY

FLOATS = NDArray[np.float64]

GRAVITY_MPS2 = np.array([0.0, -STANDARD_GRAVITY, 0.0])
# A twist of 30 rad/s turns by a sixth of a radian a step, which fourth order follows to 1e-5.
_STEP_S = 1 / 180
# For the derivative along the angles' own rates: the error is of its square.
_NUDGE_S = 1e-4
_MAX_ITERATIONS = 30
_NUDGE_MOMENTUM = 1e-5
_MAX_ERROR_RAD = 1e-6
# Newton must not jump to another number of twists.
_MAX_CORRECTION_RAD = 0.6

# Angles (N,24) and their rates (N,24) at times (N,).
AnglesAt = Callable[[FLOATS], tuple[FLOATS, FLOATS]]


@dataclass(frozen=True, kw_only=True)
class _ShapeDynamics:
    """inertia_inverse (N,3,3), momentum (N,3) of changing shape; centre_m (N,3) of mass; all in the pelvis's frame."""

    inertia: FLOATS
    inertia_inverse: FLOATS
    momentum: FLOATS
    centre_m: FLOATS


class Flight:
    """A body of known shape over [start_s, end_s], thrown so that it comes down with a wanted attitude.

    `momentum` (3,) is its angular momentum about the centre of mass, kg m^2/s, world.
    """

    def __init__(self, rig: Rig, angles_at: AnglesAt, start_s: float, end_s: float) -> None:
        """start_s and end_s may be in either order: a flight can be followed back from where it ended."""
        self.rig, self._angles_at = rig, angles_at
        self.start_s, self.end_s = start_s, end_s
        self._num_steps = max(2, int(np.ceil(abs(end_s - start_s) / _STEP_S)))
        self._step_s = (end_s - start_s) / self._num_steps
        halves_s = np.linspace(start_s, end_s, 2 * self._num_steps + 1)
        self._halves = self._dynamics(halves_s)
        self._nodes: FLOATS = np.empty(0)
        self.momentum: FLOATS = np.zeros(3)

    def angular_velocity(self, time_s: float, rotation: FLOATS, momentum: FLOATS) -> FLOATS:
        """World angular velocity (3,) of the pelvis, turned by `rotation` (3,3) at this time."""
        now = self._dynamics(np.array([time_s]))
        spin: FLOATS = rotation @ now.inertia_inverse[0] @ (rotation.T @ momentum - now.momentum[0])
        return spin

    def momentum_of(self, time_s: float, rotation: FLOATS, spin: FLOATS) -> FLOATS:
        """Angular momentum (3,) of the body turned by `rotation` whose pelvis has the world angular velocity spin."""
        now = self._dynamics(np.array([time_s]))
        momentum: FLOATS = rotation @ (now.inertia[0] @ rotation.T @ spin + now.momentum[0])
        return momentum

    def guess(self, somersaults: float, twists: float, axis: FLOATS) -> FLOATS:
        """Angular momentum (3,) with which an axisymmetric body that starts upright does this many turns.

        somersaults about the horizontal `axis` (3,), twists about the body's length, positive to the left. A twisting
        body nods on a cone about its angular momentum, whose tilt follows from the ratio of the moments.
        """
        inertia = self._halves.inertia[::2]
        across = 2 / (inertia[:, 0, 0] + inertia[:, 2, 2])
        step_s = abs(self._step_s)
        over_across, over_length = np.trapezoid(across, dx=step_s), np.trapezoid(1 / inertia[:, 1, 1], dx=step_s)
        if somersaults == 0:
            upright: FLOATS = np.array([0.0, 2 * np.pi * twists / over_length, 0.0])
            return upright
        thrown: FLOATS = 2 * np.pi * somersaults / over_across * axis
        thrown[1] += 2 * np.pi * twists / (over_length - over_across)
        return thrown

    def throw(self, rotation: FLOATS, momentum: FLOATS) -> FLOATS:
        """Start with this attitude (3,3) and angular momentum (3,); returns the attitude (3,3) at the end."""
        self._nodes = self._integrate(rotation, momentum[None])[:, 0]
        self.momentum = momentum
        end: FLOATS = self._nodes[-1]
        return end

    def solve(self, rotation: FLOATS, wanted: FLOATS, momentum: FLOATS, *, is_planar: bool = False) -> float:
        """Turn attitude `rotation` into `wanted` (3,3): find the angular momentum, from a first guess, and throw.

        is_planar: only its size is sought. A symmetric body that somersaults about its middle moment of inertia, as a
        stretched one does, is unstable, and the other components would only be noise.
        Levenberg's and Marquardt's damping. Returns the angle that is left, at most pi, radians.
        """
        scale = np.linalg.norm(momentum) + 1.0
        axes = momentum[None] / np.linalg.norm(momentum) if is_planar else np.eye(3)
        nudges = _NUDGE_MOMENTUM * scale * axes
        damping = 1e-3
        best: tuple[float, FLOATS, FLOATS, FLOATS] = (np.inf, momentum, np.empty(0), np.empty(0))
        for _ in range(_MAX_ITERATIONS):
            ends = self._integrate(rotation, np.concatenate([momentum[None], momentum + nudges]))[-1]
            error = Rotation.from_matrix(wanted.T @ ends[0]).as_rotvec()
            jacobian = Rotation.from_matrix(ends[0].T @ ends[1:]).as_rotvec().T / (_NUDGE_MOMENTUM * scale)
            size = float(np.linalg.norm(jacobian.T @ error)) if is_planar else float(np.linalg.norm(error))
            if size < best[0]:
                best, damping = (size, momentum, error, jacobian), damping / 5
            else:
                damping *= 4
            if best[0] < _MAX_ERROR_RAD:
                break
            _, momentum, error, jacobian = best
            square = jacobian.T @ jacobian
            goal = -error * min(1.0, _MAX_CORRECTION_RAD / float(np.linalg.norm(error)))
            move = np.linalg.solve(square + damping * np.diag(np.diag(square)), jacobian.T @ goal)
            momentum = momentum + move @ axes
        self.throw(rotation, best[1])
        return float(np.linalg.norm(best[2]))

    def tries(self, rotation: FLOATS, momenta: FLOATS, *, is_upright: bool) -> tuple[FLOATS, FLOATS, FLOATS]:
        """Where throws with angular momenta (B,3) would end (B,3,3), and their somersaults (B,) and twists (B,)."""
        nodes = self._integrate(rotation, momenta)
        return nodes[-1], *self._counts(nodes, momenta, is_upright)

    def _counts(self, nodes: FLOATS, momenta: FLOATS, is_upright: bool) -> tuple[FLOATS, FLOATS]:
        """Somersaults about the angular momentum, signed by its z, and twists about the body's length, to the left.

        is_upright: she does not go over; then there are turns to the left alone. Of an axisymmetric body that ends as
        upright as it began both are what the names say.
        """
        length = nodes[..., 1]
        towards = momenta / (np.linalg.norm(momenta, axis=-1, keepdims=True) + 1e-12)
        inverse, momentum = self._halves.inertia_inverse[::2], self._halves.momentum[::2]
        own = np.einsum("sbac,ba->sbc", nodes, momenta) - momentum[:, None]
        twists = np.trapezoid(np.einsum("sc,sbc->sb", inverse[:, 1], own), dx=self._step_s, axis=0) / (2 * np.pi)
        if is_upright:
            return np.zeros(len(momenta)), twists
        along = np.einsum("sbc,bc->sb", length, towards)
        across = length - along[..., None] * towards
        sweep = np.einsum("sbc,bc->sb", np.cross(across[:-1], across[1:]), towards)
        somersaults = np.arctan2(sweep, (across[:-1] * across[1:]).sum(-1)).sum(0) / (2 * np.pi)
        return somersaults * np.sign(momenta[:, 2]), twists - somersaults * along.mean(0)

    def attitudes(self, times_s: FLOATS) -> FLOATS:
        """Pelvis rotations (N,3,3) at times (N,) of the flight, of the throw."""
        node = np.clip(((times_s - self.start_s) / self._step_s).astype(int), 0, self._num_steps - 1)
        rest_s = times_s - (self.start_s + node * self._step_s)
        stages = [self._dynamics(times_s - rest_s * (1 - share)) for share in (0.0, 0.5, 1.0)]
        turned = _step(self._nodes[node], self.momentum, rest_s[:, None, None], stages)
        return _orthonormal(turned)

    def centre_in_pelvis(self, times_s: FLOATS) -> FLOATS:
        """The centre of mass (N,3) in the pelvis's frame."""
        angles, _ = self._angles_at(times_s)
        return centre_of_mass(self.rig, pose(self.rig, angles)[1])

    def _integrate(self, rotation: FLOATS, momenta: FLOATS) -> FLOATS:
        """Attitudes (steps + 1, B, 3, 3) by Runge-Kutta's fourth-order method."""
        nodes = np.empty((self._num_steps + 1, len(momenta), 3, 3))
        nodes[0] = rotation
        inverse, momentum = self._halves.inertia_inverse, self._halves.momentum
        row = momenta[:, None, :]

        def rate(turned: FLOATS, half: int) -> FLOATS:
            spin = (row @ turned - momentum[half]) @ inverse[half]
            derivative: FLOATS = turned @ (spin @ _CROSS).reshape(-1, 3, 3)
            return derivative

        h = self._step_s
        for step in range(self._num_steps):
            now = nodes[step]
            first = rate(now, 2 * step)
            second = rate(now + 0.5 * h * first, 2 * step + 1)
            third = rate(now + 0.5 * h * second, 2 * step + 1)
            fourth = rate(now + h * third, 2 * step + 2)
            nodes[step + 1] = _orthonormal(now + h / 6 * (first + 2 * (second + third) + fourth))
        return nodes

    def _dynamics(self, times_s: FLOATS) -> _ShapeDynamics:
        angles, rates = self._angles_at(times_s)
        both = np.concatenate([angles, angles + _NUDGE_S * rates, angles - _NUDGE_S * rates])
        _, joints_m = pose(self.rig, both)
        centre_m = centre_of_mass(self.rig, joints_m)
        r, after, before = np.split(joints_m[:, 1:] - centre_m[:, None], 3)
        rate = (after - before) / (2 * _NUDGE_S)
        mass = self.rig.mass
        spread = np.einsum("npa,npb->nab", r, mass @ r)
        inertia = np.trace(spread, axis1=1, axis2=2)[:, None, None] * np.eye(3) - spread
        return _ShapeDynamics(
            inertia=inertia,
            inertia_inverse=np.linalg.inv(inertia),
            momentum=np.cross(r, mass @ rate).sum(1),
            centre_m=centre_m[: len(times_s)],
        )


# spin (3,) @ _CROSS (3,9) is the matrix of spin x, row by row.
_CROSS = np.array(
    [[0, 0, 0, 0, 0, -1, 0, 1, 0], [0, 0, 1, 0, 0, 0, -1, 0, 0], [0, -1, 0, 1, 0, 0, 0, 0, 0]], dtype=np.float64
)


def _step(start: FLOATS, momentum: FLOATS, h: FLOATS, stages: list[_ShapeDynamics]) -> FLOATS:
    """One Runge-Kutta step of many attitudes (N,3,3), each with its own length h (N,1,1)."""

    def rate(turned: FLOATS, stage: _ShapeDynamics) -> FLOATS:
        spin = np.einsum("nab,nb->na", stage.inertia_inverse, momentum @ turned - stage.momentum)
        derivative: FLOATS = turned @ (spin @ _CROSS).reshape(-1, 3, 3)
        return derivative

    first = rate(start, stages[0])
    second = rate(start + 0.5 * h * first, stages[1])
    third = rate(start + 0.5 * h * second, stages[1])
    fourth = rate(start + h * third, stages[2])
    return start + h / 6 * (first + 2 * (second + third) + fourth)


def _orthonormal(nearly: FLOATS) -> FLOATS:
    """The rotation next to a matrix that is off by the integrator's error: one Newton step of the polar one."""
    rotation: FLOATS = nearly @ (1.5 * np.eye(3) - 0.5 * np.swapaxes(nearly, -1, -2) @ nearly)
    return rotation
