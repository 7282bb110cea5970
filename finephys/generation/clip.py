"""Generate one clip with the pipeline, and write what a person wants to see of it.

Path:    driving Clip -> FinePhysPipeline -> generated.mp4, generated.gif, source.mp4, sheet.png, hops.gif
Letters: T frames of the driving clip, F generated frames
Units:   as the hops have them
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from finephys.data.clips import Clip
from finephys.data.steady import steadied
from finephys.data.video import decode_video, encode_video, write_gif
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.diffusion.vae import downscale_factor
from finephys.evaluation.sheet import Hops, animate_sheet, draw_sheet
from finephys.evaluation.video import measure_clip
from finephys.generation.requests import GenerationRequest


def generate_clip(
    pipeline: FinePhysPipeline, clip: Clip, request: GenerationRequest, on_step: Callable[[], None]
) -> tuple[Hops, dict[str, Any]]:
    """The hops of one generated clip, and its measures.

    on_step: called after each denoising step.  Raises ValueError on a clip that does not decode or that the
    pipeline refuses (too short, nobody in the picture).
    """

    def after_step(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step()
        return values

    frames_THWC = decode_video(clip.video).frames_THWC
    height, width = size_for(pipeline, frames_THWC.shape[1:3])
    output = pipeline(
        request.prompt,
        video_THWC=frames_THWC,
        fps=clip.fps,
        intrinsics=None if clip.intrinsics is None else clip.intrinsics[clip.num_frames // 2],
        height=height,
        width=width,
        reference_image=_reference(request, frames_THWC, (height, width)),
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        pose_guidance_scale=request.pose_guidance_scale,
        generator=torch.Generator().manual_seed(request.noise_seed),
        callback_on_step_end=after_step,
    )
    motion = output.motion
    # A motion from a video has all its hops.
    assert motion.pose2d is not None
    assert motion.joints_dd is not None
    assert motion.joints_pp is not None
    assert motion.gravity_cam is not None
    hops = Hops(
        title=clip.label_name or clip.clip_id,
        prompt=request.prompt,
        fps=clip.fps,
        frames_THWC=frames_THWC,
        joints_px=motion.pose2d.joints_px,
        confidence=motion.pose2d.confidence,
        joints_dd=motion.joints_dd,
        joints_pp=motion.joints_pp,
        fused=motion.guiding_TJ3,
        gravity_cam=motion.gravity_cam,
        frame_index=output.frame_indices,
        guidance_px=output.joints_px,
        heatmaps_FCHW=output.heatmaps,
        generated_FHWC=output.frames[0],
        truth_cam_m=steadied(clip).joints_cam_m,
        has_reference=request.reference == "first",
    )
    return hops, measure_clip(hops, pipeline.pose_estimator)


def _reference(
    request: GenerationRequest, frames_THWC: NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8] | None:
    """The driving clip's first frame at the size (height, width) of the result, or None."""
    if request.reference == "none":
        return None
    first: NDArray[np.uint8] = np.asarray(cv2.resize(frames_THWC[0], size[::-1], interpolation=cv2.INTER_AREA))
    return first


def write_clip(folder: Path, hops: Hops) -> None:
    """Write the clip's files into an existing folder. The source is shown at the times and the size of the result."""
    num_frames, height, width, _ = hops.generated_FHWC.shape
    duration_s = (int(hops.frame_index[-1]) - int(hops.frame_index[0])) / hops.fps
    fps = (num_frames - 1) / duration_s if duration_s > 0 else hops.fps
    source_FHWC = np.stack([_resized(frame, height, width) for frame in hops.frames_THWC[hops.frame_index]])
    (folder / "generated.mp4").write_bytes(encode_video(hops.generated_FHWC, fps))
    (folder / "source.mp4").write_bytes(encode_video(source_FHWC, fps))
    write_gif(hops.generated_FHWC, fps, folder / "generated.gif")
    write_gif(animate_sheet(hops), fps, folder / "hops.gif")
    Image.fromarray(draw_sheet(hops)).save(folder / "sheet.png", optimize=True)


def generated_size(driving_size: tuple[int, ...], side_px: int, multiple_px: int) -> tuple[int, int]:
    """(height, width) to generate for a driving video of that size: its shape as nearly as multiples of multiple_px
    allow, its shorter side `side_px`.
    """
    scale = side_px / min(driving_size)
    height, width = (max(1, round(scale * side / multiple_px)) * multiple_px for side in driving_size)
    return height, width


def size_for(pipeline: FinePhysPipeline, driving_size: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) that the pipeline generates for a driving video of that size."""
    latent_px = downscale_factor(pipeline.vae)
    # The UNet halves the latents between its scales.
    multiple_px = latent_px * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    return generated_size(driving_size, pipeline.unet.config.sample_size * latent_px, multiple_px)


def _resized(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
