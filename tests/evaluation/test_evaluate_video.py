"""The comparison of ways to guide, on shipped clips and weights: each way draws what its name says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from finephys.data.clips import write_shard
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.evaluation import elements, evaluate_video
from finephys.evaluation.detections import detect_split, read_split
from finephys.evaluation.evaluate_video import bootstrap_interval, evaluate, guides, limb_error_degrees

ASSETS = Path("finephys/assets")


def test_limb_error_is_the_angle_it_was_turned_by():
    joints = np.random.default_rng(0).normal(0, 30, (5, 17, 2))
    angle = np.radians(25)
    turned = joints @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).T + 7
    assert limb_error_degrees(turned, joints) == pytest.approx(25)
    assert limb_error_degrees(-joints, joints) == pytest.approx(180)


def test_bootstrap_interval_is_about_the_standard_error():
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap_interval(np.append(values, np.nan))
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two elements, one clip of each split."""
    folder = tmp_path_factory.mktemp("clips")
    for split in ("train", "test"):
        found = {clip.label: clip for clip in read_split(str(ASSETS / "clips"), split) if clip.label in (12, 34)}
        write_shard([found[label] for label in sorted(found)], folder / f"{split}.parquet")
    return str(folder)


def test_what_each_way_draws(data):
    model = FinePhysPipeline.from_pretrained(ASSETS / "pipeline")
    found = detect_split(ASSETS / "pipeline", data)[0]
    drawn, again = guides(model, found, seed=3), guides(model, found, seed=3)
    np.testing.assert_array_equal(drawn["truth"].joints_px, found.clip.joints_px)
    np.testing.assert_array_equal(drawn["2d_clean"].joints_px, found.pose.joints_px)
    assert not drawn["2d_clean"].depth_m.any()
    assert np.ptp(drawn["first_frame"].joints_px, axis=0).max() == 0
    for row in ("2d", "s_dd", "ours"):
        np.testing.assert_array_equal(drawn[f"{row}_corrupted"].joints_px, again[f"{row}_corrupted"].joints_px)
        assert np.abs(drawn[f"{row}_corrupted"].joints_px - drawn[f"{row}_clean"].joints_px).max() > 2
    # What is drawn through the made-up camera is what was asked for.
    torch.manual_seed(0)
    asked = drawn["ours_clean"]
    size = (found.clip.height, found.clip.width)
    drawn_px = []
    model.unet.forward = None  # not reached: only the drawing is looked at

    def stop(joints_px, *_):
        drawn_px.append(joints_px.numpy())
        raise InterruptedError

    evaluated = pytest.MonkeyPatch()
    evaluated.setattr("finephys.diffusion.pipeline._check_in_frame", stop)
    with pytest.raises(InterruptedError):
        evaluate_video.generate(model, found, "ours_clean", asked, seed=0)
    evaluated.undo()
    index = np.linspace(0, len(asked.joints_px) - 1, 16).round().astype(int)
    np.testing.assert_allclose(drawn_px[0], asked.joints_px[index], atol=1e-2 * max(size) / 128)


def test_all_figures_and_a_page(quick_pipeline, data, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_video, "CLIPS_PER_SUBSET", 1)
    monkeypatch.setattr(evaluate_video, "NUM_INFERENCE_STEPS", 1)
    for module in (evaluate_video, elements):
        monkeypatch.setattr(module, "NUM_FRAMES", 8)
    figures = {figure.name: figure for figure in evaluate(quick_pipeline, data, tmp_path)}
    assert figures["pck_ours_over_real_clean"].at_least == 0.92
    assert figures["pck_ours_over_real_corrupted"].at_least == 0.87
    assert figures["element_accuracy_ours_over_real"].at_least == 0.80
    assert 0 <= figures["pck_text"].value <= figures["pck_real"].value <= 1
    page = (tmp_path / "index.html").read_text()
    assert "S_dd + S_pp, fused (corrupted)" in page
    videos = re.findall(r'<video src="([^"]+)"', page)
    assert len(videos) == 2
    assert all((tmp_path / name).stat().st_size > 1000 for name in videos)
