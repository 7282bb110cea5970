"""Measure what physics adds to the lifted motion on held-out clips, beside smoothers, a black box, and its own parts.

Path:    shards, pipeline/{pose_estimator, lifter, phys_net, refiner} -> S_dd, S_pp, fused -> figures, output/index.html
Letters: T frames, J = 17 joints, N clips
Units:   millimetre, metre, second
Frames:  camera of the middle frame; flights are judged in the world (motion_errors.py)

refiner is Phys-Net's network of the same size that moves the joints directly
(jobs/train.py demo --stage physics --module.phys-net.recursion none --init PIPELINE --output ...). Without that folder
its column is missing and the page says so. Smoothers are tuned on clips of the train split. The goals are issue 5's.
Folders phys_net_* are Phys-Nets trained from other seeds (the stage physics with --seed 1, its phys_net copied to
phys_net_seed_1): each gets a row and figures of its own, whose names end in _seed_1. flight_f1 of the ground group is
the F1 of the frames on the floor, since flight is a hop or nothing there; of the others that of the frames in flight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.data.clips import Clip
from finephys.evaluation.detections import read_split
from finephys.evaluation.figures import Figure, figures_table
from finephys.evaluation.lifts import Lift, lift_clips
from finephys.evaluation.motion_errors import (
    MotionErrors,
    flight_calls,
    flight_f1,
    floor_f1,
    mean_of,
    motion_errors,
    ratio_of,
)
from finephys.evaluation.pages import write_page
from finephys.evaluation.physics_page import Errors, column, draw_comparison, errors_table, indices_of, verdicts
from finephys.evaluation.smoothers import SMOOTHERS, tune
from finephys.guidance.fuse import fuse
from finephys.physics.phys_net import PhysNet, Recursion, Term, called_flights
from finephys.physics.training import LIFTER_FOLDER, PHYS_NET_FOLDER, REFINER_FOLDER
from finephys.pose.lifting import Lifter

FLOATS = NDArray[np.float64]

GROUND = ("roll", "hop dance")
AERIALS = ("FX-SALTO", "FX-JUMP")
REAL_FLIGHT = ("spinkick",)


@dataclass(frozen=True, kw_only=True)
class Goals:
    """What the issue wants of one group of motions; None where it wants nothing."""

    mpjpe_ratio: float
    flight_f1: float
    flight_residual_m_s2: float | None = None
    momentum_drift: float | None = None


GROUPS = {
    "ground": Goals(mpjpe_ratio=0.90, flight_f1=0.95),
    "aerials": Goals(mpjpe_ratio=0.88, flight_f1=0.95, flight_residual_m_s2=0.7, momentum_drift=0.08),
    "real_flight": Goals(mpjpe_ratio=0.95, flight_f1=0.85, flight_residual_m_s2=1.5),
}
BONE_STD_MM = 3.0
BLACK_BOX = "black box"
# Clips of the train split, spread evenly over it, on which smoothers are tuned.
NUM_TUNING_CLIPS = 36


def evaluate(pipeline: Path, data: str, output: Path) -> list[Figure]:
    """All figures of Phys-Net, and output/index.html with tables and plots.

    Raises FileNotFoundError, naming it, where a part of the pipeline is missing, and as detections.detect_clips does.
    """
    for folder in (LIFTER_FOLDER, PHYS_NET_FOLDER):
        if not (pipeline / folder).is_dir():
            raise FileNotFoundError(f"{pipeline} has no folder {folder}")
    lifter: Lifter = Lifter.from_pretrained(pipeline / LIFTER_FOLDER, torch_dtype=torch.float32).eval()
    phys_net: PhysNet = PhysNet.from_pretrained(pipeline / PHYS_NET_FOLDER, torch_dtype=torch.float32).eval()
    lifts = lift_clips(lifter, pipeline, (clip for clip in read_split(data, "test") if group_of(clip)), data)
    groups = [group_of(lift.clip) for lift in lifts]
    settings = tuned_settings(lifter, pipeline, data)

    joints_dd = [lift.lifted.joints_cam_m.astype(np.float64) for lift in lifts]
    errors = {"S_dd": errors_of(lifts, joints_dd)}
    for name, setting in settings.items():
        smooth = SMOOTHERS[name][0]
        errors[name] = errors_of(
            lifts, [smooth(joints, lift.clip.fps, setting) for joints, lift in zip(joints_dd, lifts)]
        )
    has_refiner = (pipeline / REFINER_FOLDER).is_dir()
    if has_refiner:
        refiner: PhysNet = PhysNet.from_pretrained(pipeline / REFINER_FOLDER, torch_dtype=torch.float32).eval()
        errors[BLACK_BOX] = errors_of(lifts, [re_estimate(refiner, lift).fused_m for lift in lifts])
    estimates = [re_estimate(phys_net, lift) for lift in lifts]
    errors["S_pp"] = errors_of(lifts, [one.joints_pp_m for one in estimates])
    errors["fused"] = errors_of(lifts, [one.fused_m for one in estimates])
    figures = physics_figures(errors, _calls(estimates, lifts), groups)
    for trained_alike in sorted(pipeline.glob(f"{PHYS_NET_FOLDER}_*")):
        seed = trained_alike.name.removeprefix(PHYS_NET_FOLDER)
        other: PhysNet = PhysNet.from_pretrained(trained_alike, torch_dtype=torch.float32).eval()
        others = [re_estimate(other, lift) for lift in lifts]
        errors[f"fused{seed}"] = errors_of(lifts, [one.fused_m for one in others])
        figures += physics_figures(errors, _calls(others, lifts), groups, seed)
    errors["truth"] = errors_of(lifts, [_truth(lift.clip) for lift in lifts])

    ablation = ablate(phys_net, lifts)
    output.mkdir(parents=True, exist_ok=True)
    draw_comparison(errors, groups, tuple(GROUPS), output / "comparison.png")
    tables = [
        figures_table(figures),
        "Comparison\n" + errors_table(errors, groups, tuple(GROUPS)),
        "Ablation of the fused motion\n" + errors_table(ablation, groups, tuple(GROUPS)),
    ]
    counts = ", ".join(f"{groups.count(group)} {group}" for group in GROUPS)
    num_unknown = sum(not lift.camera.is_known for lift in lifts)
    write_page(
        output,
        title="What physics adds to the lifted motion, on held-out clips from detected 2D",
        table="\n\n".join(tables),
        pictures=["comparison.png"],
        notes=(
            f"Clips: {counts}; {sum(not lift.clip.is_static for lift in lifts)} have a moving camera, whose "
            f"motion is estimated from the background; in {num_unknown} clips it is not known and the parabola is off.",
            "In brackets: 95 % bootstrap intervals over clips.",
            *verdicts(figures),
            f"Smoothers as tuned on the train split: {settings}.",
            "The black box is the pipeline's refiner folder."
            if has_refiner
            else f"The black box is not compared: {pipeline} has no folder {REFINER_FOLDER}.",
        ),
    )
    return figures


# --- from clips to motions


@dataclass(frozen=True)
class Estimate:
    """joints_pp_m, fused_m (T, 17, 3) metres, camera frame; in_flight (T,) as Phys-Net calls it."""

    joints_pp_m: NDArray[np.float32]
    fused_m: NDArray[np.float32]
    in_flight: NDArray[np.bool_]


def re_estimate(phys_net: PhysNet, lift: Lift) -> Estimate:
    """S_pp and the fused motion of one clip, from what the detector and the lifter say alone."""

    def batch(values: NDArray[np.floating]) -> torch.Tensor:
        return torch.tensor(np.asarray(values), dtype=torch.float32)[None]

    joints_dd_BTJ3, dt_s_1 = batch(lift.lifted.joints_cam_m), torch.tensor([1 / lift.clip.fps])
    with torch.no_grad():
        physics = phys_net(
            joints_dd_BTJ3,
            batch(lift.pose.joints_px),
            batch(lift.pose.confidence),
            batch(lift.intrinsics),
            batch(lift.gravity_cam),
            dt_s_1,
            torch.tensor([lift.camera.is_known]),
        )
        fused_BTJ3 = fuse(joints_dd_BTJ3, physics.joints_pp_BTJ3, physics.gate_BTJ)
    return Estimate(
        physics.joints_pp_BTJ3[0].numpy(),
        fused_BTJ3[0].numpy(),
        called_flights(physics.flight_logit_BT, dt_s_1)[0].numpy(),
    )


def tuned_settings(lifter: Lifter, pipeline: Path, data: str) -> dict[str, tuple[float, ...]]:
    """The best setting of each smoother on S_dd of clips of the train split."""
    clips = [clip for clip in read_split(data, "train") if clip.joints_cam_m is not None]
    clips = clips[:: max(1, len(clips) // NUM_TUNING_CLIPS)]
    motions = [
        (lift.lifted.joints_cam_m.astype(np.float64), _truth(lift.clip), lift.clip.fps)
        for lift in lift_clips(lifter, pipeline, clips, f"data {data} in split 'train'")
    ]
    return {name: tune(name, motions) for name in SMOOTHERS}


def group_of(clip: Clip) -> str | None:
    """Which of GROUPS a clip belongs to; None for the motions that training has seen captured."""
    if clip.subset in AERIALS:
        return "aerials"
    if clip.label_name in REAL_FLIGHT:
        return "real_flight"
    return "ground" if clip.label_name in GROUND else None


# --- figures and ablation


def physics_figures(
    errors: Errors, calls_N4: NDArray[np.int64], groups: Sequence[str | None], seed: str = ""
) -> list[Figure]:
    """The issue's table, cell by cell. What is not known is NaN, and not met.

    calls_N4: flight_calls of each clip.  seed: ends the names of figures and errors where it is not the shipped net.
    """
    ours = f"fused{seed}"
    figures = []
    for group, goals in GROUPS.items():
        mine = indices_of(groups, group)

        def of(name: str, cell: str, mine: list[int] = mine) -> FLOATS:
            return column(errors, name, cell, mine)

        for cell, short, over_dd in (
            ("mpjpe_mm", "mpjpe", goals.mpjpe_ratio),
            ("acceleration_m_s2", "acceleration_error", None),
        ):
            fused_N = of(ours, cell)
            smoother_N = min((of(name, cell) for name in SMOOTHERS), key=mean_of)
            box = ratio_of(fused_N, of(BLACK_BOX, cell)) if BLACK_BOX in errors else np.nan
            figures += [
                Figure(name=f"{short}_ratio_{group}", value=ratio_of(fused_N, of("S_dd", cell)), at_most=over_dd),
                Figure(name=f"{short}_over_best_smoother_{group}", value=ratio_of(fused_N, smoother_N), at_most=1.0),
                Figure(name=f"{short}_over_black_box_{group}", value=box, at_most=1.0),
            ]
        for cell, goal in (
            ("bone_std_mm", BONE_STD_MM),
            ("flight_residual_m_s2", goals.flight_residual_m_s2),
            ("momentum_drift", goals.momentum_drift),
        ):
            figures.append(Figure(name=f"{cell}_{group}", value=mean_of(of(ours, cell)), at_most=goal))
        f1 = floor_f1 if group == "ground" else flight_f1
        figures.append(Figure(name=f"flight_f1_{group}", value=f1(calls_N4[mine]), at_least=goals.flight_f1))
    return [replace(figure, name=f"{figure.name}{seed}") for figure in figures]


def ablate(phys_net: PhysNet, lifts: Sequence[Lift]) -> Errors:
    """The fused motion's errors with parts of Phys-Net's inference left out; the weights stay the same throughout."""
    whole: tuple[Recursion, int] = (phys_net.recursion, phys_net.num_gauss_newton_steps)
    rows: dict[str, tuple[Recursion, int, frozenset[Term]]] = {
        "forward only": ("forward", 0, frozenset()),
        "both directions": ("bidirectional", 0, frozenset()),
        "+ solve": ("solve", 0, frozenset()),
        "+ Gauss-Newton": (*whole, frozenset()),
        **{f"  without {term}": (*whole, frozenset({term})) for term in get_args(Term)},
    }
    errors = {"no physics": errors_of(lifts, [lift.lifted.joints_cam_m for lift in lifts])}
    try:
        for name, (recursion, num_steps, without) in rows.items():
            phys_net.recursion, phys_net.num_gauss_newton_steps, phys_net.without = recursion, num_steps, without
            errors[name] = errors_of(lifts, [re_estimate(phys_net, lift).fused_m for lift in lifts])
    finally:
        phys_net.recursion, phys_net.num_gauss_newton_steps = whole
        phys_net.without = frozenset()
    return errors


def _calls(estimates: Sequence[Estimate], lifts: Sequence[Lift]) -> NDArray[np.int64]:
    return np.array([flight_calls(one.in_flight, lift.clip) for lift, one in zip(lifts, estimates, strict=True)])


def errors_of(lifts: Sequence[Lift], joints_m: Sequence[NDArray[np.floating]]) -> list[MotionErrors]:
    """The errors of each clip's motion."""
    return [motion_errors(joints, lift.clip) for lift, joints in zip(lifts, joints_m, strict=True)]


def _truth(clip: Clip) -> FLOATS:
    assert clip.joints_cam_m is not None
    return clip.joints_cam_m.astype(np.float64)
