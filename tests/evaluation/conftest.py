"""A made-up gymnast for these tests: a stick figure that jumps and turns over backward once, in front of a camera."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from finephys.evaluation.sheet import Hops
from finephys.skeleton import BONES, JOINT_NAMES, NUM_JOINTS

# Standing, seen from the front: x to the gymnast's left, y up, z forward, metres above the floor.
_STANDING = {
    "root": (0.0, 0.92, 0.0),
    "right_hip": (-0.12, 0.92, 0.0),
    "right_knee": (-0.13, 0.5, 0.03),
    "right_ankle": (-0.13, 0.08, 0.0),
    "left_hip": (0.12, 0.92, 0.0),
    "left_knee": (0.15, 0.72, 0.36),
    "left_ankle": (0.15, 0.36, 0.22),
    "spine": (0.0, 1.15, 0.0),
    "thorax": (0.0, 1.4, -0.02),
    "neck": (0.0, 1.5, 0.04),
    "head": (0.0, 1.62, 0.02),
    "left_shoulder": (0.17, 1.38, 0.0),
    "left_elbow": (0.34, 1.36, 0.22),
    "left_wrist": (0.3, 1.5, 0.44),
    "right_shoulder": (-0.17, 1.38, 0.0),
    "right_elbow": (-0.24, 1.64, 0.06),
    "right_wrist": (-0.26, 1.88, 0.12),
}
GRAVITY_M_S2 = 9.81
INTRINSICS = np.array([[190.0, 0, 64], [0, 190.0, 64], [0, 0, 1]])


def joints_cam_m(num_frames: int = 32, fps: float = 30.0) -> NDArray[np.float64]:
    """(T, 17, 3) in the camera frame (y down): a back somersault of one second, 4.5 m away."""
    body = np.array([_STANDING[name] for name in JOINT_NAMES]) - _STANDING["spine"]
    frames = []
    for index in range(num_frames):
        time_s = index / fps
        flight_s = num_frames / fps
        height_m = 1.15 + 0.5 * GRAVITY_M_S2 * time_s * (flight_s - time_s) * 0.6
        turn = -2 * np.pi * index / (num_frames - 1)
        about_x = np.array(
            [[1, 0, 0], [0, np.cos(turn), -np.sin(turn)], [0, np.sin(turn), np.cos(turn)]],
        )
        # The gymnast is seen from the side, and travels to the right.
        seen_from_side = np.array([[0.17, 0, 0.98], [0, 1, 0], [-0.98, 0, 0.17]])
        world = (body @ about_x.T) @ seen_from_side.T + [0.8 * time_s - 0.4, height_m, 0]
        frames.append(world * [1, -1, 1] + [0, 1.5, 6.0])
    return np.stack(frames)


def project(joints_m: NDArray[np.float64]) -> NDArray[np.float64]:
    pixels = joints_m @ INTRINSICS.T
    return pixels[..., :2] / pixels[..., 2:]


def heatmaps(joints_px: NDArray[np.float64], image_px: int = 128, map_px: int = 32) -> NDArray[np.float32]:
    """Gaussians: (F, 17 + 16 + 1, h, w), joints, limbs, and a channel that stands for depth."""
    centres = (np.arange(map_px) + 0.5) * image_px / map_px
    rows, columns = np.meshgrid(centres, centres, indexing="ij")
    maps = []
    for frame in joints_px:
        points = [np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2)) for x, y in frame]
        limbs = []
        for parent, child in BONES:
            samples = frame[parent] + np.linspace(0, 1, 9)[:, None] * (frame[child] - frame[parent])
            limbs.append(
                np.max([np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 4.0**2)) for x, y in samples], 0)
            )
        maps.append(np.stack([*points, *limbs, np.zeros_like(rows)]))
    return np.stack(maps).astype(np.float32)


def made_up_hops(num_frames: int = 32, num_generated: int = 16, seed: int = 0) -> Hops:
    """Every hop of the made-up clip, the data-driven ones with noise."""
    rng = np.random.default_rng(seed)
    truth = joints_cam_m(num_frames)
    jitter = rng.normal(0, 0.04, truth.shape) + rng.normal(0, 0.08, (num_frames, 1, 1)) * [0, 0, 1]
    lifted = truth + jitter
    physical = truth + 0.2 * jitter
    frame_index = np.linspace(0, num_frames - 1, num_generated).round().astype(int)
    gradient = np.linspace(90, 210, 128)[:, None, None] * np.array([0.8, 0.9, 1.0])
    frames = np.broadcast_to(gradient, (num_frames, 128, 128, 3)).astype(np.uint8).copy()
    pixels = project(truth)
    for index in range(num_frames):
        for joint in range(NUM_JOINTS):
            x, y = pixels[index, joint].astype(int)
            frames[index, max(y - 4, 0) : y + 4, max(x - 4, 0) : x + 4] = (200, 60, 90)
    guidance_px = project(physical[frame_index])
    return Hops(
        title="salto backward stretched · test clip 0007",
        prompt="A gymnast in a red leotard jumps backward, turns over once in the air with a straight body and lands.",
        fps=30.0,
        frames_THWC=frames,
        joints_px=pixels + rng.normal(0, 1.5, pixels.shape),
        confidence=rng.uniform(0.3, 1, pixels.shape[:2]),
        joints_dd=lifted,
        joints_pp=physical,
        fused=truth + 0.1 * jitter,
        gravity_cam=np.array([0.0, 1.0, 0.0]),
        frame_index=frame_index,
        guidance_px=guidance_px,
        heatmaps_FCHW=heatmaps(guidance_px),
        generated_FHWC=frames[frame_index][:, ::-1].copy(),
        truth_cam_m=truth,
    )


@pytest.fixture
def make_hops() -> Callable[..., Hops]:
    return made_up_hops
