"""What the page about physics shows: tables with their uncertainty, bars, and sentences about what does not help.

Path:    errors of clips, figures -> text and a picture
Letters: N clips
Units:   as the columns say
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from finephys.evaluation.figures import Figure
from finephys.evaluation.motion_errors import MotionErrors, interval, mean_of, ratio_of

matplotlib.use("Agg")

FLOATS = NDArray[np.float64]
# What was measured -> the errors of each clip, in the order of the clips.
Errors = dict[str, list[MotionErrors]]

_COLUMNS = {
    "mpjpe_mm": "MPJPE mm",
    "acceleration_m_s2": "acceleration m/s^2",
    "bone_std_mm": "bone std mm",
    "flight_residual_m_s2": "c.o.m. minus g m/s^2",
    "momentum_drift": "momentum drift",
}
_WIDTH = 24


def column(errors: Errors, name: str, cell: str, indices: Sequence[int]) -> FLOATS:
    """(N,) one error of the clips `indices`, of the motions called `name`."""
    return np.array([getattr(errors[name][index], cell) for index in indices], np.float64)


def indices_of(groups: Sequence[str | None], group: str) -> list[int]:
    """Which clips belong to a group."""
    return [index for index, other in enumerate(groups) if other == group]


def errors_table(errors: Errors, groups: Sequence[str | None], names: Sequence[str]) -> str:
    """A table for each group of `names`: a row for each of the errors, means with their 95 % intervals over clips.

    The first row is what the ratio of the first column refers to.
    """
    reference = next(iter(errors))
    lines = []
    for group in names:
        mine = indices_of(groups, group)
        head = "".join(f"{title:<{_WIDTH}}" for title in (f"MPJPE / {reference}", *_COLUMNS.values()))
        lines += ["", f"{f'{group} ({len(mine)})':<20}{head}".rstrip()]
        before_N = column(errors, reference, "mpjpe_mm", mine)
        for name in errors:
            mpjpe_N = column(errors, name, "mpjpe_mm", mine)
            cells = [_with_interval(ratio_of(mpjpe_N, before_N), interval(mpjpe_N, before_N))]
            for cell in _COLUMNS:
                values_N = column(errors, name, cell, mine)
                cells.append(_with_interval(mean_of(values_N), interval(values_N)))
            lines.append(f"{name:<20}{''.join(f'{text:<{_WIDTH}}' for text in cells)}".rstrip())
    return "\n".join(lines)


def verdicts(figures: Sequence[Figure]) -> list[str]:
    """A sentence about the comparisons in which the fused motion is no better than what it is compared with."""
    worse = [one for one in figures if ("_over_" in one.name or "_ratio_" in one.name) and one.value >= 1]
    if not worse:
        return ["Physics is ahead of all that it is compared with here."]
    return [f"Physics does not help here: {', '.join(f'{one.name} {one.value:.3g}' for one in worse)}."]


def draw_comparison(errors: Errors, groups: Sequence[str | None], names: Sequence[str], picture: Path) -> None:
    """Bars with 95 % intervals: an axis for each error, a cluster for each group."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(_COLUMNS), figsize=(4.2 * len(_COLUMNS), 4))
    shown = [name for name in errors if name != "truth"]
    for axis, (cell, title) in zip(axes, _COLUMNS.items(), strict=True):
        for place, name in enumerate(shown):
            values = [column(errors, name, cell, indices_of(groups, group)) for group in names]
            means = np.array([mean_of(one) for one in values])
            ends = np.array([interval(one) for one in values])
            axis.bar(
                np.arange(len(names)) + 0.8 * place / len(shown),
                means,
                0.8 / len(shown),
                yerr=np.abs(ends.T - means),
                label=name,
            )
        axis.set_xticks(np.arange(len(names)) + 0.35, names)
        axis.set_title(title)
    axes[0].legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(picture, format="png", dpi=80)
    pyplot.close(figure)


def _with_interval(value: float, ends: tuple[float, float]) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{value:.3g}" if not np.isfinite(ends).all() else f"{value:.3g} [{ends[0]:.3g}, {ends[1]:.3g}]"
