"""What guidance costs beside the same UNet unguided and beside a ControlNet; what few steps lose beside many.

Path:    choreographed and held-out clips -> figures
Letters: F frames
Units:   seconds a clip, ratios

Times are of this process's CPU, one thread, medians of runs that take turns: a busy machine disturbs them little. The
ControlNet is diffusers' AnimateDiffControlNetPipeline around a UNet of the same shape with latents alone as its input,
and a ControlNet that copies its encoder: its weights are random, its cost is not.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from diffusers import AnimateDiffControlNetPipeline, ControlNetModel, UNetMotionModel
from numpy.typing import NDArray
from PIL import Image

from finephys.benchmarks import full_size
from finephys.data.video import decode_video
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.diffusion.text import encode_prompts, tokenize
from finephys.diffusion.vae import downscale_factor
from finephys.evaluation.detections import Detection, read_split
from finephys.evaluation.evaluate_video import choose, generate, true_guide
from finephys.evaluation.figures import Figure
from finephys.evaluation.pose import pck
from finephys.evaluation.video import PCK_SHARE

ASSETS = Path(__file__).parent.parent / "assets"
NUM_FRAMES = 16
# What jobs/generate.py takes unless told otherwise.
STEPS = 20
REPEATS = 3
FLOATS = NDArray[np.float32]
FEW_STEPS, MANY_STEPS = 6, 25
CLIPS_PER_SUBSET = 2
BATCHES = (1, 2, 4)
PROMPT = "A gymnast with fair skin and black hair in a red leotard leaps, in a blue hall."


def measure() -> list[Figure]:
    """All figures, of the shipped weights at 128x128, 16 frames, without classifier-free guidance; on a machine with a
    GPU those of finephys/benchmarks/full_size.py too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = FinePhysPipeline.from_pretrained(ASSETS / "pipeline")
        model.set_progress_bar_config(disable=True)
        figures = [*_time_figures(model), *_batch_figures(model), *_step_figures(model)]
        return [*figures, *(full_size.measure() if torch.cuda.is_available() else [])]
    finally:
        torch.set_num_threads(threads)


def _time_figures(model: FinePhysPipeline) -> list[Figure]:
    joints_cam_m = _standing()
    controlled = _controlnet_pipeline(model)
    side = model.unet.config.sample_size * downscale_factor(model.vae)
    pictures = [Image.new("RGB", (side, side))] * NUM_FRAMES

    def guided() -> None:
        _sample(model, joints_cam_m, [PROMPT])

    def with_controlnet() -> None:
        controlled(
            PROMPT,
            num_frames=NUM_FRAMES,
            height=side,
            width=side,
            num_inference_steps=STEPS,
            guidance_scale=1.0,
            conditioning_frames=pictures,
            output_type="latent",
        )

    guided_s, unguided_s, controlnet_s = _seconds(guided, lambda: _sample_unguided(model), with_controlnet)
    return [
        Figure(name="guided_seconds_a_step", value=guided_s / STEPS),
        Figure(name="guided_over_unguided_time", value=guided_s / unguided_s, at_most=1.05),
        Figure(name="guided_over_controlnet_time", value=guided_s / controlnet_s, at_most=0.84),
    ]


def _batch_figures(model: FinePhysPipeline) -> list[Figure]:
    """Seconds a clip in batches, beside one alone, and the most memory that this process has used."""
    joints_cam_m = _standing()
    seconds = _seconds(
        *(lambda size=size: _sample(model, joints_cam_m, [PROMPT] * size, FEW_STEPS) for size in BATCHES)  # type: ignore[misc]
    )
    each = [whole / size for whole, size in zip(seconds, BATCHES, strict=True)]
    return [
        *(
            Figure(name=f"clip_of_{size}_over_clip_alone_time", value=one / each[0])
            for size, one in zip(BATCHES[1:], each[1:], strict=True)
        ),
        Figure(name="resident_memory_gb", value=psutil.Process().memory_info().rss / 1e9),
    ]


