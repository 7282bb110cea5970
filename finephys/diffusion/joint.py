"""The three stages that train the generator: single frames on true joints, clips on them, clips through Phys-Net.

Path:    clip features -> physics -> fuse -> project -> heatmaps -> guidance -> unet -> loss
Letters: B clips, T frames at the clip's own rate, F frames that the UNet sees, J = 17 joints, L bytes of a prompt
Units:   metres in the camera frame of the clip's middle frame unless said otherwise, pixels of the image, seconds

FinePhys (arXiv:2505.13437) trains Phys-Net, guidance and UNet jointly, and so does JointModule: heatmaps are
differentiable, so the denoising loss reaches Phys-Net. Before that the spatial layers learn from single frames, many
times cheaper than clips, then the motion modules with them from clips (AnimateDiff's order), both guided by ground
truth so that no error of pose blurs the picture, and without Phys-Net and its 15,000 small operations a step.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from finephys.diffusion.denoiser import DenoiserConfig, GuidedDenoiser, build_denoiser, save_half
from finephys.diffusion.unet import WINDOW_FRAMES, motion_parameters, skip_motion
from finephys.guidance.fuse import fuse
from finephys.guidance.heatmaps import relative_depth
from finephys.guidance.reference import Reference
from finephys.hops import hop
from finephys.physics.phys_net import PhysicsPose, PhysNet, PhysNetConfig
from finephys.physics.training import pose_losses
from finephys.pose.camera import project
from finephys.pose.camera_motion import seen_by_frames, zoomed

# Frames that the UNet sees, and how far apart they are at most: generation spreads them over the whole clip.
NUM_FRAMES = WINDOW_FRAMES
MAX_STRIDE = 4

# A prompt travels through a batch of tensors as its UTF-8 bytes, zero-padded; what is longer is cut.
PROMPT_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class FramesTrainingConfig:
    """First stage and second: single frames without motion modules, then clips; true joints, no Phys-Net."""

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    # Deviation of the noise on the true joints: the guidance of later stages is not exact either.
    joint_jitter_px: float = 1.0


@dataclass(frozen=True, kw_only=True)
class JointTrainingConfig:
    """Third stage: clips; Phys-Net, guidance, UNet and text encoder together."""

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    phys_net: PhysNetConfig = field(default_factory=PhysNetConfig)
    # Weight of Phys-Net's own losses, where ground truth is known, against the denoising loss.
    physics_weight: float = 1.0


# --- batches


def collate_frames(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Tensor]:
    """One random frame of each clip, with its joints: true ones where known, else S_dd.

    rows: clip features. Returns latents_BFChw (F = 1), prompt_BL (uint8), joints_cam_m_BFJ3 in that frame's own camera
    frame with its intrinsics_BF33, body_px_BFJ2, image_size_B2 (height, width), and another random frame as
    reference_BChw, reference_px_BJ2, is_static_B.
    """
    return _on_best_joints(rows, [rng.integers(len(row["latents"]), size=1) for row in rows], rng)


def collate_clips(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Tensor]:
    """F = 16 frames of each clip, spread as generation spreads them over a window of it of any length; else as
    collate_frames. Raises ValueError, naming the clip, on fewer than 16 frames."""
    _check_lengths(rows)
    frames = []
    for row in rows:
        num_window = int(rng.integers(NUM_FRAMES, len(row["latents"]) + 1))
        start = int(rng.integers(len(row["latents"]) - num_window + 1))
        frames.append(start + np.linspace(0, num_window - 1, NUM_FRAMES).round().astype(int))
    return _on_best_joints(rows, frames, rng)


def collate(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Tensor]:
    """One random window of each clip: F = 16 frames for the UNet, evenly spaced; T = 16 strides for Phys-Net.

    The stride is random, 1 to 4, the same for all clips of a batch, and no more than the shortest of them has room for.
    rows: clip features. Returns what collate_frames does without joints_cam_m and intrinsics (F = 16), and
    joints_dd_BTJ3, joints_px_BTJ2, confidence_BTJ, gravity_B3, intrinsics_B33, dt_s_B, is_camera_known_B,
    truth_joints_cam_m_BTJ3, in_flight_BT, has_truth_B; rotation_BF33 and zoom_BF, the estimated camera of the F frames.
    Raises ValueError, naming the clip, on fewer than 16 frames.
    """
    _check_sizes(rows)
    _check_lengths(rows)
    longest_stride = min(MAX_STRIDE, min(len(row["latents"]) for row in rows) // NUM_FRAMES)
    stride = int(rng.integers(1, longest_stride + 1))
    num_window = NUM_FRAMES * stride
    starts = [int(rng.integers(len(row["latents"]) - num_window + 1)) for row in rows]
    windows = [slice(start, start + num_window) for start in starts]
    frames = [np.arange(start, start + num_window, stride) for start in starts]

    def windowed(name: str) -> Tensor:
        return _stack([row[name][window] for row, window in zip(rows, windows, strict=True)])

    return {
        **_clips(rows, frames, rng),
        "joints_dd_BTJ3": windowed("joints_dd"),
        "joints_px_BTJ2": windowed("joints_px"),
        "confidence_BTJ": windowed("confidence"),
        "gravity_B3": _stack([row["gravity"] for row in rows]),
        "intrinsics_B33": _stack([row["intrinsics"] for row in rows]),
        "rotation_BF33": _stack([row["camera_rotation"][index] for row, index in zip(rows, frames, strict=True)]),
        "zoom_BF": _stack([row["camera_zoom"][index] for row, index in zip(rows, frames, strict=True)]),
        "is_camera_known_B": torch.tensor([bool(row["is_camera_known"]) for row in rows]),
        "dt_s_B": torch.tensor([1 / float(row["fps"]) for row in rows]),
        "truth_joints_cam_m_BTJ3": windowed("truth_joints_cam_m"),
        "in_flight_BT": torch.from_numpy(
            np.stack([np.asarray(row["in_flight"], bool)[window] for row, window in zip(rows, windows, strict=True)])
        ),
        "has_truth_B": torch.tensor([bool(row["has_truth"]) for row in rows]),
    }


def _clips(
    rows: Sequence[Mapping[str, Any]], frames: Sequence[np.ndarray], rng: np.random.Generator
) -> dict[str, Tensor]:
    """What both stages need of each clip at its chosen frames, and any one frame of it as its reference."""
    chosen = list(zip(rows, frames, strict=True))
    references = [(row, rng.integers(len(row["latents"]), size=1)) for row in rows]
    return {
        "latents_BFChw": _stack([row["latents"][index] for row, index in chosen]),
        "prompt_BL": torch.from_numpy(np.stack([_prompt_bytes(row["prompt"]) for row in rows])),
        "body_px_BFJ2": _stack([row["body_px"][index] for row, index in chosen]),
        "image_size_B2": torch.tensor([[int(row["height"]), int(row["width"])] for row in rows]),
        "reference_BChw": _stack([row["latents"][index[0]] for row, index in references]),
        "reference_px_BJ2": _stack([row["body_px"][index[0]] for row, index in references]),
        "is_static_B": torch.tensor([bool(row["is_static"]) for row in rows]),
    }


def _on_best_joints(
    rows: Sequence[Mapping[str, Any]], frames: Sequence[np.ndarray], rng: np.random.Generator
) -> dict[str, Tensor]:
    _check_sizes(rows)
    joints, intrinsics = zip(*(_best_joints(row, index) for row, index in zip(rows, frames, strict=True)))
    batch = _clips(rows, frames, rng)
    return {**batch, "joints_cam_m_BFJ3": _stack(joints), "intrinsics_BF33": _stack(intrinsics)}


def _check_lengths(rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        if len(row["latents"]) < NUM_FRAMES:
            raise ValueError(f"clip {row['clip_id']} has {len(row['latents'])} frames, wanted at least {NUM_FRAMES}")


def _check_sizes(rows: Sequence[Mapping[str, Any]]) -> None:
    sizes = {(int(row["height"]), int(row["width"])) for row in rows}
    if len(sizes) != 1:
        raise ValueError(f"clips of a batch have sizes (height, width) {sorted(sizes)}, wanted one size")


def _best_joints(row: Mapping[str, Any], index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True joints where known, else S_dd, in the camera frame of each frame, and its intrinsics."""
    names = ("truth_joints_cam_m", "truth_rotation", "truth_zoom")
    if not row["has_truth"]:
        names = ("joints_dd", "camera_rotation", "camera_zoom")
    joints, rotation, zoom = (torch.from_numpy(np.asarray(row[name], np.float32)[index]) for name in names)
    intrinsics = zoomed(torch.from_numpy(np.asarray(row["intrinsics"], np.float32)), zoom)
    return np.asarray(seen_by_frames(joints, rotation)), np.asarray(intrinsics)


