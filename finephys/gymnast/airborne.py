"""Leaps, jumps and saltos: arrive, push off, fly, land; floor and flight joined without a jolt.

Path:    (before the path) Element + Rig -> Performance -> part rotations, mid-hip, contacts at any times
Letters: N times;  side: 0 right, 1 left
Units:   metre, second, radian;  Frames: world, y up, floor at y = 0; she faces +x at the take-off

In flight she moves as finephys/gymnast/flight.py says. On the floor the mid-hip goes from one flight's end to the next
one's start, with their positions, attitudes and velocities (cubic Hermite), or comes to rest like a damped spring; the
balls of the feet stay where they are and the legs reach them.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.spatial.transform import Rotation, Slerp

from finephys.gymnast.attitude import Posed, State, attitude_of, attitude_rates, between, hermite, rotations_of
from finephys.gymnast.elements import Element
from finephys.gymnast.flight import GRAVITY_MPS2, Flight
from finephys.gymnast.mocap import PART_NAMES
from finephys.gymnast.rig import (
    SIDES,
    Rig,
    bend_leg,
    centre_of_mass,
    chain,
    joints_of_parts,
    pose,
    reachable_height_m,
    sole_depth_m,
)
from finephys.gymnast.shapes import local_rotations

FLOATS = NDArray[np.float64]
BOOLS = NDArray[np.bool_]

_FLATTEN_S = 0.09  # from toes to the whole sole on landing
_RISE_S = 0.10  # from the whole sole to toes before a take-off
# Rate at which a landing comes to rest: a fall at 4 m/s is caught within 0.15 m.
_LANDING_RATE = 10.0
_STEP_AFTER_S = 0.30
# Factors on the guess of a take-off's angular momentum (cartwheel, twist, somersault) that are looked at.
_CORRECTIONS = np.array(
    [
        [1.0, twist, somersault]
        for somersault in (1.0, 0.94, 1.06)
        for twist in (1.0, 0.94, 1.06, 0.88, 1.13, 0.8, 1.22, 0.72, 1.34)
    ]
)
_NUM_TRIES = 6
_MAX_MISCOUNT = 0.3
_MAX_LEFT_RAD = 1e-3
_NUM_MATCHES = 6
_STUMBLE_S = 0.16
_STEP_LIFT_M = 0.06
_CLEARANCE_M = 0.01


class Airborne:
    """One performance of a leap, jump or salto; `at` gives it at any times from 0 to duration_s."""

    def __init__(self, rig: Rig, element: Element) -> None:
        """Solves the take-off. Raises ArithmeticError where there is none."""
        self.rig, self.element = rig, element
        self._lay_out_time()
        self._throw()
        self._arrive()
        self._land()
        self._match_velocities()

    def at(self, times_s: FLOATS) -> Posed:
        """The performance at times (N,)."""
        rotations = np.empty((len(times_s), len(PART_NAMES), 3, 3))
        root_m = np.empty((len(times_s), 3))
        feet = np.zeros((len(times_s), 2), bool)
        arriving = times_s < self.touch_s
        pushing = ~arriving & (times_s <= self.leave_s)
        flying = (times_s > self.leave_s) & (times_s < self.land_s)
        landing = times_s >= self.land_s
        for chosen, part in (
            (arriving, self._in_entry),
            (pushing, self._on_push),
            (flying, self._in_flight),
            (landing, self._on_landing),
        ):
            if chosen.any():
                rotations[chosen], root_m[chosen], feet[chosen] = part(times_s[chosen])
        return Posed(rotations=rotations, root_m=root_m, in_flight=arriving | flying, feet=feet)

    # Time and shape.

    def _lay_out_time(self) -> None:
        element = self.element
        self.touch_s = element.entry.flight_s
        self.leave_s = self.touch_s + element.entry.contact_s
        self.land_s = self.leave_s + element.flight_s
        self.duration_s = self.land_s + element.landing_s
        entry = [(self._entry_time(phase), shape) for phase, shape in element.entry.shapes]
        flight = [(self.leave_s + share * element.flight_s, shape) for share, shape in element.shapes]
        landing = [(self.land_s + share * element.landing_s, shape) for share, shape in element.landing_shapes]
        times_s, shapes = zip(*(entry + flight + landing), strict=True)
        self._angles = PchipInterpolator(times_s, np.stack(shapes), axis=0)
        self._rates = self._angles.derivative()

    def _entry_time(self, phase: float) -> float:
        entry = self.element.entry
        return phase * entry.flight_s if phase <= 1 else entry.flight_s + (phase - 1) * entry.contact_s

    def _angles_at(self, times_s: FLOATS) -> tuple[FLOATS, FLOATS]:
        clipped_s = np.clip(times_s, 0.0, self.duration_s)
        return self._angles(clipped_s), self._rates(clipped_s)

    # The flight itself.

    def _throw(self) -> None:
        element = self.element
        start = rotations_of(np.radians([[0.0, element.lean_deg, 0.0]]))[0]
        end = Rotation.from_euler("ZY", [element.landing_lean_deg, 360 * element.twists], degrees=True).as_matrix()
        self.flight = Flight(self.rig, self._angles_at, self.leave_s, self.land_s)
        self._solve(start, end)
        ends = np.array([self.leave_s, self.land_s])
        attitudes = self.flight.attitudes(ends)
        shifts_m = -np.einsum("nab,nb->na", attitudes, self.flight.centre_in_pelvis(ends))
        heights_m = self._heights_on_toes(ends, attitudes, (element.takes_off_from, element.lands_on))
        # The centre of mass goes from height to height in the time of flight.
        centre_m = np.array([0.0, heights_m[0], 0.0]) - shifts_m[0]
        fall_m = (heights_m[1] - shifts_m[1][1]) - centre_m[1]
        up_mps = fall_m / element.flight_s - 0.5 * GRAVITY_MPS2[1] * element.flight_s
        self._centre_m = centre_m
        self._velocity_mps = np.array([element.forward_mps, up_mps, 0.0])
        self.leaving = self._state(self.leave_s, attitudes[0])
        self.landing = self._state(self.land_s, attitudes[1])

    def _solve(self, start: FLOATS, end: FLOATS) -> None:
        """Find the throw: from the guesses that count right, or nearly, Newton's method goes on, the nearest first."""
        element = self.element
        is_upright = element.somersaults == 0
        is_planar = not is_upright and element.twists == 0 and len(element.takes_off_from) == 2
        # A whole somersault less what take-off and landing lean.
        turned = element.somersaults + (element.landing_lean_deg - element.lean_deg) / 360
        guess = self.flight.guess(turned, element.twists, np.array([0.0, 0.0, 1.0]))

        def miscounted(momenta: FLOATS) -> tuple[FLOATS, FLOATS]:
            ends, somersaults, twists = self.flight.tries(start, momenta, is_upright=is_upright)
            left = Rotation.from_matrix(end.T @ ends).magnitude()
            missed = np.abs(twists - element.twists)
            return left, missed if is_upright else np.maximum(missed, np.abs(somersaults - turned))

        guesses = guess * (_CORRECTIONS[:1] if is_planar else _CORRECTIONS)
        left, missed = miscounted(guesses)
        for momentum in guesses[np.argsort(left + 4 * missed)[:_NUM_TRIES]]:
            remaining = self.flight.solve(start, end, momentum, is_planar=is_planar)
            _, missed = miscounted(self.flight.momentum[None])
            if remaining < _MAX_LEFT_RAD and missed[0] < _MAX_MISCOUNT:
                return
        raise ArithmeticError(f"no take-off found: {np.degrees(remaining):.1f} degrees are left, {missed[0]:.2f} turns")

    def _heights_on_toes(self, times_s: FLOATS, attitudes: FLOATS, feet: tuple[tuple[int, ...], ...]) -> FLOATS:
        """Heights (N,) of the mid-hip at which the given feet just touch the floor."""
        angles, _ = self._angles_at(times_s)
        rotations, joints_m = pose(self.rig, angles)
        heights_m = []
        for index, sides in enumerate(feet):
            lowest_m = []
            for side in sides:
                ankle_m = attitudes[index] @ joints_m[index, _ANKLES[side]]
                foot = attitudes[index] @ rotations[index, _FEET[side]]
                lowest_m.append(ankle_m[1] - sole_depth_m(self.rig, side, foot[None])[0])
            heights_m.append(-min(lowest_m))
        return np.array(heights_m)

    def _path(self, times_s: FLOATS, attitudes: FLOATS) -> FLOATS:
        """Mid-hips (N,3) in the main flight."""
        after_s = (times_s - self.leave_s)[:, None]
        centre_m = self._centre_m + self._velocity_mps * after_s + 0.5 * GRAVITY_MPS2 * after_s**2
        path_m: FLOATS = centre_m - np.einsum("nab,nb->na", attitudes, self.flight.centre_in_pelvis(times_s))
        return path_m

    def _state(self, time_s: float, rotation: FLOATS) -> State:
        """The pelvis's motion at an end of the main flight."""
        spin = self.flight.angular_velocity(time_s, rotation, self.flight.momentum)
        nudge_s = 1e-4 if time_s == self.leave_s else -1e-4
        times_s = np.array([time_s, time_s + nudge_s])
        path_m = self._path(times_s, self.flight.attitudes(times_s))
        attitude = attitude_of(rotation)
        return State(
            root_m=path_m[0],
            velocity_mps=(path_m[1] - path_m[0]) / nudge_s,
            attitude=attitude,
            rates=attitude_rates(attitude, spin),
        )

    def _in_flight(self, times_s: FLOATS) -> tuple[FLOATS, FLOATS, BOOLS]:
        attitudes = self.flight.attitudes(times_s)
        rotations = self._freely_turned(times_s, attitudes)
        return rotations, self._path(times_s, attitudes), np.zeros((len(times_s), 2), bool)

    def _freely_turned(self, times_s: FLOATS, attitudes: FLOATS) -> FLOATS:
        local = local_rotations(self._angles_at(times_s)[0])
        local[:, 0] = attitudes
        return chain(self.rig, local)

    # Arriving and pushing off.

    def _arrive(self) -> None:
        """The pelvis where the entry's flight, or standing, ends; and that flight, followed back."""
        element, entry = self.element, self.element.entry
        self._pins = {side: self._ball_m(self.leave_s, self.leaving, side) for side in element.takes_off_from}
        attitude = np.radians([0.0, entry.lean_deg, 0.0])
        rates = np.array([0.0, entry.pitch_rate, 0.0])
        state = State(root_m=np.zeros(3), velocity_mps=np.zeros(3), attitude=attitude, rates=rates)
        offsets = [self._pins[side] - self._ball_m(self.touch_s, state, side) for side in element.takes_off_from]
        rotation = state.rotation
        root_m = np.mean(offsets, axis=0)
        root_m[1] = self._heights_on_toes(np.array([self.touch_s]), rotation[None], (element.takes_off_from,))[0]
        velocity_mps = np.zeros(3)
        if entry.flight_s > 0:
            self._entry_flight = Flight(self.rig, self._angles_at, self.touch_s, 0.0)
            spin = rotation @ np.array([0.0, 0.0, entry.pitch_rate])
            self._entry_flight.throw(rotation, self._entry_flight.momentum_of(self.touch_s, rotation, spin))
            self._entry_velocity_mps = np.array([entry.forward_mps, entry.sink_mps, 0.0])
            touch = np.array([self.touch_s])
            self._entry_centre_m = root_m + rotation @ self._entry_flight.centre_in_pelvis(touch)[0]
            nudge_s = np.array([self.touch_s, self.touch_s - 1e-4])
            path_m = self._entry_path(nudge_s, self._entry_flight.attitudes(nudge_s))
            velocity_mps = (path_m[0] - path_m[1]) / 1e-4
        self.touching = State(root_m=root_m, velocity_mps=velocity_mps, attitude=attitude, rates=rates)

    def _entry_path(self, times_s: FLOATS, attitudes: FLOATS) -> FLOATS:
        before_s = (times_s - self.touch_s)[:, None]
        centre_m = self._entry_centre_m + self._entry_velocity_mps * before_s + 0.5 * GRAVITY_MPS2 * before_s**2
        path_m: FLOATS = centre_m - np.einsum("nab,nb->na", attitudes, self._entry_flight.centre_in_pelvis(times_s))
        return path_m

    def _in_entry(self, times_s: FLOATS) -> tuple[FLOATS, FLOATS, BOOLS]:
        attitudes = self._entry_flight.attitudes(times_s)
        rotations = self._freely_turned(times_s, attitudes)
        return rotations, self._entry_path(times_s, attitudes), np.zeros((len(times_s), 2), bool)

    def _on_push(self, times_s: FLOATS) -> tuple[FLOATS, FLOATS, BOOLS]:
        entry = self.element.entry
        touching, leaving = self.touching, self.leaving
        first = np.concatenate([touching.root_m, touching.attitude])
        last = np.concatenate([leaving.root_m, leaving.attitude])
        first_rate = np.concatenate([self._touch_mps, touching.rates])
        last_rate = np.concatenate([self._push_mps, leaving.rates])
        crouch_s = self.touch_s + entry.crouch_share * entry.contact_s
        moved = hermite(times_s, self.touch_s, self.leave_s, first, last, first_rate, last_rate)
        if entry.crouch_share > 0:
            low = first - np.array([0, entry.crouch_m, 0, 0, 0, 0])
            low[[0, 4]] += [entry.crouch_shift_m, np.radians(entry.crouch_lean_deg)]
            moved = np.where(
                (times_s < crouch_s)[:, None],
                hermite(times_s, self.touch_s, crouch_s, first, low, first_rate, np.zeros(6)),
                hermite(times_s, crouch_s, self.leave_s, low, last, np.zeros(6), last_rate),
            )
        sides = self.element.takes_off_from
        swung: dict[int, FLOATS] = {}
        flat_until_s = max(self.leave_s - _RISE_S, self.touch_s + 0.5 * entry.contact_s)
        feet = {
            side: self._foot_path(
                times_s,
                [self.touch_s, min(self.touch_s + _FLATTEN_S, flat_until_s - 0.01), flat_until_s, self.leave_s],
                [self._foot(self.touch_s, touching, side), None, None, self._foot(self.leave_s, leaving, side)],
            )
            for side in sides
        }
        ankles_m = {side: self._ankle_over(self._pins[side], feet[side], side) for side in sides}
        for side in {0, 1} - set(sides):
            feet[side], ankles_m[side], hinge = self._swung(times_s, moved, side)
            swung = {side: hinge}
        share = ((times_s - self.touch_s) / entry.contact_s)[:, None]
        hinges = swung | {
            side: (1 - share) * self._hinge(self.touch_s, side) + share * self._hinge(self.leave_s, side)
            for side in sides
        }
        on_floor = np.zeros((len(times_s), 2), bool)
        on_floor[:, list(sides)] = True
        rotations, root_m = self._stand(times_s, moved, feet, ankles_m, hinges, on_floor)
        return rotations, root_m, on_floor

    # Landing.

    def _land(self) -> None:
        """Where each foot comes to stand, and where the pelvis comes to rest over them."""
        element, landing = self.element, self.landing
        self._landed = {side: self._ball_m(self.land_s, landing, side) for side in element.lands_on}
        facing = rotations_of(np.array([[landing.attitude[0], 0.0, 0.0]]))[0]
        ahead = np.array([np.sign(landing.velocity_mps[0]) or 1.0, 0.0, 0.0])
        self._steps: dict[int, tuple[float, FLOATS]] = {}
        hip_m = float(np.abs(self.rig.part_offsets_m[PART_NAMES.index("right_thigh"), 2]))
        for side in (0, 1):
            if side not in element.lands_on:
                (stood,) = self._landed.values()
                # Along the way where she looks along it, and beside the other foot, never across it.
                forward = element.step_m * float(facing[:, 0] @ ahead)
                spot_m = stood + facing @ np.array([forward, 0.0, (1.2 if side == 0 else -1.2) * hip_m])
                self._steps[side] = (self.land_s + _STEP_AFTER_S, spot_m)
            elif len(element.lands_on) == 2 and side == element.stumbles_with:
                self._steps[side] = (self.land_s + 0.42, self._landed[side] + ahead * element.step_m)
        balls_m = [self._steps[side][1] if side in self._steps else self._landed[side] for side in (0, 1)]
        heels = facing @ np.array([0.5 * self.rig.balls_m[0][0], 0.0, 0.0])
        rest_m = np.mean(balls_m, axis=0) - heels
        apart_m = float(np.linalg.norm(balls_m[0] - balls_m[1])) / 2
        reach_m = np.sqrt(max((0.985 * sum(self.rig.leg_m)) ** 2 - max(apart_m - hip_m, 0) ** 2, 0.1))
        rest_m[1] = reach_m - self.rig.balls_m[0][1]
        self._rest_m = rest_m

    def _on_landing(self, times_s: FLOATS) -> tuple[FLOATS, FLOATS, BOOLS]:
        landing, after_s = self.landing, times_s - self.land_s
        rest = np.concatenate([self._rest_m, [landing.attitude[0], 0.0, 0.0]])
        first = np.concatenate([landing.root_m, landing.attitude])
        rate = np.concatenate([self._catch_mps, landing.rates])
        k = _LANDING_RATE
        # A critically damped spring.
        moved = rest + (first - rest + (rate + k * (first - rest)) * after_s[:, None]) * np.exp(-k * after_s)[:, None]
        free = self._freely_turned(times_s, rotations_of(moved[:, 3:]))
        free_joints_m = joints_of_parts(self.rig, free, moved[:, :3])
        feet, ankles_m, hinges = {}, {}, {}
        on_floor = np.zeros((len(times_s), 2), bool)
        for side in (0, 1):
            stands = side in self._landed
            foot = self._foot_path(
                times_s,
                [self.land_s, self.land_s + _FLATTEN_S, self.duration_s + 1],
                [self._foot(self.land_s, landing, side), None, None],
                landing,
            )
            step_s, spot_m = self._steps.get(side, (self.land_s, self._landed.get(side, np.zeros(3))))
            lifts_s = step_s - _STUMBLE_S if stands else self.land_s
            share = np.clip((times_s - lifts_s) / max(step_s - lifts_s, 1e-9), 0, 1)
            smooth = share**2 * (3 - 2 * share)
            if stands:
                feet[side] = foot
                ankle_m = self._ankle_over(self._landed[side], foot, side)
            else:
                feet[side] = between(free[:, _FEET[side]], foot, smooth)
                ankle_m = free_joints_m[:, _ANKLES[side]]
                ankle_m[:, 1] = np.maximum(ankle_m[:, 1], sole_depth_m(self.rig, side, feet[side]))
            on_floor[:, side] = stands
            if side in self._steps:
                target_m = self._ankle_over(spot_m, feet[side], side)
                ankle_m = ankle_m + smooth[:, None] * (target_m - ankle_m)
                ankle_m[:, 1] += _STEP_LIFT_M * 16 * (share * (1 - share)) ** 2
                on_floor[:, side] = (stands & (times_s <= lifts_s)) | (times_s >= step_s)
            ankles_m[side] = ankle_m
            hinge = free[:, PART_NAMES.index(f"{SIDES[side]}_thigh"), :, 2]
            hinges[side] = np.einsum("nba,nb->na", free[:, 0], hinge)
        rotations, root_m = self._stand(times_s, moved, feet, ankles_m, hinges, on_floor)
        return rotations, root_m, on_floor

    # Feet and legs on the floor.

    def _match_velocities(self) -> None:
        """Choose how fast the mid-hip leaves the floor and comes onto it so that the centre of mass has no jolt.

        The legs stand still on the floor and fly with the body a moment later: with the flight's own velocity at the
        mid-hip the centre of mass would jump by metres a second, which would want an infinite force.
        """
        self._push_mps, self._catch_mps = self.leaving.velocity_mps, self.landing.velocity_mps
        self._touch_mps = self.touching.velocity_mps
        fall_mps = GRAVITY_MPS2 * self.element.flight_s
        for _ in range(_NUM_MATCHES):
            pushed = self._centre_velocity(np.array([self.leave_s - 2e-4, self.leave_s]))
            caught = self._centre_velocity(np.array([self.land_s, self.land_s + 2e-4]))
            if self.touch_s > 0:
                touched = self._centre_velocity(np.array([self.touch_s, self.touch_s + 2e-4]))
                self._touch_mps = self._touch_mps + 0.8 * (self._entry_velocity_mps - touched)
            self._push_mps = self._push_mps + 0.8 * (self._velocity_mps - pushed)
            self._catch_mps = self._catch_mps + 0.8 * (self._velocity_mps + fall_mps - caught)

    def _centre_velocity(self, times_s: FLOATS) -> FLOATS:
        posed = self.at(times_s)
        centre_m = centre_of_mass(self.rig, joints_of_parts(self.rig, posed.rotations, posed.root_m))
        velocity_mps: FLOATS = (centre_m[1] - centre_m[0]) / (times_s[1] - times_s[0])
        return velocity_mps

    def _stand(
        self,
        times_s: FLOATS,
        moved: FLOATS,
        feet: dict[int, FLOATS],
        ankles_m: dict[int, FLOATS],
        hinges: dict[int, FLOATS],
        on_floor: BOOLS,
    ) -> tuple[FLOATS, FLOATS]:
        """Part rotations and mid-hips of a pelvis `moved` (N,6: position, attitude) whose feet are where they are."""
        attitudes, root_m = rotations_of(moved[:, 3:]), moved[:, :3].copy()
        for side, ankle_m in ankles_m.items():
            height_m = reachable_height_m(self.rig, side, attitudes, root_m, ankle_m)
            limits = on_floor[:, side]
            root_m[limits, 1] = np.minimum(root_m[limits, 1], height_m[limits])
        rotations = self._freely_turned(times_s, attitudes)
        for side, ankle_m in ankles_m.items():
            hinge = np.einsum("nab,nb->na", attitudes, hinges[side])
            bend_leg(self.rig, side, rotations, root_m, ankle_m, feet[side], hinge)
        return rotations, root_m

    def _swung(self, times_s: FLOATS, moved: FLOATS, side: int) -> tuple[FLOATS, FLOATS, FLOATS]:
        """Rotations (N,3,3) and ankles (N,3) of a free foot, kept off the floor, and the knee's axis (N,3)."""
        free = self._freely_turned(times_s, rotations_of(moved[:, 3:]))
        foot = free[:, _FEET[side]]
        ankle_m = joints_of_parts(self.rig, free, moved[:, :3])[:, _ANKLES[side]]
        ankle_m[:, 1] = np.maximum(ankle_m[:, 1], sole_depth_m(self.rig, side, foot) + _CLEARANCE_M)
        hinge = free[:, PART_NAMES.index(f"{SIDES[side]}_thigh"), :, 2]
        return foot, ankle_m, np.einsum("nba,nb->na", free[:, 0], hinge)

    def _foot_path(
        self, times_s: FLOATS, knots_s: list[float], rotations: list[FLOATS | None], facing: State | None = None
    ) -> FLOATS:
        """A foot's rotations (N,3,3) between knots; None: flat on the floor, toes where they point at the known end."""
        known = next(rotation for rotation in reversed(rotations) if rotation is not None)
        toes = known[:, 0] - known[1, 0] * np.array([0.0, 1.0, 0.0])
        yaw = np.arctan2(-toes[2], toes[0])
        if facing is not None:
            # A foot that hangs down or behind does not say where its toes point.
            ahead = facing.attitude[0]
            yaw = ahead + np.clip((yaw - ahead + np.pi) % (2 * np.pi) - np.pi, -0.45, 0.45)
        flat = Rotation.from_euler("Y", yaw).as_matrix()
        keys = Rotation.from_matrix(np.stack([flat if rotation is None else rotation for rotation in rotations]))
        eased_s = np.clip(times_s, knots_s[0], knots_s[-1])
        matrices: FLOATS = Slerp(knots_s, keys)(eased_s).as_matrix()
        return matrices

    def _ankle_over(self, pin_m: FLOATS, feet: FLOATS, side: int) -> FLOATS:
        """Ankles (N,3) of a foot turned about its ball, which stays at the pin, with the sole on the floor."""
        ankle_m = pin_m - feet @ self.rig.balls_m[side]
        ankle_m[:, 1] = sole_depth_m(self.rig, side, feet)
        return ankle_m

    def _pose_now(self, time_s: float, state: State) -> tuple[FLOATS, FLOATS]:
        rotations, joints_m = pose(self.rig, self._angles_at(np.array([time_s]))[0])
        return state.rotation @ rotations[0], joints_m[0] @ state.rotation.T + state.root_m

    def _foot(self, time_s: float, state: State, side: int) -> FLOATS:
        foot: FLOATS = self._pose_now(time_s, state)[0][_FEET[side]]
        return foot

    def _ankle_m(self, time_s: float, state: State, side: int) -> FLOATS:
        ankle_m: FLOATS = self._pose_now(time_s, state)[1][_ANKLES[side]]
        return ankle_m

    def _ball_m(self, time_s: float, state: State, side: int) -> FLOATS:
        """The ball of the foot (3,), put on the floor."""
        ball_m = self._ankle_m(time_s, state, side) + self._foot(time_s, state, side) @ self.rig.balls_m[side]
        return ball_m * [1.0, 0.0, 1.0]

    def _hinge(self, time_s: float, side: int) -> FLOATS:
        """The knee's axis (3,) in the pelvis's frame."""
        rotations, _ = pose(self.rig, self._angles_at(np.array([time_s]))[0])
        axis: FLOATS = rotations[0, PART_NAMES.index(f"{SIDES[side]}_thigh"), :, 2]
        return axis


_FEET = tuple(PART_NAMES.index(f"{side}_foot") for side in SIDES)
_ANKLES = (3, 6)
