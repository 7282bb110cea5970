"""The video UNet: diffusers' UNetMotionModel at demo scale, its input widened for guidance, and its noise schedule.

Path:    noisy latents, guidance, text -> v
Letters: B clips, F frames, C channels, h w cells

Spatial layers as in Stable Diffusion, motion modules over time as in AnimateDiff (arXiv:2307.04725). All motion
modules start as the identity (their proj_out is zeroed; diffusers leaves it random), so that a UNet trained on single
frames keeps all it knows when frames become clips.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from finephys.guidance.encoder import Guidance

# Frames that motion modules learn on (diffusion/joint.py); longer clips are made of windows of as many.
WINDOW_FRAMES = 16


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The demo's UNet; attention where the latent is 16x16 or less."""

    # Side of the latents of a frame.
    sample_size: int = 32
    # Channels of a latent.
    latent_channels: int = 4
    # Width at each resolution, the finest first.
    block_out_channels: tuple[int, ...] = (32, 64, 112)
    # At which of them frames attend to themselves and to the text.
    has_attention: tuple[bool, ...] = (False, True, True)
    # Residual layers at each resolution.
    layers_per_block: int = 1
    # Groups of each group norm.
    norm_num_groups: int = 16
    # Width of the text encoder's output.
    cross_attention_dim: int = 128
    # Channels a head; diffusers' argument of this meaning for UNetMotionModel is the number of heads.
    head_channels: int = 16
    # Frames at most.
    motion_max_seq_length: int = 32
    # Whether frames see each other in the middle block, too.
    use_motion_mid_block: bool = False

    def __post_init__(self) -> None:
        if len(self.has_attention) != len(self.block_out_channels):
            raise ValueError(
                f"has_attention {self.has_attention} and block_out_channels {self.block_out_channels} "
                "must be equally many"
            )
        for width in self.block_out_channels:
            if width % self.norm_num_groups or width % self.head_channels:
                raise ValueError(
                    f"block_out_channels {width} must be divisible by norm_num_groups {self.norm_num_groups} "
                    f"and head_channels {self.head_channels}"
                )


