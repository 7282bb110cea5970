"""The UNet of Stable Diffusion 1.5 with AnimateDiff's motion modules on one GPU, beside the card's own matrix rate.

Path:    random latents, text and guidance of 16 frames at 512x512 -> one pass of the UNet
Letters: B = 1 clip, F = 16 frames, C channels, 64 x 64 cells
Units:   seconds; TFLOP, multiplications and additions counted; bfloat16

The matrix rate is that of the product of two square matrices of MATRIX_SIDE, random ones, measured in the same run.
Operations are torch's own count of one pass (torch.utils.flop_counter), which knows matrix products, convolutions and
attention. Weights are random: what a pass costs does not depend on them.

sd15_seconds_a_pass_torch, _xformers    one guided pass with torch's scaled_dot_product_attention, and with xformers'
    memory-efficient attention where that is installed.
sd15_share_of_matrix_rate               operations a second of the faster, over the matrix rate.
sd15_training_seconds, sd15_training_share_of_matrix_rate   a pass and its gradients for all weights, activations kept;
    operations counted three times the pass's.
"""

import importlib.util
import statistics
from collections.abc import Callable

import torch
from diffusers import UNetMotionModel
from torch.utils.flop_counter import FlopCounterMode

from finephys.diffusion.unet import denoise, widen_conv_in
from finephys.evaluation.figures import Figure
from finephys.guidance.encoder import Guidance, GuidanceEncoder
from finephys.guidance.heatmaps import NUM_GUIDANCE_CHANNELS

NUM_FRAMES, LATENT_SIDE, NUM_TOKENS = 16, 64, 77
# Stable Diffusion 1.5's UNet and AnimateDiff's motion modules v1-5-3, as their config.json have them.
WIDTHS, LAYERS, TEXT_WIDTH = (320, 640, 1280, 1280), 2, 768
SD15 = {
    "sample_size": LATENT_SIDE,
    "block_out_channels": WIDTHS,
    "layers_per_block": LAYERS,
    "cross_attention_dim": TEXT_WIDTH,
    "num_attention_heads": 8,
    "motion_num_attention_heads": 8,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": False,
}
HIDDEN_CHANNELS = (96, 96, 96, 96)
MATRIX_SIDE = 8192
NUM_ROUNDS = 7


def measure() -> list[Figure]:
    """The figures, in about a minute. Needs a CUDA device with 40 GB of memory."""
    torch.manual_seed(0)
    unet = UNetMotionModel(**SD15)
    encoder = GuidanceEncoder(
        conv_in_channels=32,
        block_out_channels=WIDTHS,
        layers_per_block=LAYERS,
        hidden_channels=HIDDEN_CHANNELS,
    )
    widen_conv_in(unet, encoder.num_conv_in_channels)
    unet, encoder = (model.to("cuda", torch.bfloat16) for model in (unet, encoder))
    latents = _random(1, NUM_FRAMES, 4, LATENT_SIDE, LATENT_SIDE)
    text = _random(1, NUM_TOKENS, TEXT_WIDTH)
    timestep = torch.tensor([500], device="cuda")
    sides = [LATENT_SIDE >> scale for scale in range(len(HIDDEN_CHANNELS))]
    with torch.no_grad():
        guidance: Guidance = encoder([_random(NUM_FRAMES, NUM_GUIDANCE_CHANNELS, side, side) for side in sides])

    def one_pass() -> torch.Tensor:
        return denoise(unet, latents, timestep, text, guidance)

    def training_step() -> None:
        one_pass().square().mean().backward()
        unet.zero_grad()

    matrices = [_random(MATRIX_SIDE, MATRIX_SIDE) for _ in range(2)]
    matrix_rate = 2 * MATRIX_SIDE**3 / _median_s(lambda: matrices[0] @ matrices[1])
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            one_pass()
        operations = counter.get_total_flops()
        seconds = {"torch": _median_s(one_pass)}
        if importlib.util.find_spec("xformers"):
            unet.enable_xformers_memory_efficient_attention()
            seconds["xformers"] = _median_s(one_pass)
            unet.disable_xformers_memory_efficient_attention()
    training_s = _median_s(training_step)
    return [
        Figure(name="sd15_tflop_a_pass", value=operations / 1e12),
        Figure(name="matrix_tflop_a_second", value=matrix_rate / 1e12),
        *(Figure(name=f"sd15_seconds_a_pass_{name}", value=value) for name, value in seconds.items()),
        Figure(name="sd15_share_of_matrix_rate", value=operations / min(seconds.values()) / matrix_rate),
        Figure(name="sd15_training_seconds", value=training_s),
        Figure(name="sd15_training_share_of_matrix_rate", value=3 * operations / training_s / matrix_rate),
        Figure(name="sd15_memory_gb", value=torch.cuda.max_memory_allocated() / 1e9),
    ]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _median_s(call: Callable[[], object]) -> float:
    """Seconds of one call by the device's own clock, the median of NUM_ROUNDS after two that do not count."""
    taken: list[float] = []
    for round_ in range(NUM_ROUNDS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if round_ >= 2:
            taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken)
