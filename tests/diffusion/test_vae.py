"""The autoencoder: size, normalisation, crops, export, and that training improves the picture."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from finephys.diffusion.vae import (
    CROP_PX,
    CROPS_PER_CLIP,
    VAEConfig,
    VAETrainingConfig,
    build,
    build_vae,
    collate,
    decode_latents,
    downscale_factor,
    encode_latents,
)


def clip(seed: int = 0, num_frames: int = 3, side: int = 96) -> dict:
    """Coloured stripes with a bright square where the body is."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(40, 200, side)[None, None, :, None]
    frames = np.broadcast_to(ramp * rng.uniform(0.3, 1, 3), (num_frames, side, side, 3)).astype(np.uint8).copy()
    frames[:, 20:50, 30:45] = rng.integers(0, 255, 3)
    joints = np.broadcast_to(np.float32([37, 35]), (num_frames, 17, 2)) + rng.normal(0, 4, (num_frames, 17, 2))
    return {"clip_id": f"clip-{seed}", "frames": frames, "joints_px": joints.astype(np.float32)}


def test_demo_vae_is_small_and_shrinks_by_four():
    vae = build_vae(VAEConfig())
    assert sum(parameter.numel() for parameter in vae.parameters()) < 0.51e6
    assert downscale_factor(vae) == 4
    frames = clip()["frames"]
    latents = encode_latents(vae, frames)
    assert latents.shape == (3, 4, 24, 24)
    assert decode_latents(vae, latents).shape == frames.shape


def test_factor_of_a_stable_diffusion_vae_is_eight():
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    frames = clip(side=64)["frames"]
    latents = encode_latents(vae, frames)
    assert downscale_factor(vae) == 8
    assert latents.shape == (3, 4, 8, 8)
    # Its latents are scaled by the one factor that diffusers' own pipelines use.
    images = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(images).latent_dist.mode()
    assert torch.allclose(latents, 0.5 * raw, atol=1e-5)


def test_collate_crops_around_the_body_and_moves_the_joints_along():
    rng = np.random.default_rng(0)
    rows = [clip(seed) for seed in range(20)]
    batch = collate(rows, rng)
    images, joints = batch["images_N3HW"], batch["joints_px_NJ2"]
    assert images.shape == (20 * CROPS_PER_CLIP, 3, CROP_PX, CROP_PX)
    assert images.abs().max() <= 1
    inside = ((joints > 0) & (joints < CROP_PX)).all(-1).float().mean()
    assert inside > 0.8
    # The crop shows what the joints say: the square's colour lies under its centre.
    for index in range(0, len(images), CROPS_PER_CLIP):
        row = rows[index // CROPS_PER_CLIP]
        # Which frame it was cut from is where all joints moved by the same amount.
        shift = joints[index] - torch.from_numpy(row["joints_px"])
        frame = int(shift.std(1).sum(-1).argmin())
        column, line = (shift[frame].mean(0).round().numpy() + np.array([37, 35])).astype(int)
        if 0 <= column < CROP_PX and 0 <= line < CROP_PX:
            seen = (images[index, :, line, column] + 1) * 127.5
            assert torch.allclose(seen, torch.from_numpy(row["frames"][0, 35, 37]).float(), atol=0.01)


def test_collate_is_reproducible_and_works_without_joints():
    rows = [{name: value for name, value in clip().items() if name != "joints_px"}]
    first, second = (collate(rows, np.random.default_rng(3))["images_N3HW"] for _ in range(2))
    assert torch.equal(first, second)


def test_collate_names_a_clip_that_is_too_small():
    with pytest.raises(ValueError, match="clip-7: frames are 32x32"):
        collate([clip(7, side=32) | {"frames": np.zeros((2, 32, 32, 3), np.uint8)}], np.random.default_rng(0))


def test_training_improves_the_picture_and_export_normalises_latents(tmp_path):
    torch.manual_seed(0)
    small = VAETrainingConfig(vae=VAEConfig(block_out_channels=(16, 32)))
    module = build(small, None)
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3)
    rng = np.random.default_rng(0)
    rows = [clip(seed) for seed in range(4)]
    quality = []
    for _ in range(25):
        losses = module(collate(rows, rng))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        quality.append(float(losses["psnr_db"]))
    assert np.mean(quality[-3:]) > np.mean(quality[:3]) + 3

    module.eval()
    module.export(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    size_bytes = (tmp_path / "vae" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert size_bytes < 2.5 * sum(parameter.numel() for parameter in vae.parameters()), "wanted half precision"
    latents = torch.cat([encode_latents(vae, row["frames"]) for row in rows])
    # Measured while the weights still move: near, not at, unit deviation.
    assert 0.3 < float(latents.std()) < 3

    # A posterior's deviation is the training's constant, whatever the optimiser did.
    with torch.no_grad():
        images = torch.zeros(1, 12, 16, 16)
        assert torch.allclose(vae.encode(images).latent_dist.std, torch.tensor(0.05), rtol=1e-2)

    again = build(small, tmp_path)
    assert torch.allclose(again.latent_mean, torch.tensor(vae.config.latents_mean))


def test_training_the_decoder_alone_keeps_latents_valid(tmp_path):
    torch.manual_seed(0)
    vae = build_vae(VAEConfig())
    vae.register_to_config(latents_mean=(0.1, 0.2, 0.3, 0.4), latents_std=(0.5, 0.6, 0.7, 0.8))
    vae.save_pretrained(tmp_path / "vae")
    module = build(VAETrainingConfig(train_encoder=False), tmp_path)
    row, rng = clip(), np.random.default_rng(0)
    before = encode_latents(module.vae, row["frames"]), decode_latents(module.vae, torch.ones(1, 4, 8, 8))
    optimizer = torch.optim.SGD([one for one in module.parameters() if one.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module(collate([row], rng))["loss"].backward()
        optimizer.step()
    module.export(tmp_path / "tuned")
    tuned = AutoencoderKL.from_pretrained(tmp_path / "tuned", subfolder="vae")
    # To half precision, in which it was written.
    assert torch.allclose(encode_latents(tuned, row["frames"]), before[0], atol=2e-2)
    assert np.allclose(tuned.config.latents_std, (0.5, 0.6, 0.7, 0.8), atol=1e-4)
    assert not np.array_equal(decode_latents(module.vae, torch.ones(1, 4, 8, 8)), before[1])


def test_bad_frames_and_latents_are_named():
    vae = build_vae(VAEConfig())
    with pytest.raises(ValueError, match="30x32, wanted sides that are multiples of 4"):
        encode_latents(vae, np.zeros((1, 30, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        encode_latents(vae, np.zeros((1, 32, 32, 3)))
    with pytest.raises(ValueError, match="no frame"):
        encode_latents(vae, np.zeros((0, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"latents have shape \(1, 3, 8, 8\)"):
        decode_latents(vae, torch.zeros(1, 3, 8, 8))
