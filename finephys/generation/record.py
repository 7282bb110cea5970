"""Generate one clip as a clip record: a synthetic data set has the form of the real one, ground truth included.

Path:    driving Clip, request -> FinePhysPipeline -> Clip (finephys/data/clips.py)
Letters: F generated frames
Units:   as the clip record has them

What the guidance drew is the ground truth of what was generated: joints, camera, flight and contact of the driving clip
at the frames that were generated. A driving clip with 3D ground truth moves the gymnast by it; without, by what pose,
lifting and physics make of its video.
"""

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from finephys.data.clips import Clip
from finephys.data.video import decode_video, encode_video
from finephys.diffusion.pipeline import FinePhysPipeline, FinePhysPipelineOutput
from finephys.evaluation.pose import pck
from finephys.evaluation.video import PCK_SHARE
from finephys.generation.clip import size_for
from finephys.generation.requests import GenerationRequest


def generate_record(pipeline: FinePhysPipeline, clip: Clip, request: GenerationRequest, clip_id: str) -> Clip:
    """The clip called clip_id. Raises ValueError on a driving clip that does not decode or is refused."""
    has_truth = clip.joints_cam_m is not None and clip.intrinsics is not None
    needs_video = request.reference == "first" or not has_truth
    frames_THWC = decode_video(clip.video).frames_THWC if needs_video else None
    height, width = size_for(pipeline, (clip.height, clip.width))
    # Pixels of the driving video to pixels of the result.
    scale = np.array([width / clip.width, height / clip.height])
    intrinsics = None
    if clip.intrinsics is not None:
        if has_truth:
            # Each frame is drawn with its own zoom, in pixels of the result.
            intrinsics = clip.intrinsics.astype(np.float64)
            intrinsics[:, :2] *= scale[:, None]
        else:
            intrinsics = clip.intrinsics[clip.num_frames // 2].astype(np.float64)
    reference = None
    if request.reference == "first":
        assert frames_THWC is not None
        reference = np.asarray(cv2.resize(frames_THWC[0], (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    knows_reference = reference is not None and clip.joints_px is not None
    output = pipeline(
        request.prompt,
        video_THWC=None if has_truth else frames_THWC,
        joints_cam_m=clip.joints_cam_m if has_truth else None,
        fps=clip.fps,
        intrinsics=intrinsics,
        height=height,
        width=width,
        reference_image=reference,
        reference_joints_px=clip.joints_px[0] * scale if knows_reference and clip.joints_px is not None else None,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        pose_guidance_scale=request.pose_guidance_scale,
        generator=torch.Generator().manual_seed(request.noise_seed),
    )
    return _record(clip, request, clip_id, output)


def found_again(pipeline: FinePhysPipeline, video: bytes, joints_px: NDArray[np.float32] | None) -> dict[str, float]:
    """How the joints that the detector finds in a generated mp4 compare with the guidance (F,17,2).

    pck_0.1_box: share of them within a tenth of the body's box.  jump_of_box: mean second difference in time of the
    distance between the two, as a share of the box's diagonal: a motion that jumps where the guidance does not.
    """
    if pipeline.pose_estimator is None:
        raise ValueError("the pipeline has no pose_estimator, which the quality gate needs")
    assert joints_px is not None
    found = pipeline.pose_estimator.estimate(decode_video(video).frames_THWC).joints_px
    box_px = np.linalg.norm(np.ptp(joints_px, axis=1), axis=-1)
    off_box = (found - joints_px) / box_px[:, None, None]
    jump = np.linalg.norm(np.diff(off_box, n=2, axis=0), axis=-1).mean() if len(found) > 2 else 0.0
    return {
        "pck_0.1_box": round(pck(found, joints_px, PCK_SHARE), 4),
        "jump_of_box": round(float(jump), 4),
    }


def _record(clip: Clip, request: GenerationRequest, clip_id: str, output: FinePhysPipelineOutput) -> Clip:
    frames_FHWC: NDArray[np.uint8] = output.frames[0]
    num_frames, height, width, _ = frames_FHWC.shape
    index, motion = output.frame_indices, output.motion
    # Pixels of the picture that the motion was given for to pixels of the result; they differ where a video drove.
    scale = np.array([width / motion.image_size[1], height / motion.image_size[0]], np.float32)
    intrinsics = motion.camera.intrinsics(motion.intrinsics)[index]
    intrinsics[:, :2] *= scale[:, None]
    joints_px = output.joints_px * scale
    is_inside: NDArray[np.bool_] = np.all((joints_px >= 0) & (joints_px <= [width, height]), axis=-1)
    assert output.fps is not None
    return Clip(
        clip_id=clip_id,
        split=clip.split,
        subset=clip.subset,
        label=clip.label,
        label_name=clip.label_name,
        prompt=request.prompt,
        video=encode_video(frames_FHWC, output.fps),
        fps=output.fps,
        num_frames=num_frames,
        height=height,
        width=width,
        performer=clip.performer,
        joints_px=joints_px.astype(np.float32),
        joints_confidence=np.asarray(is_inside, np.float32),
        joints_cam_m=motion.seen_TJ3()[index],
        intrinsics=intrinsics.astype(np.float32),
        rotation=None if clip.rotation is None else clip.rotation[index],
        translation=None if clip.translation is None else clip.translation[index],
        is_static=clip.is_static if clip.is_static is not None else motion.camera.is_static,
        in_flight=None if clip.in_flight is None else clip.in_flight[index],
        feet_in_contact=None if clip.feet_in_contact is None else clip.feet_in_contact[index],
    )
