"""The draft of a reference: background stays, the person moves in the colours of its limbs and leaves no ghost."""

import numpy as np
import torch

from finephys.guidance.heatmaps import body_mask
from finephys.guidance.reference import Reference, draft
from finephys.skeleton import JOINT_NAMES

SIZE, LATENT = (128, 128), (32, 32)


def standing_at(x_px: float, y_px: float = 64.0) -> torch.Tensor:
    """(17,2): arms out, legs apart, 80 pixels tall."""
    places = {
        "root": (0, 0), "right_hip": (-6, 0), "right_knee": (-8, 18), "right_ankle": (-9, 36),
        "left_hip": (6, 0), "left_knee": (8, 18), "left_ankle": (9, 36), "spine": (0, -10), "thorax": (0, -22),
        "neck": (0, -28), "head": (0, -34), "left_shoulder": (8, -22), "left_elbow": (18, -22), "left_wrist": (28, -22),
        "right_shoulder": (-8, -22), "right_elbow": (-18, -22), "right_wrist": (-28, -22),
    }  # fmt: skip
    return torch.tensor([places[name] for name in JOINT_NAMES], dtype=torch.float32) + torch.tensor([x_px, y_px])


def picture(joints_px: torch.Tensor) -> torch.Tensor:
    """(4,h,w): channel 0 a background that says where it is; channel 1 is 1 on legs, channel 2 on all else of the body.

    The body is drawn with the generous radius of body_mask, so that its edges are beyond what the draft looks at.
    """
    inside = body_mask(joints_px, SIZE, LATENT)[0]
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    is_low = (rows + 0.5) * 4 > joints_px[0, 1] + 6
    drawn = torch.zeros(4, *LATENT)
    drawn[0] = (1 - inside) * (rows + 100 * columns)
    drawn[1] = inside * is_low
    drawn[2] = inside * ~is_low
    return drawn


def drafted(*, is_static: bool = True, to_x: float = 90.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    here, there = standing_at(40.0), standing_at(to_x)
    reference = Reference(picture(here)[None], here[None], torch.tensor([is_static]))
    result = draft(reference, torch.stack([here, there])[None], SIZE)
    assert result.shape == (1, 2, 5, 32, 32)
    return result[0], here, there


def cell(joints_px: torch.Tensor, name: str) -> tuple[int, int]:
    x, y = joints_px[JOINT_NAMES.index(name)]
    return int(y / 4), int(x / 4)


def test_limbs_move_with_their_colours() -> None:
    result, _, there = drafted()
    for name, channel in (("right_knee", 1), ("left_ankle", 1), ("thorax", 2), ("left_wrist", 2)):
        latent = result[1, :, *cell(there, name)]
        # An ankle is half a cell wide.
        assert latent[channel] > 0.45, name
        assert latent[3 - channel] < 0.3, name
        assert latent[4] > 0.5, name


def test_background_stays_and_the_person_leaves_no_ghost() -> None:
    result, here, there = drafted()
    far = (2, 30)
    assert result[1, 0, *far] == 2 + 100 * 30
    assert result[1, 4, *far] == 1
    # Where she stood, nothing is known of the background.
    assert torch.equal(result[1, :, *cell(here, "thorax")], torch.zeros(5))
    only_body = body_mask(there, SIZE, LATENT)[0] == 0
    assert (result[1, 1:3][:, only_body] == 0).all()


def test_a_moving_camera_has_no_background() -> None:
    result, _, there = drafted(is_static=False)
    assert (result[1, :, 2, 30] == 0).all()
    assert result[1, 4, *cell(there, "thorax")] > 0.95


def test_a_limb_that_the_reference_does_not_show_takes_the_bodys_mean() -> None:
    here = standing_at(40.0)
    hidden = here.clone()
    # The left arm reaches out of the picture.
    hidden[[JOINT_NAMES.index("left_elbow"), JOINT_NAMES.index("left_wrist")]] = torch.tensor([[-80.0, 42], [-120, 42]])
    reference = Reference(picture(here)[None], hidden[None], torch.tensor([True]))
    latent = draft(reference, standing_at(90.0)[None, None], SIZE)[0, 0, :, *cell(standing_at(90.0), "left_wrist")]
    assert np.isfinite(latent.numpy()).all()
    assert latent[1:3].sum() > 0.7 * latent[4] > 0.3
