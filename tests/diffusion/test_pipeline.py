"""The pipeline: round trips, what guidance scales mean, and errors that name the argument."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from scipy.spatial.transform import Rotation

from finephys.diffusion.denoiser import build_denoiser, save_half
from finephys.diffusion.motion import motion_of_pose
from finephys.diffusion.pipeline import FinePhysPipeline, _passes, write_model_index
from finephys.diffusion.text import TextConfig, build_tokenizer
from finephys.diffusion.vae import VAEConfig, build_vae
from finephys.physics.phys_net import PhysNet, PhysNetConfig
from finephys.pose.camera import project
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Lifter, LifterConfig, Pose3D
from finephys.pose.rtmpose import RTMPose, RTMPoseConfig
from tests.diffusion.conftest import IMAGE_SIDE, INTRINSICS, feature_row, standing

NUM_FRAMES = 4


@pytest.fixture(scope="module")
def parts(config):
    torch.manual_seed(0)
    denoiser = build_denoiser(config, None)
    # So that pose and text matter.
    with torch.no_grad():
        denoiser.unet.conv_in.weight[:, 4:].normal_(0, 0.3)
    return {
        "vae": build_vae(VAEConfig(block_out_channels=(8, 16), sample_size=IMAGE_SIDE)),
        "text_encoder": denoiser.text_encoder,
        "tokenizer": denoiser.tokenizer,
        "unet": denoiser.unet,
        "scheduler": denoiser.scheduler,
        "guidance_encoder": denoiser.guidance_encoder,
        "phys_net": PhysNet(**asdict(PhysNetConfig(width=16, num_layers=1, num_heads=2))),
        "lifter": Lifter(**asdict(LifterConfig())),
        "pose_estimator": RTMPose(**asdict(RTMPoseConfig())),
    }


@pytest.fixture
def pipeline(parts):
    """One of the test's own: it may exchange parts, hook the UNet and the encoder, and set attributes of the others."""
    hooked = {name: copy.deepcopy(parts[name]) for name in ("unet", "guidance_encoder")}
    patched = {name: copy.copy(parts[name]) for name in ("pose_estimator", "lifter")}
    pipeline = FinePhysPipeline(**parts | hooked | patched)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, prompt="A gymnast jumps.", **changes):
    arguments = {
        "joints_cam_m": standing(12),
        "intrinsics": INTRINSICS,
        "num_frames": NUM_FRAMES,
        "num_inference_steps": 2,
        "generator": torch.Generator().manual_seed(0),
    }
    return pipeline(prompt, **(arguments | changes))


def test_output_and_its_hops(pipeline):
    output = generate(pipeline, ["A gymnast jumps.", "A gymnast rolls."], fps=30.0)
    assert output.frames.shape == (2, NUM_FRAMES, IMAGE_SIDE, IMAGE_SIDE, 3)
    assert output.frames.dtype == np.uint8
    assert output.frame_indices.tolist() == [0, 4, 7, 11]
    assert output.fps == pytest.approx(30 * 3 / 11)
    assert output.heatmaps.shape == (NUM_FRAMES, 49, 16, 16)
    assert np.array_equal(output.motion.guiding_TJ3, standing(12))
    # Drawn where the camera sees it.
    projected = standing(12)[4] @ INTRINSICS.T
    assert np.allclose(output.joints_px[1], projected[:, :2] / projected[:, 2:], atol=1e-3)


def test_a_clip_does_not_depend_on_the_batch_that_it_is_in(pipeline):
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = generate(pipeline, ["A gymnast jumps.", "A gymnast rolls."], generator=generators, output_type="latent")
    alone = generate(pipeline, "A gymnast rolls.", generator=[torch.Generator().manual_seed(2)], output_type="latent")
    assert torch.allclose(both.frames[1], alone.frames[0], atol=1e-4)