def _stack(arrays: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(array, np.float32) for array in arrays]))


def _prompt_bytes(prompt: str) -> np.ndarray:
    encoded: np.ndarray = np.frombuffer(prompt.encode()[:PROMPT_BYTES], np.uint8)
    padded: np.ndarray = np.pad(encoded, (0, PROMPT_BYTES - len(encoded)))
    return padded


def _prompts(prompt_BL: Tensor) -> list[str]:
    # A cut inside a character leaves half of one: dropped.
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in prompt_BL.cpu().numpy()]


# --- modules


def build_frames(config: FramesTrainingConfig, init: Path | None) -> "FramesTraining":
    """The first stage, fresh or from the parts in the pipeline folder `init`."""
    return FramesTraining(config, build_denoiser(config.denoiser, init), moves=False)


def build_clips(config: FramesTrainingConfig, init: Path | None) -> "FramesTraining":
    """The second stage, likewise."""
    return FramesTraining(config, build_denoiser(config.denoiser, init), moves=True)


def build(config: JointTrainingConfig, init: Path | None) -> "JointModule":
    """The third stage. From `init` come the denoiser and Phys-Net, each where it lies there, else fresh."""
    if init is not None and (init / "phys_net").is_dir():
        phys_net = PhysNet.from_pretrained(init / "phys_net")
    else:
        phys_net = PhysNet(**asdict(config.phys_net))
    return JointModule(config, phys_net, build_denoiser(config.denoiser, init))


