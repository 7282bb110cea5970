"""The UNet: its size, that motion modules and guidance inputs start as nothing, and the noise schedule's end."""

from itertools import pairwise

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from finephys.diffusion.denoiser import clip_noise
from finephys.diffusion.unet import (
    UNetConfig,
    build_scheduler,
    build_unet,
    denoise,
    denoise_windows,
    motion_parameters,
    skip_motion,
    widen_conv_in,
    window_starts,
)
from finephys.guidance.encoder import GuidanceEncoder
from finephys.guidance.heatmaps import NUM_GUIDANCE_CHANNELS


def test_demo_sizes_fit_the_budget():
    unet = build_unet(UNetConfig())
    assert sum(parameter.numel() for parameter in unet.parameters()) < 4.7e6
    assert sum(parameter.numel() for parameter in GuidanceEncoder().parameters()) < 0.25e6


def test_motion_modules_start_as_the_identity(config):
    torch.manual_seed(0)
    unet = build_unet(config.unet).eval()
    encoder = GuidanceEncoder(conv_in_channels=8, block_out_channels=(16, 32, 32), hidden_channels=(16, 16, 16))
    widen_conv_in(unet, encoder.num_conv_in_channels)
    maps = [torch.rand(3, NUM_GUIDANCE_CHANNELS, side, side) for side in (16, 8, 4)]
    noisy, text = torch.randn(1, 3, 4, 16, 16), torch.randn(1, 5, 32)
    with torch.no_grad():
        clip = denoise(unet, noisy, torch.tensor(500), text, encoder(maps))
        frames = [
            denoise(unet, noisy[:, [frame]], torch.tensor(500), text, encoder([one[[frame]] for one in maps]))
            for frame in range(3)
        ]
        assert torch.allclose(clip, torch.cat(frames, 1), atol=1e-5)

        # Once they have learned something, skipping them still gives the single frames.
        for parameter in motion_parameters(unet):
            parameter.normal_(0, 0.1)
        moved = denoise(unet, noisy, torch.tensor(500), text, encoder(maps))
        with skip_motion(unet):
            skipped = denoise(unet, noisy, torch.tensor(500), text, encoder(maps))
        again = denoise(unet, noisy, torch.tensor(500), text, encoder(maps))
    assert not torch.allclose(moved, clip, atol=1e-3)
    assert torch.allclose(skipped, clip, atol=1e-5)
    assert torch.equal(moved, again)


def test_windows_cover_a_clip_and_overlap_by_half_or_more():
    assert window_starts(17, 16) == [0, 1]
    assert window_starts(32, 16) == [0, 8, 16]
    for num_frames in range(17, 90):
        starts = window_starts(num_frames, 16)
        assert starts[0] == 0
        assert starts[-1] == num_frames - 16
        assert all(0 < later - start <= 8 for start, later in pairwise(starts))


def test_long_clips_have_no_seams(config):
    """Windows end where nobody sees it: changes from frame to frame are no larger there than elsewhere."""
    torch.manual_seed(0)
    unet = build_unet(config.unet).eval()
    encoder = GuidanceEncoder(conv_in_channels=8, block_out_channels=(16, 32, 32), hidden_channels=(16, 16, 16))
    widen_conv_in(unet, encoder.num_conv_in_channels)
    num_frames, window = 24, 8
    # Guidance drifts slowly; noise is the same in all frames.
    drift = torch.linspace(0, 1, num_frames)[:, None, None, None]
    maps = [
        (1 - drift) * torch.rand(1, NUM_GUIDANCE_CHANNELS, side, side)
        + drift * torch.rand(1, NUM_GUIDANCE_CHANNELS, side, side)
        for side in (16, 8, 4)
    ]
    noisy, text = torch.randn(1, 1, 4, 16, 16).expand(2, num_frames, -1, -1, -1), torch.randn(2, 5, 32)
    guidance = encoder([torch.cat([one, one]) for one in maps])
    time = torch.tensor(500)
    with torch.no_grad():
        frames_alone = denoise(unet, noisy, time, text, guidance)
        blended = denoise_windows(unet, noisy, time, text, guidance, window)
        # Without motion windows do not matter at all.
        torch.testing.assert_close(blended, frames_alone, atol=1e-5, rtol=1e-5)
        for parameter in motion_parameters(unet):
            parameter.normal_(0, 0.1)
        blended = denoise_windows(unet, noisy, time, text, guidance, window)
        cut = torch.cat(
            [
                denoise_windows(
                    unet,
                    noisy[:, start : start + window],
                    time,
                    text,
                    encoder([torch.cat([one[start : start + window]] * 2) for one in maps]),
                    window,
                )
                for start in range(0, num_frames, window)
            ],
            1,
        )
    step = blended.diff(dim=1).square().mean((0, 2, 3, 4)).sqrt()
    hard = cut.diff(dim=1).square().mean((0, 2, 3, 4)).sqrt()
    seams = [start - 1 for start in range(window, num_frames, window)]
    assert max(hard[seams]) > 3 * hard.median()
    # The clip's own ends are ends.
    assert step[4:-4].max() < 1.5 * step.median()
    # Both clips of the batch are alike: the windows mixed up no guidance.
    torch.testing.assert_close(
        denoise_windows(unet, noisy, time, text[[0, 0]], guidance, window)[0],
        denoise_windows(unet, noisy, time, text[[0, 0]], guidance, window)[1],
    )


def test_widened_input_changes_nothing_and_keeps_the_config():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    noisy, text, features = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8), torch.randn(2, 6, 8, 8)
    with torch.no_grad():
        before = unet(noisy, 10, text).sample
        widen_conv_in(unet, 6)
        after = unet(torch.cat([noisy, features], 1), 10, text).sample
        other = unet(torch.cat([noisy, -features], 1), 10, text).sample
    assert unet.config.in_channels == 10
    assert (unet.conv_in.weight[:, 4:] == 0).all()
    # To the bit among features; the narrow layer may add up in another order.
    assert torch.equal(after, other)
    assert torch.allclose(before, after, atol=1e-5)
    assert isinstance(unet.conv_in, nn.Conv2d)


def test_schedule_ends_in_pure_noise():
    scheduler = build_scheduler()
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    scheduler.set_timesteps(20)
    assert int(scheduler.timesteps[0]) == 999, "sampling starts where there is no signal"


def test_clip_noise_is_unit_normal_and_shares_what_it_should():
    generator = torch.Generator().manual_seed(0)
    noise = clip_noise((64, 4, 4, 8, 8), 0.75, generator)
    assert abs(float(noise.std()) - 1) < 0.02
    correlation = float((noise[:, 0] * noise[:, 1]).mean())
    assert abs(correlation - 0.75) < 0.03
    same = clip_noise((2, 4, 4, 8, 8), 1.0, generator)
    assert torch.equal(same[:, 0], same[:, 3])
