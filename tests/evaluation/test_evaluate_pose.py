"""The detector's evaluation: its figures against cases worked out by hand, and one run over shipped clips."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import FRAME_SHAPES, Clip, read_shard, write_shard
from finephys.evaluation.detections import Detection, detect_split
from finephys.evaluation.evaluate_pose import accuracy_figures, evaluate, reliability, somersault_figures
from finephys.pose.estimator import Pose2D
from finephys.skeleton import MIRROR

ASSETS = Path("finephys/assets")


def found(clip: Clip, joints_px: np.ndarray) -> Detection:
    frames = np.zeros((clip.num_frames, clip.height, clip.width, 3), np.uint8)
    confidence = np.full(joints_px.shape[:2], 0.8, np.float32)
    return Detection(clip=clip, frames_THWC=frames, pose=Pose2D(joints_px, confidence))


@pytest.fixture(scope="module")
def somersault() -> Clip:
    return next(clip for clip in read_shard(ASSETS / "clips/test-00000.parquet") if clip.label_name == "backflip")


def test_the_truth_itself_meets_every_goal(somersault: Clip) -> None:
    detection = found(somersault, somersault.joints_px)
    for figure in [*accuracy_figures([detection]), *somersault_figures([detection])]:
        assert figure.met is not False, figure


def test_one_joint_that_is_always_wrong_is_the_worst_one(somersault: Clip) -> None:
    joints_px = somersault.joints_px.copy()
    joints_px[:, 3] += 50
    figures = {figure.name: figure.value for figure in accuracy_figures([found(somersault, joints_px)])}
    assert figures["pck_0.05_worst_joint"] == figures["pck_0.05_right_ankle"] == 0
    assert figures["pck_0.05"] == pytest.approx(16 / 17)


def test_a_shift_of_two_pixels_at_128_is_four_at_256(somersault: Clip) -> None:
    figures = accuracy_figures([found(somersault, somersault.joints_px + np.float32([2, 0]))])
    assert figures[0].value == pytest.approx(4.0, abs=1e-3)


def test_what_curling_up_costs_is_not_laid_to_being_upside_down(somersault: Clip) -> None:
    stretched = next(pose for pose in somersault.joints_px if pose[8, 1] < pose[0, 1])
    # Feet drawn up to the hips.
    curled = stretched.copy()
    curled[[3, 6]] = curled[[1, 4]] + 0.3 * (curled[[3, 6]] - curled[[1, 4]])
    upside_down = np.float32([1, -1])
    poses = [stretched] * 90 + [curled] * 10 + [stretched * upside_down] * 5 + [curled * upside_down] * 5
    truth_px = np.stack(poses)
    joints_px = truth_px.copy()
    joints_px[90:100] += 100
    joints_px[105:] += 100
    unknown = dict.fromkeys(set(FRAME_SHAPES) - {"joints_px"})
    clip = replace(somersault, **unknown, joints_px=truth_px, num_frames=len(poses))
    figures = {figure.name: figure.value for figure in accuracy_figures([found(clip, joints_px)])}
    assert figures["pck_0.05_upright"] == pytest.approx(0.9)
    assert figures["pck_0.05_inverted"] == figures["pck_0.05_upright_as_curled"] == pytest.approx(0.5)


def test_left_for_right_and_someone_else_are_seen(somersault: Clip) -> None:
    mirrored = somersault_figures([found(somersault, somersault.joints_px[:, list(MIRROR)])])
    elsewhere = somersault_figures([found(somersault, somersault.joints_px + 100)])
    assert mirrored[2].value > 0.99
    assert mirrored[1].value == 0
    assert elsewhere[1].value == 1
    assert not elsewhere[1].met


def test_calibration_error_of_a_known_case() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 200_000)
    assert reliability(confidence, rng.uniform(0, 1, 200_000) < confidence).expected_calibration_error < 0.01
    always = reliability(np.full(1000, 0.9), np.arange(1000) % 2 == 0)
    assert always.expected_calibration_error == pytest.approx(0.4)
    with pytest.raises(ValueError, match="one shape"):
        reliability(confidence, np.ones(3, bool))


def test_a_run_writes_the_page_and_all_that_it_links(tmp_path: Path) -> None:
    clips = list(read_shard(ASSETS / "clips/test-00000.parquet"))[:2]
    (tmp_path / "data").mkdir()
    write_shard([*clips, replace(clips[0], clip_id="other", split="train")], tmp_path / "data/test.parquet")
    figures = evaluate(ASSETS / "pipeline", str(tmp_path / "data"), tmp_path / "page")
    page = (tmp_path / "page/index.html").read_text()
    files = {path.name for path in (tmp_path / "page").iterdir()}
    assert {"reliability.png", "index.html"} <= files
    assert sum(name.endswith(".mp4") and name in page for name in files) >= 2
    assert len({figure.name for figure in figures}) == len(figures)
    json.dumps([figure.value for figure in figures])


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pose_estimator"):
        detect_split(tmp_path, "finephys/assets/clips")
    with pytest.raises(ValueError, match="split 'nobody'"):
        detect_split(ASSETS / "pipeline", "finephys/assets/clips", split="nobody")