class FramesTraining(nn.Module):
    """The denoiser on true joints: of single frames, where motion modules neither run nor learn, or of clips."""

    def __init__(self, config: FramesTrainingConfig, denoiser: GuidedDenoiser, *, moves: bool) -> None:
        super().__init__()
        self.config = config
        self.denoiser = denoiser
        self.moves = moves
        for parameter in motion_parameters(denoiser.unet):
            parameter.requires_grad_(moves)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of one batch of collate_frames, or of collate_clips: loss = denoise (body-weighted), and mse."""
        joints = batch["joints_cam_m_BFJ3"]
        joints_px = project(joints, batch["intrinsics_BF33"])
        joints_px = joints_px + self.config.joint_jitter_px * torch.randn_like(joints_px)
        with nullcontext() if self.moves else skip_motion(self.denoiser.unet):
            losses = self.denoiser(
                batch["latents_BFChw"],
                _prompts(batch["prompt_BL"]),
                joints_px,
                relative_depth(joints),
                batch["body_px_BFJ2"],
                _image_size(batch),
                _reference(batch),
            )
        return {"loss": losses["denoise"], **losses}

    def export(self, folder: Path) -> None:
        """Write unet, text_encoder, tokenizer, guidance_encoder and scheduler below `folder`, in half precision."""
        self.denoiser.export(Path(folder))


class JointModule(nn.Module):
    """Phys-Net and the denoiser, trained as one: S_dd in, denoising and physics losses out."""

    def __init__(self, config: JointTrainingConfig, phys_net: PhysNet, denoiser: GuidedDenoiser) -> None:
        super().__init__()
        self.config = config
        self.phys_net = phys_net
        self.denoiser = denoiser

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Losses of one batch of collate: loss = denoise + physics_weight * physics; their parts beside them."""
        physics, fused = self.fused_poses(batch)
        seen = _seen(fused, batch)
        losses = self.denoiser(
            batch["latents_BFChw"],
            _prompts(batch["prompt_BL"]),
            project(seen, zoomed(batch["intrinsics_B33"][:, None], batch["zoom_BF"])),
            relative_depth(seen),
            batch["body_px_BFJ2"],
            _image_size(batch),
            _reference(batch),
        )
        losses |= pose_losses(
            physics,
            fused,
            batch["truth_joints_cam_m_BTJ3"],
            batch["in_flight_BT"].bool(),
            batch["dt_s_B"],
            batch["has_truth_B"].bool(),
        )
        loss = losses["denoise"] + self.config.physics_weight * losses["physics"]
        return {"loss": loss, **losses}

    def fused_poses(self, batch: Mapping[str, Tensor]) -> tuple[PhysicsPose, Tensor]:
        """What Phys-Net makes of S_dd, and both fused: (B,T,J,3) metres in the middle frame's camera."""
        joints_dd = batch["joints_dd_BTJ3"]
        with hop("physics"):
            physics = self.phys_net(
                joints_dd,
                batch["joints_px_BTJ2"],
                batch["confidence_BTJ"],
                batch["intrinsics_B33"],
                batch["gravity_B3"],
                batch["dt_s_B"],
                batch["is_camera_known_B"].bool(),
            )
        with hop("fuse"):
            return physics, fuse(joints_dd, physics.joints_pp_BTJ3, physics.gate_BTJ)

    def export(self, folder: Path) -> None:
        """Write the denoiser's parts and phys_net below `folder`, in half precision."""
        self.denoiser.export(Path(folder))
        save_half(self.phys_net, Path(folder) / "phys_net")


