"""From a prompt and a motion to a video: every hop of the path, in one diffusers pipeline.

Path:    video -> 2D pose -> S_dd -> S_pp -> fused -> heatmaps -> guidance (once per clip) -> unet -> vae -> video
Letters: B prompts, T frames of the motion, F frames of the video (evenly spaced over T), J = 17 joints, H W pixels,
         h w cells of a latent, C channels
Units:   pixel, metre, second; uint8 RGB
Frames:  camera, x right, y down, z forward

FinePhys, arXiv:2505.13437. We differ: guidance is computed once per clip and not per denoising step, so that guided
sampling costs what unguided sampling does.
"""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiffusionPipeline, UNetMotionModel
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from finephys.diffusion.denoiser import clip_noise, guidance_maps
from finephys.diffusion.motion import Motion, estimate_motion, given_motion, motion_of_pose
from finephys.diffusion.text import encode_prompts, tokenize
from finephys.diffusion.unet import denoise_windows
from finephys.diffusion.vae import decode_latents, downscale_factor, encode_latents
from finephys.guidance.encoder import Guidance, GuidanceEncoder
from finephys.guidance.heatmaps import relative_depth
from finephys.guidance.reference import Reference, draft
from finephys.hops import hop
from finephys.physics.phys_net import PhysNet
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Lifter
from finephys.pose.rtmpose import RTMPose
from finephys.skeleton import NUM_JOINTS

OutputType = Literal["np", "pil", "latent"]

# What each subfolder of a pipeline folder holds.
COMPONENTS: dict[str, type] = {
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "unet": UNetMotionModel,
    "scheduler": DDIMScheduler,
    "guidance_encoder": GuidanceEncoder,
    "phys_net": PhysNet,
    "lifter": Lifter,
    "pose_estimator": RTMPose,
}
# More than in training (DenoiserConfig.shared_noise). Of six held-out clips guided by ground truth, six steps, PCK at
# 0.1 of the box and the background's flicker in grey levels were 0.771, 4.3 with 0.5; 0.792, 3.0 with 0.8; 0.792, 2.7
# with 0.9; 0.778, 0.9 with 1.0; of the renders 0.870, 2.8.
SAMPLED_SHARED_NOISE = 0.9
# Needed only where a video drives.
_OPTIONAL = ("phys_net", "lifter", "pose_estimator")


@dataclass
class FinePhysPipelineOutput(BaseOutput):
    """frames: (B,F,H,W,3) uint8; lists of PIL images for output_type "pil"; latents (B,F,C,h,w) for "latent".

    fps: of the frames, None where the motion's was not given.  frame_indices (F,): which frames of the motion they are.
    motion: every hop before the drawing, over all T frames.  joints_px (F,17,2): what was drawn, pixels.
    heatmaps (F,49,h,w): the finest maps.
    """

    frames: Any
    fps: float | None
    frame_indices: NDArray[np.int64]
    motion: Motion
    joints_px: NDArray[np.float32]
    heatmaps: NDArray[np.float32]


