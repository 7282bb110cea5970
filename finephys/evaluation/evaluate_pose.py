"""Measure the shipped detector on held-out rendered clips, and show it on a real video.

Path:    shards, pipeline/pose_estimator -> figures, output/index.html
Letters: T frames, J = 17 joints
Units:   pixel; errors are also given at 256 px, that is in shares of the frame's long side times 256

A confidence is read as the probability that its joint is correct at PCK 0.05. The goal for the expected calibration
error (Guo et al., ICML 2017, 10 bins) is ours; the issue only wants a calibrated confidence. The other goals are its.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray

from finephys.data.video import decode_video, encode_video
from finephys.evaluation.camera import camera_figures
from finephys.evaluation.detections import Detection, detect_split, safe_name
from finephys.evaluation.drawing import draw_skeleton_2d
from finephys.evaluation.figures import Figure, figures_table
from finephys.evaluation.pages import write_page
from finephys.evaluation.pose import correct_keypoints
from finephys.pose.estimator import Pose2D
from finephys.pose.rtmpose import RTMPose
from finephys.skeleton import BONES, JOINT_NAMES, MIRROR, NUM_JOINTS

matplotlib.use("Agg")

THRESHOLD = 0.05
NUM_BINS = 10
# Motions in which the body turns over; their names are in clips.label_name.
SOMERSAULTS = ("salto", "backflip", "roll", "cartwheel", "aerial")
# Clips of which the page shows a video, and the longest real video it reads, in frames.
NUM_SHOWN = 6
MAX_REAL_FRAMES = 240
VIDEO_SIDE_PX = 256

_THORAX = JOINT_NAMES.index("thorax")
_LIMBS = [index for index, name in enumerate(JOINT_NAMES) if name.startswith(("left", "right"))]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Of the bins of confidence: its mean in each, the share of correct joints, and how many joints there are."""

    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    count: NDArray[np.int64]

    @property
    def expected_calibration_error(self) -> float:
        """The distance between confidence and accuracy, averaged over joints."""
        filled = self.count > 0
        gap = np.abs(self.confidence - self.accuracy)[filled]
        return float((gap * self.count[filled]).sum() / self.count.sum())