# Of the videos that a training run shows: few, as they take its time.
SAMPLE_STEPS = 10


def sampler(init: Path) -> Callable[[JointModule, Mapping[str, Tensor]], list[tuple[NDArray[np.uint8], float]]]:
    """A function that generates a video for each clip of a batch of collate, from its fused poses and its prompt.

    init: the pipeline folder whose VAE decodes.
    """
    # Imported here: the pipeline needs every hop's libraries, and most of what trains does not.
    from finephys.diffusion.pipeline import FinePhysPipeline, read_shared_noise

    shared_noise = read_shared_noise(init)
    vae = AutoencoderKL.from_pretrained(init, subfolder="vae", torch_dtype=torch.float32)

    @torch.no_grad()
    def sample(module: JointModule, batch: Mapping[str, Tensor]) -> list[tuple[NDArray[np.uint8], float]]:
        denoiser = module.denoiser
        _, fused_BTJ3 = module.fused_poses(batch)
        pipeline = FinePhysPipeline(
            vae=vae.to(fused_BTJ3.device),
            text_encoder=denoiser.text_encoder,
            tokenizer=denoiser.tokenizer,
            unet=denoiser.unet,
            scheduler=deepcopy(denoiser.scheduler),
            guidance_encoder=denoiser.guidance_encoder,
            shared_noise=shared_noise,
        )
        pipeline.set_progress_bar_config(disable=True)
        height, width = _image_size(batch)
        num_seen = batch["latents_BFChw"].shape[1]
        stride = fused_BTJ3.shape[1] // num_seen
        # The pipeline takes one camera a clip: what the zoom does to the picture is done to x and y.
        scale_BF3 = torch.stack([batch["zoom_BF"], batch["zoom_BF"], torch.ones_like(batch["zoom_BF"])], -1)
        joints_BFJ3 = _seen(fused_BTJ3, batch) * scale_BF3[:, :, None]
        videos = []
        for clip, prompt in enumerate(_prompts(batch["prompt_BL"])):
            made = pipeline(
                prompt,
                joints_cam_m=joints_BFJ3[clip].float().cpu().numpy(),
                intrinsics=batch["intrinsics_B33"][clip].cpu().numpy(),
                is_camera_static=bool(batch["is_static_B"][clip]),
                height=height,
                width=width,
                num_frames=num_seen,
                num_inference_steps=SAMPLE_STEPS,
                generator=torch.Generator().manual_seed(clip),
            )
            videos.append((made.frames[0], 1 / (stride * float(batch["dt_s_B"][clip]))))
        return videos

    return sample


def _seen(fused_BTJ3: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """(B,F,J,3): at the stride that collate chose, in each frame's own camera frame."""
    chosen = fused_BTJ3[:, :: fused_BTJ3.shape[1] // batch["latents_BFChw"].shape[1]]
    return seen_by_frames(chosen, batch["rotation_BF33"])


def _reference(batch: Mapping[str, Tensor]) -> Reference:
    return Reference(batch["reference_BChw"], batch["reference_px_BJ2"], batch["is_static_B"].bool())


def _image_size(batch: Mapping[str, Tensor]) -> tuple[int, int]:
    height, width = batch["image_size_B2"][0].tolist()
    return int(height), int(width)
