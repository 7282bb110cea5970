"""A pipeline of real parts, untrained and small enough to make a clip in a fraction of a second.

Path:    folder -> pipeline in it
Units:   pixel

Half the demo's widths and 16x16 latents: every kind of block. Its videos are noise that follows from the seed.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from finephys.diffusion.denoiser import DenoiserConfig, build_denoiser
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.diffusion.text import TextConfig
from finephys.diffusion.unet import UNetConfig
from finephys.diffusion.vae import VAEConfig, build_vae
from finephys.guidance.encoder import GuidanceEncoderConfig
from finephys.pose.rtmpose import RTMPose, RTMPoseConfig

WIDTHS = (16, 32, 32)
IMAGE_SIDE, LATENT_SIDE = 64, 16


def tiny_config() -> DenoiserConfig:
    """Of the denoiser."""
    return DenoiserConfig(
        unet=UNetConfig(sample_size=LATENT_SIDE, block_out_channels=WIDTHS, cross_attention_dim=32),
        guidance=GuidanceEncoderConfig(conv_in_channels=8, block_out_channels=WIDTHS, hidden_channels=(16, 16, 16)),
        text=TextConfig(max_length=24, hidden_size=32, intermediate_size=32),
    )


def write_tiny_pipeline(folder: Path) -> None:
    """The same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = build_denoiser(tiny_config(), None)
        FinePhysPipeline(
            vae=build_vae(VAEConfig(block_out_channels=(8, 16), sample_size=IMAGE_SIDE)),
            text_encoder=denoiser.text_encoder,
            tokenizer=denoiser.tokenizer,
            unet=denoiser.unet,
            scheduler=denoiser.scheduler,
            guidance_encoder=denoiser.guidance_encoder,
            pose_estimator=RTMPose(**asdict(RTMPoseConfig())),
        ).save_pretrained(folder)
