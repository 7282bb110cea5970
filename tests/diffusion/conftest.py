"""A small denoiser of real classes, and one clip's feature row, shared by the tests of this folder."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from finephys.benchmarks.tiny import IMAGE_SIDE, LATENT_SIDE, tiny_config
from finephys.diffusion.denoiser import DenoiserConfig

__all__ = ["IMAGE_SIDE"]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors lose more to threads than they gain, and a busy machine makes it much worse."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def config() -> DenoiserConfig:
    return tiny_config()


@pytest.fixture
def undropped(config: DenoiserConfig) -> DenoiserConfig:
    return replace(config, text_dropout=0.0, pose_dropout=0.0, reference_dropout=0.0)


# A standing person, arms spread, in metres about the root; y down.
_STANDING = np.array(
    [
        [0, 0, 0],
        [-0.1, 0, 0],
        [-0.1, 0.4, 0],
        [-0.1, 0.8, 0],
        [0.1, 0, 0],
        [0.1, 0.4, 0],
        [0.1, 0.8, 0],
        [0, -0.25, 0],
        [0, -0.5, 0],
        [0, -0.6, 0],
        [0, -0.7, 0],
        [0.2, -0.5, 0],
        [0.4, -0.4, 0],
        [0.6, -0.4, 0],
        [-0.2, -0.5, 0],
        [-0.4, -0.4, 0],
        [-0.6, -0.4, 0],
    ],
    np.float32,
)


def standing(num_frames: int, seed: int = 0) -> np.ndarray:
    """(T,17,3) metres, camera frame: someone who stands, sways and shivers 3.5 m away."""
    rng = np.random.default_rng(seed)
    sway = 0.2 * np.sin(np.arange(num_frames) / 5)[:, None, None] * np.float32([1, 0, 0.5])
    shiver = rng.normal(0, 0.01, (num_frames, 17, 3))
    return (_STANDING + np.float32([0, 0, 3.5]) + sway + shiver).astype(np.float32)


INTRINSICS = np.float32([[96, 0, 32], [0, 96, 32], [0, 0, 1]])


def feature_row(num_frames: int = 40, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    joints = standing(num_frames, seed)
    projected = joints @ INTRINSICS.T
    return {
        "clip_id": f"clip-{seed}",
        "prompt": "A gymnast with fair skin and black hair in a red leotard jumps, in a blue hall.",
        "latents": rng.normal(size=(num_frames, 4, LATENT_SIDE, LATENT_SIDE)).astype(np.float16),
        "fps": 30.0,
        "height": IMAGE_SIDE,
        "width": IMAGE_SIDE,
        "joints_px": (projected[..., :2] / projected[..., 2:]).astype(np.float32),
        "confidence": np.ones((num_frames, 17), np.float32),
        "joints_dd": joints,
        "gravity": np.float32([0, 1, 0]),
        "intrinsics": INTRINSICS,
        "is_static": True,
        "camera_rotation": np.repeat(np.eye(3, dtype=np.float32)[None], num_frames, 0),
        "camera_zoom": np.ones(num_frames, np.float32),
        "is_camera_known": True,
        "truth_rotation": np.repeat(np.eye(3, dtype=np.float32)[None], num_frames, 0),
        "truth_zoom": np.ones(num_frames, np.float32),
        "body_px": ((joints + 0.01) @ INTRINSICS.T)[..., :2] / (joints + 0.01)[..., 2:],
        "truth_joints_cam_m": joints + np.float32(0.01),
        "in_flight": np.zeros(num_frames, bool),
        "has_truth": True,
    }
