"""How physical a motion is, whoever made it: floor, forces, smoothness, bones, and the laws of flight.

Path:    joints in the world -> Plausibility; beside the path: evaluation, quality gates, other people's motions
Letters: T frames, J = 17 H36M joints
Units:   as the names say; bw: body weights
Frames:  world, up along `up`

Forces follow from the centre of mass alone (Newton): F / mg = (a + g up) / g, with a from quadratic fits over seven
frames, as differences of captured or detected joints are mostly noise. Masses are de Leva's (finephys/physics/body.py).
[1] Yuan et al., PhysDiff, ICCV 2023 (penetration, float, skate, with its 5 mm tolerance). We differ: frames in flight
    do not float, they fly.
[2] Yi et al., TransPose, SIGGRAPH 2021 (jitter: the mean third derivative).
[3] Rempe et al., Contact and Human Dynamics from Monocular Video, ECCV 2020 (ground reaction forces, friction).

    python -m finephys.physics.plausibility motion.npz      (joints_m (T,17,3), fps; in_flight (T,) if known)
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.signal import savgol_filter

from finephys.command_line import run
from finephys.physics.body import STANDARD_GRAVITY, Body, angular_momentum, bone_lengths, center_of_mass, points_of
from finephys.skeleton import JOINT_NAMES, NUM_JOINTS

FLOATS = NDArray[np.float64]

TOLERANCE_M = 0.005  # [1]
# Frames of the quadratic fits, and the shortest flight on which a parabola says anything.
FIT_FRAMES = 7
MIN_FLIGHT_FRAMES = 5
# An ankle this far above where it is when standing has left the floor: more than on tiptoe.
FLIGHT_HEIGHT_M = 0.12
# Below this vertical force nobody stands, and the friction that is needed means nothing.
_LEAST_FORCE_BW = 0.2

_FEET = tuple(JOINT_NAMES.index(f"{side}_ankle") for side in ("right", "left"))


@dataclass(frozen=True, kw_only=True)
class Plausibility:
    """None where the motion has nothing to measure it on (no flight, no contact, too few frames).

    penetration_mm, float_mm: mean depth below, and height above, the floor of the lowest joint, the latter over frames
    on the floor [1];  skate_mm: mean way of a foot on the floor from frame to frame [1].
    force_min_bw, force_max_bw: vertical force of the floor, 2nd and 98th percentile over frames on the floor [3];
    friction_needed: 95th percentile of horizontal over vertical force [3].
    jitter_m_s3: mean size of the joints' third derivative [2].  bone_drift_mm: mean deviation of bone lengths in time.
    flight_acceleration_m_s2: vertical, of parabolas fitted to the centre of mass, mean over flights: -9.81 is right.
    flight_residual_m_s2: size of that acceleration minus gravity, mean over flights.
    momentum_drift: deviation of the angular momentum over a flight, over its mean size; mean over flights.
    """

    penetration_mm: float
    float_mm: float | None
    skate_mm: float | None
    force_min_bw: float | None
    force_max_bw: float | None
    friction_needed: float | None
    jitter_m_s3: float | None
    bone_drift_mm: float
    flight_acceleration_m_s2: float | None
    flight_residual_m_s2: float | None
    momentum_drift: float | None
    num_flights: int


def plausibility(
    joints_m: NDArray[np.floating],
    fps: float,
    *,
    up: tuple[float, float, float] = (0.0, 1.0, 0.0),
    floor_m: float | None = None,
    in_flight: NDArray[np.bool_] | None = None,
) -> Plausibility:
    """Measure one motion. joints_m (T,17,3) in the world, T >= 2.

    floor_m: height along `up` of the lowest joint of someone who stands; without it the 5th percentile of the lowest
    joint's height.  in_flight (T,): without it, where the lowest joint is FLIGHT_HEIGHT_M above that.
    Raises ValueError on other shapes, values that are not finite, and fps that are not positive.
    """
    joints = _checked(joints_m, fps, in_flight)
    upward = np.asarray(up, np.float64) / np.linalg.norm(up)
    heights_m = joints @ upward
    lowest_m = heights_m.min(-1)
    floor_m = float(np.percentile(lowest_m, 5)) if floor_m is None else floor_m
    flying = lowest_m > floor_m + FLIGHT_HEIGHT_M if in_flight is None else in_flight
    above_m = lowest_m - floor_m
    body = Body.from_joints(torch.from_numpy(joints))
    points = points_of(torch.from_numpy(joints))
    center_m = np.asarray(center_of_mass(body, points))
    flights = _flights(center_m, np.asarray(_momentum(body, points, fps)), flying, fps, upward)
    force_min, force_max, friction = _floor_forces(center_m, flying, fps, upward)
    lengths_m = np.asarray(bone_lengths(torch.from_numpy(joints)))
    return Plausibility(
        penetration_mm=1000 * float(np.maximum(-above_m - TOLERANCE_M, 0).mean()),
        float_mm=_mean(1000 * np.maximum(above_m - TOLERANCE_M, 0)[~flying]),
        skate_mm=_skate_mm(joints, heights_m - floor_m, flying, upward),
        force_min_bw=force_min,
        force_max_bw=force_max,
        friction_needed=friction,
        jitter_m_s3=_mean(np.linalg.norm(np.diff(joints, n=3, axis=0), axis=-1).reshape(-1) * fps**3),
        bone_drift_mm=1000 * float(lengths_m.std(0).mean()),
        flight_acceleration_m_s2=_mean(np.array([fall @ upward for fall, _ in flights])),
        flight_residual_m_s2=_mean(np.array([np.linalg.norm(fall + STANDARD_GRAVITY * upward) for fall, _ in flights])),
        momentum_drift=_mean(np.array([drift for _, drift in flights])),
        num_flights=len(flights),
    )


def _skate_mm(joints: FLOATS, above_m: FLOATS, flying: NDArray[np.bool_], upward: FLOATS) -> float | None:
    """Horizontal way of each foot between frames in both of which it is on the floor."""
    ways = []
    for foot in _FEET:
        is_down = (above_m[:, foot] < TOLERANCE_M + FLIGHT_HEIGHT_M / 4) & ~flying
        step = np.diff(joints[:, foot], axis=0)
        level = step - (step @ upward)[:, None] * upward
        ways.append(1000 * np.linalg.norm(level, axis=-1)[is_down[1:] & is_down[:-1]])
    return _mean(np.concatenate(ways))


def _floor_forces(
    center_m: FLOATS, flying: NDArray[np.bool_], fps: float, upward: FLOATS
) -> tuple[float | None, float | None, float | None]:
    """Least and largest vertical force in body weights, and the friction needed, over frames on the floor."""
    if len(center_m) < FIT_FRAMES:
        return None, None, None
    acceleration = savgol_filter(center_m, FIT_FRAMES, 2, deriv=2, delta=1 / fps, axis=0)
    # A fit that reaches into a flight or beyond the ends is none of the floor's.
    near_flight = np.convolve(flying, np.ones(FIT_FRAMES), "same") > 0
    half = FIT_FRAMES // 2
    is_standing = ~near_flight & (np.arange(len(flying)) >= half) & (np.arange(len(flying)) < len(flying) - half)
    force_bw = acceleration[is_standing] / STANDARD_GRAVITY + upward
    if len(force_bw) == 0:
        return None, None, None
    vertical = force_bw @ upward
    level = np.linalg.norm(force_bw - vertical[:, None] * upward, axis=-1)
    loaded = vertical > _LEAST_FORCE_BW
    friction = float(np.percentile(level[loaded] / vertical[loaded], 95)) if loaded.any() else None
    return float(np.percentile(vertical, 2)), float(np.percentile(vertical, 98)), friction


def _flights(
    center_m: FLOATS, momentum: FLOATS, flying: NDArray[np.bool_], fps: float, upward: FLOATS
) -> list[tuple[FLOATS, float]]:
    """Of each flight: the acceleration (3,) of a parabola through the centre of mass, and the momentum's drift."""
    stretches, num_stretches = label(flying)
    found = []
    for number in range(1, num_stretches + 1):
        frames = np.flatnonzero(stretches == number)
        if len(frames) < MIN_FLIGHT_FRAMES:
            continue
        # The first and the last frame may still, or already, touch; and velocities there mix flight and floor.
        inner = frames[1:-1] if len(frames) > MIN_FLIGHT_FRAMES + 1 else frames
        acceleration = 2 * np.polyfit((inner - inner.mean()) / fps, center_m[inner], 2)[0]
        held = momentum[frames[1:-1]]
        size = np.linalg.norm(held, axis=-1).mean()
        drift = float(np.linalg.norm(held - held.mean(0), axis=-1).mean() / max(size, 1e-9))
        found.append((np.asarray(acceleration, np.float64), drift))
    return found


