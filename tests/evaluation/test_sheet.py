"""The sheet has the size that its tiles need, and shows what each hop made."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from finephys.evaluation import drawing
from finephys.evaluation.sheet import Hops, animate_sheet, draw_sheet

MakeHops = Callable[..., Hops]


def test_a_sheet_has_a_row_per_hop_and_a_column_per_time(make_hops: MakeHops) -> None:
    hops = make_hops()
    eight, four = draw_sheet(hops, num_columns=8), draw_sheet(hops, num_columns=4)
    assert eight.dtype == np.uint8
    assert eight.shape[0] == four.shape[0] > 8 * 160
    assert eight.shape[1] - four.shape[1] == 4 * (160 + 6)
    taller = draw_sheet(hops, tile_height_px=170)
    assert taller.shape[0] - eight.shape[0] == 8 * 10


def test_no_more_columns_than_generated_frames(make_hops: MakeHops) -> None:
    assert draw_sheet(make_hops(num_generated=3)).shape == draw_sheet(make_hops(num_generated=16), num_columns=3).shape


@pytest.mark.parametrize(
    ("field", "row"),
    [
        ("frames_THWC", 0),
        ("joints_px", 1),
        ("joints_dd", 2),
        ("joints_pp", 3),
        ("heatmaps_FCHW", 6),
        ("generated_FHWC", 7),
    ],
)
def test_each_hop_is_drawn_in_its_row(make_hops: MakeHops, field: str, row: int) -> None:
    hops = make_hops()
    changed = getattr(hops, field).copy()
    # A quarter of the values, or one arm: enough to be seen, too little to move the 3D views.
    if field.startswith("joints"):
        changed[:, 15:17, 0] += 20 if field == "joints_px" else 0.25
    else:
        changed[:, ..., : changed.shape[-1] // 2 + 1] = 0
    before, after = draw_sheet(hops), draw_sheet(replace(hops, **{field: changed}))
    differs = np.flatnonzero((before != after).any((1, 2)))
    rows = {int((line - 112) // 166) for line in differs}
    assert row in rows
    assert min(rows) == row


def test_a_jump_is_seen_as_one_with_gravity_down(make_hops: MakeHops) -> None:
    hops = make_hops()
    # A camera on its side: gravity along its x axis. The view must come out the same way up.
    turn = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for rotation in (np.eye(3), turn):
        joints, gravity = hops.fused @ rotation.T, hops.gravity_cam @ rotation.T
        view = drawing.view_of(joints, gravity)
        np.testing.assert_allclose(view.axes @ view.axes.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(view.axes) == pytest.approx(1)
        np.testing.assert_allclose(view.axes @ gravity, [0, 1, 0], atol=1e-12)
        first, middle = (
            drawing.draw_skeleton_3d(joints[index], view, (160, 160), centre_cam_m=joints[index, 0])
            for index in (0, len(joints) // 2)
        )
        heights = [np.flatnonzero((tile.min(-1) < 120).any(1)).mean() for tile in (first, middle)]
        assert heights[1] < heights[0] - 10


def test_left_and_right_have_their_colours(make_hops: MakeHops) -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    joints = np.tile([[32.0, 32.0]], (17, 1))
    joints[3] = [8, 56]  # the right shank goes to the lower left
    joints[6] = [56, 56]
    tile = drawing.draw_skeleton_2d(white, joints, (128, 128), dim=0).astype(int)
    right, left = tile[80:110, 20:50], tile[80:110, 78:108]
    assert (right[..., 0] - right[..., 2]).max() > 150
    assert (left[..., 2] - left[..., 0]).max() > 150
    assert (left[..., 0] - left[..., 2]).max() < 40


def test_a_doubtful_joint_fades() -> None:
    white = np.full((64, 64, 3), 255, np.uint8)
    joints = np.tile([[32.0, 32.0]], (17, 1))
    joints[3] = [8, 56]
    sure, doubtful = np.ones(17), np.ones(17)
    doubtful[3] = 0.1
    darkness = [
        (
            255 - drawing.draw_skeleton_2d(white, joints, (128, 128), confidence=c, dim=0)[70:105, 25:55].astype(int)
        ).sum()
        for c in (sure, doubtful)
    ]
    assert darkness[1] < 0.5 * darkness[0]


def test_wild_joints_do_not_break_the_drawing(make_hops: MakeHops) -> None:
    hops = make_hops()
    joints = hops.joints_dd.copy()
    joints[3, 5] = np.nan
    joints[4] = 1e9
    assert draw_sheet(replace(hops, joints_dd=joints)).shape == draw_sheet(hops).shape


def test_the_animation_has_a_picture_per_generated_frame_and_even_sides(make_hops: MakeHops) -> None:
    frames = animate_sheet(make_hops(num_generated=5))
    assert frames.dtype == np.uint8
    assert len(frames) == 5
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    assert (frames[0] != frames[2]).any()


def test_hops_that_do_not_belong_together_are_refused(make_hops: MakeHops) -> None:
    hops = make_hops()
    with pytest.raises(ValueError, match="guidance_px has shape"):
        replace(hops, guidance_px=hops.guidance_px[:-1])
    with pytest.raises(ValueError, match="generated_FHWC has 15 frames, wanted 16"):
        replace(hops, generated_FHWC=hops.generated_FHWC[:-1])
    with pytest.raises(ValueError, match=r"must lie in 0\.\.31"):
        replace(hops, frame_index=hops.frame_index + 1)
