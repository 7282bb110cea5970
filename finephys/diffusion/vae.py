"""The image autoencoder: frames to latents a quarter as high and wide, and back.

Path:    frames -> latents;  latents -> video
Letters: T frames, N images, C channels, H W pixels, h w cells of a latent
Units:   uint8 RGB outside, [-1, 1] inside; latents normalised to mean 0 and deviation 1 per channel

diffusers' AutoencoderKL. At demo scale 2x2 pixels are folded into channels first (in_channels = 12 = 3 * 2 * 2), which
leaves the two costly full-resolution stages out: 5x faster than an AutoencoderKL of the same size on plain pixels,
and f=4 in two blocks. A Stable Diffusion VAE has in_channels = 3, so the same functions run it without folding.

Training holds the posterior's deviation at a constant (rows of quant_conv that get no gradient) instead of learning it:
the decoder meets latents that are a little off, as it will from the UNet, and the latents cannot collapse to noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt, log
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from finephys.guidance.heatmaps import body_mask

# Images at a time through encoder or decoder: bounds memory on long clips; 16 is one clip of the UNet.
IMAGES_PER_PASS = 16


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The demo's VAE: 0.5 M parameters; 16 frames of 128x128 decode in under 0.3 s on one thread."""

    # Pixels a side that the first layer takes as channels.
    patch_size: int = 2
    # Width at each resolution, the finest first.
    block_out_channels: tuple[int, ...] = (32, 56)
    # Residual layers at each resolution.
    layers_per_block: int = 1
    # Channels of a latent.
    latent_channels: int = 4
    # Groups of each group norm.
    norm_num_groups: int = 8
    # The largest image whose size is of interest: where diffusers would begin to tile.
    sample_size: int = 128

    def __post_init__(self) -> None:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ValueError(
                    f"block_out_channels {width} is not divisible by norm_num_groups {self.norm_num_groups}"
                )


@dataclass(frozen=True, kw_only=True)
class VAETrainingConfig:
    """The VAE and the weights of its losses."""

    vae: VAEConfig = VAEConfig()
    # False: only the decoder learns, so that latents made before, and what was trained on them, stay valid.
    train_encoder: bool = True
    # Deviation of the posterior, against latents of deviation about 1.
    latent_noise: float = 0.05
    # Of the mean squared error; that of the mean absolute one is 1.
    square_weight: float = 2.0
    # Of the error's own differences between neighbouring pixels: sharp edges.
    gradient_weight: float = 0.5
    # Of the distance of latents from a unit normal.
    kl_weight: float = 1e-3
    # Errors on the body count 1 + this.
    body_weight: float = 2.0


def build_vae(config: VAEConfig) -> AutoencoderKL:
    """A fresh VAE whose latents are not normalised yet (latents_mean 0, latents_std 1 in its config)."""
    num_blocks = len(config.block_out_channels)
    channels = 3 * config.patch_size**2
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.sample_size,
        scaling_factor=1.0,
        latents_mean=(0.0,) * config.latent_channels,
        latents_std=(1.0,) * config.latent_channels,
        force_upcast=False,
        # No attention: the picture is local and the crops of training are smaller than the pictures of use.
        mid_block_add_attention=False,
    )


def downscale_factor(vae: AutoencoderKL) -> int:
    """Pixels to a latent cell along one side: 4 at demo scale, 8 for Stable Diffusion."""
    return int(_patch_size(vae) * 2 ** (len(vae.config.block_out_channels) - 1))


