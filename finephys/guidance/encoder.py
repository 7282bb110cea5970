"""Turn guidance maps into what the UNet takes: features for its conv_in and a residual for each of its skips.

Path:    maps (one a scale) -> Guidance
Letters: N images (B clips times F frames), C channels, H W cells of the UNet's finest latent
Computed once per clip, never per denoising step: a ControlNet runs at each step, this costs next to nothing.

FinePhys (arXiv:2505.13437) encodes heatmaps into multi-scale latent maps. We give them to diffusers' UNetMotionModel
both ways that it has: residuals reach only the skips, that is the way up, so features go into conv_in as well.
All residual layers start at zero, and so do conv_in's weights for the features (diffusion/unet.py): an untrained
encoder changes nothing, to the bit, and trained UNets start from what they know.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from finephys.guidance.heatmaps import NUM_GUIDANCE_CHANNELS
from finephys.guidance.reference import NUM_EXTRA_CHANNELS

_NORM_GROUPS = 8


@dataclass(frozen=True)
class Guidance:
    """What one set of maps becomes; frames are folded into the batch.

    conv_in_NCHW: features to concatenate to the latents, the draft of a reference picture last.
    down_residuals: for conv_in's output, then for each output of each down block, as
    `down_block_additional_residuals` wants them.  mid_residual: for the middle block's output.
    """

    conv_in_NCHW: Tensor
    down_residuals: tuple[Tensor, ...]
    mid_residual: Tensor


@dataclass(frozen=True, kw_only=True)
class GuidanceEncoderConfig:
    """Fits diffusion/unet.py's demo UNet: block_out_channels and layers_per_block are the UNet's own."""

    # Channels of the guidance maps (finephys/guidance/heatmaps.py).
    guidance_channels: int = NUM_GUIDANCE_CHANNELS
    # Width of the UNet's first layer.
    conv_in_channels: int = 32
    # Channels of a latent.
    latent_channels: int = 4
    # Width of the UNet at each resolution.
    block_out_channels: tuple[int, ...] = (32, 64, 112)
    # Residual layers of the UNet at each resolution.
    layers_per_block: int = 1
    # Width of the encoder's own features at each scale: pose is simpler than picture, so it needs no more.
    hidden_channels: tuple[int, ...] = (48, 48, 48)

    def __post_init__(self) -> None:
        if len(self.hidden_channels) != len(self.block_out_channels):
            raise ValueError(
                f"hidden_channels {self.hidden_channels} and block_out_channels {self.block_out_channels} "
                "must be equally many"
            )


class GuidanceEncoder(ModelMixin, ConfigMixin):
    """A small pyramid over the maps of each scale, with one zero-initialised 1x1 layer for each residual."""

    @register_to_config
    def __init__(
        self,
        guidance_channels: int = NUM_GUIDANCE_CHANNELS,
        conv_in_channels: int = 32,
        latent_channels: int = 4,
        block_out_channels: tuple[int, ...] = (32, 64, 112),
        layers_per_block: int = 1,
        hidden_channels: tuple[int, ...] = (48, 48, 48),
    ) -> None:
        super().__init__()
        num_scales = len(block_out_channels)
        self.read_maps = nn.ModuleList(nn.Conv2d(guidance_channels, width, 3, padding=1) for width in hidden_channels)
        self.from_finer = nn.ModuleList(
            nn.Conv2d(hidden_channels[scale - 1], hidden_channels[scale], 3, stride=2, padding=1)
            for scale in range(1, num_scales)
        )
        self.refine = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(_NORM_GROUPS, width),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.GroupNorm(_NORM_GROUPS, width),
                nn.SiLU(),
            )
            for width in hidden_channels
        )
        self.to_conv_in = nn.Conv2d(hidden_channels[0], conv_in_channels, 1)

        # The scale and the width of each of the UNet's skips, in its order.
        self.skip_scales = [0]
        skip_widths = [block_out_channels[0]]
        for scale, width in enumerate(block_out_channels):
            self.skip_scales += [scale] * layers_per_block
            skip_widths += [width] * layers_per_block
            if scale < num_scales - 1:
                self.skip_scales.append(scale + 1)
                skip_widths.append(width)
        self.to_skips = nn.ModuleList(
            _zeroed(nn.Conv2d(hidden_channels[scale], width, 1))
            for scale, width in zip(self.skip_scales, skip_widths, strict=True)
        )
        self.to_mid = _zeroed(nn.Conv2d(hidden_channels[-1], block_out_channels[-1], 1))

    @property
    def num_conv_in_channels(self) -> int:
        """Channels of Guidance.conv_in_NCHW, for which the UNet's conv_in makes room."""
        return int(self.config.conv_in_channels + self.config.latent_channels + NUM_EXTRA_CHANNELS)

    def forward(self, maps: Sequence[Tensor], draft_NCHW: Tensor | None = None) -> Guidance:
        """maps[s] (N, guidance_channels, H / 2^s, W / 2^s), finest first, as `heatmaps` draws them -> Guidance.

        draft_NCHW (N, latent_channels + 1, H, W), as guidance/reference.py draws it; it goes to conv_in as it is.
        Maps of zeros stand for "no pose", None or a draft of zeros for "no reference".
        Raises ValueError on another number of scales or of channels.
        """
        if len(maps) != len(self.read_maps):
            raise ValueError(f"maps hold {len(maps)} scales, wanted {len(self.read_maps)}")
        for scale, maps_NCHW in enumerate(maps):
            if maps_NCHW.shape[1] != self.config.guidance_channels:
                raise ValueError(
                    f"maps of scale {scale} have {maps_NCHW.shape[1]} channels, wanted {self.config.guidance_channels}"
                )
        num_draft_channels = self.config.latent_channels + NUM_EXTRA_CHANNELS
        if draft_NCHW is None:
            draft_NCHW = maps[0].new_zeros(len(maps[0]), num_draft_channels, *maps[0].shape[2:])
        if draft_NCHW.shape[1] != num_draft_channels:
            raise ValueError(f"draft has {draft_NCHW.shape[1]} channels, wanted {num_draft_channels}")
        features: list[Tensor] = []
        for scale, maps_NCHW in enumerate(maps):
            hidden = self.read_maps[scale](maps_NCHW.to(self.dtype))
            if scale > 0:
                hidden = hidden + self.from_finer[scale - 1](features[-1])
            features.append(self.refine[scale](hidden))
        return Guidance(
            conv_in_NCHW=torch.cat([self.to_conv_in(features[0]), draft_NCHW.to(self.dtype)], dim=1),
            down_residuals=tuple(
                to_skip(features[scale]) for to_skip, scale in zip(self.to_skips, self.skip_scales, strict=True)
            ),
            mid_residual=self.to_mid(features[-1]),
        )


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
