"""Train RTMPose on rendered clips whose joints are known: crops that are never seen twice the same, and the loss.

Path:    decoded clips -> crops -> loss
Letters: N crops, F frames in a crop, J = 17 joints, C, H, W; X, Y SimCC bins
Units:   pixel of the crop (centre of the first pixel at 0.5)
[1] RTMPose, arXiv:2303.07399: SimCC targets and KLDiscretLoss, mmpose's own class.
    We differ: bodies turn by any angle (gymnasts are upside down half of the time, RTMPose turns by 80 degrees), many
    so that their trunk is nearly upright, as it is in the last passes of `RTMPose.estimate`; hard frames are
    drawn more often;
    colours are mixed by a random matrix, so that the demo's palette does not matter; a joint outside the crop has an
    even distribution as its target, so that confidence falls where there is nothing to see; and the head's first map
    learns the joint's cell directly. Without that the loss stays for long at what is known without looking.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finephys.pose.crops import crop_to_frame, cut_crop, trunk_angle
from finephys.pose.rtmpose import RTMPose, RTMPoseConfig, decode_simcc, frames_around, stack_frames
from finephys.skeleton import BONES, JOINT_NAMES, MIRROR

CELL_LOSS_WEIGHT = 1.0


@dataclass(frozen=True, kw_only=True)
class Pose2DTrainingConfig:
    """What a crop may look like, what counts, and how many crops a clip of a batch gives.

    scale: box side over the long side of the true joints' box, from tight to boxes that a tuck leaves empty (nine
    tenths of the last pass's are 1.2 to 1.7, turned by less than 6 degrees from the trunk);
    filmed_scale: of crops as filmed, which the first pass sees: the whole frame.
    stride_probabilities: that the other frames of a crop are the frame itself, its neighbours, or every other frame.
    shift: of the body's centre, in shares of the box's side.
    hidden_weight, outside_weight: of joints that are occluded or outside the crop; 1 for visible ones.
    nobody_probability: crops of plain colour or noise, where every joint's target is even.
    """

    crops_per_clip: int = 2
    scale: tuple[float, float] = (1.1, 1.9)
    filmed_scale: tuple[float, float] = (1.2, 4.0)
    stride_probabilities: tuple[float, float, float] = (0.05, 0.8, 0.15)
    shift: float = 0.1
    rotation_degrees: float = 180.0
    # Turned by any angle; as filmed but for a tilt (the first pass); the rest with the trunk upright but for a tilt.
    turned_probability: float = 0.15
    filmed_probability: float = 0.2
    tilt_degrees: float = 15.0
    flip_probability: float = 0.5
    colour_probability: float = 0.3
    grey_probability: float = 0.05
    # Of the logarithm, and of levels 0..255.
    contrast_deviation: float = 0.25
    brightness_deviation: float = 20.0
    blur_probability: float = 0.15
    noise_probability: float = 0.3
    cutout_probability: float = 0.2
    nobody_probability: float = 0.02
    hidden_weight: float = 0.75
    outside_weight: float = 0.1


class Pose2DTraining(nn.Module):
    """The stage pose2d: RTMPose and its loss."""

    def __init__(self, pose_estimator: RTMPose) -> None:
        super().__init__()
        self.pose_estimator = pose_estimator

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss terms of a batch as collate makes it.

        "simcc_loss": mmpose's, in nats per joint and axis, 0 at the target; "cell_loss": see _cell_loss;
        "error_px": mean distance of visible joints in pixels of the crop (no gradient).
        """
        joints_NJ2, weight_NJ = batch["joints_px"], batch["weight"]
        config = self.pose_estimator.config
        head = self.pose_estimator.head
        features = self.pose_estimator.features(_noisy(stack_frames(batch["crops_NFHWC"]), batch["noise_levels"]))
        logits_NJX, logits_NJY = (logits.float() for logits in head(features))
        inside_NJ = batch["is_inside"]
        target_NJX = simcc_target(joints_NJ2[..., 0], inside_NJ, logits_NJX.shape[-1], config, axis=0)
        target_NJY = simcc_target(joints_NJ2[..., 1], inside_NJ, logits_NJY.shape[-1], config, axis=1)
        # mmpose averages over bins and sums over crops: undo both, so that the loss does not change with either.
        num_crops, _, num_bins = logits_NJX.shape
        simcc_loss = head.loss_module((logits_NJX, logits_NJY), (target_NJX, target_NJY), weight_NJ)
        simcc_loss = simcc_loss * (num_bins / (2 * num_crops))
        map_NJHW = head.final_layer(features[-1]).float()
        cell_loss = _cell_loss(map_NJHW, joints_NJ2, weight_NJ * inside_NJ, self.pose_estimator.crop_size)
        with torch.no_grad():
            found_NJ2, _ = decode_simcc(logits_NJX, logits_NJY, config.simcc_split_ratio)
            error_NJ = (found_NJ2 - joints_NJ2).norm(dim=-1)
            is_counted_NJ = (weight_NJ >= 1).float()
            error_px = (error_NJ * is_counted_NJ).sum() / is_counted_NJ.sum().clamp(min=1)
        loss = simcc_loss + CELL_LOSS_WEIGHT * cell_loss
        return {"loss": loss, "simcc_loss": simcc_loss, "cell_loss": cell_loss, "error_px": error_px}

    def export(self, folder: Path) -> None:
        """Write the subfolder pose_estimator of a pipeline folder."""
        self.pose_estimator.save_pretrained(folder / "pose_estimator")