def test_saved_and_loaded_generates_the_same(pipeline, tmp_path):
    before = generate(pipeline).frames
    pipeline.save_pretrained(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = FinePhysPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert np.array_equal(generate(loaded).frames, before)


def test_half_precision_parts_assemble_and_load_in_float32(pipeline, tmp_path):
    models = ("vae", "text_encoder", "unet", "guidance_encoder", "phys_net", "lifter", "pose_estimator")
    with pytest.raises(FileNotFoundError, match="has no vae"):
        write_model_index(tmp_path)
    for name in models:
        save_half(getattr(pipeline, name), tmp_path / name)
    pipeline.tokenizer.save_pretrained(tmp_path / "tokenizer")
    pipeline.scheduler.save_pretrained(tmp_path / "scheduler")
    write_model_index(tmp_path, shared_noise=0.5)
    loaded = FinePhysPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    for name in models:
        assert {parameter.dtype for parameter in getattr(loaded, name).parameters()} == {torch.float32}, name
    assert loaded.config.shared_noise == 0.5
    assert generate(loaded).frames.shape == (1, NUM_FRAMES, IMAGE_SIDE, IMAGE_SIDE, 3)


def test_a_video_drives_through_pose_lifting_and_physics(pipeline, monkeypatch):
    """The real Phys-Net and fusion; detector and lifter are untrained here, so their answers are put in."""
    row = feature_row(12)
    pose3d = Pose3D(joints_cam_m=row["joints_dd"], gravity_cam=row["gravity"], static_probability=1.0)
    monkeypatch.setattr(pipeline.pose_estimator, "estimate", lambda _: Pose2D(row["joints_px"], row["confidence"]))
    monkeypatch.setattr(pipeline.lifter, "lift", lambda *_: pose3d)
    video = np.zeros((12, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    output = generate(pipeline, joints_cam_m=None, video_THWC=video, fps=30.0)
    motion = output.motion
    assert motion.joints_pp.shape == motion.guiding_TJ3.shape == (12, 17, 3)
    assert motion.gate.shape == (12, 17)
    assert not np.array_equal(motion.guiding_TJ3, motion.joints_dd)
    # Physics smooths a shivering stander and keeps him where he was.
    assert np.abs(motion.guiding_TJ3 - motion.joints_dd).max() < 0.2
    assert output.frames.shape == (1, NUM_FRAMES, IMAGE_SIDE, IMAGE_SIDE, 3)


def test_a_moving_camera_is_taken_out_and_put_back(pipeline, monkeypatch):
    """Lifter and Phys-Net see one still camera; what guides is drawn where each frame's camera sees it."""
    row = feature_row(12)
    turn = Rotation.from_rotvec(np.linspace(-0.1, 0.1, 12)[:, None] * [0, 1, 0]).as_matrix()
    turn = (turn @ turn[6].T).astype(np.float32)
    zoom = np.linspace(0.9, 1.1, 12).astype(np.float32)
    camera = CameraMotion(turn, zoom / zoom[6], np.zeros(12, np.float32), True, False)
    each = torch.from_numpy(camera.intrinsics(row["intrinsics"]))
    seen_px = project(torch.from_numpy(camera.to_frames(row["joints_dd"])), each).numpy()
    lifted = []

    def lift(pose, *_):
        lifted.append(pose.joints_px)
        return Pose3D(joints_cam_m=row["joints_dd"], gravity_cam=row["gravity"], static_probability=0.0)

    monkeypatch.setattr(pipeline.lifter, "lift", lift)
    pose = Pose2D(seen_px, row["confidence"])
    motion = motion_of_pose(pipeline.lifter, pipeline.phys_net, pose, (64, 64), 30.0, row["intrinsics"], camera)
    np.testing.assert_allclose(lifted[0], row["joints_px"], atol=0.01)
    np.testing.assert_allclose(motion.seen_px(motion.joints_dd), seen_px, atol=0.01)
    # Drawn without the camera's motion she would be off by many pixels.
    still_px = project(torch.from_numpy(motion.guiding_TJ3), torch.from_numpy(row["intrinsics"])).numpy()
    assert np.abs(motion.seen_px() - seen_px).mean() < 2 < np.abs(still_px - seen_px).mean()


def test_guidance_runs_once_per_clip_and_passes_are_as_few_as_can_be(pipeline):
    calls = {"encoder": 0, "unet": []}
    pipeline.guidance_encoder.register_forward_hook(lambda *_: calls.__setitem__("encoder", calls["encoder"] + 1))
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: calls["unet"].append(len(inputs[0])))
    for scales, num_encoder, num_passes in (
        ((1, 1), 1, 1),
        ((3, 1), 1, 2),
        ((3, 3), 2, 2),
        ((3, 2), 2, 3),
        ((3, 0), 2, 2),
    ):
        calls["encoder"], calls["unet"] = 0, []
        generate(pipeline, num_inference_steps=3, guidance_scale=scales[0], pose_guidance_scale=scales[1])
        assert calls["encoder"] == num_encoder
        assert calls["unet"] == [num_passes] * 3, scales


def test_without_pose_guidance_the_motion_changes_nothing(pipeline):
    one, other = (
        generate(pipeline, joints_cam_m=standing(12, seed), pose_guidance_scale=0, output_type="latent").frames
        for seed in (0, 1)
    )
    assert torch.equal(one, other)
    assert not torch.equal(one, generate(pipeline, output_type="latent").frames)


def test_joints_found_elsewhere_guide_as_the_video_would(pipeline, monkeypatch):
    found = feature_row(12)
    pose = Pose2D(found["joints_px"], found["confidence"])
    # The video shows no background; without one it is the lifter who says that the camera moves.
    pose3d = Pose3D(joints_cam_m=found["joints_dd"], gravity_cam=found["gravity"], static_probability=0.0)
    monkeypatch.setattr(pipeline.pose_estimator, "estimate", lambda _: pose)
    monkeypatch.setattr(pipeline.lifter, "lift", lambda *_: pose3d)
    given = {"joints_cam_m": None, "fps": 30.0, "output_type": "latent", "height": IMAGE_SIDE, "width": IMAGE_SIDE}
    from_video = generate(pipeline, video_THWC=VIDEO, **given)
    from_pose = generate(pipeline, pose2d=pose, **given)
    np.testing.assert_array_equal(from_pose.motion.guiding_TJ3, from_video.motion.guiding_TJ3)
    assert torch.equal(from_pose.frames, from_video.frames)


def test_a_reference_reaches_the_picture_and_moves_no_unreferenced_one(pipeline):
    picture = np.random.default_rng(0).integers(0, 256, (IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    joints_px = feature_row(1)["joints_px"][0]
    without, again = (generate(pipeline, output_type="latent").frames for _ in range(2))
    assert torch.equal(without, again)
    given = generate(pipeline, output_type="latent", reference_image=picture, reference_joints_px=joints_px).frames
    assert not torch.allclose(given, without, atol=1e-3)
    # Detected where not given.
    pipeline.pose_estimator.estimate = lambda frames: Pose2D(joints_px[None], np.ones((len(frames), 17), np.float32))
    detected = generate(pipeline, output_type="latent", reference_image=picture).frames
    assert torch.equal(detected, given)


def test_shares_of_the_passes_are_the_guidance_formula():
    v00, v0p, vtp = 0.3, -1.1, 2.7
    for text_scale, pose_scale in ((1, 1), (4, 1), (1, 2), (2, 2), (3, 1.5), (0, 1), (0, 0)):
        wanted = v00 + pose_scale * (v0p - v00) + text_scale * (vtp - v0p)
        values = {(True, True): vtp, (False, True): v0p, (False, False): v00}
        passes = _passes(text_scale, pose_scale)
        assert sum(one.share * values[one.has_text, one.has_pose] for one in passes) == pytest.approx(wanted)
        assert sum(one.share for one in passes) == pytest.approx(1)


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_other_schedulers_swap_in(pipeline, scheduler):
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, rescale_betas_zero_snr=False)
    latents = generate(pipeline, output_type="latent", num_inference_steps=4).frames
    assert torch.isfinite(latents).all()


def test_callback_sees_and_may_replace_the_latents(pipeline):
    seen = []

    def stop_at_zero(_, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    output = generate(pipeline, callback_on_step_end=stop_at_zero, output_type="latent")
    assert (output.frames == 0).all()
    assert [step for step, _ in seen] == [0, 1]


def test_pil_output(pipeline):
    frames = generate(pipeline, output_type="pil").frames
    assert [len(clip) for clip in frames] == [NUM_FRAMES]
    assert frames[0][0].size == (IMAGE_SIDE, IMAGE_SIDE)


VIDEO = np.zeros((12, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"joints_cam_m": np.zeros((12, 16, 3))}, r"joints_cam_m has shape \(12, 16, 3\), wanted \(T, 17, 3\)"),
        ({"joints_cam_m": np.full((12, 17, 3), np.nan)}, "joints_cam_m is not finite in frame 0"),
        ({"joints_cam_m": np.zeros((0, 17, 3))}, "joints_cam_m has 0 frames"),
        ({"joints_cam_m": standing(3)}, "joints_cam_m has 3 frames, wanted at least num_frames = 4"),
        ({"joints_cam_m": -standing(12)}, "joints_cam_m is behind the camera"),
        ({"joints_cam_m": standing(12) + np.float32([50, 0, 0])}, "outside the 64x64 image"),
        ({"joints_cam_m": None}, "none of video_THWC, pose2d, joints_cam_m given"),
        ({"video_THWC": VIDEO}, "video_THWC and joints_cam_m of .* given, wanted exactly one"),
        ({"joints_cam_m": None, "pose2d": Pose2D(np.zeros((12, 16, 2)), np.ones((12, 16)))}, r"wanted \(T, 17, 2\)"),
        ({"joints_cam_m": None, "pose2d": Pose2D(np.zeros((12, 17, 2)), np.ones((12, 17)))}, "fps is None"),
        ({"joints_cam_m": None, "video_THWC": VIDEO}, "fps is None"),
        ({"joints_cam_m": None, "video_THWC": VIDEO, "fps": -1.0}, r"fps is -1\.0"),
        ({"joints_cam_m": None, "video_THWC": VIDEO[:0], "fps": 30.0}, "video_THWC has 0 frames"),
        ({"joints_cam_m": None, "video_THWC": VIDEO.astype(float), "fps": 30.0}, "video_THWC is float64"),
        ({"reference_image": VIDEO[0, :8]}, r"reference_image is uint8 \(8, 64, 3\), wanted uint8 \(64, 64, 3\)"),
        ({"reference_image": VIDEO[0], "reference_joints_px": np.zeros((16, 2))}, "reference_joints_px has shape"),
        ({"height": 60}, "height is 60, wanted a multiple of 16"),
        ({"intrinsics": np.eye(4)}, "intrinsics"),
        ({"num_frames": 0}, "num_frames is 0, wanted at least 1"),
        ({"num_frames": 33}, "joints_cam_m has 12 frames, wanted at least num_frames = 33"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"output_type": "gif"}, "output_type is 'gif'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"latents": torch.zeros(1, 2, 4, 16, 16)}, "latents have shape"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt holds 2 texts, prompt 1"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "'noise'"),
    ],
)
def test_bad_arguments_are_named(pipeline, changes, message):
    with pytest.raises(ValueError, match=message):
        generate(pipeline, **changes)


def test_parts_that_do_not_fit_are_refused(pipeline):
    parts = {name: part for name, part in pipeline.components.items() if name != "tokenizer"}
    words = [f"{number:b}".translate({48: "ab", 49: "xy"}) for number in range(500, 1500)]
    too_many = build_tokenizer(TextConfig(vocab_size=1500, max_length=24), words)
    with pytest.raises(ValueError, match="tokenizer has"):
        FinePhysPipeline(**parts, tokenizer=too_many)
    too_long = build_tokenizer(TextConfig(max_length=77), ["a"])
    with pytest.raises(ValueError, match=r"tokenizer\.model_max_length is 77"):
        FinePhysPipeline(**parts, tokenizer=too_long)
