"""The guidance encoder: shapes that fit the UNet, nothing changed before training, something after one step."""

import pytest
import torch

from finephys.diffusion.unet import UNetConfig, build_unet, denoise, widen_conv_in
from finephys.guidance.encoder import GuidanceEncoder
from finephys.guidance.heatmaps import NUM_GUIDANCE_CHANNELS

WIDTHS = (16, 32, 32)
NUM_CLIPS, NUM_FRAMES = 2, 3


def maps(seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.rand(NUM_CLIPS * NUM_FRAMES, NUM_GUIDANCE_CHANNELS, side, side, generator=generator)
        for side in (16, 8, 4)
    ]


@pytest.fixture
def parts():
    torch.manual_seed(0)
    unet = build_unet(UNetConfig(sample_size=16, block_out_channels=WIDTHS)).eval()
    encoder = GuidanceEncoder(conv_in_channels=8, block_out_channels=WIDTHS, hidden_channels=(16, 16, 16)).eval()
    widen_conv_in(unet, encoder.num_conv_in_channels)
    return unet, encoder


def predict(unet, guidance):
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(NUM_CLIPS, NUM_FRAMES, 4, 16, 16, generator=generator)
    text = torch.randn(NUM_CLIPS, 5, 128, generator=generator)
    return denoise(unet, noisy, torch.tensor([300, 900]), text, guidance)


def test_untrained_guidance_changes_nothing_to_the_bit(parts):
    unet, encoder = parts
    with torch.no_grad():
        guided, other, unguided = (
            encoder(maps(0), torch.rand(NUM_CLIPS * NUM_FRAMES, 5, 16, 16)),
            encoder(maps(5)),
            encoder([0 * one for one in maps()]),
        )
        # The features themselves do differ, and are hidden by conv_in's zeros.
        assert not torch.equal(guided.conv_in_NCHW, other.conv_in_NCHW)
        assert all((residual == 0).all() for residual in (*guided.down_residuals, guided.mid_residual))
        assert torch.equal(predict(unet, guided), predict(unet, other))
        assert torch.equal(predict(unet, guided), predict(unet, unguided))


def test_every_guidance_weight_learns_within_two_steps(parts):
    unet, encoder = parts
    optimizer = torch.optim.SGD([*unet.parameters(), *encoder.parameters()], lr=0.1)
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    # The first step moves only the zeroed layers; through them the second reaches the rest.
    for _ in range(2):
        optimizer.zero_grad()
        predict(unet, encoder(maps())).square().mean().backward()
        optimizer.step()
    for (name, parameter), old in zip(encoder.named_parameters(), before, strict=True):
        assert not torch.equal(parameter, old), name
    with torch.no_grad():
        assert not torch.equal(predict(unet, encoder(maps(0))), predict(unet, encoder(maps(5))))


def test_residuals_have_the_shapes_of_the_unets_skips(parts):
    _, encoder = parts
    guidance = encoder(maps())
    shapes = [tuple(residual.shape[1:]) for residual in guidance.down_residuals]
    # conv_in, then each block's layer and its downsampler (the last has none).
    assert shapes == [(16, 16, 16), (16, 16, 16), (16, 8, 8), (32, 8, 8), (32, 4, 4), (32, 4, 4)]
    assert guidance.mid_residual.shape[1:] == (32, 4, 4)


def test_saved_and_loaded_is_the_same(parts, tmp_path):
    _, encoder = parts
    encoder.save_pretrained(tmp_path)
    loaded = GuidanceEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(encoder(maps()).conv_in_NCHW, loaded(maps()).conv_in_NCHW)


def test_wrong_maps_are_named(parts):
    _, encoder = parts
    with pytest.raises(ValueError, match="2 scales, wanted 3"):
        encoder(maps()[:2])
    with pytest.raises(ValueError, match="scale 0 have 7 channels"):
        encoder([one[:, :7] for one in maps()])
