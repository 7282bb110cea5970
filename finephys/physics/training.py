"""Train Phys-Net on synthetic windows, behind the lifter that it will stand behind.

Path:    (training only) windows -> S_dd -> losses; writes <pipeline>/phys_net
Letters: B windows, T = 32 frames, J = 17 joints
Units:   metre, second
Frames:  camera, x right, y down, z forward
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finephys.guidance.fuse import fuse
from finephys.physics.body import bone_lengths
from finephys.physics.phys_net import PhysicsPose, PhysNet, PhysNetConfig, Recursion
from finephys.pose.lifting import Lifter
from finephys.pose.windows import detected

# Their folders in a pipeline folder.
PHYS_NET_FOLDER = "phys_net"
# The black box of the same size that evaluation compares with: a PhysNet of recursion "none".
REFINER_FOLDER = "refiner"
LIFTER_FOLDER = "lifter"

# Weights of the terms of pose_losses against one metre of root-relative position error. Accelerations are hundreds of
# times larger numbers than positions; these make the terms of an untrained network about equal.
VELOCITY_WEIGHT = 0.03  # per m/s
ACCELERATION_WEIGHT = 0.0025  # per m/s^2
ROOT_WEIGHT = 0.15  # per metre of the root's place, most of which is a depth that one camera cannot tell
PATH_WEIGHT = 0.3  # per metre of the root's path about its own mean
BONE_WEIGHT = 1.0  # per metre of a bone's standard deviation over the clip
FLIGHT_WEIGHT = 0.05  # per nat
# What corrects more than it must fits training's motions and harms others.
CORRECTION_WEIGHT = 0.01  # per unit of PhysicsPose.correction_B


@dataclass(frozen=True, kw_only=True)
class PhysicsTrainingConfig:
    """phys_net: the network, where none is loaded; with recursion "none" the black box to compare with, in its own
    folder."""

    phys_net: PhysNetConfig = field(default_factory=PhysNetConfig)


class PhysicsTraining(nn.Module):
    """Phys-Net and its losses behind a frozen lifter."""

    def __init__(self, phys_net: PhysNet, lifter: Lifter) -> None:
        super().__init__()
        self.phys_net = phys_net
        self.lifter = lifter.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PhysicsTraining":
        """The lifter stays as it is used."""
        super().train(mode)
        self.lifter.eval()
        return self

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses of a batch as collate makes it: "loss" is minimised, the rest are its parts (pose_losses)."""
        with torch.no_grad():
            # Gravity without the level floor (pose/floor.py) that corrects it where Phys-Net will stand.
            joints_dd_BTJ3, gravity_B3, _ = self.lifter(
                batch["joints_px"], batch["confidence"], batch["intrinsics"], batch["fps"]
            )
        dt_s_B = 1 / batch["fps"]
        physics = self.phys_net(
            joints_dd_BTJ3,
            batch["joints_px"],
            batch["confidence"],
            batch["intrinsics"],
            gravity_B3,
            dt_s_B,
            # Known as it is where Phys-Net will stand: from the video's background.
            batch["is_static"],
        )
        fused_BTJ3 = fuse(joints_dd_BTJ3, physics.joints_pp_BTJ3, physics.gate_BTJ)
        losses = pose_losses(physics, fused_BTJ3, batch["joints_cam_m"], batch["in_flight"], dt_s_B)
        with torch.no_grad():
            losses["mpjpe_dd_mm"] = 1000 * _root_relative(joints_dd_BTJ3 - batch["joints_cam_m"]).norm(dim=-1).mean()
        return {"loss": losses["physics"], **losses}

    def export(self, folder: Path) -> None:
        """Write Phys-Net to `folder`/phys_net, the black box to `folder`/refiner."""
        self.phys_net.save_pretrained(Path(folder) / _folder(self.phys_net.recursion), safe_serialization=True)