def _momentum(body: Body, points: torch.Tensor, fps: float) -> torch.Tensor:
    """Angular momentum (T,3) about the centre of mass, with velocities by central differences."""
    velocity = torch.from_numpy(np.gradient(points.numpy(), 1 / fps, axis=0))
    return angular_momentum(body, points, velocity)


def _mean(values: FLOATS) -> float | None:
    return float(values.mean()) if values.size else None


def _checked(joints_m: NDArray[np.floating], fps: float, in_flight: NDArray[np.bool_] | None) -> FLOATS:
    if joints_m.ndim != 3 or joints_m.shape[1:] != (NUM_JOINTS, 3) or len(joints_m) < 2:
        raise ValueError(f"joints_m has shape {joints_m.shape}, wanted (T, {NUM_JOINTS}, 3) with T of 2 or more")
    if not np.isfinite(joints_m).all():
        frame = int((~np.isfinite(joints_m)).any((1, 2)).argmax())
        raise ValueError(f"joints_m is not finite in frame {frame}")
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps is {fps}, wanted a positive number")
    if in_flight is not None and in_flight.shape != joints_m.shape[:1]:
        raise ValueError(f"in_flight has shape {in_flight.shape}, wanted {joints_m.shape[:1]}")
    return np.asarray(joints_m, np.float64)


