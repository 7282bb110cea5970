import numpy as np
import pytest
import torch

from finephys.gymnast.motions import MOTIONS
from finephys.physics.body import STANDARD_GRAVITY, Body, angular_momentum, bone_lengths, center_of_mass, points_of
from finephys.pose import tracks
from finephys.pose.camera import project
from finephys.pose.windows import sample_window


def test_a_window_follows_from_index_and_seed_alone() -> None:
    first = sample_window(5, 1)
    sample_window(6, 1)
    again = sample_window(5, 1)
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    for other in (sample_window(6, 1), sample_window(5, 2), sample_window(5, 1, split="test")):
        assert not np.array_equal(first["joints_cam_m"], other["joints_cam_m"])


def test_shapes_and_ranges_and_who_is_in_the_image() -> None:
    for index in range(60):
        window = sample_window(index, 0)
        assert window["joints_cam_m"].shape == (32, 17, 3)
        assert window["joints_px"].shape == (32, 17, 2)
        assert window["confidence"].shape == (32, 17)
        assert window["in_flight"].shape == (32,)
        assert 0 <= window["confidence"].min() <= window["confidence"].max() <= 1
        assert window["joints_cam_m"][..., 2].min() > 1.0
        assert np.linalg.norm(window["gravity"]) == pytest.approx(1.0, abs=1e-5)
        # Down is down in the image, too.
        assert window["gravity"][1] > 0.6
        assert np.isfinite(window["joints_px"]).all()


def test_without_corruption_pixels_are_the_projection_and_inside_the_image() -> None:
    for index in range(40):
        window = sample_window(index, 3, is_corrupted=False)
        joints_px = project(torch.from_numpy(window["joints_cam_m"]), torch.from_numpy(window["intrinsics"]))
        np.testing.assert_allclose(window["joints_px"], joints_px.numpy(), atol=0.05)
        assert (window["confidence"] == 1).all()
        if window["is_static"] and not window["is_stabilised"]:
            assert window["joints_px"].min() > 0
            assert (window["joints_px"].max((0, 1)) < [window["width"], window["height"]]).all()


def test_corruption_is_small_where_confident_and_large_where_not() -> None:
    sure, unsure = [], []
    for index in range(60):
        window, exact = sample_window(index, 0), sample_window(index, 0, is_corrupted=False)
        unit_px = min(window["height"], window["width"]) / 256
        error = np.linalg.norm(window["joints_px"] - exact["joints_px"], axis=-1) / unit_px
        sure.append(np.median(error[window["confidence"] > 0.6]))
        unsure.extend(error[window["confidence"] < 0.2])
    assert 1 < np.median(sure) < 8
    assert np.median(unsure) > 12


def test_bodies_are_rigid_and_both_cameras_occur() -> None:
    rows = [sample_window(index, 0, is_corrupted=False) for index in range(60)]
    for row in rows:
        lengths_m = bone_lengths(torch.from_numpy(row["joints_cam_m"]))
        assert (lengths_m.std(0) < 0.01).all()
    assert 0.6 < np.mean([row["is_static"] for row in rows]) < 0.95
    assert 0.1 < np.mean([row["in_flight"].all() for row in rows]) < 0.6
    assert np.mean([0 < row["in_flight"].mean() < 1 for row in rows]) > 0.2


def test_held_out_motions_come_only_in_the_test_split() -> None:
    train, test = set(tracks.motion_names("train")), set(tracks.motion_names("test"))
    assert not train & test
    assert {"dance_b", "roll", "spinkick", "backflip"} <= test
    assert train | test == {capture for motion in MOTIONS.values() for capture in motion.captures}
    names = [{performer.shape for performer in tracks.window_performers(split)} for split in ("train", "test")]
    assert not names[0] & names[1]


