"""What a detector makes of joints: the errors with which lifter and Phys-Net are trained, and evaluation is hardened.

Path:    (training only) true joints_px -> detected joints_px and confidence
Letters: B clips, T frames, J = 17 joints, M recorded clips
Units:   pixel; sizes of errors are stated for an image of 256 pixels

Made up: noise, half of which stays for a few frames; left for right; joints lost in bursts, of which the detector knows
more often than not. How sure a detector is of the same thing differs between detectors: some are at 0.99 where they are
right, some at 0.8. A lifter that had only seen the latter was off by 211 mm with the shipped detector, and by 123 mm
with the same joints when all confidences were set to 0.9.
Recorded: what a detector did on rendered clips that it had not learned from (detector_errors.safetensors, made by
`python -m finephys.evaluation.detector_errors`; of which, assets/pipeline.md says), moved to other clips in shares of
the body's box.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.ndimage import gaussian_filter1d

from finephys.skeleton import JOINT_NAMES, MIRROR, NUM_JOINTS

FLOATS = NDArray[np.floating]

ERRORS = Path(__file__).parents[1] / "assets" / "detector_errors.safetensors"
# Share of the clips that get recorded errors where there are some.
RECORDED_SHARE = 0.6
# Longest burst of lost joints, and of exchanged limbs, in frames.
_LONGEST_LOSS = 10
_LONGEST_SWAP = 8
# Joints that a detector exchanges together when it takes left for right.
_SWAPPED = tuple(
    tuple(JOINT_NAMES.index(f"{side}_{name}") for side in ("right", "left") for name in names)
    for names in (("hip", "knee", "ankle"), ("shoulder", "elbow", "wrist"))
)
# How much farther than the torso a joint is missed; limbs' ends blur.
_NOISE_FACTOR = np.array([1.4 if name.endswith(("wrist", "ankle", "head")) else 1.0 for name in JOINT_NAMES])


@dataclass(frozen=True)
class DetectorErrors:
    """error_MTJ2: detected minus true, over the long side of the true joints' box; confidence_MTJ; both float32."""

    error_MTJ2: NDArray[np.float32]
    confidence_MTJ: NDArray[np.float32]


@functools.lru_cache(maxsize=1)
def recorded_errors() -> DetectorErrors:
    """The errors that ship. Raises FileNotFoundError without them: training would go on with others, unnoticed."""
    arrays = load_file(ERRORS)
    return DetectorErrors(arrays["error"].astype(np.float32), arrays["confidence"].astype(np.float32) / 255)


