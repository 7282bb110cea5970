"""Train the lifter on synthetic windows.

Path:    (training only) windows -> losses; writes <pipeline>/lifter
Letters: B windows, F = 16 frames, J = 17 joints
Units:   metre, pixel
Frames:  camera, x right, y down, z forward
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from finephys.pose.camera import focal_and_centre, project
from finephys.pose.lifting import Lifter, LifterConfig, Prompts
from finephys.pose.windows import EPISODE_PROMPTS, detected, sample_window

# The folder of the lifter in a pipeline folder.
LIFTER_FOLDER = "lifter"

# Windows among which the bank's examples are chosen, and the seed of their sequence: far from any run's seed.
_BANK_CANDIDATES = 3000
_BANK_SEED = 1_000_003

# Share of the training windows of which only a part is given, as of clips shorter than a window.
_SHORT_SHARE = 0.1

# Shares of the windows that come with true prompts, and that are completed with what the lifter makes of the recording
# that they are a piece of, as clips are; the bank completes the others.
_GIVEN_SHARE = 0.2
_OWN_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class LiftingTrainingConfig:
    """lifter: the network.  Weights of the losses, per the unit named.

    A step of 256 windows takes 0.6 s of one shared CPU core with bfloat16_autocast.
    """

    lifter: LifterConfig = field(default_factory=LifterConfig)
    velocity_weight: float = 0.05  # per m/s
    root_weight: float = 0.5  # per unit of log depth or of ray, relative to the extent
    reprojection_weight: float = 0.3  # per metre at the root's depth
    gravity_weight: float = 0.1  # per radian
    static_weight: float = 0.01  # per nat
    spread_weight: float = 0.02  # per nat; moves the expected errors towards the errors, and never the errors

    def __post_init__(self) -> None:
        if self.lifter.num_prompts > EPISODE_PROMPTS:
            raise ValueError(
                f"lifter.num_prompts is {self.lifter.num_prompts}, training's episodes have {EPISODE_PROMPTS}"
            )


class LiftingTraining(nn.Module):
    """The lifter and its losses."""

    def __init__(self, lifter: Lifter, config: LiftingTrainingConfig) -> None:
        super().__init__()
        self.lifter, self.config = lifter, config

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses of a batch as collate makes it: "loss" is minimised, the rest says what it consists of.

        mpjpe_mm, velocity: root-relative joints, m/s; root: relative error of the root's depth; reprojection: metres;
        gravity_deg; static, spread: nats.
        """
        config = self.config
        truth_BFJ3, gravity_B3 = batch["joints_cam_m"], batch["gravity"]
        lifted = self.lifter.lift_batch(
            batch["joints_px"], batch["confidence"], batch["intrinsics"], batch["fps"], self._prompts(batch)
        )
        lifted_BFJ3, down_B3, static_logit_B = lifted.joints_BTJ3, lifted.gravity_B3, lifted.static_logit_B
        error_BFJ3 = (lifted_BFJ3 - lifted_BFJ3[:, :, :1]) - (truth_BFJ3 - truth_BFJ3[:, :, :1])
        mpjpe_m = error_BFJ3.norm(dim=-1).mean()
        velocity = ((error_BFJ3[:, 1:] - error_BFJ3[:, :-1]) * batch["fps"][:, None, None, None]).norm(dim=-1).mean()

        depth_BF1 = truth_BFJ3[:, :, 0, 2:]
        depth_error_BF1 = (lifted_BFJ3[:, :, 0, 2:].clamp_min(0.05) / depth_BF1).log().abs()
        root = depth_error_BF1.mean()
        # Off by how many metres at the root's depth.
        focal_px, _ = focal_and_centre(batch["intrinsics"])
        missed_px = project(lifted_BFJ3, batch["intrinsics"][:, None]) - project(
            truth_BFJ3, batch["intrinsics"][:, None]
        )
        reprojection = (missed_px / focal_px[:, None] * depth_BF1[..., None]).norm(dim=-1).mean()
        cosine_B = (down_B3 * gravity_B3).sum(-1)
        sine_B = torch.linalg.cross(down_B3, gravity_B3).norm(dim=-1)
        angle_B = torch.atan2(sine_B, cosine_B)
        angle = angle_B.mean()
        static = functional.binary_cross_entropy_with_logits(static_logit_B, batch["is_static"])

        loss = (
            mpjpe_m
            + config.velocity_weight * velocity
            + config.root_weight * root
            + config.reprojection_weight * reprojection
            + config.gravity_weight * angle
            + config.static_weight * static
        )
        terms = (
            {}
            if lifted.joints_spread_BTJ is None
            else {
                "spread": _laplace(error_BFJ3.norm(dim=-1), lifted.joints_spread_BTJ)
                + _laplace(depth_error_BF1.mean((1, 2)), lifted.root_spread_B)
                + _laplace(angle_B, lifted.gravity_spread_B)
            }
        )
        for spread in terms.values():
            loss = loss + config.spread_weight * spread
        return {
            "loss": loss,
            "mpjpe_mm": 1000 * mpjpe_m,
            "velocity": velocity,
            "root": root,
            "reprojection": reprojection,
            "gravity_deg": torch.rad2deg(angle),
            "static": static,
            **terms,
        }

    def _prompts(self, batch: dict[str, Tensor]) -> Prompts | None:
        """The true ones, and for windows with is_own the first and the last of their recordings, lifted."""
        if "prompt_joints_cam_m" not in batch or not self.lifter.num_prompts:
            return None
        is_own_B = batch["is_own"]
        joints_BCFJ3, gravity_BC3 = batch["prompt_joints_cam_m"].clone(), batch["prompt_gravity"].clone()
        with torch.no_grad():
            own = self.lifter.lift_batch(
                batch["around_px"][is_own_B].flatten(0, 1),
                batch["around_confidence"][is_own_B].flatten(0, 1),
                batch["intrinsics"][is_own_B].repeat_interleave(EPISODE_PROMPTS, 0),
                batch["fps"][is_own_B].repeat_interleave(EPISODE_PROMPTS, 0),
            )
        joints_BCFJ3[is_own_B] = own.joints_BTJ3.unflatten(0, (-1, EPISODE_PROMPTS)).to(joints_BCFJ3)
        gravity_BC3[is_own_B] = own.gravity_B3.unflatten(0, (-1, EPISODE_PROMPTS)).to(gravity_BC3)
        return Prompts(joints_BCFJ3, gravity_BC3, batch["is_given"] | is_own_B)

    def export(self, folder: Path) -> None:
        """Write the lifter to `folder`/lifter."""
        self.lifter.save_pretrained(folder / LIFTER_FOLDER, safe_serialization=True)


