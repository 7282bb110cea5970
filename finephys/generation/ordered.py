"""Generate what was ordered, several clips of one motion together.

Path:    Order (staged element or uploaded video) -> FinePhysPipeline -> mp4 bytes
Letters: F generated frames
Units:   pixel, second

Orders of one motion and one set of settings share a batch of the pipeline: they differ in prompt and seed only.
A seed gives the same noise whatever else is in the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from finephys.data.uploads import decode_upload
from finephys.data.video import encode_video
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.generation.order import Order
from finephys.generation.requests import noise_seed
from finephys.generation.staging import stage
from finephys.hops import hop


def generate_orders(
    pipeline: FinePhysPipeline,
    orders: Sequence[Order],
    upload: bytes | None,
    max_upload_s: float,
    on_step: Callable[[int], None],
) -> tuple[list[bytes], float]:
    """The mp4 of each order, and how many seconds they last; all go with the first one.

    upload: the driving video of orders that have one.  on_step(n): n denoising steps are done.
    Raises ValueError on a video that does not decode or in which nobody is found.
    """
    first = orders[0]
    assert all(first.goes_with(order) for order in orders)

    def after_step(_pipeline: Any, step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1)
        return values

    if first.staging is not None:
        staged = stage(first.staging, first.height, first.width)
        motion: dict[str, Any] = {
            "joints_cam_m": staged.joints_cam_m, "intrinsics": staged.camera.intrinsics, "fps": staged.fps,
        }  # fmt: skip
        motion_name = f"fx{first.staging.label:02d}"
    else:
        assert upload is not None
        with hop("decode"):
            video = decode_upload(upload, max_duration_s=max_upload_s, seconds=first.max_seconds)
        motion = {"video_THWC": video.frames_THWC, "fps": video.fps}
        motion_name = str(first.upload_sha256)
        if first.reference == "first":
            motion["reference_image"] = _resized(video.frames_THWC[0], first.height, first.width)
    output = pipeline(
        [order.prompt for order in orders],
        **motion,
        height=first.height,
        width=first.width,
        num_frames=first.num_frames,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        pose_guidance_scale=first.pose_guidance_scale,
        generator=[torch.Generator().manual_seed(noise_seed(order.seed, motion_name, 0)) for order in orders],
        callback_on_step_end=after_step,
    )
    assert output.fps is not None
    with hop("encode"):
        return [encode_video(frames_FHWC, output.fps) for frames_FHWC in output.frames], first.num_frames / output.fps


def _resized(frame_HWC: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    resized: NDArray[np.uint8] = np.asarray(cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA))
    return resized
