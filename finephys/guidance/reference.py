"""Draft every frame from one reference picture: its background where it shows, its limbs' colours where they move to.

Path:    reference latent and joints, joints of the frames -> draft, which enters the UNet's conv_in beside the guidance
Letters: B clips, F frames, J = 17 joints, L = 16 limbs, C channels of a latent, h w its cells
Units:   pixel of the image in, cells of the latent inside
Draws:   limb colour  c_l = sum_p w_l(p) z(p) / sum_p w_l(p),  w_l: how much cell p of the reference shows limb l
         draft        inside the body: sum_l a_l(p) c_l;  outside: z(p) where the reference shows the background
         known        1 where the draft says something, 0 where the reference's own body hid the background

No parameters. A reference latent that is merely concatenated brings its person along as a ghost; this one is masked out
and painted where the guidance says, so that the UNet has to add detail and not to find out colours. With a moving
camera the background of the reference is elsewhere: then only the body is drafted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finephys.guidance.heatmaps import body_mask, limb_distances
from finephys.skeleton import BONES, JOINT_NAMES

# Half-width of each limb as a share of the longest bone drawn, a thigh of some 0.42 m: legs 7 cm, arms 4.5 cm, trunk
# and head 10 cm.
_RADIUS_SHARE = {"hip": 0.25, "knee": 0.17, "ankle": 0.13, "elbow": 0.11, "wrist": 0.10, "shoulder": 0.16}
_TRUNK_RADIUS_SHARE = 0.25

# How sharply a cell belongs to its nearest limb alone, in cells.
_BELONGING_CELLS = 0.5

# Colours are taken near a limb's axis: at its rim, cells mix it with the background, and latents mix to other colours.
_THINNING = 0.4

# Channels that a draft adds to a latent's own: where it is known.
NUM_EXTRA_CHANNELS = 1


@dataclass(frozen=True)
class Reference:
    """One picture of each clip's person and place.

    latent_BChw: normalised.  joints_px_BJ2: where the person's joints are in it, pixels of the picture, which has the
    size and, if is_static_B (bool), the camera of the frames.
    """

    latent_BChw: Tensor
    joints_px_BJ2: Tensor
    is_static_B: Tensor


def draft(reference: Reference, joints_px_BFJ2: Tensor, image_size: tuple[int, int]) -> Tensor:
    """What the reference says about each frame, (B,F,C+1,h,w): the drafted latent, and where it is known.

    joints_px (B,F,17,2): of the frames, pixels of image_size (height, width).
    Without gradient: colours do not say where joints are.
    """
    reference_BChw, reference_px_BJ2 = reference.latent_BChw, reference.joints_px_BJ2
    with torch.no_grad():
        size = (reference_BChw.shape[-2], reference_BChw.shape[-1])
        shown_BLhw = _belonging(reference_px_BJ2, image_size, size, thinning=_THINNING)
        total_BL = shown_BLhw.sum((-1, -2))
        colour_BLC = torch.einsum("blhw,bchw->blc", shown_BLhw, reference_BChw)
        body_BC = colour_BLC.sum(1) / total_BL.sum(1, keepdim=True).clamp_min(1e-6)
        # A limb that the reference does not show takes the body's mean.
        colour_BLC = (colour_BLC + body_BC[:, None] * 1e-2) / (total_BL[..., None] + 1e-2)

        target_BFLhw = _belonging(joints_px_BFJ2, image_size, size)
        inside_BF1hw = target_BFLhw.sum(2, keepdim=True)
        limbs_BFChw = torch.einsum("bflhw,blc->bfchw", target_BFLhw, colour_BLC)
        static_B111 = reference.is_static_B.float()[:, None, None, None]
        # Cells at the body's rim hold some of it: they count as hidden.
        background_B1hw = (body_mask(reference_px_BJ2, image_size, size) == 0) * static_B111
        outside_BF1hw = (1 - inside_BF1hw) * background_B1hw[:, None]
        drafted = limbs_BFChw + outside_BF1hw * reference_BChw[:, None]
        return torch.cat([drafted, inside_BF1hw + outside_BF1hw], dim=2)


def _belonging(
    joints_px: Tensor, image_size: tuple[int, int], map_size: tuple[int, int], thinning: float = 1.0
) -> Tensor:
    """How much each cell shows each limb, (..., L, h, w); the sum over limbs is 1 inside the body, 0 outside.

    thinning: what the limbs' radius is multiplied by.
    """
    distance, longest = limb_distances(joints_px, image_size, map_size)
    radius = (thinning * _radius_shares(distance.device) * longest[..., None]).clamp_min(0.5)[..., None, None]
    # Distance from the limb's surface: the nearest surface owns the cell.
    beyond = distance - radius
    inside = (0.5 - beyond.amin(-3, keepdim=True)).clamp(0.0, 1.0)
    belonging: Tensor = inside * torch.softmax(-beyond / _BELONGING_CELLS, dim=-3)
    return belonging


def _radius_shares(device: torch.device) -> Tensor:
    shares = []
    for _, child in BONES:
        words = JOINT_NAMES[child].split("_")
        shares.append(_RADIUS_SHARE.get(words[-1], _TRUNK_RADIUS_SHARE))
    return torch.tensor(shares, device=device)
