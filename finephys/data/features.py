"""Hops pose2d, pose3d and vae of the feature chain, and the actor that holds all three.

Path:    frames -> pose2d -> pose3d -> vae -> feature rows
Letters: T frames, C channels, h w cells of a latent; 17 H36M joints
Units:   pixel, metre, second; latents normalised
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import torch

from finephys.config import PoseSource
from finephys.data.rows import Row, guarded, to_rows, to_table
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D

# A frame in which no joint is as sure as this shows nobody.
SEEN_CONFIDENCE = 0.02


class MakeFeatures:
    """Decoded rows -> feature rows, by hops that share a process.

    Frames are five times as large as what is made of them, and never leave it: as actors of their own, the hop that
    detects filled a stream's share of the object store, and the one behind it waited for room for two minutes.
    What a hop refuses of a clip (ValueError) becomes the row's error.
    """

    def __init__(self, init: str, pose_source: PoseSource = "detected", device: str = "cpu") -> None:
        # Ray counts CPUs, not threads: a hop that spread over all cores would starve the trainer.
        torch.set_num_threads(1)
        find_pose: list[Callable[[Row], Row]] = [use_truth]
        if pose_source == "detected":
            find_pose = [EstimatePose2D(init, device).estimate, LiftPose(init, device).lift]
        self.hops = [*find_pose, EncodeLatents(init, device).encode]

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = to_rows(table)
        for position, row in enumerate(rows):
            for hop in self.hops:
                row = guarded(hop, row)
            rows[position] = row
        return to_table(rows)


class EstimatePose2D:
    """Hop pose2d: adds joints_px and confidence."""

    def __init__(self, init: str, device: str) -> None:
        from finephys.pose.rtmpose import RTMPose

        self.estimator = RTMPose.from_pretrained(init, subfolder="pose_estimator", torch_dtype=torch.float32)
        self.estimator.fuse().to(device)

    def estimate(self, row: Row) -> Row:
        """Raises ValueError, naming it, on a frame in which nobody is seen."""
        pose = self.estimator.estimate(row["frames"])
        is_seen = pose.confidence.max(-1) >= SEEN_CONFIDENCE
        if not is_seen.all():
            raise ValueError(f"nobody is seen in frame {int(is_seen.argmin())} of {len(is_seen)}")
        return {**row, "joints_px": pose.joints_px, "confidence": pose.confidence}


class LiftPose:
    """Hop pose3d: takes the camera's motion out of joints_px, adds joints_dd, gravity and what the camera does, and
    is_static where the record has none."""

    def __init__(self, init: str, device: str) -> None:
        from finephys.pose.lifting import Lifter

        self.lifter = Lifter.from_pretrained(init, subfolder="lifter", torch_dtype=torch.float32).eval()
        self.lifter.to(device)

    def lift(self, row: Row) -> Row:
        from finephys.pose.camera_estimation import estimate_camera_motion

        pose = Pose2D(row["joints_px"], row["confidence"])
        camera = estimate_camera_motion(row["frames"], pose, row["intrinsics"], row["fps"])
        steady = camera.stabilise(pose, row["intrinsics"])
        lifted = self.lifter.lift(steady, row["intrinsics"], row["fps"])
        return {
            **row,
            "joints_px": steady.joints_px,
            "joints_dd": lifted.joints_cam_m,
            "gravity": camera.gravity(lifted, row["fps"]),
            "is_static": row["is_static"] if row["is_static"] is not None else camera.is_static,
            "body_px": row.get("truth_joints_px", pose.joints_px),
            **_camera_columns(camera),
        }


def use_truth(row: Row) -> Row:
    """In place of the hops pose2d and pose3d: the clip's ground truth. Raises ValueError where it has none."""
    missing = [name for name in ("truth_joints_px", "gravity") if name not in row]
    if missing or not row["has_truth"]:
        raise ValueError(f"pose_source is truth and the clip has no {missing[0] if missing else 'joints_cam_m'}")
    everywhere = np.ones((len(row["frames"]), 17), np.float32)
    camera = CameraMotion(row["truth_rotation"], row["truth_zoom"], np.zeros(len(everywhere), np.float32), True, False)
    return {
        **row,
        "joints_px": camera.stabilise(Pose2D(row["truth_joints_px"], everywhere), row["intrinsics"]).joints_px,
        "confidence": everywhere,
        "joints_dd": row["truth_joints_cam_m"],
        "is_static": bool(row["is_static"]),
        "body_px": row["truth_joints_px"],
        **_camera_columns(camera),
    }


class EncodeLatents:
    """Hop vae: replaces the frames by their latents."""

    def __init__(self, init: str, device: str) -> None:
        from diffusers import AutoencoderKL

        self.vae = AutoencoderKL.from_pretrained(init, subfolder="vae", torch_dtype=torch.float32).eval()
        self.vae.to(device)

    def encode(self, row: Row) -> Row:
        from finephys.diffusion.vae import encode_latents

        latents = encode_latents(self.vae, row["frames"]).cpu().numpy().astype(np.float16)
        kept = {name: value for name, value in row.items() if name not in ("frames", "truth_joints_px")}
        return {**kept, "latents": latents}


def _camera_columns(camera: CameraMotion) -> Row:
    return {"camera_rotation": camera.rotation, "camera_zoom": camera.zoom, "is_camera_known": camera.is_known}
