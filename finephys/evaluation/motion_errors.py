"""How far a motion is from the true one and from mechanics, clip by clip, and how sure a mean over clips is.

Path:    joints in the camera frame -> numbers
Letters: T frames, J = 17 joints, N clips
Units:   millimetre, metre, second
Frames:  camera; flights are judged in the world, through the true camera, since a camera that pans falls as well
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.data.clips import Clip
from finephys.evaluation.pose import mpjpe
from finephys.physics.body import bone_lengths
from finephys.physics.plausibility import plausibility

FLOATS = NDArray[np.float64]

NUM_RESAMPLES = 2000
_SEED = 20250513


@dataclass(frozen=True, kw_only=True)
class MotionErrors:
    """Of one clip. mpjpe_mm and acceleration_m_s2: of the root-relative joints, mean over joints and frames.
    bone_std_mm: of each bone's length over the clip, mean over bones.  flight_residual_m_s2, momentum_drift: as in
    physics/plausibility.py, over the true flights; NaN without one."""

    mpjpe_mm: float
    acceleration_m_s2: float
    bone_std_mm: float
    flight_residual_m_s2: float
    momentum_drift: float


def motion_errors(joints_cam_m: NDArray[np.floating], clip: Clip) -> MotionErrors:
    """Compare joints (T, 17, 3), metres in the camera frame, with a clip that has complete ground truth."""
    assert clip.joints_cam_m is not None
    assert clip.rotation is not None
    assert clip.translation is not None
    joints = np.asarray(joints_cam_m, np.float64)
    world_m = to_world(joints, clip.rotation, clip.translation)
    flight = plausibility(world_m, clip.fps, in_flight=clip.in_flight)
    return MotionErrors(
        mpjpe_mm=1000 * mpjpe(joints, clip.joints_cam_m),
        acceleration_m_s2=acceleration_error(joints, clip.joints_cam_m.astype(np.float64), clip.fps),
        bone_std_mm=1000 * float(np.asarray(bone_lengths(torch.from_numpy(joints))).std(0).mean()),
        flight_residual_m_s2=_known(flight.flight_residual_m_s2),
        momentum_drift=_known(flight.momentum_drift),
    )


def acceleration_error(joints_m: FLOATS, truth_m: FLOATS, fps: float) -> float:
    """Mean size in m/s^2 of the second difference of the root-relative error; both (T, J, 3), T >= 3."""
    error_m = (joints_m - joints_m[:, :1]) - (truth_m - truth_m[:, :1])
    return float(np.linalg.norm(np.diff(error_m, n=2, axis=0), axis=-1).mean() * fps**2)


def to_world(joints_cam_m: FLOATS, rotation: NDArray[np.floating], translation: NDArray[np.floating]) -> FLOATS:
    """Camera frame (T, J, 3) -> world, by each frame's rotation (T, 3, 3) and translation (T, 3)."""
    moved: FLOATS = np.einsum("tab,tja->tjb", rotation.astype(np.float64), joints_cam_m - translation[:, None])
    return moved


def flight_f1(counts_N4: NDArray[np.int64]) -> float:
    """F1 of flight from flight_calls (N, 4) of the clips. NaN without any flight, true or called."""
    right, wrong, missed, _ = counts_N4.sum(0)
    return float(2 * right / (2 * right + wrong + missed)) if right + wrong + missed else np.nan


def floor_f1(counts_N4: NDArray[np.int64]) -> float:
    """F1 of the frames on the floor, likewise."""
    _, wrong, missed, floor = counts_N4.sum(0)
    return float(2 * floor / (2 * floor + wrong + missed)) if floor + wrong + missed else np.nan


def flight_calls(called_T: NDArray[np.bool_], clip: Clip) -> tuple[int, int, int, int]:
    """Frames that are rightly, wrongly and not called in flight, and rightly on the floor."""
    assert clip.in_flight is not None
    truth_T = clip.in_flight
    kinds = (called_T & truth_T, called_T & ~truth_T, ~called_T & truth_T, ~called_T & ~truth_T)
    right, wrong, missed, floor = (int(kind.sum()) for kind in kinds)
    return right, wrong, missed, floor


def mean_of(values_N: FLOATS) -> float:
    """The mean over the clips that have a value, NaN for none."""
    known = values_N[np.isfinite(values_N)]
    return float(known.mean()) if known.size else np.nan


def ratio_of(values_N: FLOATS, reference_N: FLOATS) -> float:
    """The mean of the clips' values over the mean of their references."""
    return mean_of(values_N) / mean_of(reference_N) if values_N.size else np.nan


def interval(values_N: FLOATS, reference_N: FLOATS | None = None) -> tuple[float, float]:
    """95 % bootstrap interval, over clips, of their mean, or of its ratio to the references' mean.

    Clips without a value (NaN) are left out. Always the same random numbers. NaN for fewer than two clips.
    """
    known_N = np.isfinite(values_N) if reference_N is None else np.isfinite(values_N) & np.isfinite(reference_N)
    if known_N.sum() < 2:
        return np.nan, np.nan
    count = int(known_N.sum())
    picks = np.random.default_rng(_SEED).integers(count, size=(NUM_RESAMPLES, count))
    means = values_N[known_N][picks].mean(1)
    if reference_N is not None:
        means = means / reference_N[known_N][picks].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _known(value: float | None) -> float:
    return np.nan if value is None else value