@torch.no_grad()
def encode_latents(vae: AutoencoderKL, frames_THWC: NDArray[np.uint8]) -> Tensor:
    """Frames (T,H,W,3) uint8 RGB -> normalised latents (T,C,h,w) float32 on the VAE's device.

    The posterior's mean, without noise. Raises ValueError on another dtype or shape, or sides that the VAE's
    downscaling factor does not divide.
    """
    factor = downscale_factor(vae)
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3:
        raise ValueError(f"frames are {frames_THWC.dtype} {frames_THWC.shape}, wanted uint8 (T, H, W, 3)")
    if len(frames_THWC) == 0:
        raise ValueError("frames hold no frame, wanted at least 1")
    height, width = frames_THWC.shape[1:3]
    if height % factor or width % factor:
        raise ValueError(f"frames are {height}x{width}, wanted sides that are multiples of {factor}")
    mean, deviation = _normalisation(vae)
    latents = []
    for start in range(0, len(frames_THWC), IMAGES_PER_PASS):
        images = to_images(frames_THWC[start : start + IMAGES_PER_PASS]).to(vae.device, vae.dtype)
        posterior = vae.encode(functional.pixel_unshuffle(images, _patch_size(vae))).latent_dist
        latents.append((posterior.mode().float() - mean) / deviation)
    return torch.cat(latents)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents_TChw: Tensor) -> NDArray[np.uint8]:
    """Normalised latents (T,C,h,w) -> frames (T,H,W,3) uint8 RGB. Raises ValueError on another channel count."""
    channels = vae.config.latent_channels
    if latents_TChw.ndim != 4 or latents_TChw.shape[1] != channels:
        raise ValueError(f"latents have shape {tuple(latents_TChw.shape)}, wanted (T, {channels}, h, w)")
    mean, deviation = _normalisation(vae)
    frames = []
    for part in latents_TChw.to(vae.device).split(IMAGES_PER_PASS):
        patches = vae.decode((part.float() * deviation + mean).to(vae.dtype)).sample
        images = functional.pixel_shuffle(patches, _patch_size(vae))
        frames.append(((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))
    return torch.cat(frames).permute(0, 2, 3, 1).cpu().numpy()


def to_images(frames_THWC: NDArray[np.uint8]) -> Tensor:
    """uint8 (T,H,W,3) in 0..255 -> float32 (T,3,H,W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames_THWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _patch_size(vae: AutoencoderKL) -> int:
    return isqrt(vae.config.in_channels // 3)


def _normalisation(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the raw latents, each (1,C,1,1).

    Ours are measured per channel; Stable Diffusion's VAE has one scaling_factor for all, and no shift.
    """
    config, channels = vae.config, vae.config.latent_channels
    mean = config.latents_mean or (config.shift_factor or 0.0,) * channels
    deviation = config.latents_std or (1.0 / config.scaling_factor,) * channels
    shape = (1, channels, 1, 1)
    return (
        torch.tensor(mean, device=vae.device).reshape(shape),
        torch.tensor(deviation, device=vae.device).reshape(shape),
    )


# --- training

CROP_PX = 64
CROPS_PER_CLIP = 4
# Share of the crops that are laid around a joint, and how far from it (deviation): hands and feet are small.
BODY_CROP_SHARE = 0.8
BODY_CROP_SPREAD_PX = 14.0

# The latents' mean and deviation follow the weights with this memory, in steps.
_STATISTICS_MEMORY = 200


def collate(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Tensor]:
    """Random crops of decoded clips, most of them around the body.

    rows: {clip_id, frames (T,H,W,3) uint8, joints_px (T,17,2) or None}.
    Returns images_N3HW float32 in [-1, 1] and joints_px_NJ2 in pixels of the crop (far outside where unknown),
    N = len(rows) * CROPS_PER_CLIP, H = W = CROP_PX. Raises ValueError, naming the clip, on frames smaller than a crop.
    """
    crops, joints = [], []
    for row in rows:
        frames = row["frames"]
        num_frames, height, width = frames.shape[:3]
        if min(height, width) < CROP_PX:
            raise ValueError(f"clip {row['clip_id']}: frames are {height}x{width}, wanted at least {CROP_PX}x{CROP_PX}")
        for _ in range(CROPS_PER_CLIP):
            frame = rng.integers(num_frames)
            known = row.get("joints_px") is not None
            joints_px = np.asarray(row["joints_px"][frame], np.float32) if known else np.full((17, 2), -1e4, np.float32)
            centre = rng.uniform(0.0, (width, height))
            if known and rng.random() < BODY_CROP_SHARE:
                centre = joints_px[rng.integers(len(joints_px))] + rng.normal(0.0, BODY_CROP_SPREAD_PX, 2)
            left = int(np.clip(centre[0] - CROP_PX / 2, 0, width - CROP_PX))
            top = int(np.clip(centre[1] - CROP_PX / 2, 0, height - CROP_PX))
            crops.append(frames[frame, top : top + CROP_PX, left : left + CROP_PX])
            joints.append(joints_px - np.array([left, top], np.float32))
    return {"images_N3HW": to_images(np.stack(crops)), "joints_px_NJ2": torch.from_numpy(np.stack(joints))}


def build(config: VAETrainingConfig, init: Path | None) -> "VAETraining":
    """The training module, fresh or with the VAE that lies in the pipeline folder `init`."""
    if init is None:
        return VAETraining(config, build_vae(config.vae))
    return VAETraining(config, AutoencoderKL.from_pretrained(init, subfolder="vae"))


class VAETraining(nn.Module):
    """The VAE with its losses: body-weighted L1, L2 and gradients of the picture, and a light pull of latents to 0."""

    latent_mean: Tensor
    latent_square: Tensor
    num_seen: Tensor

    def __init__(self, config: VAETrainingConfig, vae: AutoencoderKL) -> None:
        super().__init__()
        self.config = config
        self.vae = vae
        _hold_deviation(vae, config.latent_noise)
        if not config.train_encoder:
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
        mean, deviation = (value.flatten() for value in _normalisation(vae))
        self.register_buffer("latent_mean", mean.clone())
        self.register_buffer("latent_square", deviation**2 + mean**2)
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of one batch of `collate`: loss, and its parts l1, l2, gradient, kl; psnr_db beside them."""
        images, patch = batch["images_N3HW"], _patch_size(self.vae)
        size = (images.shape[-2], images.shape[-1])
        weight = 1 + self.config.body_weight * body_mask(batch["joints_px_NJ2"], size, size)

        mean = self.vae.encode(functional.pixel_unshuffle(images, patch)).latent_dist.mode()
        noisy = mean + self.config.latent_noise * torch.randn_like(mean)
        error = functional.pixel_shuffle(self.vae.decode(noisy).sample, patch) - images
        self._observe(mean)

        l1 = (error.abs() * weight).mean()
        l2 = (error.square() * weight).mean()
        # Sharp edges: the error's own differences between neighbours.
        gradient = (error.diff(dim=-1).abs() * weight[..., 1:]).mean()
        gradient = gradient + (error.diff(dim=-2).abs() * weight[..., 1:, :]).mean()
        # KL to the unit normal up to a constant, since the deviation is one.
        kl = mean.square().mean()
        config = self.config
        loss = l1 + config.square_weight * l2 + config.gradient_weight * gradient + config.kl_weight * kl
        # The pictures span 2.
        psnr_db = 10 * torch.log10(4 / error.detach().square().mean())
        return {"loss": loss, "l1": l1, "l2": l2, "gradient": gradient, "kl": kl, "psnr_db": psnr_db}

    def export(self, folder: Path) -> None:
        """Write folder/vae in half precision, with the latents' mean and deviation as last measured in its config."""
        mean = self.latent_mean.float()
        deviation = (self.latent_square.float() - mean**2).clamp_min(1e-8).sqrt()
        exported = AutoencoderKL.from_config(self.vae.config)
        exported.load_state_dict(self.vae.state_dict())
        # Weight decay shrinks what no gradient holds.
        _hold_deviation(exported, self.config.latent_noise)
        exported.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
        exported.half().save_pretrained(Path(folder) / "vae")

    @torch.no_grad()
    def _observe(self, latents: Tensor) -> None:
        """Follow the mean and the mean square of the raw latents, per channel."""
        if not (self.training and self.config.train_encoder):
            return
        self.num_seen += 1
        # A plain average at first, then one that forgets.
        share = 1 / torch.clamp(self.num_seen, max=_STATISTICS_MEMORY)
        latents = latents.float()
        self.latent_mean.lerp_(latents.mean((0, 2, 3)), share)
        self.latent_square.lerp_(latents.square().mean((0, 2, 3)), share)


@torch.no_grad()
def _hold_deviation(vae: AutoencoderKL, deviation: float) -> None:
    """Make the posterior's deviation this constant: its rows of quant_conv, which no loss reaches."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:].zero_()
    vae.quant_conv.bias[channels:].fill_(2 * log(deviation))
