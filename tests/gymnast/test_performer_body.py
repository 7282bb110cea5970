"""Joints, skin and floor agree, for every recording."""

import numpy as np
import pytest
from numpy.typing import NDArray

from finephys.gymnast.body import (
    Performer,
    performer_contacts,
    performer_joints,
    performer_mesh,
    rest_body,
    shared_mesh,
)
from finephys.gymnast.body_model import Shape
from finephys.gymnast.mocap import PART_NAMES, Motion, load_capture, mirror
from finephys.skeleton import BONES, JOINT_NAMES, MIRROR

FPS = 30.0
PERFORMER = Performer(
    name="p00", shape=Shape(age=0.58, height=0.4, proportions=0.8), leotard="red", skin="fair", hair="brown"
)
CAPTURES = ("backflip", "cartwheel", "jump", "run", "roll", "getup_facedown", "crawl")


def _whole_motion(capture_name: str) -> Motion:
    size = rest_body(PERFORMER.shape).size
    capture = load_capture(capture_name)
    return capture.motion(0, min(64, capture.num_frames(FPS, size)), fps=FPS, size=size)


def _joint(joints_m: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    return joints_m[:, JOINT_NAMES.index(name)]


@pytest.mark.parametrize("capture_name", CAPTURES)
def test_joints_without_skin_equal_joints_with_skin_and_nothing_sinks(capture_name: str) -> None:
    motion = _whole_motion(capture_name)
    joints_m, mesh = performer_mesh(motion, PERFORMER)
    np.testing.assert_allclose(performer_joints(motion, PERFORMER), joints_m, atol=1e-9)
    assert mesh.vertices_m[..., 1].min() > -0.005
    in_flight, feet_in_contact = performer_contacts(motion, PERFORMER)
    assert not (in_flight[:, None] & feet_in_contact).any()
    # What is not in flight touches the floor, but for a few centimetres where smoothing the way down needs them.
    lowest_m = mesh.vertices_m[..., 1].min(1)
    assert np.median(lowest_m[~in_flight]) < 0.02
    assert lowest_m[~in_flight].max() < 0.08


@pytest.mark.parametrize("capture_name", CAPTURES)
def test_bones_and_the_pelvis_triangle_keep_their_lengths(capture_name: str) -> None:
    joints_m = performer_joints(_whole_motion(capture_name), PERFORMER)
    spine = JOINT_NAMES.index("spine")
    edges = [*BONES, (JOINT_NAMES.index("right_hip"), spine), (JOINT_NAMES.index("left_hip"), spine)]
    for first, second in edges:
        lengths_m = np.linalg.norm(joints_m[:, first] - joints_m[:, second], axis=-1)
        assert np.ptp(lengths_m) < 1e-4
        assert 0.04 < lengths_m[0] < 0.6
    middle_m = (_joint(joints_m, "right_hip") + _joint(joints_m, "left_hip")) / 2
    np.testing.assert_allclose(_joint(joints_m, "root"), middle_m, atol=1e-9)


def test_joints_lie_inside_the_skin() -> None:
    """Each joint has skin of its neighbourhood on all sides of it, along all three axes, at rest."""
    body, mesh = rest_body(PERFORMER.shape), shared_mesh()
    for name, joint_m in zip(JOINT_NAMES, body.joints_m, strict=True):
        near_m = body.vertices_m[np.linalg.norm(body.vertices_m - joint_m, axis=-1) < 0.25] - joint_m
        assert (near_m.min(0) < -0.005).all(), name
        assert (near_m.max(0) > 0.005).all(), name
    assert np.allclose(mesh.part_weights.sum(-1), 1)


def test_standing_upright_left_is_left() -> None:
    joints_m = performer_joints(_whole_motion("jump"), PERFORMER)[:1]
    # The captured person faces +x: the right hand is at +z, the face before the neck, the head on top.
    assert _joint(joints_m, "right_wrist")[0, 2] > _joint(joints_m, "left_wrist")[0, 2] + 0.2
    assert _joint(joints_m, "head")[0, 0] > _joint(joints_m, "neck")[0, 0]
    heights_m = [_joint(joints_m, name)[0, 1] for name in ("right_ankle", "right_knee", "root", "thorax", "head")]
    assert heights_m == sorted(heights_m)


def test_flight_falls_with_gravity() -> None:
    """The jump is a true flight: its centre accelerates at about 9.8 m/s^2, whatever the performer's size."""
    motion = _whole_motion("jump")
    in_flight, _ = performer_contacts(motion, PERFORMER)
    assert 8 <= in_flight.sum() <= 16
    # The mean of the joints is close to the centre of mass.
    height_m = performer_joints(motion, PERFORMER).mean(1)[in_flight, 1]
    times_s = np.arange(len(height_m)) / FPS
    acceleration = 2 * np.polyfit(times_s, height_m, 2)[0]
    assert -11.5 < acceleration < -8.0


def test_mirrored_motion_swaps_left_and_right() -> None:
    motion = _whole_motion("cartwheel")
    joints_m = performer_joints(motion, PERFORMER)
    mirrored_m = performer_joints(mirror(motion), PERFORMER)
    np.testing.assert_allclose(mirrored_m, (joints_m * [1, 1, -1])[:, MIRROR], atol=0.01)


def test_window_outside_the_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="do not lie in the motion's"):
        load_capture("jump").motion(40, 40, fps=FPS)
    with pytest.raises(FileNotFoundError, match="somersault"):
        load_capture("somersault")
    assert len(PART_NAMES) == 13