def build_unet(config: UNetConfig) -> UNetMotionModel:
    """A fresh UNet whose motion modules change nothing yet; widen_conv_in makes room for guidance."""
    heads = tuple(width // config.head_channels for width in config.block_out_channels)
    down_block_types = tuple("CrossAttnDownBlockMotion" if has else "DownBlockMotion" for has in config.has_attention)
    up_block_types = tuple("CrossAttnUpBlockMotion" if has else "UpBlockMotion" for has in config.has_attention[::-1])
    unet = UNetMotionModel(
        sample_size=config.sample_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=down_block_types,
        up_block_types=up_block_types,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        num_attention_heads=heads,
        motion_num_attention_heads=heads,
        motion_max_seq_length=config.motion_max_seq_length,
        use_motion_mid_block=config.use_motion_mid_block,
    )
    zero_motion_outputs(unet)
    return unet


@torch.no_grad()
def widen_conv_in(unet: UNetMotionModel, extra_channels: int) -> None:
    """Let conv_in take `extra_channels` more after the latents; their weights are zero, so they change nothing yet.

    Works on any UNet with a conv_in, Stable Diffusion's included, and records the width in its config.
    """
    narrow = unet.conv_in
    in_channels = narrow.in_channels + extra_channels
    wide = nn.Conv2d(
        in_channels,
        narrow.out_channels,
        narrow.kernel_size,
        padding=narrow.padding,
        device=unet.device,
        dtype=unet.dtype,
    )
    wide.weight.zero_()
    wide.weight[:, : narrow.in_channels] = narrow.weight
    if narrow.bias is None or wide.bias is None:
        raise ValueError("unet.conv_in has no bias, wanted a UNet as diffusers builds it")
    wide.bias.copy_(narrow.bias)
    unet.conv_in = wide
    unet.register_to_config(in_channels=in_channels)


@torch.no_grad()
def zero_motion_outputs(unet: UNetMotionModel) -> None:
    """Make each motion module the identity."""
    for name, module in unet.named_modules():
        if "motion_modules" in name and name.endswith("proj_out"):
            module.weight.zero_()
            module.bias.zero_()


def motion_parameters(unet: UNetMotionModel) -> list[nn.Parameter]:
    """The weights that only clips can teach; the rest learn from single frames as well."""
    return [parameter for name, parameter in unet.named_parameters() if "motion_modules" in name]


@contextmanager
def skip_motion(unet: UNetMotionModel) -> Iterator[None]:
    """Within the block the motion modules pass their input on, whatever they have learned: for single frames.

    Running them on one frame would teach nothing and take 40 % of a training step.
    """
    modules = [module for module in unet.modules() if isinstance(module, AnimateDiffTransformer3D)]
    for module in modules:
        module.forward = lambda hidden_states, *_, **__: hidden_states
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def denoise(
    unet: UNetMotionModel, noisy_BFCHW: Tensor, timestep: Tensor, text_BLC: Tensor, guidance: Guidance
) -> Tensor:
    """One pass of the guided UNet: what it predicts (v, for the demo's schedule), (B,F,C,h,w).

    noisy_BFCHW latents, timestep () or (B,), text_BLC the text encoder's output, guidance with N = B * F.
    """
    num_frames = noisy_BFCHW.shape[1]
    features_BFCHW = guidance.conv_in_NCHW.unflatten(0, noisy_BFCHW.shape[:2])
    sample_BCFHW = torch.cat([noisy_BFCHW, features_BFCHW], dim=2).transpose(1, 2)
    prediction_BCFHW = unet(
        sample_BCFHW,
        timestep,
        encoder_hidden_states=text_BLC.repeat_interleave(num_frames, dim=0),
        down_block_additional_residuals=guidance.down_residuals,
        mid_block_additional_residual=guidance.mid_residual,
    ).sample
    prediction_BFCHW: Tensor = prediction_BCFHW.transpose(1, 2)
    return prediction_BFCHW


def denoise_windows(
    unet: UNetMotionModel,
    noisy_BFCHW: Tensor,
    timestep: Tensor,
    text_BLC: Tensor,
    guidance: Guidance,
    window: int = WINDOW_FRAMES,
) -> Tensor:
    """`denoise` for clips longer than the UNet learned: overlapping windows, blended at every step.

    A window fades into the next over the half that they share, so all frames of a step agree on one prediction and no
    frame is the last of anything (MultiDiffusion, arXiv:2302.08113, over time). A clip of one window is one pass.
    """
    num_frames = noisy_BFCHW.shape[1]
    if num_frames <= window:
        return denoise(unet, noisy_BFCHW, timestep, text_BLC, guidance)
    fade = torch.minimum(torch.arange(1, window + 1), torch.arange(window, 0, -1)).to(noisy_BFCHW)
    fade = fade[None, :, None, None, None]
    total, weight = torch.zeros_like(noisy_BFCHW), torch.zeros_like(noisy_BFCHW[:1, :, :1, :1, :1])
    for start in window_starts(num_frames, window):
        frames = slice(start, start + window)
        part = denoise(unet, noisy_BFCHW[:, frames], timestep, text_BLC, _frames_of(guidance, frames, num_frames))
        total[:, frames] += fade * part
        weight[:, frames] += fade
    return total / weight


def window_starts(num_frames: int, window: int) -> list[int]:
    """First frames of windows that overlap by half or more and end with the clip."""
    starts = list(range(0, num_frames - window, window // 2))
    return [*starts, num_frames - window]


def _frames_of(guidance: Guidance, frames: slice, num_frames: int) -> Guidance:
    def cut(maps_NCHW: Tensor) -> Tensor:
        kept: Tensor = maps_NCHW.unflatten(0, (-1, num_frames))[:, frames].flatten(0, 1)
        return kept

    return Guidance(
        conv_in_NCHW=cut(guidance.conv_in_NCHW),
        down_residuals=tuple(cut(residual) for residual in guidance.down_residuals),
        mid_residual=cut(guidance.mid_residual),
    )


def build_scheduler() -> DDIMScheduler:
    """The demo's noise schedule: cosine, v-prediction, and no signal at all at the last step.

    Without the zero terminal signal the sampler starts from noise that the UNet never saw, and pictures drift to grey
    (arXiv:2305.08891).
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