# --- the command


@dataclass(frozen=True, kw_only=True)
class PlausibilityConfig:
    """Which motion, and where to draw it."""

    motion: tyro.conf.Positional[Path]
    """.npz file with joints_m (T,17,3) and fps; in_flight (T,) if known."""
    up: tuple[float, float, float] = field(default=(0.0, 1.0, 0.0))
    """Direction of up in the file's world."""
    output: Path | None = None
    """Picture of the curves; beside the motion if not given."""


def main(config: PlausibilityConfig) -> None:
    if not config.motion.is_file():
        raise FileNotFoundError(f"motion {config.motion} does not exist")
    try:
        # Arrays of numbers only: a pickled object in the file is refused.
        content = dict(np.load(config.motion, allow_pickle=False))
    except (ValueError, OSError) as error:
        raise ValueError(f"motion {config.motion} is no .npz of plain arrays: {error}") from error
    missing = [name for name in ("joints_m", "fps") if name not in content]
    if missing:
        raise ValueError(f"motion {config.motion} has no array {missing[0]}, it has {', '.join(content) or 'none'}")
    in_flight = content["in_flight"].astype(bool) if "in_flight" in content else None
    fps = float(content["fps"])
    measured = plausibility(content["joints_m"], fps, up=config.up, in_flight=in_flight)
    width = max(len(one.name) for one in fields(measured))
    for name, value in asdict(measured).items():
        print(f"{name:<{width}}  {'-' if value is None else f'{value:.4g}'}")
    picture = config.output or config.motion.with_suffix(".png")
    _draw(content["joints_m"], fps, np.asarray(config.up, np.float64), picture)
    print(f"done: {picture}")


def _draw(joints_m: FLOATS, fps: float, up: FLOATS, picture: Path) -> None:
    """Heights of the feet and of the centre of mass, and the floor's force, over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    joints = np.asarray(joints_m, np.float64)
    upward = up / np.linalg.norm(up)
    center_m = np.asarray(
        center_of_mass(Body.from_joints(torch.from_numpy(joints)), points_of(torch.from_numpy(joints)))
    )
    times_s = np.arange(len(joints)) / fps
    figure, (heights, forces) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6))
    heights.plot(times_s, center_m @ upward, label="centre of mass")
    for side, foot in zip(("right", "left"), _FEET, strict=True):
        heights.plot(times_s, joints[:, foot] @ upward, label=f"{side} ankle")
    heights.set_ylabel("height in m")
    heights.legend()
    if len(joints) >= FIT_FRAMES:
        acceleration = savgol_filter(center_m, FIT_FRAMES, 2, deriv=2, delta=1 / fps, axis=0) @ upward
        forces.plot(times_s, acceleration / STANDARD_GRAVITY + 1)
    forces.axhline(0, color="grey", linewidth=0.8)
    forces.set(xlabel="s", ylabel="vertical force in body weights")
    figure.savefig(picture, format="png", dpi=100)
    pyplot.close(figure)


if __name__ == "__main__":
    run(
        main,
        PlausibilityConfig,
        description="Measure how physical a motion is, print a table and draw its curves.",
        examples=("motion.npz", "motion.npz --up 0 0 1 --output curves.png"),
    )