def corrupt_detections(
    rng: np.random.Generator,
    joints_px_BTJ2: FLOATS,
    size_B2: FLOATS,
    errors: DetectorErrors | None = None,
    is_cut_B: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Clips of one length as a detector finds them: joints (B,T,17,2) and confidence (B,T,17), float32.

    size_B2: (height, width) of the images.  errors: of these RECORDED_SHARE of the clips get theirs, T frames of one
    recorded clip each.  is_cut_B: whether a joint outside the image is not found (all by default).
    """
    found_px, confidence = _made_up(rng, joints_px_BTJ2, size_B2)
    if errors is not None:
        is_recorded_B = rng.random(len(found_px)) < RECORDED_SHARE
        recorded_px, recorded_confidence = _replayed(rng, joints_px_BTJ2, errors)
        found_px = np.where(is_recorded_B[:, None, None, None], recorded_px, found_px)
        confidence = np.where(is_recorded_B[:, None, None], recorded_confidence, confidence)
    is_outside = ((joints_px_BTJ2 < 0) | (joints_px_BTJ2 > size_B2[:, None, None, ::-1])).any(-1)
    if is_cut_B is not None:
        is_outside &= is_cut_B[:, None, None]
    confidence = np.where(is_outside, np.minimum(confidence, rng.uniform(0.0, 0.4, confidence.shape)), confidence)
    # Detectors differ in how sure they are of the same thing; now and then nothing is known of that.
    confidence = confidence ** np.exp(rng.normal(0.0, 0.4, (len(found_px), 1, 1)))
    is_untold = rng.random((len(found_px), 1, 1)) < 0.05
    confidence = np.where(is_untold & ~is_outside, 0.9, confidence)
    return found_px.astype(np.float32), confidence.astype(np.float32)


def back_and_forth(step: NDArray[np.int64], num_frames: int) -> NDArray[np.int64]:
    """Frames 0 .. num_frames - 1 for steps 0, 1, ... of any number: past the last frame it goes back, and so on."""
    last = num_frames - 1
    frame: NDArray[np.int64] = np.abs((step + last) % max(1, 2 * last) - last)
    return frame


def _made_up(rng: np.random.Generator, joints_px: FLOATS, size_B2: FLOATS) -> tuple[FLOATS, FLOATS]:
    shape = joints_px.shape[:3]
    num_clips, num_frames, _ = shape
    unit_px = (size_B2.min(-1) / 256)[:, None, None, None]
    sigma_px = np.exp(rng.uniform(np.log(0.5), np.log(5.0), (num_clips, 1, 1, 1))) * unit_px * _NOISE_FACTOR[:, None]
    # Some joints of some frames are harder than others, and the detector half knows.
    hardness = np.exp(0.5 * rng.normal(size=shape))
    white = rng.normal(size=(2, *joints_px.shape))
    # Half of the noise stays for a few frames; the factor brings it back to unit variance: (2 sigma sqrt(pi)) ** 0.5.
    slow = gaussian_filter1d(white[1], 2.0, axis=1) * 2.66
    found_px = joints_px + sigma_px * hardness[..., None] * (white[0] + slow) * np.sqrt(0.5)

    for limb, is_swapped_BT in zip(_SWAPPED, _swaps(rng, num_clips, num_frames)):
        swapped_px = found_px[:, :, [MIRROR[joint] for joint in limb]]
        found_px[:, :, list(limb)] = np.where(is_swapped_BT[..., None, None], swapped_px, found_px[:, :, list(limb)])

    is_saturated = rng.random((num_clips, 1, 1)) < 0.6
    saturated = 1.0 - np.abs(rng.normal(size=shape)) * np.exp(
        rng.uniform(np.log(0.002), np.log(0.1), (num_clips, 1, 1))
    )
    confidence = np.where(is_saturated, saturated, rng.normal(0.85, 0.08, shape))
    confidence = confidence - 0.1 * rng.random((num_clips, 1, 1)) * (hardness - 1.0)
    is_lost, drift = _losses(rng, shape, rng.uniform(0.0, 0.2, (num_clips, 1, 1)))
    error_px = unit_px * (18.0 * drift + rng.normal(0.0, 10.0, joints_px.shape))
    found_px = np.where(is_lost[..., None], found_px + error_px, found_px)
    is_known = is_lost & (rng.random(shape) < 0.7)
    confidence = np.where(is_known, confidence * rng.uniform(0.0, 0.7, shape), confidence)
    return found_px, np.clip(confidence, 0.0, 1.0)


def _replayed(rng: np.random.Generator, joints_px: FLOATS, errors: DetectorErrors) -> tuple[FLOATS, FLOATS]:
    """Every clip with a piece of a recorded one, mirrored or not, its errors somewhat larger or smaller."""
    num_clips, num_frames = joints_px.shape[:2]
    num_recorded, longest = errors.confidence_MTJ.shape[:2]
    which_B1 = rng.integers(num_recorded, size=(num_clips, 1))
    frame_BT = back_and_forth(rng.integers(longest, size=(num_clips, 1)) + np.arange(num_frames), longest)
    error, confidence = errors.error_MTJ2[which_B1, frame_BT], errors.confidence_MTJ[which_B1, frame_BT]
    is_mirrored = rng.random((num_clips, 1, 1, 1)) < 0.5
    error = np.where(is_mirrored, error[:, :, list(MIRROR)] * [-1.0, 1.0], error)
    confidence = np.where(is_mirrored[..., 0], confidence[:, :, list(MIRROR)], confidence)
    side_px = np.ptp(joints_px, axis=2).max(-1)[..., None, None]
    scale = np.exp(rng.normal(0.1, 0.25, (num_clips, 1, 1, 1)))
    return joints_px + scale * side_px * error, confidence


def _swaps(rng: np.random.Generator, num_clips: int, num_frames: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For legs and arms, the frames (B,T) in which left and right are exchanged; two fifths of the time together."""
    shape = (num_clips, num_frames + _LONGEST_SWAP - 1)
    length = rng.integers(1, _LONGEST_SWAP + 1, shape)
    is_start, is_both, which = rng.random(shape) < 0.01, rng.random(shape) < 0.4, rng.random(shape) < 0.5
    limbs = []
    for is_mine in (which, ~which):
        is_swapped = np.zeros((num_clips, num_frames), np.bool_)
        for age in range(_LONGEST_SWAP):
            window = slice(_LONGEST_SWAP - 1 - age, _LONGEST_SWAP - 1 - age + num_frames)
            is_swapped |= (is_start & (is_both | is_mine) & (length > age))[:, window]
        # A body seen from behind may be taken for one seen from the front throughout.
        limbs.append(is_swapped ^ (rng.random((num_clips, 1)) < 0.02))
    return limbs[0], limbs[1]


def _losses(
    rng: np.random.Generator, shape: tuple[int, int, int], share_B11: FLOATS
) -> tuple[NDArray[np.bool_], FLOATS]:
    """Which joints (B,T,17) are lost, in bursts, about `share` of all; and the (B,T,17,2) unit error of each burst."""
    num_clips, num_frames, _ = shape
    longer = (num_clips, num_frames + _LONGEST_LOSS - 1, NUM_JOINTS)
    is_start = rng.random(longer) < share_B11 / 6.5
    length = rng.integers(3, _LONGEST_LOSS + 1, longer)
    # A few bursts take the whole body: a blurred or hidden frame.
    is_body = rng.random((*longer[:2], 1)) < 0.003
    is_start |= is_body
    length = np.where(is_body, length[..., :1], length)
    unit_error = rng.normal(size=(*longer, 2))
    is_lost, drift = np.zeros(shape, np.bool_), np.zeros((*shape, 2))
    for age in range(_LONGEST_LOSS):
        window = slice(_LONGEST_LOSS - 1 - age, _LONGEST_LOSS - 1 - age + num_frames)
        is_on = (is_start & (length > age))[:, window]
        is_lost |= is_on
        drift = np.where(is_on[..., None], unit_error[:, window], drift)
    return is_lost, drift