def pose_losses(
    physics: PhysicsPose,
    fused_BTJ3: Tensor,
    truth_BTJ3: Tensor,
    in_flight_BT: Tensor,
    dt_s_B: Tensor,
    has_truth_B: Tensor | None = None,
) -> dict[str, Tensor]:
    """How far S_pp and the fused motion are from the truth: scalars, of which "physics" is the weighted sum.

    truth_BTJ3 (B, T, 17, 3) metres in the camera frame, in_flight_BT bool, dt_s_B seconds between frames. Clips whose
    has_truth_B is False count for nothing, whatever stands in their truth (finite or not); with none left all are zero.
    Parts: mpjpe_pp_mm, mpjpe_fused_mm (root-relative), velocity (m/s) and acceleration (m/s^2) of the fused motion's
    error, root and path (metres), bone_mm (standard deviation over time, fused), flight (nats).
    """
    if has_truth_B is None:
        has_truth_B = torch.ones_like(dt_s_B, dtype=torch.bool)
    count = has_truth_B.sum().clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        per_clip = values.flatten(1).mean(1)
        return torch.where(has_truth_B, per_clip, torch.zeros_like(per_clip)).sum() / count

    known = has_truth_B[:, None, None, None]
    terms: dict[str, list[Tensor]] = {name: [] for name in ("position", "velocity", "acceleration", "root", "path")}
    for joints_BTJ3 in (physics.joints_pp_BTJ3, fused_BTJ3):
        # Masked before the norm, so that a clip without truth cannot put NaN into the gradient either.
        error_BTJ3 = torch.where(known, joints_BTJ3 - truth_BTJ3, torch.zeros_like(joints_BTJ3))
        shape_BTJ3, dt_s = _root_relative(error_BTJ3), dt_s_B[:, None, None, None]
        root_BT3 = error_BTJ3[:, :, 0]
        terms["position"].append(mean(_length(shape_BTJ3)))
        terms["velocity"].append(mean(_length(shape_BTJ3.diff(dim=1) / dt_s)))
        terms["acceleration"].append(mean(_length(shape_BTJ3.diff(n=2, dim=1) / dt_s.square())))
        terms["root"].append(mean(_length(root_BT3)))
        terms["path"].append(mean(_length(root_BT3 - root_BT3.mean(1, keepdim=True))))
    bones_BTJ = bone_lengths(fused_BTJ3)
    bone = mean((bones_BTJ - bones_BTJ.mean(1, keepdim=True)).square().mean(1).add(1e-12).sqrt())
    flight = mean(
        functional.binary_cross_entropy_with_logits(
            physics.flight_logit_BT, in_flight_BT.to(physics.flight_logit_BT), reduction="none"
        )
    )
    total = (
        sum(terms["position"], torch.zeros_like(bone))
        + VELOCITY_WEIGHT * sum(terms["velocity"], torch.zeros_like(bone))
        + ACCELERATION_WEIGHT * sum(terms["acceleration"], torch.zeros_like(bone))
        + ROOT_WEIGHT * sum(terms["root"], torch.zeros_like(bone))
        + PATH_WEIGHT * sum(terms["path"], torch.zeros_like(bone))
        + BONE_WEIGHT * bone
        + FLIGHT_WEIGHT * flight
        + CORRECTION_WEIGHT * mean(physics.correction_B[:, None])
    )
    return {
        "physics": total,
        "mpjpe_pp_mm": 1000 * terms["position"][0].detach(),
        "mpjpe_fused_mm": 1000 * terms["position"][1].detach(),
        "velocity": terms["velocity"][1].detach(),
        "acceleration": terms["acceleration"][1].detach(),
        "root": terms["root"][1].detach(),
        "path": terms["path"][1].detach(),
        "bone_mm": 1000 * bone.detach(),
        "flight": flight.detach(),
    }


def collate(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, Tensor]:
    """Clean rows of windows.sample_window -> a batch of whole windows, as a detector finds them.

    joints_cam_m, joints_px, confidence, in_flight (bool) over time; intrinsics, gravity, fps, is_static per window.
    Raises ValueError where windows differ in length.
    """
    lengths = {len(row["joints_cam_m"]) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"windows have {sorted(lengths)} frames, wanted the same number in each")
    joints_px, confidence = detected(rows, rng)
    batch = {"joints_px": torch.from_numpy(joints_px), "confidence": torch.from_numpy(confidence)}
    for name in ("joints_cam_m", "intrinsics", "gravity", "fps"):
        batch[name] = torch.from_numpy(np.stack([np.asarray(row[name], np.float32) for row in rows]))
    for name in ("in_flight", "is_static"):
        batch[name] = torch.from_numpy(np.stack([np.asarray(row[name], np.bool_) for row in rows]))
    return batch


def build(config: PhysicsTrainingConfig, init: Path | None) -> PhysicsTraining:
    """The module to train: Phys-Net fresh or from the pipeline folder `init`, and the lifter that must lie there.

    Raises FileNotFoundError without a lifter.
    """
    if init is None or not (init / LIFTER_FOLDER).is_dir():
        raise FileNotFoundError(f"stage physics needs a trained lifter: {init}/{LIFTER_FOLDER} is not a folder")
    lifter = Lifter.from_pretrained(init / LIFTER_FOLDER, torch_dtype=torch.float32)
    folder = init / _folder(config.phys_net.recursion)
    if folder.is_dir():
        phys_net = PhysNet.from_pretrained(folder, torch_dtype=torch.float32)
    else:
        phys_net = PhysNet(**asdict(config.phys_net))
    return PhysicsTraining(phys_net, lifter)


def _folder(recursion: Recursion) -> str:
    return REFINER_FOLDER if recursion == "none" else PHYS_NET_FOLDER


def _root_relative(joints_BTJ3: Tensor) -> Tensor:
    return joints_BTJ3 - joints_BTJ3[:, :, :1]


def _length(vectors: Tensor) -> Tensor:
    # The root relative to itself is zero, where a norm has no gradient.
    return vectors.square().sum(-1).add(1e-12).sqrt()