def build(config: RTMPoseConfig, init: Path | None) -> Pose2DTraining:
    """The stage's module: from the pose_estimator in the pipeline folder `init` if there is one, else fresh.

    One that sees a single frame goes on with config.frames_per_crop of them; nothing else of config counts for it.
    """
    if init is not None and (init / "pose_estimator").is_dir():
        pose_estimator = RTMPose.from_pretrained(init / "pose_estimator")
        if pose_estimator.config.frames_per_crop == 1:
            pose_estimator = pose_estimator.with_frames(config.frames_per_crop)
    else:
        # torch's own initialisation: after 90 s it is ahead of mmpose's, whose head starts near zero.
        pose_estimator = RTMPose(**asdict(config))
    return Pose2DTraining(pose_estimator)


def simcc_target(position_NJ: Tensor, inside_NJ: Tensor, num_bins: int, config: Any, axis: int) -> Tensor:
    """mmpose's Gaussian labels (peak 1) over bins, without rounding to a bin; 0 everywhere for joints outside.

    position_NJ: pixels of the crop along `axis` (0 x, 1 y). KLDiscretLoss takes their softmax, so zeros are an even
    distribution.
    """
    centre_bin_NJ1 = ((position_NJ - 0.5) * config.simcc_split_ratio)[..., None]
    bins_X = torch.arange(num_bins, device=position_NJ.device)
    deviation = (bins_X - centre_bin_NJ1) / config.simcc_sigma_bins[axis]
    return torch.exp(-0.5 * deviation.square()) * inside_NJ[..., None]


def _cell_loss(map_NJHW: Tensor, joints_NJ2: Tensor, weight_NJ: Tensor, crop_size: tuple[int, int]) -> Tensor:
    """Cross-entropy in nats of the head's first map, one channel a joint, with the cell that the joint lies in.

    The joint's share goes to its four nearest cells, bilinearly.
    """
    height, width = map_NJHW.shape[-2:]
    cell_x_NJ1 = (joints_NJ2[..., :1] * (width / crop_size[1]) - 0.5).clamp(0, width - 1)
    cell_y_NJ1 = (joints_NJ2[..., 1:] * (height / crop_size[0]) - 0.5).clamp(0, height - 1)
    share_NJW = (1 - (torch.arange(width, device=map_NJHW.device) - cell_x_NJ1).abs()).clamp(min=0)
    share_NJH = (1 - (torch.arange(height, device=map_NJHW.device) - cell_y_NJ1).abs()).clamp(min=0)
    target_NJHW = share_NJH[..., :, None] * share_NJW[..., None, :]
    log_share_NJHW = map_NJHW.flatten(2).log_softmax(-1).view_as(map_NJHW)
    cross_entropy_NJ = -(target_NJHW * log_share_NJHW).sum((-2, -1))
    return (cross_entropy_NJ * weight_NJ).mean()


