"""How well a generated video keeps to its guidance and how steady it is: simple measures, under their own names.

Path:    generated frames -> numbers
Letters: F generated frames, J = 17 joints
Units:   pixels of the frames given; differences in grey levels, 0..255

None of these is FID or FVD, and none judges beauty. A measure of a generated clip means something only beside the same
measure of the source clip under the same detector, so the two are always reported together.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from finephys.evaluation.pose import mpjpe, pa_mpjpe, pck
from finephys.evaluation.sheet import Hops
from finephys.pose.estimator import PoseEstimator

# How far a joint may be from its guidance, as a share of the body's box.
PCK_SHARE = 0.1
# The body reaches beyond its joints (hands, feet, hair, clothes): its region is their convex hull, grown by this share
# of the hull's box.
_BODY_MARGIN_OF_BOX = 0.2
# Fewer pixels than this outside the body say nothing about the background.
_FEWEST_BACKGROUND_PIXELS = 64


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How a measure is called and read.  columns: what it is measured on.  digits: worth showing."""

    name: str
    meaning: str
    unit: str
    columns: tuple[str, ...]
    digits: int


MEASURES = {
    "pck_0.1_box": Measure(
        name="PCK@0.1 of the box",
        meaning="Share of guidance joints within a tenth of the body's box of where the pipeline's 2D detector finds "
        "them. The guidance was made from the source, so the source is the most that can be expected.",
        unit="",
        columns=("generated", "source"),
        digits=3,
    ),
    "background_flicker": Measure(
        name="Background flicker",
        meaning="Mean absolute change from frame to frame outside the body.",
        unit="grey levels of 255",
        columns=("generated", "source"),
        digits=2,
    ),
    "mpjpe_root_mm": Measure(
        name="MPJPE, root-relative",
        meaning="Mean distance of the joints from ground truth, each skeleton moved to its root.",
        unit="mm",
        columns=("S_dd", "S_pp", "fused"),
        digits=1,
    ),
    "pa_mpjpe_mm": Measure(
        name="PA-MPJPE",
        meaning="The same after each skeleton is turned, scaled and shifted onto the truth.",
        unit="mm",
        columns=("S_dd", "S_pp", "fused"),
        digits=1,
    ),
}


def body_region(joints_px: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the body may be, bool (H, W): the grown convex hull of joints (J, 2); size is (height, width)."""
    mask = np.zeros(size, np.uint8)
    finite = np.asarray(joints_px, np.float64)[np.isfinite(joints_px).all(-1)]
    if len(finite):
        points = np.clip(finite, -4 * max(size), 4 * max(size)).round().astype(np.int32)
        cv2.fillConvexPoly(mask, cv2.convexHull(points), 1)
        margin_px = max(2, round(_BODY_MARGIN_OF_BOX * float(np.ptp(points, axis=0).max())))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin_px + 1, 2 * margin_px + 1))
        mask = cv2.dilate(mask, kernel)
    return np.asarray(mask, bool)


def background_flicker(frames_FHWC: NDArray[np.uint8], joints_FJ2: NDArray[np.floating]) -> float | None:
    """Mean absolute difference of consecutive frames outside the body, in grey levels (0..255), over frames and RGB.

    joints_FJ2: the body's joints in pixels of these frames; what is outside the body in both frames of a pair counts.
    None where there is one frame only, or hardly any background. A moving camera moves the background too.
    """
    size = (frames_FHWC.shape[1], frames_FHWC.shape[2])
    masks = [body_region(joints, size) for joints in joints_FJ2]
    total, count = 0.0, 0
    for index in range(len(frames_FHWC) - 1):
        outside = ~(masks[index] | masks[index + 1])
        if outside.sum() < _FEWEST_BACKGROUND_PIXELS:
            continue
        difference = frames_FHWC[index + 1].astype(np.float32) - frames_FHWC[index].astype(np.float32)
        total += float(np.abs(difference[outside]).sum(dtype=np.float64))
        count += 3 * int(outside.sum())
    return total / count if count else None


def measure_clip(hops: Hops, detector: PoseEstimator) -> dict[str, dict[str, float | None]]:
    """The MEASURES of one clip, by measure and column; None where ground truth is not known or nothing can be measured.

    detector: finds the joints in the generated frames; hops.joints_px must be its work on the source.
    """
    frame_index = hops.frame_index
    height, width = hops.generated_FHWC.shape[1:3]
    source_height, source_width = hops.frames_THWC.shape[1:3]
    to_generated = np.array([width / source_width, height / source_height])
    guidance_px = hops.guidance_px * to_generated
    found = detector.estimate(hops.generated_FHWC)
    measures: dict[str, dict[str, float | None]] = {
        "pck_0.1_box": {
            "generated": pck(found.joints_px, guidance_px, PCK_SHARE),
            "source": pck(hops.joints_px[frame_index], hops.guidance_px, PCK_SHARE),
        },
        "background_flicker": {
            "generated": background_flicker(hops.generated_FHWC, guidance_px),
            "source": background_flicker(hops.frames_THWC[frame_index], hops.guidance_px),
        },
    }
    if hops.truth_cam_m is not None:
        poses = {"S_dd": hops.joints_dd, "S_pp": hops.joints_pp, "fused": hops.fused}
        truth = hops.truth_cam_m
        measures["mpjpe_root_mm"] = {name: 1000 * mpjpe(joints, truth) for name, joints in poses.items()}
        measures["pa_mpjpe_mm"] = {name: 1000 * pa_mpjpe(joints, truth) for name, joints in poses.items()}
    return measures
