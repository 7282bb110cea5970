import numpy as np

from finephys.pose.corruption import RECORDED_SHARE, DetectorErrors, back_and_forth, corrupt_detections
from finephys.skeleton import MIRROR

SIZE = (256, 256)


def still(num_clips: int, num_frames: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A body that stands still in an image of 256 pixels, its joints far from each other."""
    joints_px = np.random.default_rng(0).uniform(60, 200, (17, 2))
    return np.tile(joints_px, (num_clips, num_frames, 1, 1)), np.tile(np.array(SIZE, float), (num_clips, 1))


def test_it_follows_from_the_generator_and_ranges_hold() -> None:
    joints_px, size = still(50)
    one, other = (corrupt_detections(np.random.default_rng(3), joints_px, size) for _ in range(2))
    for first, second in zip(one, other):
        np.testing.assert_array_equal(first, second)
    assert one[0].shape == joints_px.shape
    assert one[1].shape == joints_px.shape[:3]
    assert np.isfinite(one[0]).all()
    assert one[1].min() >= 0
    assert one[1].max() <= 1


def test_detectors_of_all_kinds_occur_and_most_know_what_they_lost() -> None:
    joints_px, size = still(600)
    found_px, confidence = corrupt_detections(np.random.default_rng(0), joints_px, size)
    error_px = np.linalg.norm(found_px - joints_px, axis=-1)
    typical = np.median(confidence, (1, 2))
    # The shipped detector's median is 0.99; others are at 0.8.
    assert (typical > 0.97).mean() > 0.2
    assert (typical < 0.85).mean() > 0.15
    assert np.median(error_px[confidence > 0.9]) < 4
    assert np.median(error_px[confidence < 0.3]) > 12


def test_left_and_right_are_exchanged_for_a_while() -> None:
    joints_px, size = still(400)
    found_px, _ = corrupt_detections(np.random.default_rng(1), joints_px, size)
    own, others = (
        np.linalg.norm(found_px - truth, axis=-1)[..., [1, 2, 3, 4, 5, 6]].sum(-1)
        for truth in (joints_px, joints_px[:, :, list(MIRROR)])
    )
    is_swapped = others < own
    assert 0.03 < is_swapped.mean() < 0.15
    # It comes in bursts: where one frame is swapped the next usually is.
    assert is_swapped[:, 1:][is_swapped[:, :-1]].mean() > 0.6


def test_joints_outside_are_not_found_unless_the_image_has_no_edge() -> None:
    joints_px, size = still(80)
    joints_px[:, :, 5] = [400, 100]
    is_cut = np.arange(80) % 2 == 0
    _, confidence = corrupt_detections(np.random.default_rng(2), joints_px, size, is_cut_B=is_cut)
    assert np.median(confidence[is_cut, :, 5]) < 0.5
    assert np.median(confidence[~is_cut, :, 5]) > 0.7


def test_recorded_errors_are_replayed_in_shares_of_the_box_and_mirrored_ones_change_sides() -> None:
    error = np.zeros((1, 4, 17, 2), np.float32)
    error[0, :, 3] = [0.2, 0.0]
    recorded = DetectorErrors(error, np.full((1, 4, 17), 0.75, np.float32))
    joints_px, size = still(400, num_frames=9)
    found_px, _ = corrupt_detections(np.random.default_rng(0), joints_px, size, recorded)
    # Errors of exactly nothing elsewhere tell the recorded clips from the made-up ones.
    is_recorded = (found_px[:, :, 0] == joints_px[:, :, 0].astype(np.float32)).all((1, 2))
    assert abs(is_recorded.mean() - RECORDED_SHARE) < 0.1
    side_px = np.ptp(joints_px[0, 0], axis=0).max()
    shift_px = (found_px - joints_px)[is_recorded]
    plain, mirrored = shift_px[:, 0, 3, 0] / side_px, shift_px[:, 0, MIRROR[3], 0] / side_px
    assert abs(np.median(plain[plain > 0.01]) - 0.22) < 0.03
    assert abs(np.median(mirrored[mirrored < -0.01]) + 0.22) < 0.03
    assert ((plain > 0.01) ^ (mirrored < -0.01)).all()


def test_a_short_clip_is_gone_through_back_and_forth() -> None:
    assert back_and_forth(np.arange(8), 4).tolist() == [0, 1, 2, 3, 2, 1, 0, 1]
    assert back_and_forth(np.arange(3), 1).tolist() == [0, 0, 0]