def _noisy(crops_NCHW: Tensor, noise_levels_N: Tensor) -> Tensor:
    """Normal noise on the crops' levels, made where the network runs: on a CPU it costs as much as all else."""
    noise_NCHW = torch.randn(crops_NCHW.shape, device=crops_NCHW.device) * noise_levels_N[:, None, None, None]
    return (crops_NCHW + noise_NCHW).clamp(0, 255)


def collate(
    rows: Sequence[Mapping[str, Any]],
    rng: np.random.Generator,
    config: Pose2DTrainingConfig | None = None,
    crop_size: tuple[int, int] = (RTMPoseConfig.crop_height, RTMPoseConfig.crop_width),
    frames_per_crop: int = RTMPoseConfig.frames_per_crop,
) -> dict[str, Tensor]:
    """config.crops_per_clip augmented crops for each of some decoded clips, of frames of any of them: hard ones are
    likelier.

    rows: frames (T,H,W,3) uint8, joints_px (T,17,2), joints_confidence (T,17).
    -> crops_NFHWC uint8, joints_px (N,17,2) float32 in the crop, weight (N,17) float32, is_inside (N,17) float32;
    noise_levels (N,) float32, the deviation of the noise that the module adds to the crops, in levels.
    Raises ValueError where there are no rows.
    """
    config = config or Pose2DTrainingConfig()
    # Crops are small: threads of OpenCV's own would only get into each other's way.
    cv2.setNumThreads(1)
    if not rows:
        raise ValueError("no clips to take crops from, wanted at least 1")
    hardness = [_hardness(row["joints_px"], row["joints_confidence"]) for row in rows]
    places = [(index, frame) for index, of_row in enumerate(hardness) for frame in range(len(of_row))]
    share = np.concatenate(hardness) / sum(of_row.sum() for of_row in hardness)
    crops = []
    for place in rng.choice(len(places), config.crops_per_clip * len(rows), p=share):
        index, frame = places[place]
        row = rows[index]
        joints_px = np.asarray(row["joints_px"][frame], np.float64)
        visibility = np.asarray(row["joints_confidence"][frame], np.float32)
        stride = int(rng.choice(3, p=config.stride_probabilities))
        frames_FHWC = row["frames"][frames_around(frame, len(row["frames"]), frames_per_crop, stride)]
        crops.append(augmented_crop(frames_FHWC, joints_px, visibility, rng, config, crop_size))
    images, joints, weights, insides = zip(*crops)
    is_noisy_N = rng.random(len(crops)) < config.noise_probability
    noise_levels_N = np.where(is_noisy_N, rng.uniform(2, 12, len(crops)), 0)
    return {
        "crops_NFHWC": torch.from_numpy(np.stack(images)),
        "joints_px": torch.from_numpy(np.stack(joints).astype(np.float32)),
        "weight": torch.from_numpy(np.stack(weights).astype(np.float32)),
        "is_inside": torch.from_numpy(np.stack(insides).astype(np.float32)),
        "noise_levels": torch.from_numpy(noise_levels_N.astype(np.float32)),
    }


