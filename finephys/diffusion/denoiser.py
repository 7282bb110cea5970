"""The guided denoiser: UNet, text encoder and guidance encoder together, with the loss that trains them.

Path:    latents, prompt, joints_px, depth -> guidance -> unet -> loss
Letters: B clips, F frames, J joints, C channels, h w cells of a latent, L tokens
Units:   joints in pixels, depth in metres relative to the root

The single frames of the first stage are clips of one frame: both stages share this file and its weights.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, UNetMotionModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from finephys.diffusion.lora import add_lora, merge_and_drop
from finephys.diffusion.text import (
    DEMO_SENTENCES,
    TextConfig,
    build_text_encoder,
    build_tokenizer,
    encode_prompts,
    tokenize,
)
from finephys.diffusion.unet import UNetConfig, build_scheduler, build_unet, denoise, widen_conv_in
from finephys.guidance.encoder import GuidanceEncoder, GuidanceEncoderConfig
from finephys.guidance.heatmaps import body_mask, heatmaps
from finephys.guidance.reference import Reference, draft
from finephys.hops import hop


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """Parts and loss of the guided denoiser."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    guidance: GuidanceEncoderConfig = field(default_factory=GuidanceEncoderConfig)
    text: TextConfig = field(default_factory=TextConfig)
    # What the tokenizer of a fresh model learns its words from.
    prompts: tuple[str, ...] = DEMO_SENTENCES

    # Share of the samples that see no text: classifier-free guidance (arXiv:2207.12598) ...
    text_dropout: float = 0.1
    # ... and, independently, no pose.
    pose_dropout: float = 0.1
    # Share of the samples that see no reference picture: half, as generation goes with and without one.
    reference_dropout: float = 0.5
    # Errors on the body count 1 + this: it is a tenth of the picture and nearly all of its interest.
    body_weight: float = 2.0
    # Variance of the noise that the frames of a clip share (arXiv:2305.10474). Some of it keeps backgrounds still. Not
    # all: frames would then differ by nothing but their pictures, which a UNet learns to read off them at any level of
    # noise, and sampling keeps whatever blur its first step made (measured: the loss halved, and limbs faded).
    shared_noise: float = 0.5
    # "min_snr" weighs steps by min(SNR, 5) / (SNR + 1), or / SNR where noise is predicted (arXiv:2303.09556);
    # "uniform" does not.
    snr_weighting: Literal["uniform", "min_snr"] = "uniform"

    # Rank of the low-rank updates that train in place of the UNet's own weights and of the text encoder's, which then
    # does not train at all; 0 trains all of both.
    lora_rank: int = 0
    # Compute the UNet's activations again in the backward pass instead of keeping them: a third slower, far leaner.
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}, wanted at least 0")
        if self.unet.block_out_channels != self.guidance.block_out_channels:
            raise ValueError(
                f"unet.block_out_channels {self.unet.block_out_channels} and guidance.block_out_channels "
                f"{self.guidance.block_out_channels} must be equal"
            )
        if self.unet.layers_per_block != self.guidance.layers_per_block:
            raise ValueError(
                f"unet.layers_per_block {self.unet.layers_per_block} and guidance.layers_per_block "
                f"{self.guidance.layers_per_block} must be equal"
            )
        if self.unet.latent_channels != self.guidance.latent_channels:
            raise ValueError(
                f"unet.latent_channels {self.unet.latent_channels} and guidance.latent_channels "
                f"{self.guidance.latent_channels} must be equal"
            )
        if self.unet.cross_attention_dim != self.text.hidden_size:
            raise ValueError(
                f"unet.cross_attention_dim {self.unet.cross_attention_dim} and text.hidden_size "
                f"{self.text.hidden_size} must be equal"
            )
        for name in ("text_dropout", "pose_dropout", "reference_dropout", "shared_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted 0 to 1")


# SNR above which min_snr stops weighing a step by it (gamma of arXiv:2303.09556).
MIN_SNR_GAMMA = 5.0

# Half of the training's steps are drawn around this level of noise (logit-normal, arXiv:2403.03206): that is where
# limbs are decided; the other half is uniform.
_LOGIT_MEAN, _LOGIT_DEVIATION = 0.6, 1.0