def _step_figures(model: FinePhysPipeline) -> list[Figure]:
    """How well few steps follow the true motion, beside many: PCK of what the shipped detector finds."""
    clips = choose(list(read_split(str(ASSETS / "clips"), "test")), CLIPS_PER_SUBSET)
    frames = [decode_video(clip.video).frames_THWC for clip in clips]
    chosen = [
        Detection(clip=clip, frames_THWC=seen, pose=model.pose_estimator.estimate(seen))
        for clip, seen in zip(clips, frames, strict=True)
    ]
    found: dict[int, list[float]] = {FEW_STEPS: [], MANY_STEPS: []}
    for seed, one in enumerate(chosen):
        assert one.clip.joints_px is not None
        index = np.linspace(0, one.clip.num_frames - 1, NUM_FRAMES).round().astype(int)
        for steps, values in found.items():
            video = generate(model, one, "truth", true_guide(one), seed, steps)
            values.append(pck(model.pose_estimator.estimate(video).joints_px, one.clip.joints_px[index], PCK_SHARE))
    few, many = (float(np.mean(values)) for values in found.values())
    return [
        Figure(name=f"pck_of_{MANY_STEPS}_steps", value=many),
        Figure(name=f"pck_of_{FEW_STEPS}_over_{MANY_STEPS}_steps", value=few / many, at_least=0.95),
    ]


def _sample(model: FinePhysPipeline, joints_cam_m: FLOATS, prompts: list[str], steps: int = STEPS) -> None:
    model(
        prompts,
        joints_cam_m=joints_cam_m,
        num_frames=NUM_FRAMES,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    )


@torch.no_grad()
def _sample_unguided(model: FinePhysPipeline) -> None:
    """What a plain text-to-video loop does with the same UNet: latents and text in, nothing added on the way."""
    unet, scheduler = model.unet, model.scheduler
    text = encode_prompts(model.text_encoder, tokenize(model.tokenizer, [PROMPT])).repeat_interleave(NUM_FRAMES, dim=0)
    side = unet.config.sample_size
    latents = torch.randn(
        1, unet.config.in_channels, NUM_FRAMES, side, side, generator=torch.Generator().manual_seed(0)
    )
    num_latents = unet.config.out_channels
    scheduler.set_timesteps(STEPS)
    for timestep in scheduler.timesteps:
        prediction = unet(latents, timestep, encoder_hidden_states=text).sample
        latents[:, :num_latents] = scheduler.step(prediction, timestep, latents[:, :num_latents]).prev_sample


def _controlnet_pipeline(model: FinePhysPipeline) -> AnimateDiffControlNetPipeline:
    config = dict(model.unet.config)
    plain = {name: value for name, value in config.items() if not name.startswith("_")} | {"in_channels": 4}
    unet = UNetMotionModel(**plain)
    widths = config["block_out_channels"]
    # The conditioning embedding halves the picture between its scales, down to the latent's size.
    num_halvings = int(np.log2(downscale_factor(model.vae)))
    controlnet = ControlNetModel(
        in_channels=4,
        down_block_types=tuple(name.replace("Motion", "2D") for name in config["down_block_types"]),
        block_out_channels=widths,
        layers_per_block=config["layers_per_block"],
        norm_num_groups=config["norm_num_groups"],
        cross_attention_dim=config["cross_attention_dim"],
        num_attention_heads=config["num_attention_heads"],
        conditioning_embedding_out_channels=(16, 32, 96, 256)[: num_halvings + 1],
    )
    pipeline = AnimateDiffControlNetPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=unet.eval(),
        motion_adapter=None,
        controlnet=controlnet.eval(),
        scheduler=model.scheduler,
    )
    # It counts the VAE's blocks, ours halves the picture once more before them.
    pipeline.vae_scale_factor = downscale_factor(model.vae)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _seconds(*calls: Callable[[], None]) -> list[float]:
    """CPU seconds of each call, medians of REPEATS in turns, after one of each that does not count."""
    taken: list[list[float]] = [[] for _ in calls]
    for repeat in range(REPEATS + 1):
        for call, times in zip(calls, taken, strict=True):
            start = time.process_time()
            call()
            if repeat:
                times.append(time.process_time() - start)
    return [float(np.median(times)) for times in taken]


def _standing() -> FLOATS:
    """(16,17,3) metres, camera frame: someone who stands 4 m away and sways."""
    rng = np.random.default_rng(0)
    pose_m = rng.normal(0, 0.35, (17, 3)) + np.array([0, 0, 4.0])
    sway_m = 0.1 * np.sin(np.arange(NUM_FRAMES) / 3)[:, None, None]
    joints_cam_m: FLOATS = (pose_m + sway_m).astype(np.float32)
    return joints_cam_m
