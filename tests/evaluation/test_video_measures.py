"""Each measure against a value known in closed form."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from finephys.evaluation.sheet import Hops
from finephys.evaluation.video import MEASURES, background_flicker, body_region, measure_clip
from finephys.pose.estimator import Pose2D


class Finds:
    """A detector that finds what it was told to."""

    def __init__(self, joints_px: NDArray[np.floating]) -> None:
        self.joints_px = joints_px

    def estimate(self, frames_THWC: NDArray[np.uint8]) -> Pose2D:
        assert len(frames_THWC) == len(self.joints_px)
        return Pose2D(self.joints_px.astype(np.float32), np.ones(self.joints_px.shape[:2], np.float32))


def _square(x_px: float, y_px: float, side_px: float) -> NDArray[np.float64]:
    return np.array([[x_px, y_px], [x_px + side_px, y_px], [x_px + side_px, y_px + side_px], [x_px, y_px + side_px]])


def test_flicker_is_the_mean_change_outside_the_body() -> None:
    frames = np.full((3, 64, 64, 3), 100, np.uint8)
    frames[1] = 104
    joints = np.tile(_square(20, 20, 20), (3, 1, 1))
    assert background_flicker(frames, joints) == pytest.approx(4.0)
    frames[1, :, :32] = 100
    half = background_flicker(frames, joints)
    assert half is not None
    assert 1.5 < half < 2.5


def test_flicker_does_not_see_the_body() -> None:
    frames = np.full((2, 64, 64, 3), 100, np.uint8)
    frames[1, 20:41, 20:41] = 255
    joints = np.tile(_square(20, 20, 20), (2, 1, 1))
    assert background_flicker(frames, joints) == 0
    assert background_flicker(frames, joints + 30) > 1


def test_without_background_flicker_is_not_known() -> None:
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    assert background_flicker(frames, np.tile(_square(0, 0, 31), (2, 1, 1))) is None
    assert background_flicker(frames[:1], np.tile(_square(8, 8, 4), (1, 1, 1))) is None


def test_the_body_region_is_the_grown_hull() -> None:
    region = body_region(_square(20, 20, 20), (64, 64))
    # 0.2 of 20 px all around, and round corners.
    assert region[16, 30]
    assert region[30, 44]
    assert not region[15, 30]
    assert not region[16, 16]
    assert not body_region(np.full((4, 2), np.nan), (64, 64)).any()


def test_measures_of_a_clip(make_hops: Callable[..., Hops]) -> None:
    hops = make_hops()
    assert hops.truth_cam_m is not None
    offset_m = np.zeros((17, 3))
    offset_m[1:] = [0.03, 0, 0.04]
    hops = replace(
        hops,
        joints_px=np.zeros_like(hops.joints_px),
        joints_dd=hops.truth_cam_m + offset_m,
        joints_pp=hops.truth_cam_m + np.array([5.0, 0, 0]),
        fused=hops.truth_cam_m,
        # Twice the source's size: guidance and detections must be compared in the same pixels.
        generated_FHWC=hops.generated_FHWC.repeat(2, axis=1).repeat(2, axis=2),
    )
    found = 2 * hops.guidance_px
    found[:, :5] += 1000
    measures = measure_clip(hops, Finds(found))
    assert measures.keys() == MEASURES.keys()
    assert all(tuple(measures[key]) == MEASURES[key].columns for key in MEASURES)
    assert measures["pck_0.1_box"]["generated"] == pytest.approx(12 / 17)
    assert measures["pck_0.1_box"]["source"] == 0
    # The root agrees, the other 16 joints are 50 mm off.
    assert measures["mpjpe_root_mm"]["S_dd"] == pytest.approx(50 * 16 / 17)
    assert measures["mpjpe_root_mm"]["S_pp"] == pytest.approx(0, abs=1e-9)
    assert measures["mpjpe_root_mm"]["fused"] == 0
    assert measures["pa_mpjpe_mm"]["S_pp"] == pytest.approx(0, abs=1e-5)


def test_without_truth_there_is_no_3d_error(make_hops: Callable[..., Hops]) -> None:
    hops = replace(make_hops(), truth_cam_m=None)
    assert "mpjpe_root_mm" not in measure_clip(hops, Finds(hops.guidance_px))