class GuidedDenoiser(nn.Module):
    """What turns noise into latents. Its modules are diffusers' and transformers', and ship one by one."""

    empty_tokens_L: Tensor

    def __init__(
        self,
        config: DenoiserConfig,
        unet: UNetMotionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        guidance_encoder: GuidanceEncoder,
        scheduler: DDIMScheduler,
    ) -> None:
        super().__init__()
        self.config = config
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.guidance_encoder = guidance_encoder
        if scheduler.config.prediction_type not in ("v_prediction", "epsilon"):
            raise ValueError(
                f"scheduler.prediction_type is {scheduler.config.prediction_type!r}, wanted v_prediction or epsilon"
            )
        self.scheduler = scheduler
        self.register_buffer("empty_tokens_L", tokenize(tokenizer, [""])[0], persistent=False)

    def forward(
        self,
        latents_BFChw: Tensor,
        prompts: Sequence[str],
        joints_px_BFJ2: Tensor,
        depth_BFJ: Tensor,
        body_px_BFJ2: Tensor,
        image_size: tuple[int, int],
        reference: Reference,
    ) -> dict[str, Tensor]:
        """The denoising losses of one batch: denoise (body-weighted, what is minimised) and mse (plain, to compare).

        latents normalised; joints_px and depth (metres relative to the root) guide, and the gradient reaches them;
        body_px says where errors weigh more.  reference: a picture of each clip.
        """
        num_clips, num_frames = latents_BFChw.shape[:2]
        latent_size = (latents_BFChw.shape[-2], latents_BFChw.shape[-1])
        device = latents_BFChw.device

        has_text = torch.rand(num_clips, device=device) >= self.config.text_dropout
        has_pose = torch.rand(num_clips, device=device) >= self.config.pose_dropout
        tokens_BL = tokenize(self.tokenizer, prompts).to(device)
        tokens_BL = torch.where(has_text[:, None], tokens_BL, self.empty_tokens_L)
        text_BLC = encode_prompts(self.text_encoder, tokens_BL)
        shown_NCHW = has_pose.float().repeat_interleave(num_frames)[:, None, None, None]
        num_scales = len(self.unet.config.block_out_channels)
        with hop("heatmaps"):
            maps = guidance_maps(joints_px_BFJ2, depth_BFJ, image_size, latent_size, num_scales)
        has_reference = has_pose & (torch.rand(num_clips, device=device) >= self.config.reference_dropout)
        drafts = draft(reference, joints_px_BFJ2, image_size) * has_reference[:, None, None, None, None]
        with hop("guidance"):
            guidance = self.guidance_encoder([scale * shown_NCHW for scale in maps], drafts.flatten(0, 1))

        timestep_B = self._sample_timesteps(num_clips, device)
        noise = clip_noise(latents_BFChw.shape, self.config.shared_noise, device=device)
        signal, spread = self._signal_and_noise(timestep_B)
        noisy = signal * latents_BFChw + spread * noise
        predicts_noise = self.scheduler.config.prediction_type == "epsilon"
        target = noise if predicts_noise else signal * noise - spread * latents_BFChw

        with hop("unet"):
            prediction = denoise(self.unet, noisy, timestep_B, text_BLC, guidance)
        square = (prediction.float() - target).square()
        weight = 1 + self.config.body_weight * body_mask(body_px_BFJ2, image_size, latent_size)
        if self.config.snr_weighting == "min_snr":
            snr = (signal / spread).square()
            weight = weight * snr.clamp_max(MIN_SNR_GAMMA) / (snr if predicts_noise else snr + 1)
        return {"denoise": (square * weight).mean(), "mse": square.detach().mean()}

    def export(self, folder: Path) -> None:
        """Write unet, text_encoder, tokenizer, guidance_encoder and scheduler below `folder`, in half precision."""
        unet = deepcopy(self.unet)
        if self.config.lora_rank:
            merge_and_drop(unet)
        for name, model in {
            "unet": unet,
            "text_encoder": self.text_encoder,
            "guidance_encoder": self.guidance_encoder,
        }.items():
            save_half(model, folder / name)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        self.scheduler.save_pretrained(folder / "scheduler")

    def _sample_timesteps(self, num_clips: int, device: torch.device) -> Tensor:
        """(B,) in 0 .. num_train_timesteps - 1."""
        uniform = torch.rand(num_clips, device=device)
        focused = torch.sigmoid(_LOGIT_MEAN + _LOGIT_DEVIATION * torch.randn(num_clips, device=device))
        share = torch.where(torch.rand(num_clips, device=device) < 0.5, uniform, focused)
        num_steps = self.scheduler.config.num_train_timesteps
        timestep_B: Tensor = (share * num_steps).long().clamp_max(num_steps - 1)
        return timestep_B

    def _signal_and_noise(self, timestep_B: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a) and sqrt(1 - a) of each clip's step, (B,1,1,1,1)."""
        alpha = self.scheduler.alphas_cumprod.to(timestep_B.device)[timestep_B].reshape(-1, 1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()


def build_denoiser(config: DenoiserConfig, init: Path | None) -> GuidedDenoiser:
    """A denoiser afresh, or of the parts that lie in the pipeline folder `init` (in float32).

    A UNet that takes latents only, such as Stable Diffusion's, is widened for guidance. A folder without text_encoder
    and tokenizer gets fresh ones, for prompts of other words; its other parts must be there.
    Raises FileNotFoundError or OSError where init lacks one of the parts, ValueError where a fresh text encoder does
    not fit the UNet.
    """
    if init is None or not (init / "unet").is_dir():
        tokenizer = build_tokenizer(config.text, config.prompts)
        unet = build_unet(config.unet)
        text_encoder = build_text_encoder(config.text, tokenizer)
        guidance_encoder = GuidanceEncoder(**asdict(config.guidance))
        scheduler = build_scheduler()
    else:
        unet = UNetMotionModel.from_pretrained(init / "unet")
        if (init / "text_encoder").is_dir() or (init / "tokenizer").is_dir():
            text_encoder = CLIPTextModel.from_pretrained(init / "text_encoder", dtype=torch.float32)
            tokenizer = CLIPTokenizer.from_pretrained(init / "tokenizer")
        else:
            tokenizer = build_tokenizer(config.text, config.prompts)
            text_encoder = build_text_encoder(config.text, tokenizer)
        guidance_encoder = GuidanceEncoder.from_pretrained(init / "guidance_encoder")
        scheduler = DDIMScheduler.from_pretrained(init / "scheduler")
    if text_encoder.config.hidden_size != unet.config.cross_attention_dim:
        raise ValueError(
            f"text_encoder.hidden_size is {text_encoder.config.hidden_size}, wanted the UNet's cross_attention_dim "
            f"{unet.config.cross_attention_dim}"
        )
    missing = unet.config.out_channels + guidance_encoder.num_conv_in_channels - unet.config.in_channels
    if missing > 0:
        widen_conv_in(unet, missing)
    if config.lora_rank:
        add_lora(unet, config.lora_rank)
        text_encoder.requires_grad_(False)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return GuidedDenoiser(config, unet, text_encoder, tokenizer, guidance_encoder, scheduler)


def guidance_maps(
    joints_px_BFJ2: Tensor,
    depth_BFJ: Tensor,
    image_size: tuple[int, int],
    latent_size: tuple[int, int],
    num_scales: int,
) -> list[Tensor]:
    """The maps of each scale of the UNet, the latent's own first, frames folded: (B*F, C, h / 2^s, w / 2^s)."""
    height, width = latent_size
    return [
        heatmaps(joints_px_BFJ2, depth_BFJ, image_size, (height >> scale, width >> scale)).flatten(0, 1)
        for scale in range(num_scales)
    ]


def clip_noise(
    shape_BFChw: Sequence[int],
    shared_share: float,
    generator: torch.Generator | list[torch.Generator] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Unit normal noise (B,F,C,h,w) of which `shared_share` of the variance is the same in each frame of a clip."""
    num_clips, num_frames, *latent_shape = shape_BFChw
    shared: Tensor = randn_tensor((num_clips, 1, *latent_shape), generator=generator, device=device)
    own: Tensor = randn_tensor((num_clips, num_frames, *latent_shape), generator=generator, device=device)
    noise: Tensor = shared_share**0.5 * shared + (1 - shared_share) ** 0.5 * own
    return noise


def save_half(model: nn.Module, folder: Path) -> None:
    """save_pretrained of a half-precision copy; `model` itself stays as it is."""
    half: Any = deepcopy(model).half()
    half.save_pretrained(folder)
