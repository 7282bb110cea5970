"""The smoothers that physics has to beat, each as good as a search over its settings on training clips makes it.

Path:    beside the path: Pose3D -> smoothed joints
Letters: T frames, J = 17 joints
Units:   metre, second, hertz
[1] Savitzky and Golay, Anal. Chem. 36, 1964 (scipy's).
[2] Casiez, Roussel and Vogel, 1 EUR Filter, CHI 2012: causal, its cut-off grows with the speed.
[3] Whittaker, Proc. Edinburgh Math. Soc. 41, 1923: least squares with a price on second differences.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from scipy.signal import savgol_filter

from finephys.evaluation.motion_errors import acceleration_error
from finephys.evaluation.pose import mpjpe

FLOATS = NDArray[np.float64]
Smoother = Callable[[FLOATS, float, tuple[float, ...]], FLOATS]

# Casiez' own for the derivative's cut-off.
_SPEED_CUTOFF_HZ = 1.0
# A setting may cost this share of MPJPE for a smoother motion: past it a filter buys calm with wrong poses.
_MPJPE_ALLOWANCE = 1.01


def savitzky_golay(joints_m: FLOATS, fps: float, setting: tuple[float, ...]) -> FLOATS:
    """[1] with setting (window_s, order). joints_m (T, J, 3); a clip shorter than the window gets a shorter one."""
    window_s, order = setting
    longest = len(joints_m) - (len(joints_m) + 1) % 2
    window = min(2 * round(window_s * fps / 2) + 1, longest)
    if window <= order:
        return joints_m
    smoothed: FLOATS = savgol_filter(joints_m, window, int(order), axis=0)
    return smoothed


def one_euro(joints_m: FLOATS, fps: float, setting: tuple[float, ...]) -> FLOATS:
    """[2] with setting (cut-off at rest in Hz, its growth in Hz per m/s), on each coordinate."""
    cutoff_hz, growth = setting

    def share(cutoff: FLOATS | float) -> FLOATS:
        return np.asarray(1 / (1 + fps / (2 * np.pi * np.asarray(cutoff))))

    smoothed, speed = [joints_m[0]], np.zeros_like(joints_m[0])
    for before, now in itertools.pairwise(joints_m):
        speed = speed + share(_SPEED_CUTOFF_HZ) * ((now - before) * fps - speed)
        smoothed.append(smoothed[-1] + share(cutoff_hz + growth * np.abs(speed)) * (now - smoothed[-1]))
    return np.stack(smoothed)


def whittaker(joints_m: FLOATS, fps: float, setting: tuple[float, ...]) -> FLOATS:
    """[3] with setting (time constant in s,): minimises |x - joints|^2 + (time constant fps)^4 |D2 x|^2."""
    num_frames = len(joints_m)
    if num_frames < 3:
        return joints_m
    difference = np.diff(np.eye(num_frames), n=2, axis=0)
    normal = np.eye(num_frames) + (setting[0] * fps) ** 4 * difference.T @ difference
    bands = np.zeros((3, num_frames))
    for offset in range(3):
        bands[offset, : num_frames - offset] = np.diag(normal, offset)
    smoothed: FLOATS = solveh_banded(bands, joints_m.reshape(num_frames, -1), lower=True).reshape(joints_m.shape)
    return smoothed


# Name -> the smoother and the settings that are tried. What the demo clips choose lies inside of each range.
SMOOTHERS: dict[str, tuple[Smoother, tuple[tuple[float, ...], ...]]] = {
    "Savitzky-Golay": (
        savitzky_golay,
        tuple(itertools.product((0.1, 0.17, 0.23, 0.3, 0.37, 0.5, 0.7), (2.0, 3.0))),
    ),
    "One-Euro": (
        one_euro,
        tuple(itertools.product((0.5, 1.0, 2.0, 4.0, 8.0, 16.0), (0.0, 0.5, 1.0, 2.0, 4.0, 8.0))),
    ),
    "Whittaker": (whittaker, tuple((time_s,) for time_s in (0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15))),
}


def tune(name: str, motions: Sequence[tuple[FLOATS, FLOATS, float]]) -> tuple[float, ...]:
    """The setting of least acceleration error among those whose MPJPE is within 1 % of not smoothing at all.

    motions: (joints_m, truth_m, fps) of training clips. Where every setting costs more, that of least MPJPE.
    """
    smoother, settings = SMOOTHERS[name]
    raw = np.mean([mpjpe(joints_m, truth_m) for joints_m, truth_m, _ in motions])
    tried = []
    for setting in settings:
        smoothed = [(smoother(joints_m, fps, setting), truth_m, fps) for joints_m, truth_m, fps in motions]
        position = float(np.mean([mpjpe(joints_m, truth_m) for joints_m, truth_m, _ in smoothed]))
        rough = float(np.mean([acceleration_error(*motion) for motion in smoothed]))
        tried.append((position, rough, setting))
    allowed = [one for one in tried if one[0] <= _MPJPE_ALLOWANCE * raw]
    return min(allowed, key=lambda one: one[1])[2] if allowed else min(tried)[2]