def evaluate(pipeline: Path, data: str, output: Path) -> list[Figure]:
    """All figures of the detector, and output/index.html. Raises as detections.detect_split does."""
    detections = detect_split(pipeline, data)
    figures = [*accuracy_figures(detections), *somersault_figures(detections), *camera_figures(detections)]
    bins = reliability(
        np.concatenate([found.pose.confidence for found in detections]),
        np.concatenate([_correct(found) for found in detections]),
    )
    figures.append(Figure(name="calibration_error", value=bins.expected_calibration_error, at_most=0.05))
    output.mkdir(parents=True, exist_ok=True)
    _draw_reliability(bins, output / "reliability.png")
    shown = [_write_overlay(found, output) for found in detections[:: max(1, len(detections) // NUM_SHOWN)]]
    real_figures, real_video = _real_video(pipeline, output)
    figures += real_figures
    write_page(
        output,
        title="2D pose on held-out clips",
        table=figures_table(figures),
        pictures=["reliability.png"],
        videos=[*shown, *real_video],
        notes=(
            f"{len(detections)} held-out clips. A bone fades where the detector is not sure of its joints.",
            "The real video is Sports2D's demo (BSD-3)."
            if real_video
            else "No real video: pip install --no-deps sports2d==0.8.34 to see one.",
            "The shipped weights know rendered gymnasts only; RTMPose.from_official loads official ones.",
        ),
    )
    return figures


def accuracy_figures(detections: Sequence[Detection]) -> list[Figure]:
    """Median error, PCK over all joints, of each, and of upright against inverted frames (thorax below root).

    pck_0.05_upright_as_curled: of upright frames weighed so that they are curled up as the inverted ones are. In a tuck
    0.05 of the box is fewer pixels than in a stretched body, and limbs hide each other, whichever way is up.
    """
    error_px = np.concatenate(
        [
            np.linalg.norm(found.pose.joints_px - _truth(found), axis=-1) * 256 / max(found.frames_THWC.shape[1:3])
            for found in detections
        ]
    )
    correct = np.concatenate([_correct(found) for found in detections])
    truth_px = np.concatenate([_truth(found) for found in detections])
    is_inverted = truth_px[:, _THORAX, 1] > truth_px[:, 0, 1]
    of_joint = correct.mean(0)
    upright = correct[~is_inverted].mean() if (~is_inverted).any() else np.nan
    inverted = correct[is_inverted].mean() if is_inverted.any() else np.nan
    return [
        Figure(name="median_error_px_at_256", value=float(np.median(error_px)), at_most=2.0),
        Figure(name="pck_0.05", value=float(correct.mean()), at_least=0.95),
        Figure(name="pck_0.05_worst_joint", value=float(of_joint.min()), at_least=0.85),
        Figure(name="pck_0.05_upright", value=float(upright)),
        Figure(name="pck_0.05_inverted", value=float(inverted)),
        Figure(name="pck_0.05_upright_as_curled", value=_upright_as_curled(correct, truth_px, is_inverted)),
        Figure(name="inverted_below_upright_points", value=float(100 * (upright - inverted)), at_most=3.0),
        *(
            Figure(name=f"pck_0.05_{name}", value=float(value), at_least=0.85)
            for name, value in zip(JOINT_NAMES, of_joint)
        ),
    ]


def _upright_as_curled(
    correct: NDArray[np.bool_], truth_px: NDArray[np.floating], is_inverted: NDArray[np.bool_]
) -> float:
    """The share of correct joints (N, 17) of upright frames, in tenths of the inverted frames by how much bone there is
    for the long side of the box, each as heavy as it has inverted frames; nan where one has no upright frame."""
    if not is_inverted.any():
        return float("nan")
    parents, children = (list(ends) for ends in zip(*BONES))
    bones_px = np.linalg.norm(truth_px[:, children] - truth_px[:, parents], axis=-1).sum(-1)
    curl = bones_px / np.maximum(np.ptp(truth_px, axis=1).max(-1), 1e-6)
    tenth = np.digitize(curl, np.quantile(curl[is_inverted], np.linspace(0.1, 0.9, 9)))
    upright = {number: correct[~is_inverted & (tenth == number)] for number in set(tenth[is_inverted])}
    weight = [(tenth[is_inverted] == number).sum() for number in upright]
    return float(np.average([part.mean() if part.size else np.nan for part in upright.values()], weights=weight))


def somersault_figures(detections: Sequence[Detection]) -> list[Figure]:
    """Of the clips that turn over: frames in which the detected root lies outside the true body's box, and frames in
    which the limbs lie nearer to the other side's than to their own."""
    turning = [found for found in detections if any(word in found.clip.label_name for word in SOMERSAULTS)]
    lost, swapped = [], []
    for found in turning:
        truth_px, joints_px = _truth(found), found.pose.joints_px
        margin_px = 0.1 * np.ptp(truth_px, axis=1).max(-1, keepdims=True)
        low_px, high_px = truth_px.min(1) - margin_px, truth_px.max(1) + margin_px
        lost.append(((joints_px[:, 0] < low_px) | (joints_px[:, 0] > high_px)).any(-1))
        own_px = np.linalg.norm(joints_px - truth_px, axis=-1)[:, _LIMBS].sum(-1)
        other_px = np.linalg.norm(joints_px - truth_px[:, list(MIRROR)], axis=-1)[:, _LIMBS].sum(-1)
        swapped.append(other_px < own_px)
    return [
        Figure(name="somersault_clips", value=float(len(turning))),
        Figure(
            name="somersault_frames_lost", value=float(np.concatenate(lost).mean()) if lost else np.nan, at_most=0.0
        ),
        Figure(
            name="somersault_frames_left_for_right", value=float(np.concatenate(swapped).mean()) if swapped else np.nan
        ),
    ]


def reliability(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> Reliability:
    """Bins of equal width over confidence in [0, 1]; both arguments of one shape. An empty bin holds nans."""
    if confidence.shape != correct.shape:
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} must have one shape")
    sure = confidence.reshape(-1).astype(np.float64)
    bin_of = np.clip((sure * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    count = np.bincount(bin_of, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bin_of, sure, NUM_BINS) / count
        accuracy = np.bincount(bin_of, correct.reshape(-1).astype(np.float64), NUM_BINS) / count
    return Reliability(confidence=mean, accuracy=accuracy, count=count)


def _truth(found: Detection) -> NDArray[np.float32]:
    assert found.clip.joints_px is not None
    return found.clip.joints_px


def _correct(found: Detection) -> NDArray[np.bool_]:
    return correct_keypoints(found.pose.joints_px, _truth(found), THRESHOLD)


def _draw_reliability(bins: Reliability, path: Path) -> None:
    from matplotlib.figure import Figure as Plot

    plot = Plot(figsize=(5, 5), layout="constrained")
    axes = plot.add_subplot()
    middle = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    axes.bar(middle, np.nan_to_num(bins.accuracy), 0.9 / NUM_BINS, color="#7aa6c2", label="correct at PCK 0.05")
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="calibrated")
    axes.plot(middle, bins.count / max(1, bins.count.max()), "o-", color="#c2603a", label="joints (relative)")
    axes.set(xlabel="confidence", ylabel="share", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"expected calibration error {bins.expected_calibration_error:.3f}")
    axes.legend()
    writing = path.with_name(f".{path.name}")
    plot.savefig(writing, format="png", dpi=100)
    os.replace(writing, path)


def _write_overlay(found: Detection, output: Path) -> tuple[str, str]:
    name = f"{safe_name(found.clip.clip_id)}.mp4"
    _write_video(output / name, found.frames_THWC, found.pose, found.clip.fps)
    return f"{found.clip.label_name}: PCK {_correct(found).mean():.2f}", name


def _write_video(path: Path, frames_THWC: NDArray[np.uint8], pose: Pose2D, fps: float) -> None:
    # Even sides, as H.264 wants them, and large enough to see a wrist.
    scale = VIDEO_SIDE_PX / max(frames_THWC.shape[1:3])
    height, width = (2 * max(1, round(side * scale / 2)) for side in frames_THWC.shape[1:3])
    drawn = [
        draw_skeleton_2d(frame, joints_px, (height, width), confidence=confidence, dim=0.2)
        for frame, joints_px, confidence in zip(frames_THWC, pose.joints_px, pose.confidence)
    ]
    writing = path.with_name(f".{path.name}")
    writing.write_bytes(encode_video(np.stack(drawn), fps))
    os.replace(writing, path)


def _real_video(pipeline: Path, output: Path) -> tuple[list[Figure], list[tuple[str, str]]]:
    """What the detector makes of Sports2D's demo video where that package is installed; no figures without."""
    package = importlib.util.find_spec("Sports2D")
    if package is None or not package.submodule_search_locations:
        return [], []
    path = Path(package.submodule_search_locations[0]) / "Demo" / "demo.mp4"
    if not path.is_file():
        return [], []
    video = decode_video(path.read_bytes())
    frames_THWC = video.frames_THWC[:MAX_REAL_FRAMES]
    pose = RTMPose.from_pretrained(pipeline, subfolder="pose_estimator").float().eval().estimate(frames_THWC)
    _write_video(output / "real-video.mp4", frames_THWC, pose, video.fps)
    sure = pose.confidence >= 0.5
    return [
        Figure(name="real_video_frames", value=float(len(frames_THWC))),
        Figure(name="real_video_mean_confidence", value=float(pose.confidence.mean())),
        Figure(name="real_video_frames_detected", value=float((sure.sum(-1) > NUM_JOINTS // 2).mean())),
    ], [("Sports2D demo, a real person", "real-video.mp4")]
