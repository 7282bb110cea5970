"""The two training stages: what a batch holds, what learns, what stays still, and that export and build agree."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from finephys.diffusion.denoiser import DenoiserConfig
from finephys.diffusion.joint import (
    FramesTrainingConfig,
    JointTrainingConfig,
    build,
    build_clips,
    build_frames,
    collate,
    collate_clips,
    collate_frames,
    sampler,
)
from finephys.diffusion.unet import motion_parameters
from finephys.guidance.encoder import GuidanceEncoderConfig
from finephys.physics.phys_net import PhysNetConfig
from finephys.pose.camera import project
from finephys.pose.camera_motion import seen_by_frames, zoomed
from tests.diffusion.conftest import feature_row

PIPELINE = Path(__file__).parents[2] / "finephys" / "assets" / "pipeline"
PHYS_NET = PhysNetConfig(width=16, num_layers=1, num_heads=2, num_gauss_newton_steps=1)


@pytest.fixture
def rows():
    return [feature_row(seed=seed) for seed in range(2)]


def test_frames_batch_pairs_latents_with_their_joints(rows):
    for row in rows:
        # Each frame carries its own number.
        row["latents"] = np.ones_like(row["latents"]) * np.arange(40)[:, None, None, None]
        row["truth_joints_cam_m"] = row["truth_joints_cam_m"] * 0 + np.arange(1, 41)[:, None, None]
    batch = collate_frames(rows, np.random.default_rng(0))
    assert batch["latents_BFChw"].shape == (2, 1, 4, 16, 16)
    numbers = batch["latents_BFChw"][:, 0, 0, 0, 0]
    assert torch.equal(batch["joints_cam_m_BFJ3"][:, 0, 0, 0], numbers + 1)
    assert bytes(batch["prompt_BL"][0].numpy()).rstrip(b"\0").decode() == rows[0]["prompt"]


def test_clips_batch_spreads_frames_over_windows_of_any_length(rows):
    for row in rows:
        row["latents"] = np.ones_like(row["latents"]) * np.arange(40)[:, None, None, None]
        row["truth_joints_cam_m"] = row["truth_joints_cam_m"] * 0 + np.arange(1, 41)[:, None, None]
    lengths = set()
    for seed in range(40):
        batch = collate_clips(rows, np.random.default_rng(seed))
        numbers_BF = batch["latents_BFChw"][:, :, 0, 0, 0]
        assert torch.equal(batch["joints_cam_m_BFJ3"][:, :, 0, 0], numbers_BF + 1)
        for numbers_F in numbers_BF.tolist():
            # As the pipeline and evaluation choose the frames of a clip.
            spread = np.linspace(numbers_F[0], numbers_F[-1], 16).round()
            assert numbers_F == spread.tolist()
            lengths.add(numbers_F[-1] - numbers_F[0] + 1)
    assert min(lengths) < 20
    assert max(lengths) > 36


def test_joint_batch_holds_a_window_and_evenly_spaced_frames_of_it(rows):
    rows[0] = feature_row(70)
    for row in rows:
        num_frames = len(row["latents"])
        row["latents"] = np.ones_like(row["latents"]) * np.arange(num_frames)[:, None, None, None]
        row["joints_dd"] = row["joints_dd"] * 0 + np.arange(num_frames)[:, None, None].astype(np.float32)
    strides = set()
    for seed in range(20):
        batch = collate([rows[0]] if seed % 2 else rows, np.random.default_rng(seed))
        native, seen = batch["joints_dd_BTJ3"][:, :, 0, 0], batch["latents_BFChw"][:, :, 0, 0, 0]
        stride = native.shape[1] // 16
        assert native.shape[1] == 16 * stride
        assert torch.equal(seen, native[:, ::stride])
        assert (native.diff(dim=1) == 1).all()
        assert torch.allclose(batch["dt_s_B"], torch.tensor(1 / 30))
        strides.add((len(native), stride))
    # The clip of 40 frames has room for strides up to 2.
    assert strides == {(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)}


def test_the_reference_is_a_frame_of_the_clip_with_its_joints(rows):
    for collated in (collate, collate_clips, collate_frames):
        batch = collated(rows, np.random.default_rng(0))
        for clip, row in enumerate(rows):
            latents = torch.from_numpy(row["latents"]).float()
            frame = [torch.equal(one, batch["reference_BChw"][clip]) for one in latents].index(True)
            joints = row["truth_joints_cam_m"][frame] @ row["intrinsics"].T
            assert torch.allclose(
                batch["reference_px_BJ2"][clip], torch.from_numpy(joints[:, :2] / joints[:, 2:]), atol=1e-3
            )


def test_clips_without_truth_fall_back_on_what_was_detected(rows):
    row = rows[0] | {"has_truth": False, "truth_joints_cam_m": np.zeros((40, 17, 3), np.float32)}
    batch = collate_frames([row], np.random.default_rng(0))
    assert batch["joints_cam_m_BFJ3"][..., 2].min() > 1


def test_a_camera_that_moves_is_drawn_frame_by_frame(rows):
    """Joints in the middle frame's camera frame come out in the pixels of each frame, in both stages."""
    row = rows[0]
    turn = Rotation.from_rotvec(np.linspace(-0.1, 0.1, 40)[:, None] * [0, 1, 0]).as_matrix().astype(np.float32)
    zoom = np.linspace(0.9, 1.1, 40).astype(np.float32)
    intrinsics = np.repeat(row["intrinsics"][None], 40, 0)
    intrinsics[:, [0, 1], [0, 1]] *= zoom[:, None]
    seen = np.einsum("tab,tjb->tja", turn, row["truth_joints_cam_m"])
    homogeneous = np.einsum("tab,tjb->tja", intrinsics, seen)
    row |= {"truth_rotation": turn, "truth_zoom": zoom, "camera_rotation": turn, "camera_zoom": zoom}
    row["body_px"] = (homogeneous[..., :2] / homogeneous[..., 2:]).astype(np.float32)
    row["joints_dd"] = row["truth_joints_cam_m"]
    frames = collate_frames([row], np.random.default_rng(0))
    drawn = project(frames["joints_cam_m_BFJ3"], frames["intrinsics_BF33"])
    assert torch.allclose(drawn, frames["body_px_BFJ2"], atol=1e-3)
    clip = collate([row], np.random.default_rng(0))
    chosen = clip["joints_dd_BTJ3"][:, :: clip["joints_dd_BTJ3"].shape[1] // 16]
    drawn = project(
        seen_by_frames(chosen, clip["rotation_BF33"]), zoomed(clip["intrinsics_B33"][:, None], clip["zoom_BF"])
    )
    assert torch.allclose(drawn, clip["body_px_BFJ2"], atol=1e-3)


def test_short_clips_and_mixed_sizes_are_named(rows):
    short = {**feature_row(15), "clip_id": "too-short"}
    for collated in (collate, collate_clips):
        with pytest.raises(ValueError, match="too-short has 15 frames, wanted at least 16"):
            collated([short], np.random.default_rng(0))
    with pytest.raises(ValueError, match="one size"):
        collate_frames([rows[0], rows[1] | {"width": 96}], np.random.default_rng(0))


def test_frames_stage_learns_and_leaves_motion_alone(undropped, rows):
    torch.manual_seed(0)
    module = build_frames(FramesTrainingConfig(denoiser=undropped), None)
    frozen = [parameter.clone() for parameter in motion_parameters(module.denoiser.unet)]
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-3)
    batch = collate_frames(rows * 4, np.random.default_rng(0))
    # One pattern to learn by heart, where the rows hold noise.
    pattern = torch.sign(batch["latents_BFChw"][:1])
    batch["latents_BFChw"] = pattern.expand(len(rows) * 4, -1, -1, -1, -1)
    losses = []
    for step in range(30):
        torch.manual_seed(step)
        loss = module(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    assert all(parameter.grad is not None for parameter in trainable)
    after = motion_parameters(module.denoiser.unet)
    assert all(torch.equal(old, parameter) for old, parameter in zip(frozen, after, strict=True))


def test_clips_stage_trains_motion_too(undropped, rows):
    torch.manual_seed(0)
    module = build_clips(FramesTrainingConfig(denoiser=undropped), None)
    before = [parameter.clone() for parameter in motion_parameters(module.denoiser.unet)]
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    batch = collate_clips(rows, np.random.default_rng(0))
    for step in range(3):
        torch.manual_seed(step)
        module(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    after = motion_parameters(module.denoiser.unet)
    assert all(not torch.equal(old, parameter) for old, parameter in zip(before, after, strict=True))


def test_denoising_loss_reaches_phys_net(undropped, rows):
    torch.manual_seed(0)
    config = JointTrainingConfig(denoiser=undropped, phys_net=PHYS_NET, physics_weight=0.0)
    module = build(config, None)
    # Guidance starts at zero, and with it the gradient through it: let it have learned something.
    with torch.no_grad():
        module.denoiser.unet.conv_in.weight[:, 4:].normal_(0, 0.1)
    losses = module(collate(rows, np.random.default_rng(0)))
    assert torch.equal(losses["loss"], losses["denoise"])
    losses["loss"].backward()
    reached = {name: float(parameter.grad.abs().sum()) for name, parameter in module.phys_net.named_parameters()}
    assert reached["frame_heads.weight"] > 0
    assert all(np.isfinite(value) for value in reached.values())
    assert any(float(parameter.grad.abs().sum()) > 0 for parameter in motion_parameters(module.denoiser.unet))


def test_joint_loss_adds_physics_where_truth_is_known(undropped, rows):
    module = build(JointTrainingConfig(denoiser=undropped, phys_net=PHYS_NET, physics_weight=2.0), None)
    losses = module(collate(rows, np.random.default_rng(0)))
    assert float(losses["physics"]) > 0
    assert float(losses["loss"]) == pytest.approx(float(losses["denoise"] + 2 * losses["physics"]), rel=1e-5)
    unknown = [row | {"has_truth": False} for row in rows]
    assert float(module(collate(unknown, np.random.default_rng(0)))["physics"]) == 0


def test_dropped_pose_is_not_seen_and_dropped_text_is_not_read(config, rows):
    everything = replace(config, text_dropout=1.0, pose_dropout=1.0)
    module = build_frames(FramesTrainingConfig(denoiser=everything, joint_jitter_px=0.0), None)
    with torch.no_grad():
        module.denoiser.unet.conv_in.weight[:, 4:].normal_(0, 0.5)
        batch = collate_frames(rows, np.random.default_rng(0))
        other = {**batch, "joints_cam_m_BFJ3": batch["joints_cam_m_BFJ3"] + 0.3, "prompt_BL": 0 * batch["prompt_BL"]}
        losses = []
        for one in (batch, other):
            torch.manual_seed(0)
            losses.append(module(one)["loss"])
        assert torch.equal(losses[0], losses[1])

        # And undropped, both matter.
        module.denoiser.config = replace(config, text_dropout=0.0, pose_dropout=0.0)
        for changed in ("joints_cam_m_BFJ3", "prompt_BL"):
            torch.manual_seed(0)
            seen = module(batch)["loss"]
            torch.manual_seed(0)
            assert not torch.equal(seen, module({**batch, changed: other[changed]})["loss"]), changed


@pytest.mark.parametrize("weighting", ["uniform", "min_snr"])
def test_loss_of_a_perfect_guess_is_zero(undropped, rows, weighting, monkeypatch):
    """Zero latents at step t make v = signal * noise: hand it to the loss as the prediction."""
    module = build_frames(FramesTrainingConfig(denoiser=replace(undropped, snr_weighting=weighting)), None)
    seen = {}

    def perfect(unet, noisy, timestep, text, guidance):
        alpha = module.denoiser.scheduler.alphas_cumprod[timestep].reshape(-1, 1, 1, 1, 1)
        # noisy = spread * noise
        return noisy * alpha.sqrt() / (1 - alpha).sqrt()

    monkeypatch.setattr("finephys.diffusion.denoiser.denoise", perfect)
    batch = collate_frames(rows, np.random.default_rng(0))
    batch["latents_BFChw"] = torch.zeros_like(batch["latents_BFChw"])
    seen = module(batch)
    assert float(seen["denoise"]) == pytest.approx(0, abs=1e-9)


def test_export_then_build_is_the_same_model(undropped, rows, tmp_path):
    torch.manual_seed(0)
    config = JointTrainingConfig(denoiser=undropped, phys_net=PHYS_NET)
    module = build(config, None)
    # What half precision can hold, so that the round trip is exact.
    module.half().float()
    module.export(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "unet", "text_encoder", "tokenizer", "guidance_encoder", "scheduler", "phys_net",
    }  # fmt: skip
    assert not list(tmp_path.rglob("*.bin"))
    loaded = build(config, tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in loaded.parameters())
    batch = collate(rows, np.random.default_rng(0))
    results = []
    for one in (module, loaded):
        torch.manual_seed(1)
        results.append(one(batch)["loss"])
    assert torch.equal(results[0], results[1])
    # The frames stage starts from the same folder.
    frames = build_frames(FramesTrainingConfig(denoiser=undropped), tmp_path)
    assert torch.equal(frames.denoiser.unet.conv_in.weight, module.denoiser.unet.conv_in.weight)


def test_lora_changes_nothing_at_first_learns_and_ships_as_a_plain_unet(undropped, rows, tmp_path):
    build_all = lambda denoiser, init: build(JointTrainingConfig(denoiser=denoiser, phys_net=PHYS_NET), init)  # noqa: E731
    build_all(undropped, None).export(tmp_path / "start")
    whole = build_all(undropped, tmp_path / "start").float()
    lora = build_all(replace(undropped, lora_rank=4), tmp_path / "start").float()
    batch = collate(rows, np.random.default_rng(0))

    def losses(module):
        torch.manual_seed(0)
        return module(batch)

    assert losses(lora)["loss"].item() == pytest.approx(losses(whole)["loss"].item(), rel=1e-5)
    trained = {name for name, parameter in lora.named_parameters() if parameter.requires_grad}
    of_unet = {name for name in trained if name.startswith("denoiser.unet")}
    assert all(".lora_" in name or ".conv_in." in name for name in of_unet)
    assert any("motion_modules" in name for name in of_unet)
    assert not any(name.startswith("denoiser.text_encoder") for name in trained)
    assert any(name.startswith("phys_net") for name in trained)

    frozen = {name: value.clone() for name, value in lora.named_parameters() if name not in trained}
    optimizer = torch.optim.AdamW([parameter for parameter in lora.parameters() if parameter.requires_grad], lr=3e-3)
    before = losses(lora)["denoise"].item()
    for _ in range(6):
        optimizer.zero_grad()
        losses(lora)["loss"].backward()
        optimizer.step()
    after = losses(lora)["denoise"].item()
    assert after < before
    now = dict(lora.named_parameters())
    assert all(torch.equal(value, now[name]) for name, value in frozen.items())

    lora.export(tmp_path / "trained")
    plain = build_all(undropped, tmp_path / "trained").float()
    assert not any("lora" in name for name, _ in plain.named_parameters())
    # Half precision in between.
    assert losses(plain)["denoise"].item() == pytest.approx(after, rel=5e-3)


def test_gradient_checkpointing_changes_no_gradient(undropped, rows):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        config = replace(undropped, gradient_checkpointing=checkpointing)
        module = build(JointTrainingConfig(denoiser=config, phys_net=PHYS_NET), None).train()
        torch.manual_seed(0)
        module(collate(rows, np.random.default_rng(0)))["loss"].backward()
        found.append({name: parameter.grad for name, parameter in module.named_parameters()})
        assert module.denoiser.unet.is_gradient_checkpointing is checkpointing
    for name, gradient in found[0].items():
        if gradient is not None:
            torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_sampler_makes_a_video_of_each_clip(rows):
    module = build(JointTrainingConfig(), PIPELINE).float().eval()
    batch = collate(rows[:1], np.random.default_rng(0))
    height, width = batch["image_size_B2"][0].tolist()
    ((frames, fps),) = sampler(PIPELINE)(module, batch)
    assert frames.shape == (16, height, width, 3)
    assert frames.dtype == np.uint8
    stride = batch["joints_dd_BTJ3"].shape[1] // 16
    assert fps == pytest.approx(rows[0]["fps"] / stride)
    # The module trains on as it was.
    assert module.denoiser.unet.dtype == torch.float32


def test_configs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"unet\.latent_channels 4 and guidance\.latent_channels 8"):
        DenoiserConfig(guidance=GuidanceEncoderConfig(latent_channels=8))
    with pytest.raises(ValueError, match=r"text_dropout is 1\.5"):
        DenoiserConfig(text_dropout=1.5)
    assert asdict(FramesTrainingConfig())["denoiser"]["unet"]["latent_channels"] == 4
