"""The smoothers against signals whose smoothed form is known, and their tuning against known noise."""

import numpy as np
import pytest

from finephys.evaluation.smoothers import SMOOTHERS, one_euro, savitzky_golay, tune, whittaker

FPS = 30.0
TIME_S = np.arange(40) / FPS


def _joints(values: np.ndarray) -> np.ndarray:
    return np.broadcast_to(values[:, None, None], (len(values), 17, 3)).copy()


def test_savitzky_golay_keeps_parabolas_and_takes_noise() -> None:
    parabola = _joints(1 + 2 * TIME_S - 4.905 * TIME_S**2)
    np.testing.assert_allclose(savitzky_golay(parabola, FPS, (0.3, 2.0)), parabola, atol=1e-12)
    noise = np.random.default_rng(0).normal(size=(40, 17, 3))
    assert savitzky_golay(noise, FPS, (0.5, 2.0)).std() < 0.6
    # Shorter than the window, and too short for any.
    assert savitzky_golay(noise[:6], FPS, (0.7, 2.0)).shape == (6, 17, 3)
    np.testing.assert_array_equal(savitzky_golay(noise[:2], FPS, (0.7, 2.0)), noise[:2])


def test_whittaker_keeps_lines_and_halves_its_own_frequency() -> None:
    line = _joints(3 - 2 * TIME_S)
    np.testing.assert_allclose(whittaker(line, FPS, (0.1,)), line, atol=1e-9)
    # A sine of frequency w leaves with 1 / (1 + (time constant fps)^4 (2 - 2 cos(w / fps))^2), far from the ends.
    time_s, time_constant_s = np.arange(400) / FPS, 0.1
    wave = _joints(np.sin(time_s / time_constant_s))
    gain = 1 / (1 + (time_constant_s * FPS) ** 4 * (2 - 2 * np.cos(1 / (time_constant_s * FPS))) ** 2)
    smoothed = whittaker(wave, FPS, (time_constant_s,))
    np.testing.assert_allclose(smoothed[100:-100], gain * wave[100:-100], atol=1e-6)
    assert gain == pytest.approx(0.5, abs=0.02)


def test_one_euro_at_rest_is_an_exponential_filter() -> None:
    """Without growth: a step s leaves as 1 - (1 - a)^n with a = 1 / (1 + fps / (2 pi cut-off)), Casiez' equation 5."""
    step = _joints((TIME_S > 0).astype(float))
    share = 1 / (1 + FPS / (2 * np.pi * 2.0))
    np.testing.assert_allclose(one_euro(step, FPS, (2.0, 0.0)), _joints(1 - (1 - share) ** np.arange(40)), atol=1e-12)
    # What grows with speed follows faster.
    assert (one_euro(step, FPS, (2.0, 4.0))[1:] > one_euro(step, FPS, (2.0, 0.0))[1:]).all()


def test_tuning_smooths_noise_and_leaves_a_clean_motion_alone() -> None:
    rng = np.random.default_rng(1)
    truth = np.sin(3 * TIME_S[:, None, None] + rng.uniform(0, 6, (17, 3)))
    noisy = [(truth + rng.normal(0, 0.05, truth.shape), truth, FPS) for _ in range(3)]
    for name, (smooth, _) in SMOOTHERS.items():
        setting = tune(name, noisy)
        smoothed = smooth(noisy[0][0], FPS, setting)
        before, after = (np.abs(np.diff(x - truth, n=2, axis=0)).mean() for x in (noisy[0][0], smoothed))
        # A causal filter lags and may not smooth as much within the same MPJPE.
        assert after < (0.7 if name == "One-Euro" else 0.5) * before, name
    (time_constant_s,) = tune("Whittaker", [(truth + 1e-6, truth, FPS)])
    assert time_constant_s == 0.015
