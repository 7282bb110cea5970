"""The lifter's evaluation: alignment against a closed form of its own, groups, and one page from shipped clips."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from finephys.data.clips import read_shard, write_shard
from finephys.evaluation import evaluate_lifting
from finephys.evaluation.evaluate_lifting import angle_deg, evaluate, prompt_figures
from finephys.evaluation.pose import pa_mpjpe
from finephys.pose.lifting import Lifter

ASSETS = Path("finephys/assets")


def test_pa_mpjpe_is_what_a_search_over_similarities_finds() -> None:
    """scipy's Procrustes allows mirrored poses, which ours must not: a least-squares search is the reference."""
    rng = np.random.default_rng(0)
    for mirror in (1.0, -1.0):
        truth_m = rng.normal(size=(17, 3))
        joints_m = (truth_m + rng.normal(0, 0.1, (17, 3))) * [mirror, 1, 1]

        def aligned(p: np.ndarray, joints_m: np.ndarray = joints_m) -> np.ndarray:
            return np.exp(p[6]) * Rotation.from_rotvec(p[:3]).apply(joints_m) + p[3:6]

        starts = [np.r_[Rotation.random(rng=seed).as_rotvec(), np.zeros(4)] for seed in range(12)]
        found = min(
            (least_squares(lambda p, t=truth_m: (aligned(p) - t).ravel(), start) for start in starts),
            key=lambda result: result.cost,
        )
        wanted = np.linalg.norm(aligned(found.x) - truth_m, axis=-1).mean()
        assert pa_mpjpe(joints_m[None], truth_m[None]) == pytest.approx(wanted, rel=1e-4)


def test_angles() -> None:
    assert angle_deg(np.array([0, 1, 0]), np.array([0, 1, 1])) == pytest.approx(45)
    assert angle_deg(np.array([[0, 1, 0]]), np.array([[0, -2, 0]])) == pytest.approx([180])


def test_a_run_writes_a_viewer_that_needs_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_lifting, "NUM_WINDOWS", 3)
    clips = [clip for clip in read_shard(ASSETS / "clips/test-00000.parquet") if clip.num_frames < 46][:4]
    assert {"backflip", "spinkick"} <= {clip.label_name for clip in clips}
    (tmp_path / "data").mkdir()
    write_shard(clips, tmp_path / "data/test.parquet")
    figures = {f.name: f for f in evaluate(ASSETS / "pipeline", str(tmp_path / "data"), tmp_path / "page")}
    assert 50 < figures["real_flight_mpjpe_mm"].value < 500
    assert figures["real_flight_pa_mpjpe_mm"].value < figures["real_flight_mpjpe_mm"].value
    # On bodies and cameras that training does not show, prompts that do are worth more than the goal.
    assert figures["b_outside_training_prompts_gain_percent"].met
    prompted, own = (figures[f"b_outside_training_{column}_mpjpe_mm"] for column in ("prompted", "own"))
    assert prompted.value < own.value
    index = (tmp_path / "page/index.html").read_text()
    assert 'src="viewer-0.html"' in index
    viewer = (tmp_path / "page/viewer-0.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', viewer)
    assert "http" not in viewer.replace("data:video/mp4;base64", "").split("base64,")[0]
    content = re.search(r'<script type="application/json" id="content">(.*?)</script>', viewer, re.DOTALL)
    assert content is not None
    clip = json.loads(content.group(1))
    assert len(clip["joints_px"]) == len(clip["lifted"]) == len(clip["truth"])


def test_without_its_twin_what_prompts_are_worth_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_lifting, "NUM_WINDOWS", 1)
    lifter = Lifter.from_pretrained(ASSETS / "pipeline/lifter", torch_dtype=torch.float32).eval()
    gain = {figure.name: figure for figure in prompt_figures(lifter, None)}["b_outside_training_prompts_gain_percent"]
    assert np.isnan(gain.value)
    assert gain.met is False


def test_missing_lifter_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="lifter"):
        evaluate(tmp_path, "finephys/assets/clips", tmp_path / "page")