def test_choreographed_tracks_stand_on_the_floor_and_share_no_performer() -> None:
    train, test = tracks.choreographed("train"), tracks.choreographed("test")
    assert len(train) == 35 * 17
    assert len(test) == 35 * 3
    assert not {track.performer for track in train} & {track.performer for track in test}
    for track in test[::10]:
        lowest_m = track.joints_m[..., 1].min(1)
        # The ankle of someone who stands is a few centimetres up; in the world, whatever the camera did.
        assert 0.02 < lowest_m[~track.in_flight].min() < 0.15
        assert track.joints_m[~track.in_flight, 10, 1].max() > 1.1


def test_flights_fall_at_g_and_keep_their_angular_momentum() -> None:
    body = Body.from_anthropometry(50.0, 1.6)
    for track in tracks.flights("test")[:12]:
        x = points_of(torch.from_numpy(track.joints_m.astype(np.float64)))
        center = center_of_mass(body, x)
        # Ten frames apart: float32 positions would drown in differences of neighbours.
        gap = 10
        acceleration = (center[2 * gap :] - 2 * center[gap:-gap] + center[: -2 * gap]) * (track.fps / gap) ** 2
        wanted = torch.tensor([0.0, -STANDARD_GRAVITY, 0.0], dtype=torch.float64)
        torch.testing.assert_close(acceleration, wanted.expand_as(acceleration), atol=0.02, rtol=0)
        momentum = angular_momentum(body, 0.5 * (x[1:] + x[:-1]), (x[1:] - x[:-1]) * track.fps)
        drift = (momentum - momentum.mean(0)).norm(dim=-1).max()
        assert drift < 0.02 * momentum.norm(dim=-1).mean() + 0.05


def test_the_sampled_flight_still_falls_at_g_under_a_static_camera() -> None:
    body = Body.from_anthropometry(50.0, 1.6)
    seen = 0
    for index in range(60):
        window = sample_window(index, 0, is_corrupted=False)
        if not (window["is_static"] and window["in_flight"].all()):
            continue
        seen += 1
        center = center_of_mass(body, points_of(torch.from_numpy(window["joints_cam_m"].astype(np.float64))))
        time_s = np.arange(len(center)) / window["fps"]
        acceleration = 2 * np.polyfit(time_s, center.numpy(), 2)[0]
        np.testing.assert_allclose(acceleration, STANDARD_GRAVITY * window["gravity"], atol=0.1)
    assert seen > 5


def test_a_window_longer_than_every_motion_is_refused() -> None:
    with pytest.raises(ValueError, match="no motion is as long as the window's 400 frames at 30"):
        sample_window(0, 0, num_frames=400)


def test_prompts_share_the_performer_and_the_camera_and_leave_the_window_as_it_is() -> None:
    for index in range(12):
        plain, episode = sample_window(index, 7), sample_window(index, 7, num_prompts=2)
        np.testing.assert_array_equal(plain["joints_px"], episode["joints_px"])
        assert episode["prompt_joints_cam_m"].shape == (2, 16, 17, 3)
        assert episode["prompt_joints_cam_m"][..., 2].min() > 0.9
        lengths_m = bone_lengths(torch.from_numpy(episode["joints_cam_m"])).mean(0)
        theirs_m = bone_lengths(torch.from_numpy(episode["prompt_joints_cam_m"])).mean((0, 1))
        np.testing.assert_allclose(theirs_m.numpy(), lengths_m.numpy(), atol=0.02)
        np.testing.assert_allclose(episode["prompt_gravity"][0], episode["gravity"], atol=0.2)


def test_outside_training_bodies_and_cameras_are_others() -> None:
    rows = [sample_window(index, 7, is_corrupted=False, is_outside_training=True) for index in range(30)]
    lengths_m = np.array([bone_lengths(torch.from_numpy(row["joints_cam_m"])).sum(-1).mean() for row in rows])
    usual_m = np.array(
        [bone_lengths(torch.from_numpy(sample_window(index, 7)["joints_cam_m"])).sum(-1).mean() for index in range(30)]
    )
    assert lengths_m.min() < usual_m.min()
    assert lengths_m.max() > usual_m.max()
    # 45 degrees down and more: gravity has at least as much of the view's axis as of the image's.
    assert np.mean([row["gravity"][2] > 0.65 for row in rows if row["is_static"]]) == 1