def _laplace(error: Tensor, spread: Tensor | None) -> Tensor:
    """Mean of log s + e / s in nats, least where s is the mean of e: a Laplace density's. Errors get no gradient."""
    assert spread is not None
    return (spread.log() + error.detach() / spread).mean()


def collate(rows: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Tensor]:
    """Clean rows of windows.sample_window -> a batch of one random piece of 16 frames of each, as a detector finds it.

    around_px (B,2,16,17,2) and around_confidence (B,2,16,17): the first and the last 16 frames of the same detections.
    Now and then a piece is cut short by losing its first or last frames, as a short clip would be.
    """
    num_frames = LifterConfig().window_frames
    all_px, all_confidence = detected(rows, rng)
    first_B = rng.integers(all_px.shape[1] - num_frames + 1, size=len(rows))
    frame_BF = first_B[:, None] + np.arange(num_frames)
    row_B1 = np.arange(len(rows))[:, None]
    joints_px, confidence = all_px[row_B1, frame_BF], all_confidence[row_B1, frame_BF]
    for sure in confidence:
        if rng.random() < _SHORT_SHARE:
            kept = rng.integers(2, num_frames)
            sure[kept:] = 0.0
            if rng.random() < 0.5:
                sure[:] = sure[::-1].copy()
    tensors = {"joints_px": torch.from_numpy(joints_px), "confidence": torch.from_numpy(confidence)}
    if "prompt_joints_cam_m" in rows[0]:
        kind_B = rng.random(len(rows))
        tensors["is_given"] = torch.from_numpy(kind_B < _GIVEN_SHARE)
        tensors["is_own"] = torch.from_numpy((kind_B >= _GIVEN_SHARE) & (kind_B < _GIVEN_SHARE + _OWN_SHARE))
        # As many windows of it as there are true prompts.
        for name, values in (("around_px", all_px), ("around_confidence", all_confidence)):
            tensors[name] = torch.from_numpy(np.stack([values[:, :num_frames], values[:, -num_frames:]], 1))
        for name in ("prompt_joints_cam_m", "prompt_gravity"):
            tensors[name] = torch.from_numpy(np.stack([row[name] for row in rows]))
    joints_m = np.stack([row["joints_cam_m"] for row in rows])[row_B1, frame_BF]
    tensors["joints_cam_m"] = torch.from_numpy(joints_m.astype(np.float32))
    for name in ("intrinsics", "gravity", "fps", "is_static"):
        tensors[name] = torch.from_numpy(np.stack([np.asarray(row[name], np.float32) for row in rows]))
    return tensors


def build(config: LiftingTrainingConfig, init: Path | None) -> LiftingTraining:
    """The module to train: from the lifter in the pipeline folder `init`, or a fresh one with a fresh bank."""
    if init is not None and (init / LIFTER_FOLDER).is_dir():
        lifter = Lifter.from_pretrained(init / LIFTER_FOLDER, torch_dtype=torch.float32)
        return LiftingTraining(lifter, config)
    lifter = Lifter(**asdict(config.lifter))
    lifter.set_bank(*choose_bank(config.lifter.bank_size, config.lifter.window_frames))
    return LiftingTraining(lifter, config)


def choose_bank(bank_size: int, window_frames: int, num_candidates: int = _BANK_CANDIDATES) -> tuple[Tensor, Tensor]:
    """Examples for the bank: joints (P, F, 17, 3) metres in the camera frame, gravity (P, 3); always the same.

    Of many training windows under static cameras, one after the other the one whose root-relative motion is farthest
    from all that were taken before: the rare poses are in.
    """
    joints_m, gravity = [], []
    for index in range(num_candidates):
        row = sample_window(index, _BANK_SEED, num_frames=window_frames, is_corrupted=False)
        if row["is_static"]:
            joints_m.append(row["joints_cam_m"])
            gravity.append(row["gravity"])
    joints_m_PFJ3 = torch.from_numpy(np.stack(joints_m))
    flat_PX = (joints_m_PFJ3 - joints_m_PFJ3[:, :, :1])[:, ::3].flatten(1)
    nearest_P = torch.full((len(flat_PX),), torch.inf)
    chosen = [0]
    while len(chosen) < bank_size:
        nearest_P = torch.minimum(nearest_P, (flat_PX - flat_PX[chosen[-1]]).norm(dim=1))
        chosen.append(int(nearest_P.argmax()))
    return joints_m_PFJ3[chosen], torch.from_numpy(np.stack(gravity))[chosen]
