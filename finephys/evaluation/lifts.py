"""Held-out clips lifted: what the evaluations of lifting and physics start from.

Path:    Detection -> camera's motion -> steady Pose2D -> Pose3D (S_dd), beside the steadied ground truth
Letters: T frames
Units:   pixel, metre
Frames:  camera of the middle frame
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finephys.data.clips import Clip
from finephys.data.steady import steadied
from finephys.evaluation.detections import Detection, detect_clips
from finephys.pose.camera_estimation import estimate_camera_motion
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Lifter, Pose3D


@dataclass(frozen=True, kw_only=True)
class Lift:
    """found: in the frames' own pixels.  clip: the record, joints and cameras steadied.  camera: as estimated.
    pose: found as the middle frame's camera would see it.  lifted: S_dd of that."""

    found: Detection
    clip: Clip
    camera: CameraMotion
    pose: Pose2D
    lifted: Pose3D

    @property
    def intrinsics(self) -> NDArray[np.float32]:
        """(3,3) pixels, of the middle frame."""
        return middle_intrinsics(self.clip)

    @property
    def gravity_cam(self) -> NDArray[np.float32]:
        """(3,) down, as the camera's panning or else the lifter and a level floor say."""
        return self.camera.gravity(self.lifted, self.clip.fps)


def lift(lifter: Lifter, found: Detection) -> Lift:
    """One clip; its camera's motion is estimated from the frames, its intrinsics in the middle frame are given."""
    intrinsics = middle_intrinsics(found.clip)
    camera = estimate_camera_motion(found.frames_THWC, found.pose, intrinsics, found.clip.fps)
    pose = camera.stabilise(found.pose, intrinsics)
    lifted = lifter.lift(pose, intrinsics, found.clip.fps)
    return Lift(found=found, clip=steadied(found.clip), camera=camera, pose=pose, lifted=lifted)


def lift_clips(lifter: Lifter, pipeline: Path, clips: Iterable[Clip], source: str) -> list[Lift]:
    """Detect and lift clips. Raises as detections.detect_clips does."""
    return [lift(lifter, found) for found in detect_clips(pipeline, clips, source)]


def middle_intrinsics(clip: Clip) -> NDArray[np.float32]:
    """(3,3) pixels."""
    assert clip.intrinsics is not None
    middle: NDArray[np.float32] = clip.intrinsics[clip.num_frames // 2]
    return middle
