"""Plausibility: closed forms where there are any, real motion capture and exact choreography as anchors."""

import inspect
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from finephys.gymnast.body import Performer, performer_contacts, performer_joints, rest_body
from finephys.gymnast.body_model import Shape
from finephys.gymnast.choreography import choreograph
from finephys.gymnast.mocap import load_capture
from finephys.physics.plausibility import plausibility

FPS = 30.0
PERFORMER = Performer(name="p", shape=Shape(), leotard="red", skin="fair", hair="brown")


def captured(name: str) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    size = rest_body(PERFORMER.shape).size
    capture = load_capture(name)
    motion = capture.motion(0, capture.num_frames(FPS, size), fps=FPS, size=size)
    return performer_joints(motion, PERFORMER), performer_contacts(motion, PERFORMER)[0]


def standing(num_frames: int = 40) -> NDArray[np.floating]:
    joints_m, _ = captured("walk")
    return np.repeat(joints_m[:1], num_frames, axis=0)


def test_real_flights_fall_as_they_were_measured_to() -> None:
    # Seven-frame fits around the top of the recordings' flights gave -9.80 and -9.40 m/s^2; over the whole of the
    # spinkick's short flight it is less.
    for name, expected, tolerance in (("jump", -9.80, 0.3), ("spinkick", -9.40, 0.9)):
        joints_m, in_flight = captured(name)
        measured = plausibility(joints_m, FPS, in_flight=in_flight)
        assert measured.num_flights == 1
        assert measured.flight_acceleration_m_s2 == pytest.approx(expected, abs=tolerance), name


def test_walking_loads_the_floor_as_people_do() -> None:
    measured = plausibility(captured("walk")[0], FPS)
    assert measured.num_flights == 0
    assert 0.75 < measured.force_min_bw < 1 < measured.force_max_bw < 1.35
    assert measured.friction_needed < 0.5


def test_exact_choreography_obeys_the_laws_of_flight() -> None:
    performed = choreograph(30, height_m=1.55, seed=0, fps=240)
    measured = plausibility(performed.joints_world_m, 240, in_flight=performed.in_flight)
    assert measured.flight_residual_m_s2 < 0.02
    assert measured.momentum_drift < 0.02
    assert measured.bone_drift_mm < 1e-3
    assert measured.penetration_mm == 0


def test_standing_still_is_plausible() -> None:
    measured = plausibility(standing(), FPS)
    assert measured.force_min_bw == pytest.approx(1)
    assert measured.force_max_bw == pytest.approx(1)
    for name in ("penetration_mm", "float_mm", "skate_mm", "friction_needed", "jitter_m_s3", "bone_drift_mm"):
        assert getattr(measured, name) == pytest.approx(0, abs=1e-9), name
    assert measured.flight_acceleration_m_s2 is None


def test_each_fault_shows_in_its_own_measure() -> None:
    still = standing()
    floor_m = still[..., 1].min()
    time_s = np.arange(len(still))[:, None] / FPS
    assert plausibility(still - np.array([0, 0.05, 0]), FPS, floor_m=floor_m).penetration_mm == pytest.approx(45)
    assert plausibility(still + np.array([0, 0.05, 0]), FPS, floor_m=floor_m).float_mm == pytest.approx(45)
    slides = still + (time_s * [0.3, 0, 0.4])[:, None]
    assert plausibility(slides, FPS).skate_mm == pytest.approx(1000 * 0.5 / FPS)
    # Constant acceleration to the side: friction is a / g.
    pushed = still + (0.5 * 2.0 * time_s**2 * [1, 0, 0])[:, None]
    assert plausibility(pushed, FPS).friction_needed == pytest.approx(2.0 / 9.80665, rel=1e-6)
    # x = t^3 / 6 has the third derivative 1.
    jerked = still + (time_s**3 / 6 * [0, 0, 1])[:, None]
    assert plausibility(jerked, FPS).jitter_m_s3 == pytest.approx(1, rel=1e-6)
    grown = still * np.linspace(0.99, 1.01, len(still))[:, None, None]
    assert 1 < plausibility(grown, FPS).bone_drift_mm < 4
    # Not the fault of the other measures.
    assert plausibility(slides, FPS).penetration_mm == plausibility(pushed, FPS).penetration_mm == 0


def test_other_directions_of_up_and_rotated_worlds_agree() -> None:
    joints_m, in_flight = captured("jump")
    turned = joints_m @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    ours, theirs = (
        plausibility(joints_m, FPS, in_flight=in_flight),
        plausibility(turned, FPS, up=(0.0, 0.0, 1.0), in_flight=in_flight),
    )
    for name, value in vars(ours).items():
        assert getattr(theirs, name) == pytest.approx(value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize(
    ("joints_m", "fps", "message"),
    [
        (np.zeros((1, 17, 3)), 30, r"joints_m has shape \(1, 17, 3\)"),
        (np.zeros((5, 16, 3)), 30, r"joints_m has shape \(5, 16, 3\)"),
        (np.full((5, 17, 3), np.nan), 30, "not finite in frame 0"),
        (np.ones((5, 17, 3)), 0, "fps is 0"),
        (np.ones((5, 17, 3)), 30, "has no length|length 0"),
    ],
)
def test_bad_motions_are_named(joints_m: NDArray[np.floating], fps: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plausibility(joints_m, fps)


def test_the_command_prints_a_table_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(path: Path) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["plausibility", str(path)])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path(inspect.getfile(plausibility), run_name="__main__")
        return leaving.value.code, *capsys.readouterr()

    performed = choreograph(25, seed=1)
    np.savez(tmp_path / "a.npz", joints_m=performed.joints_world_m, fps=30, in_flight=performed.in_flight)
    code, said, _ = command(tmp_path / "a.npz")
    assert code == 0
    assert "flight_residual_m_s2" in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    np.savez(tmp_path / "pickled.npz", joints_m=np.array([{"a": 1}], object), fps=30)
    np.savez(tmp_path / "poor.npz", fps=30)
    for name, message in (
        ("none", "does not exist"),
        ("pickled", "no .npz of plain arrays"),
        ("poor", "no array joints_m"),
    ):
        code, _, complaint = command(tmp_path / f"{name}.npz")
        assert code == 2
        assert message in complaint
        assert complaint.count("\n") == 1