def _hardness(joints_px: NDArray[np.floating], visibility: NDArray[np.floating]) -> NDArray[np.float64]:
    """How likely a crop shows each frame (T,), up to a factor, by its joints (T, 17, 2) and which are seen (T, 17).

    Bones that crowd a small box, hidden joints, and the head below the hips. A tenth of the frames holds more than half
    of what a detector trained on all frames alike gets wrong, even among those that it learned from; the first two make
    what is wrong 2.2 times as frequent.
    """
    joints_px = np.asarray(joints_px, np.float64)
    side_T = (joints_px.max(1) - joints_px.min(1)).max(-1)
    parents, children = (list(ends) for ends in zip(*BONES))
    bones_T = np.linalg.norm(joints_px[:, children] - joints_px[:, parents], axis=-1).sum(-1)
    hidden_T = (np.asarray(visibility) < 0.5).mean(-1)
    is_inverted_T = joints_px[:, JOINT_NAMES.index("head"), 1] > joints_px[:, JOINT_NAMES.index("root"), 1]
    return np.asarray((bones_T / np.maximum(side_T, 1.0)) ** 2 * (0.2 + hidden_T) * (1 + 2 * is_inverted_T) + 1e-6)


def augmented_crop(
    frames_FHWC: NDArray[np.uint8],
    joints_px: NDArray[np.float64],
    visibility: NDArray[np.float32],
    rng: np.random.Generator,
    config: Pose2DTrainingConfig,
    crop_size: tuple[int, int],
) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.float32], NDArray[np.bool_]]:
    """One crop (F, h, w, 3), the joints (17, 2) of its middle frame in its pixels, weight (17,) and which joints lie
    inside it (17,)."""
    to_frame = _random_box(joints_px, rng, config, crop_size)
    crop_FHWC = np.stack([cut_crop(frame_HWC, to_frame, crop_size) for frame_HWC in frames_FHWC])
    joints_px = (joints_px - to_frame[:, 2]) @ np.linalg.inv(to_frame[:, :2]).T
    if rng.random() < config.flip_probability:
        crop_FHWC = np.ascontiguousarray(crop_FHWC[:, :, ::-1])
        joints_px = joints_px[list(MIRROR)]
        joints_px[:, 0] = crop_size[1] - joints_px[:, 0]
        visibility = visibility[list(MIRROR)]
    is_nobody = rng.random() < config.nobody_probability
    if is_nobody:
        crop_FHWC = np.repeat(_plain_image(rng, crop_size)[None], len(crop_FHWC), 0)
    crop_FHWC = _recoloured(crop_FHWC, rng, config)
    crop_FHWC, is_covered = _with_cutout(crop_FHWC, joints_px, rng, config)
    crop_FHWC = _blurred(crop_FHWC, rng, config)
    is_inside = _is_within(joints_px, np.zeros(2), np.array([crop_size[1], crop_size[0]])) & (not is_nobody)
    weight = np.full(len(joints_px), config.hidden_weight, np.float32)
    weight[(visibility >= 0.5) & ~is_covered] = 1.0
    weight[~is_inside] = config.outside_weight
    return crop_FHWC, joints_px, weight, is_inside


def _random_box(
    joints_px: NDArray[np.float64],
    rng: np.random.Generator,
    config: Pose2DTrainingConfig,
    crop_size: tuple[int, int],
) -> NDArray[np.float64]:
    """The 2x3 matrix from the crop's pixels to the frame's: a turned, scaled, shifted box around the body."""
    low, high = joints_px.min(0), joints_px.max(0)
    kind = rng.random()
    is_turned = kind < config.turned_probability
    is_filmed = not is_turned and kind < config.turned_probability + config.filmed_probability
    scale = math.exp(rng.uniform(*np.log(config.filmed_scale if is_filmed else config.scale)))
    side_px = max(float((high - low).max()), 8.0) * scale
    # A body that is small in its box may lie anywhere in it.
    shift = max(config.shift, 0.4 * (1 - 1.2 / scale)) if is_filmed else config.shift
    centre_px = (low + high) / 2 + rng.uniform(-shift, shift, 2) * side_px
    limit = config.rotation_degrees if is_turned else config.tilt_degrees
    angle = math.radians(rng.uniform(-limit, limit))
    if not is_turned and not is_filmed:
        angle += float(trunk_angle(joints_px))
    return crop_to_frame(centre_px, side_px * crop_size[0] / min(crop_size), crop_size, angle)


