"""A clip's ground truth as if the camera of its middle frame had stood still.

Path:    Clip -> CameraMotion; Clip -> Clip in one frame of reference
Letters: T frames
Units:   as finephys/data/clips.py
"""

from dataclasses import replace

import numpy as np

from finephys.data.clips import Clip
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D


def true_camera_motion(clip: Clip) -> CameraMotion | None:
    """How the camera moved; None where the record does not say."""
    if clip.rotation is None or clip.intrinsics is None:
        return None
    return CameraMotion.of_cameras(clip.rotation, clip.intrinsics)


def steadied(clip: Clip) -> Clip:
    """The clip with joints and camera of all frames in the middle frame's terms, as lifting and physics speak.

    joints_px may lie outside the image; the video and is_static stay. Unchanged where the camera is not known.
    """
    camera = true_camera_motion(clip)
    if camera is None:
        return clip
    assert clip.rotation is not None
    assert clip.intrinsics is not None
    middle, count = clip.num_frames // 2, clip.num_frames
    joints_px = clip.joints_px
    if joints_px is not None:
        everywhere = np.ones(joints_px.shape[:2], np.float32)
        joints_px = camera.stabilise(Pose2D(joints_px, everywhere), clip.intrinsics[middle]).joints_px
    return replace(
        clip,
        joints_px=joints_px,
        joints_cam_m=None if clip.joints_cam_m is None else camera.to_middle(clip.joints_cam_m),
        intrinsics=np.repeat(clip.intrinsics[middle][None], count, 0),
        rotation=np.repeat(clip.rotation[middle][None], count, 0),
        translation=None if clip.translation is None else np.repeat(clip.translation[middle][None], count, 0),
    )
