"""Measure the shipped lifter behind the shipped detector on held-out clips, and what its prompts are worth.

Path:    shards, pipeline/{pose_estimator, lifter} -> figures, output/index.html
         synthetic windows, pipeline/{lifter_with_prompts, lifter_without_prompts} -> what prompts are worth
Letters: T frames, J = 17 joints
Units:   millimetre, degree
Frames:  camera of the middle frame, x right, y down, z forward

lifter_without_prompts is lifter_with_prompts trained afresh, as long and on the same windows, with num_prompts 0
(jobs/train.py demo --stage lifting --init None, without and with --module.lifter.num-prompts 0; both exported and
copied to these names). The lifter itself, which trained longer, stands for the first where the two are missing; what
prompts are worth is not known then, and the goal is not met.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.evaluation.detections import detect_split
from finephys.evaluation.figures import Figure, figures_table
from finephys.evaluation.lifts import Lift, lift
from finephys.evaluation.pages import write_page
from finephys.evaluation.pose import mpjpe, pa_mpjpe
from finephys.evaluation.viewer import write_viewer
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Lifter
from finephys.pose.windows import sample_window

REAL_FLIGHT = ("backflip", "spinkick")
GROUND = ("roll", "hop dance")
# Group -> goals for MPJPE and PA-MPJPE in mm.
GOALS = {"seen_motions": (45.0, 32.0), "ground_motions": (75.0, 55.0), "real_flight": (120.0, 90.0)}
# Windows on which prompts are judged, and the seed of their sequence, which no training uses.
NUM_WINDOWS = 200
_WINDOWS_SEED = 2_000_003
NUM_SHOWN = 4


def evaluate(pipeline: Path, data: str, output: Path) -> list[Figure]:
    """All figures of the lifter, and output/index.html with viewers. Raises as detections.detect_split does."""
    if not (pipeline / "lifter").is_dir():
        raise FileNotFoundError(f"{pipeline} has no folder lifter")
    lifter = _load(pipeline / "lifter")
    lifts = [lift(lifter, found) for found in detect_split(pipeline, data)]
    figures = [*accuracy_figures(lifts), *scene_figures(lifts)]
    pair = [pipeline / f"lifter_{name}_prompts" for name in ("with", "without")]
    trained_alike = all(folder.is_dir() for folder in pair)
    figures += prompt_figures(*map(_load, pair)) if trained_alike else prompt_figures(lifter, None)

    viewers = []
    # One of each group first, the harder ones before.
    order = sorted(range(len(lifts)), key=lambda index: _rank(lifts, index))[:NUM_SHOWN]
    for number, index in enumerate(order):
        one = lifts[index]
        name = f"viewer-{number}.html"
        write_viewer(
            output / name,
            title=f"{one.clip.label_name} ({one.clip.clip_id})",
            video=one.clip.video,
            fps=one.clip.fps,
            size=(one.clip.height, one.clip.width),
            pose=one.found.pose,
            lifted=one.lifted,
            truth_cam_m=one.clip.joints_cam_m,
        )
        viewers.append(name)
    write_page(
        output,
        title="3D lifting on held-out clips, from detected 2D",
        table=figures_table(figures),
        frames=viewers,
        notes=(
            "Drag the skeleton to turn it. Orange: right, blue: left, grey: ground truth.",
            "(a): windows like training's. (b): bodies and camera pitches outside training, matching prompts supplied.",
        ),
    )
    return figures


def accuracy_figures(lifts: Sequence[Lift]) -> list[Figure]:
    """Root-relative MPJPE and PA-MPJPE of the three groups of motions, over frames."""
    figures = []
    for group, goals in GOALS.items():
        pairs = [(one.lifted.joints_cam_m, _truth(one)) for one in lifts if group_of(one) == group]
        for name, measure, goal in zip(("mpjpe_mm", "pa_mpjpe_mm"), (mpjpe, pa_mpjpe), goals):
            joints, truths = (np.concatenate(side) for side in zip(*pairs)) if pairs else (None, None)
            value = 1000 * measure(joints, truths) if joints is not None and truths is not None else np.nan
            figures.append(Figure(name=f"{group}_{name}", value=value, at_most=goal))
    return figures


def scene_figures(lifts: Sequence[Lift]) -> list[Figure]:
    """Gravity's and the root's direction, the root's depth, the camera's state, and whether the spreads are right."""
    gravity_deg, lifted_gravity_deg, direction_deg, depth, static_right, ratio = [], [], [], [], [], []
    for one in lifts:
        pose, truth_m = one.lifted, _truth(one)
        assert one.clip.rotation is not None
        down = -one.clip.rotation[0, :, 1]
        gravity_deg.append(angle_deg(one.gravity_cam, down))
        lifted_gravity_deg.append(angle_deg(pose.gravity_cam, down))
        direction_deg.append(angle_deg(pose.root_cam_m, truth_m[:, 0]))
        depth.append(np.abs(pose.root_cam_m[:, 2] / truth_m[:, 0, 2] - 1))
        static_right.append(one.camera.is_static == bool(one.clip.is_static))
        if pose.joints_spread_m is not None:
            error_m = (pose.joints_cam_m - pose.joints_cam_m[:, :1]) - (truth_m - truth_m[:, :1])
            ratio.append(np.linalg.norm(error_m, axis=-1).mean() / pose.joints_spread_m.mean())
    return [
        Figure(name="gravity_median_deg", value=float(np.median(gravity_deg)), at_most=3.0),
        Figure(name="gravity_lifter_alone_median_deg", value=float(np.median(lifted_gravity_deg))),
        Figure(name="root_direction_median_deg", value=float(np.median(np.concatenate(direction_deg)))),
        Figure(name="root_depth_median_percent", value=float(100 * np.median(np.concatenate(depth)))),
        Figure(name="camera_state_right", value=float(np.mean(static_right))),
        Figure(name="joint_error_over_spread", value=float(np.mean(ratio)) if ratio else np.nan),
    ]


def prompt_figures(lifter: Lifter, without: Lifter | None) -> list[Figure]:
    """MPJPE with and without prompts on windows like training's (a) and outside of it with matching prompts (b).

    prompted: in (a) by the clip's own prompts, in (b) by those that match; own: in (b) by the clip's own.
    """
    figures = []
    for name, is_outside in (("a_like_training", False), ("b_outside_training", True)):
        networks = {"prompted": lifter, "without": without}
        if is_outside:
            networks["own"] = lifter
        errors: dict[str, list[float]] = {column: [] for column in networks}
        for index in range(NUM_WINDOWS):
            row = sample_window(
                index, _WINDOWS_SEED, split="test", num_frames=16, num_prompts=2, is_outside_training=is_outside
            )
            pose, truth_m = Pose2D(row["joints_px"], row["confidence"]), row["joints_cam_m"]
            prompts = (row["prompt_joints_cam_m"], row["prompt_gravity"])
            for column, network in networks.items():
                if network is not None:
                    given = prompts if is_outside and column == "prompted" else None
                    lifted = network.lift(pose, row["intrinsics"], row["fps"], prompts=given)
                    errors[column].append(1000 * mpjpe(lifted.joints_cam_m, truth_m))
        mean = {column: float(np.mean(values)) if values else np.nan for column, values in errors.items()}
        figures += [Figure(name=f"{name}_{column}_mpjpe_mm", value=value) for column, value in mean.items()]
        gain = 100 * (1 - mean["prompted"] / mean["without"])
        figures.append(Figure(name=f"{name}_prompts_gain_percent", value=gain, at_least=10.0 if is_outside else None))
    return figures


def group_of(one: Lift) -> str:
    """Which of GOALS a clip belongs to, by its motion; choreographed and captured motions of training are "seen"."""
    if one.clip.label_name in REAL_FLIGHT:
        return "real_flight"
    return "ground_motions" if one.clip.label_name in GROUND else "seen_motions"


def angle_deg(one: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """The angle between vectors (..., 3)."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    sine = np.linalg.norm(np.cross(one, other), axis=-1)
    return np.asarray(np.degrees(np.arctan2(sine, (one * other).sum(-1))))


def _rank(lifts: Sequence[Lift], index: int) -> tuple[int, int]:
    group = group_of(lifts[index])
    earlier = sum(group_of(one) == group for one in lifts[:index])
    return earlier, -list(GOALS).index(group)


def _load(folder: Path) -> Lifter:
    lifter: Lifter = Lifter.from_pretrained(folder, torch_dtype=torch.float32).eval()
    return lifter


def _truth(one: Lift) -> NDArray[np.float32]:
    assert one.clip.joints_cam_m is not None
    return one.clip.joints_cam_m