def _plain_image(rng: np.random.Generator, crop_size: tuple[int, int]) -> NDArray[np.uint8]:
    """One colour, a smooth gradient or noise."""
    num_cells = int(rng.choice([1, 2, 4, 64]))
    cells = rng.integers(0, 256, (num_cells, num_cells, 3), np.uint8)
    return np.asarray(cv2.resize(cells, (crop_size[1], crop_size[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


def _recoloured(
    crop_FHWC: NDArray[np.uint8], rng: np.random.Generator, config: Pose2DTrainingConfig
) -> NDArray[np.uint8]:
    """Channels mixed by a random matrix, with another contrast and brightness; sometimes grey."""
    mixture = np.eye(3)
    if rng.random() < config.colour_probability:
        mixture = np.eye(3)[rng.permutation(3)] if rng.random() < 0.5 else mixture
        mixture = mixture + rng.normal(0, 0.25, (3, 3))
    if rng.random() < config.grey_probability:
        mixture = np.tile(np.array([0.299, 0.587, 0.114]) @ mixture, (3, 1))
    contrast, brightness = (
        math.exp(rng.normal(0, config.contrast_deviation)),
        rng.normal(0, config.brightness_deviation),
    )
    mixture = mixture * contrast
    # Mid-grey stays where it is: contrast turns about it.
    offset = 128 - mixture @ np.full(3, 128.0) + brightness
    # OpenCV's pictures have two axes: the frames lie one below the other.
    tall = crop_FHWC.reshape(-1, *crop_FHWC.shape[2:])
    recoloured = cv2.transform(tall, np.concatenate([mixture, offset[:, None]], 1))
    return np.asarray(recoloured, np.uint8).reshape(crop_FHWC.shape)


def _with_cutout(
    crop_FHWC: NDArray[np.uint8],
    joints_px: NDArray[np.float64],
    rng: np.random.Generator,
    config: Pose2DTrainingConfig,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A rectangle painted over, and which joints it covers."""
    height, width = crop_FHWC.shape[1:3]
    if rng.random() >= config.cutout_probability:
        return crop_FHWC, np.zeros(len(joints_px), np.bool_)
    size = rng.uniform(0.08, 0.35, 2) * [width, height]
    low = (rng.uniform(0, 1, 2) * [width, height] - size / 2).round().clip(0)
    high = low + size.round()
    (left, top), (right, bottom) = low.astype(int), high.astype(int)
    crop_FHWC = crop_FHWC.copy()
    crop_FHWC[:, top:bottom, left:right] = rng.integers(0, 256, 3)
    return crop_FHWC, _is_within(joints_px, low, high)


def _is_within(
    joints_px: NDArray[np.float64], low_px: NDArray[np.float64], high_px: NDArray[np.float64]
) -> NDArray[np.bool_]:
    return np.asarray(((joints_px >= low_px) & (joints_px < high_px)).all(-1))


def _blurred(crop_FHWC: NDArray[np.uint8], rng: np.random.Generator, config: Pose2DTrainingConfig) -> NDArray[np.uint8]:
    if rng.random() < config.blur_probability:
        if rng.random() < 0.5:
            deviation_px = rng.uniform(0.4, 1.5)
            crop_FHWC = np.stack([cv2.GaussianBlur(crop_HWC, (0, 0), deviation_px) for crop_HWC in crop_FHWC])
        else:
            kernel = _motion_kernel(rng)
            crop_FHWC = np.stack([cv2.filter2D(crop_HWC, -1, kernel) for crop_HWC in crop_FHWC])
    return crop_FHWC


def _motion_kernel(rng: np.random.Generator) -> NDArray[np.float32]:
    """A line of 3 to 7 pixels in a random direction, summing to one."""
    side = int(rng.choice([3, 5, 7]))
    kernel = np.zeros((side, side), np.float32)
    angle = rng.uniform(0, math.pi)
    reach = np.array([math.cos(angle), math.sin(angle)]) * (side // 2)
    middle = side // 2
    start, end = (tuple(int(value) for value in (middle + sign * reach).round()) for sign in (-1, 1))
    cv2.line(kernel, start, end, 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)
