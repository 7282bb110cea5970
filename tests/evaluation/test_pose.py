"""Each measure against a value known in closed form."""

import numpy as np
import pytest

from finephys.evaluation.pose import correct_keypoints, median_error, mpjpe, pa_mpjpe, pck

RNG = np.random.default_rng(0)


def test_pck_counts_joints_within_a_share_of_the_long_side() -> None:
    truth = np.zeros((1, 4, 2))
    truth[0, :, 0] = [0, 100, 50, 50]  # the box is 100 wide, 40 high
    truth[0, :, 1] = [0, 40, 20, 20]
    found = truth.copy()
    found[0, :, 0] += [5.0, 5.1, 0.0, np.nan]
    assert correct_keypoints(found, truth, 0.05).tolist() == [[True, False, True, False]]
    assert pck(found, truth, 0.05) == 0.5
    assert pck(found, truth, 0.05, counted=np.array([[True, False, True, False]])) == 1.0


def test_pck_measures_each_frame_by_its_own_box() -> None:
    truth = np.zeros((2, 2, 2))
    truth[:, 1, 1] = [100, 20]
    found = truth + np.array([3.0, 0.0])
    assert correct_keypoints(found, truth, 0.05).tolist() == [[True, True], [False, False]]


def test_median_error_is_a_distance() -> None:
    truth = RNG.normal(size=(3, 5, 2))
    assert median_error(truth + np.array([3, 4]), truth) == pytest.approx(5)


def test_mpjpe_ignores_where_the_root_is_and_nothing_else() -> None:
    truth = RNG.normal(size=(4, 17, 3))
    assert mpjpe(truth + np.array([1, 2, 3]), truth) == pytest.approx(0)
    moved = truth.copy()
    moved[:, 5] += [0, 0, 0.17]
    assert mpjpe(moved, truth) == pytest.approx(0.01)


def test_pa_mpjpe_ignores_similarities_but_not_mirrors() -> None:
    truth = RNG.normal(size=(4, 17, 3))
    turn, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    assert pa_mpjpe(0.4 * truth @ turn + [1, 2, 3], truth) == pytest.approx(0, abs=1e-9)
    assert mpjpe(0.4 * truth @ turn, truth) > 0.5
    assert pa_mpjpe(truth * [-1, 1, 1], truth) > 0.1


def test_pa_mpjpe_of_points_that_spread_apart_has_a_closed_form() -> None:
    # Along x only, +-1 against +-1 with one pair stretched to +-2: the best scale is (1 + 2) / (1 + 4) = 0.6.
    truth = np.zeros((1, 4, 3))
    truth[0, :, 0] = [1, -1, 0, 0]
    truth[0, :, 1] = [0, 0, 1, -1]
    found = truth * [2, 1, 1]
    assert pa_mpjpe(found, truth) == pytest.approx((0.2 + 0.2 + 0.4 + 0.4) / 4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        mpjpe(np.zeros((2, 17, 3)), np.zeros((3, 17, 3)))
    with pytest.raises(ValueError, match="no joint is counted"):
        pck(np.zeros((1, 2, 2)), np.zeros((1, 2, 2)), counted=np.zeros((1, 2), np.bool_))
