"""Figures: what a benchmark or an evaluation measured, beside the goal it is held to, as a table and as JSON.

Path:    list of Figure -> table on stdout, {figure: {value, goal, met}} in a file
Units:   in the figure's name, where it has one (`mpjpe_mm`, `p95_ms`); ratios have none
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number. At most one of the goals is given; without one the figure only informs.

    at_least, at_most: the goal, that value included.  A value that is not a number (nothing to measure it on) never
    meets a goal.
    """

    name: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.at_least is not None and self.at_most is not None:
            raise ValueError(f"figure {self.name} has both at_least and at_most, wanted one of them")

    @property
    def goal(self) -> float | None:
        """The number to reach; None for a figure that only informs."""
        return self.at_least if self.at_least is not None else self.at_most

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without one."""
        if self.at_least is not None:
            return bool(self.value >= self.at_least)
        if self.at_most is not None:
            return bool(self.value <= self.at_most)
        return None


def figures_table(figures: Sequence[Figure]) -> str:
    """A line a figure: name, value, goal, and whether it is met."""
    width = max((len(figure.name) for figure in figures), default=0)
    lines = []
    for figure in figures:
        goal = ""
        if figure.goal is not None:
            sign = "≥" if figure.at_least is not None else "≤"
            goal = f"  goal {sign} {figure.goal:<8.4g} {'met' if figure.met else 'NOT met'}"
        lines.append(f"{figure.name:<{width}}  {figure.value:<10.4g}{goal}".rstrip())
    return "\n".join(lines)


def write_figures(figures: Sequence[Figure], path: Path) -> None:
    """Write {figure: {value, goal, met}}; the file appears whole or not at all.

    A value that is not finite is written as null, as JSON has no other word for it.  Raises ValueError on two figures
    of one name.
    """
    names = [figure.name for figure in figures]
    if len(set(names)) != len(names):
        raise ValueError(f"figures {sorted({name for name in names if names.count(name) > 1})} appear more than once")
    content = {
        figure.name: {
            "value": figure.value if math.isfinite(figure.value) else None,
            "goal": figure.goal,
            "met": figure.met,
        }
        for figure in figures
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)
