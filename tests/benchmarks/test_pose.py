"""The benchmark of pose and lifting runs and compares like with like."""

import pytest

from finephys.benchmarks import pose


def test_all_figures_are_there_and_shares_are_of_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose, "REPEATS", 1)
    monkeypatch.setattr(pose, "LENGTHS", (100, 200))
    monkeypatch.setattr(pose, "NUM_FRAMES", 32)
    monkeypatch.setattr(pose, "NUM_CLIPS", 2)
    figures = {figure.name: figure for figure in pose.measure()}
    for name in ("pose2d", "lifting"):
        assert figures[f"{name}_share_of_bare"].at_least == 0.85
        assert 0.05 < figures[f"{name}_share_of_bare"].value < 2
    assert "lifting_ms_per_clip_of_32_frames" in figures
    assert "lifting_cost_exponent_of_length" in figures