class FinePhysPipeline(DiffusionPipeline):
    """Generates a gymnast who does what a motion does and looks as a prompt says."""

    model_cpu_offload_seq = "text_encoder->guidance_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = list(_OPTIONAL)
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNetMotionModel,
        scheduler: DDIMScheduler,
        guidance_encoder: GuidanceEncoder,
        phys_net: PhysNet | None = None,
        lifter: Lifter | None = None,
        pose_estimator: RTMPose | None = None,
        shared_noise: float = SAMPLED_SHARED_NOISE,
    ) -> None:
        """shared_noise: variance of the noise that the frames of a clip share where sampling starts.

        Raises ValueError where UNet, guidance encoder, tokenizer and text encoder do not belong together.
        """
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            guidance_encoder=guidance_encoder,
            phys_net=phys_net,
            lifter=lifter,
            pose_estimator=pose_estimator,
        )
        self.register_to_config(shared_noise=shared_noise)
        self._check_components()

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str], **kwargs: Any) -> "FinePhysPipeline":
        """As DiffusionPipeline's, and every part in float32 unless `dtype` says otherwise.

        The weights ship in half precision, which transformers would keep and a CPU computes slowly or not at all.
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        pipeline: FinePhysPipeline = super().from_pretrained(folder, **kwargs)
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        video_THWC: NDArray[np.uint8] | None = None,
        pose2d: Pose2D | None = None,
        joints_cam_m: NDArray[np.floating] | None = None,
        is_camera_static: bool = True,
        fps: float | None = None,
        intrinsics: NDArray[np.floating] | None = None,
        height: int | None = None,
        width: int | None = None,
        reference_image: NDArray[np.uint8] | None = None,
        reference_joints_px: NDArray[np.floating] | None = None,
        negative_prompt: str | Sequence[str] = "",
        num_frames: int = 16,
        num_inference_steps: int = 20,
        guidance_scale: float = 2.0,
        pose_guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "np",
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> FinePhysPipelineOutput:
        """Generate one video for each prompt, all following the same motion.

        The motion is exactly one of
          video_THWC (T,H,W,3) uint8 RGB, with fps: pose, lifting and physics run inside;
          pose2d, with fps: joints in pixels of frames of height x width; lifting and physics run inside, and how the
          camera moves is not known;
          joints_cam_m (T,17,3) metres, absolute in each frame's camera frame: drawn as it is. is_camera_static says
          whether that camera stands still: then the place in reference_image stays where it is.
        intrinsics (3,3) in pixels: of the driving video's middle frame or of the camera to draw with, in this case also
          (T,3,3); nominal where None.
        height, width: of the result; a driving video's own, else the UNet's.
        reference_image (height, width, 3) uint8 RGB: a picture of the person and the place as they should look, taken
        by the camera of the motion, such as the first frame of a driving video; reference_joints_px (17,2): where the
        person is in it, detected where None.
        num_frames: of the result, spread evenly over the motion; more than 16 are made in windows that overlap.
        guidance_scale, pose_guidance_scale: classifier-free guidance towards the prompt (away from negative_prompt) and
        towards the pose; at 1 either is off, and with both at 1 each step is one pass of the UNet. At a
        pose_guidance_scale of 0 the UNet never sees the pose: the prompt alone decides.
        latents (B,F,C,h,w): the starting noise.  output_type: "np", "pil" or "latent".
        callback_on_step_end(pipeline, step, timestep, {"latents": ...}) may return other latents.
        Raises ValueError, naming the argument, on wrong shapes, values that are not finite, motions of fewer than
        num_frames frames, sizes that the UNet's scales do not divide, and persons out of the frame throughout.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        self._check_request(
            prompts, negatives, num_frames, num_inference_steps, output_type, callback_on_step_end_tensor_inputs
        )
        given = {"video_THWC": video_THWC, "pose2d": pose2d, "joints_cam_m": joints_cam_m}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise ValueError(f"{' and '.join(names) or 'none'} of {', '.join(given)} given, wanted exactly one")
        side = self.unet.config.sample_size * downscale_factor(self.vae)
        image_size = (height or side, width or side)
        if joints_cam_m is not None:
            motion = given_motion(joints_cam_m, intrinsics, image_size, is_camera_static)
        else:
            motion = self._estimated_motion(video_THWC, pose2d, fps, intrinsics, image_size)
        num_poses = len(motion.guiding_TJ3)
        if num_poses < num_frames:
            raise ValueError(f"{names[0]} has {num_poses} frames, wanted at least num_frames = {num_frames}")

        # 1. the frames that the UNet sees, drawn
        frame_indices = np.linspace(0, num_poses - 1, num_frames).round().astype(np.int64)
        device = self._execution_device
        seen_FJ3 = torch.from_numpy(motion.seen_TJ3()[frame_indices]).to(device)
        joints_px_FJ2 = torch.from_numpy(motion.seen_px()[frame_indices]).to(device)
        _check_in_frame(joints_px_FJ2, motion.image_size)
        size = (height or motion.image_size[0], width or motion.image_size[1])
        latent_size = self._latent_size(size)
        num_scales = len(self.unet.config.block_out_channels)
        with hop("heatmaps"):
            maps = guidance_maps(
                joints_px_FJ2[None], relative_depth(seen_FJ3)[None], motion.image_size, latent_size, num_scales
            )

        # 2. guidance, once per clip, with and without the pose
        passes = _passes(guidance_scale, pose_guidance_scale)
        with hop("guidance"):
            reference = self._reference(reference_image, reference_joints_px, size, motion.camera.is_static)
            drawn_px_FJ2 = joints_px_FJ2 * _scale(motion.image_size, size, device)
            draft_NChw = None if reference is None else draft(reference, drawn_px_FJ2[None], size)[0]
            guidance = self._guidance_of_passes(maps, draft_NChw, passes, len(prompts))
        text_BLC = self._text_of_passes(prompts, negatives, passes)

        # 3. denoise
        shape = (len(prompts), num_frames, self.vae.config.latent_channels, *latent_size)
        if latents is None:
            latents = clip_noise(shape, self.config.shared_noise, generator, device)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"latents have shape {tuple(latents.shape)}, wanted {shape}")
        with hop("unet"):
            latents = self._denoise(
                latents.to(device),
                guidance,
                text_BLC,
                passes,
                num_inference_steps,
                generator,
                callback_on_step_end,
                callback_on_step_end_tensor_inputs,
            )

        # 4. decode
        with hop("vae"):
            frames = self._decode(latents, output_type)
        motion_fps = None if fps is None else fps * (num_frames - 1) / max(num_poses - 1, 1)
        return FinePhysPipelineOutput(
            frames=frames,
            fps=motion_fps,
            frame_indices=frame_indices,
            motion=motion,
            joints_px=joints_px_FJ2.cpu().numpy(),
            heatmaps=maps[0].cpu().numpy(),
        )

    def _estimated_motion(
        self,
        video_THWC: NDArray[np.uint8] | None,
        pose2d: Pose2D | None,
        fps: float | None,
        intrinsics: NDArray[np.floating] | None,
        image_size: tuple[int, int],
    ) -> Motion:
        """The motion that guides, of a video or of the joints found in one."""
        needed = _OPTIONAL if pose2d is None else ("phys_net", "lifter")
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            name = "video_THWC" if pose2d is None else "pose2d"
            raise ValueError(f"{name} is given and the pipeline has no {missing[0]}, wanted joints_cam_m")
        if pose2d is not None:
            return motion_of_pose(self.lifter, self.phys_net, pose2d, image_size, fps, intrinsics)
        assert video_THWC is not None
        return estimate_motion(self.pose_estimator, self.lifter, self.phys_net, video_THWC, fps, intrinsics)

    def _reference(
        self,
        image: NDArray[np.uint8] | None,
        joints_px: NDArray[np.floating] | None,
        size: tuple[int, int],
        is_static: bool,
    ) -> Reference | None:
        """The reference picture as a latent with its joints."""
        if image is None:
            return None
        if image.dtype != np.uint8 or image.shape != (*size, 3):
            raise ValueError(f"reference_image is {image.dtype} {image.shape}, wanted uint8 {(*size, 3)}")
        if joints_px is None:
            if self.pose_estimator is None:
                raise ValueError("reference_joints_px is None and the pipeline has no pose_estimator, wanted one")
            joints_px = self.pose_estimator.estimate(image[None]).joints_px[0]
        if np.shape(joints_px) != (NUM_JOINTS, 2) or not np.isfinite(joints_px).all():
            raise ValueError(f"reference_joints_px has shape {np.shape(joints_px)}, wanted finite ({NUM_JOINTS}, 2)")
        device = self._execution_device
        return Reference(
            latent_BChw=encode_latents(self.vae, image[None]).float().to(device),
            joints_px_BJ2=torch.from_numpy(np.asarray(joints_px, np.float32))[None].to(device),
            is_static_B=torch.tensor([is_static], device=device),
        )

    def _guidance_of_passes(
        self, maps: Sequence[Tensor], draft_NChw: Tensor | None, passes: "Sequence[_Pass]", num_prompts: int
    ) -> Guidance:
        """Guidance of all passes, N = passes * prompts * F; the encoder runs once with and once without the pose."""
        with_pose = self.guidance_encoder([scale.to(self.guidance_encoder.device) for scale in maps], draft_NChw)
        without = with_pose
        if not all(one.has_pose for one in passes):
            without = self.guidance_encoder([torch.zeros_like(scale) for scale in maps])
        chosen = [with_pose if one.has_pose else without for one in passes for _ in range(num_prompts)]
        return Guidance(
            conv_in_NCHW=torch.cat([one.conv_in_NCHW for one in chosen]),
            down_residuals=tuple(
                torch.cat(residuals) for residuals in zip(*(one.down_residuals for one in chosen), strict=True)
            ),
            mid_residual=torch.cat([one.mid_residual for one in chosen]),
        )

    def _text_of_passes(self, prompts: list[str], negatives: list[str], passes: "Sequence[_Pass]") -> Tensor:
        """The text encoder's output for all passes, (passes * B, L, C)."""
        texts = [text for one in passes for text in (prompts if one.has_text else negatives)]
        return encode_prompts(self.text_encoder, tokenize(self.tokenizer, texts))

    def _denoise(
        self,
        latents_BFChw: Tensor,
        guidance: Guidance,
        text_BLC: Tensor,
        passes: "Sequence[_Pass]",
        num_inference_steps: int,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None,
        callback_inputs: Sequence[str],
    ) -> Tensor:
        """Noise to latents, all passes of a step in one batch."""
        self.scheduler.set_timesteps(num_inference_steps, device=latents_BFChw.device)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_arguments = {"generator": generator} if takes_generator else {}
        latents: Tensor = latents_BFChw * self.scheduler.init_noise_sigma
        for step, timestep in enumerate(self.progress_bar(self.scheduler.timesteps)):
            noisy = self.scheduler.scale_model_input(latents, timestep)
            stacked = torch.cat([noisy] * len(passes)).to(self.unet.dtype)
            predictions = denoise_windows(self.unet, stacked, timestep, text_BLC, guidance).float().chunk(len(passes))
            prediction = torch.zeros_like(latents)
            for one, part in zip(passes, predictions, strict=True):
                prediction += one.share * part
            latents = self.scheduler.step(prediction, timestep, latents, **step_arguments).prev_sample
            if callback is not None:
                tensors = {"latents": latents} if "latents" in callback_inputs else {}
                latents = callback(self, step, timestep, tensors).get("latents", latents)
        return latents

    def _decode(self, latents_BFChw: Tensor, output_type: OutputType) -> Any:
        if output_type == "latent":
            return latents_BFChw
        num_clips, num_frames = latents_BFChw.shape[:2]
        frames = decode_latents(self.vae, latents_BFChw.flatten(0, 1))
        frames = frames.reshape(num_clips, num_frames, *frames.shape[1:])
        if output_type == "np":
            return frames
        return [[Image.fromarray(frame) for frame in clip] for clip in frames]

    def _latent_size(self, size: tuple[int, int]) -> tuple[int, int]:
        factor = downscale_factor(self.vae)
        # The UNet halves the latents between its scales.
        multiple = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        for name, side in zip(("height", "width"), size, strict=True):
            if side < multiple or side % multiple:
                raise ValueError(f"{name} is {side}, wanted a multiple of {multiple}")
        return size[0] // factor, size[1] // factor

    def _check_request(
        self,
        prompts: list[str],
        negatives: list[str],
        num_frames: int,
        num_inference_steps: int,
        output_type: str,
        callback_inputs: Sequence[str],
    ) -> None:
        if not prompts or not all(isinstance(text, str) for text in prompts):
            raise ValueError(f"prompt is {prompts!r}, wanted a sentence or a list of them")
        if len(negatives) != len(prompts):
            raise ValueError(f"negative_prompt holds {len(negatives)} texts, prompt {len(prompts)}: wanted as many")
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}, wanted at least 1")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is {num_inference_steps}, wanted at least 1")
        if output_type not in get_args(OutputType):
            raise ValueError(f"output_type is {output_type!r}, wanted one of {', '.join(get_args(OutputType))}")
        unknown = set(callback_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(
                f"callback_on_step_end_tensor_inputs has {sorted(unknown)[0]!r}, wanted some of "
                f"{', '.join(self._callback_tensor_inputs)}"
            )

    def _check_components(self) -> None:
        """Parts of different checkpoints may each load and yet not fit: say so here, not in the middle of a step."""
        unet, encoder, vae = self.unet.config, self.guidance_encoder.config, self.vae.config
        if tuple(unet.block_out_channels) != tuple(encoder.block_out_channels):
            raise ValueError(
                f"unet.block_out_channels {tuple(unet.block_out_channels)} and guidance_encoder.block_out_channels "
                f"{tuple(encoder.block_out_channels)} differ"
            )
        if unet.in_channels != vae.latent_channels + self.guidance_encoder.num_conv_in_channels:
            raise ValueError(
                f"unet.in_channels is {unet.in_channels}, wanted vae.latent_channels {vae.latent_channels} + "
                f"guidance_encoder's {self.guidance_encoder.num_conv_in_channels}"
            )
        text = self.text_encoder.config
        if len(self.tokenizer) > text.vocab_size:
            raise ValueError(
                f"tokenizer has {len(self.tokenizer)} tokens, text_encoder.vocab_size is {text.vocab_size}"
            )
        if self.tokenizer.model_max_length > text.max_position_embeddings:
            raise ValueError(
                f"tokenizer.model_max_length is {self.tokenizer.model_max_length}, text_encoder takes at most "
                f"{text.max_position_embeddings}"
            )
        if text.hidden_size != unet.cross_attention_dim:
            raise ValueError(
                f"text_encoder.hidden_size is {text.hidden_size}, unet.cross_attention_dim {unet.cross_attention_dim}"
            )


@dataclass(frozen=True)
class _Pass:
    """One run of the UNet in a step: what it sees, and its share in the guided prediction."""

    has_text: bool
    has_pose: bool
    share: float


def _passes(text_scale: float, pose_scale: float) -> list[_Pass]:
    """The runs that  v00 + pose_scale (v0p - v00) + text_scale (vtp - v0p)  needs; shares sum to one.

    v0p saw the pose and no text, and so on (InstructPix2Pix, arXiv:2211.09800, section 3.2.1). Runs whose share is zero
    are left out: one run at scales (1, 1), two where the scales are equal or pose_scale is 1.
    pose_scale 0 is the prompt alone:  v00 + text_scale (vt0 - v00).
    """
    for name, scale in (("guidance_scale", text_scale), ("pose_guidance_scale", pose_scale)):
        if not np.isfinite(scale):
            raise ValueError(f"{name} is {scale}, wanted a finite number")
    has_pose = pose_scale != 0
    if not has_pose:
        # What the text adds is then seen without the pose.
        pose_scale = 1
    candidates = [
        _Pass(has_text=True, has_pose=has_pose, share=text_scale),
        _Pass(has_text=False, has_pose=has_pose, share=pose_scale - text_scale),
        _Pass(has_text=False, has_pose=False, share=1 - pose_scale),
    ]
    return [one for one in candidates if one.share != 0]


def _scale(from_size: tuple[int, int], to_size: tuple[int, int], device: torch.device) -> Tensor:
    """What pixels (x, y) of one picture size are multiplied by to be pixels of another; sizes are (height, width)."""
    return torch.tensor([to_size[1] / from_size[1], to_size[0] / from_size[0]], device=device)


def _check_in_frame(joints_px_FJ2: Tensor, image_size: tuple[int, int]) -> None:
    height, width = image_size
    inside = (joints_px_FJ2 >= 0).all(-1) & (joints_px_FJ2[..., 0] <= width) & (joints_px_FJ2[..., 1] <= height)
    if not inside.any():
        raise ValueError(f"motion is outside the {height}x{width} image in all frames, wanted a person in the picture")


def read_shared_noise(folder: Path) -> float:
    """What the pipeline folder says of it; SAMPLED_SHARED_NOISE where it has no index."""
    index = folder / "model_index.json"
    held = json.loads(index.read_text()) if index.is_file() else {}
    return float(held.get("shared_noise", SAMPLED_SHARED_NOISE))


def write_model_index(folder: str | PathLike[str], shared_noise: float = SAMPLED_SHARED_NOISE) -> None:
    """Make a pipeline folder of the parts that lie in `folder`: writes model_index.json, as save_pretrained would.

    Raises FileNotFoundError, naming it, where a part is missing that no pipeline does without.
    """
    folder = Path(folder)
    index: dict[str, Any] = {"_class_name": FinePhysPipeline.__name__, "_diffusers_version": diffusers.__version__}
    for name, component in COMPONENTS.items():
        if (folder / name).is_dir():
            library = component.__module__ if component.__module__.startswith("finephys.") else None
            index[name] = [library or component.__module__.split(".")[0], component.__name__]
        elif name in _OPTIONAL:
            index[name] = [None, None]
        else:
            raise FileNotFoundError(f"{folder} has no {name}, wanted a folder with that part of the pipeline")
    index["shared_noise"] = shared_noise
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
