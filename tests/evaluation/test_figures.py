import json
from pathlib import Path

import pytest

from finephys.evaluation.figures import Figure, figures_table, write_figures


@pytest.mark.parametrize(
    ("figure", "goal", "met"),
    [
        (Figure(name="ratio", value=0.9, at_least=0.9), 0.9, True),
        (Figure(name="ratio", value=0.89, at_least=0.9), 0.9, False),
        (Figure(name="error_mm", value=45.0, at_most=45.0), 45.0, True),
        (Figure(name="error_mm", value=45.1, at_most=45.0), 45.0, False),
        (Figure(name="error_mm", value=float("nan"), at_most=45.0), 45.0, False),
        (Figure(name="memory_gib", value=3.0), None, None),
    ],
)
def test_a_goal_is_met_on_the_right_side_of_it(
    figure: Figure, goal: float | None, met: bool | None, tmp_path: Path
) -> None:
    write_figures([figure], tmp_path / "new" / "figures.json")
    written = json.loads((tmp_path / "new" / "figures.json").read_text())[figure.name]
    assert (written["goal"], written["met"]) == (goal, met)
    assert written["value"] == (None if figure.value != figure.value else figure.value)
    assert ("NOT met" in figures_table([figure])) == (met is False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figures.json"]


def test_a_figure_has_one_goal_and_one_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both at_least and at_most"):
        Figure(name="ratio", value=1.0, at_least=0.5, at_most=0.7)
    with pytest.raises(ValueError, match="ratio"):
        write_figures([Figure(name="ratio", value=1.0)] * 2, tmp_path / "figures.json")
    assert not (tmp_path / "figures.json").exists()
