"""How fast 2D pose and lifting are, beside the networks' own forward passes in the same run.

Path:    a shipped clip, swaying joints -> figures
Letters: T frames, N windows
Units:   frames per second, milliseconds

The ceiling of 2D pose is the network on as many crops as `estimate` shows it (one a frame in each of its passes, and in
the last its mirror image too), in the same batches; that of lifting is the network on windows that lie ready. Both
sides take turns, and medians are compared.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.data.video import decode_video
from finephys.evaluation.detections import read_split
from finephys.evaluation.figures import Figure
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Lifter
from finephys.pose.rtmpose import CROPS_PER_FORWARD, NUM_FOLLOWING_PASSES, RTMPose, stack_frames

ASSETS = Path(__file__).parent.parent / "assets"
PIPELINE, CLIPS = ASSETS / "pipeline", ASSETS / "clips"
NUM_FRAMES = 64
NUM_CLIPS = 16
REPEATS = 7
# Clip lengths over which the cost of lifting is fitted.
LENGTHS = (500, 1000, 2000, 4000)
FPS = 30.0


def measure() -> list[Figure]:
    """All figures, of the shipped weights on the CPU threads that torch has."""
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        return [*_pose_figures(), *_lifting_figures(rng), *_length_figures(rng)]


def _pose_figures() -> list[Figure]:
    estimator: RTMPose = RTMPose.from_pretrained(PIPELINE, subfolder="pose_estimator", torch_dtype=torch.float32).eval()
    frames_THWC = _frames()
    crops_NFHWC = torch.from_numpy(frames_THWC)[:, None].expand(-1, estimator.config.frames_per_crop, -1, -1, -1)
    crops_NCHW = stack_frames(crops_NFHWC)

    def bare() -> None:
        for _ in range(1 + NUM_FOLLOWING_PASSES + 1):
            for crops in crops_NCHW.split(CROPS_PER_FORWARD):
                estimator(crops)

    whole_s, bare_s = _seconds(lambda: estimator.estimate(frames_THWC), bare)
    return [
        Figure(name="pose2d_frames_per_s", value=NUM_FRAMES / whole_s),
        Figure(name="pose2d_bare_frames_per_s", value=NUM_FRAMES / bare_s),
        Figure(name="pose2d_share_of_bare", value=bare_s / whole_s, at_least=0.85),
    ]


def _lifting_figures(rng: np.random.Generator) -> list[Figure]:
    lifter = _lifter()
    pose = _walk(rng, NUM_FRAMES)
    joints_px = torch.from_numpy(pose.joints_px).expand(NUM_CLIPS, -1, -1, -1)
    confidence = torch.from_numpy(pose.confidence).expand(NUM_CLIPS, -1, -1)
    intrinsics, fps = torch.from_numpy(_intrinsics()).expand(NUM_CLIPS, 3, 3), torch.full((NUM_CLIPS,), FPS)
    calls: list[Any] = []
    complete: Any = lifter.complete

    def record(*arguments: Any) -> Any:
        calls.append(arguments)
        return complete(*arguments)

    lifter.complete = record  # type: ignore[method-assign,assignment]
    lifter.lift_both_ways(joints_px, confidence, intrinsics, fps)
    lifter.complete = complete  # type: ignore[method-assign,assignment]
    whole_s, bare_s = _seconds(
        lambda: lifter.lift_both_ways(joints_px, confidence, intrinsics, fps),
        lambda: [complete(*arguments) for arguments in calls],
    )
    one_s, _ = _seconds(lambda: lifter.lift(pose, _intrinsics(), FPS), lambda: None)
    return [
        Figure(name="lifting_frames_per_s", value=NUM_CLIPS * NUM_FRAMES / whole_s),
        Figure(name="lifting_bare_frames_per_s", value=NUM_CLIPS * NUM_FRAMES / bare_s),
        Figure(name="lifting_share_of_bare", value=bare_s / whole_s, at_least=0.85),
        Figure(name=f"lifting_ms_per_clip_of_{NUM_FRAMES}_frames", value=1000 * one_s),
    ]


def _length_figures(rng: np.random.Generator) -> list[Figure]:
    """The exponent of length in the cost of lifting: 1 is linear. A tenth more is this machine's noise."""
    lifter = _lifter()
    seconds = []
    for num_frames in LENGTHS:
        pose = _walk(rng, num_frames)
        whole_s, _ = _seconds(lambda pose=pose: lifter.lift(pose, _intrinsics(), FPS), lambda: None)  # type: ignore[misc]
        seconds.append(whole_s)
    exponent = float(np.polyfit(np.log(LENGTHS), np.log(seconds), 1)[0])
    return [Figure(name="lifting_cost_exponent_of_length", value=exponent, at_most=1.1)]


def _frames() -> NDArray[np.uint8]:
    """The first frames of the first held-out clip that has as many. In noise nobody is found, and boxes never move."""
    clip = next(clip for clip in read_split(str(CLIPS), "test") if clip.num_frames >= NUM_FRAMES)
    return decode_video(clip.video).frames_THWC[:NUM_FRAMES]


def _seconds(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Medians of REPEATS calls of each, in turns, after one of each that does not count."""
    taken: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS + 1):
        for call, times in zip((one, other), taken):
            start = time.perf_counter()
            call()
            if repeat:
                times.append(time.perf_counter() - start)
    return float(np.median(taken[0])), float(np.median(taken[1]))


def _lifter() -> Lifter:
    lifter: Lifter = Lifter.from_pretrained(PIPELINE, subfolder="lifter", torch_dtype=torch.float32).eval()
    return lifter


def _walk(rng: np.random.Generator, num_frames: int) -> Pose2D:
    """Joints that sway about their places in a frame of 128 x 128."""
    sway = np.sin(np.linspace(0, num_frames / 10, num_frames))[:, None, None]
    joints_px = 64 + rng.normal(0, 15, (17, 2)) + sway * rng.normal(0, 4, (17, 2))
    return Pose2D(joints_px.astype(np.float32), np.full((num_frames, 17), 0.9, np.float32))


def _intrinsics() -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.array([[192, 0, 64], [0, 192, 64], [0, 0, 1]], np.float32)
