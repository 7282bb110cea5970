"""Where the gymnast is in each frame of a clip, and the crops that the pose network sees.

Path:    frames -> boxes -> crops -> (rtmpose.py)
Letters: T frames, J joints, H, W, C
Units:   pixel (x right, y down, centre of the first pixel at 0.5)

Which person is the gymnast is decided by what moves, over the whole clip; nothing is carried from frame to frame,
so a somersault cannot make a tracker lose its target. Boxes are smoothed over time by order statistics: a frame with
a wrong pose does not move its neighbours' boxes. They turn with the trunk: what is upside down in the video is upright
in its box, where a network needs to learn less.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, median_filter, uniform_filter1d

from finephys.pose.estimator import Pose2D
from finephys.skeleton import JOINT_NAMES

# A video this small is seen whole in the first pass: the gymnast fills enough of it.
WHOLE_FRAME_SIDE_PX = 256
# Motion is looked for at this resolution and in this many frames; it only has to place a box.
MOTION_SIDE_PX = 96
MOTION_NUM_BACKGROUND_FRAMES = 48
# Grey levels by which a pixel must differ from the background: above H.264's noise.
MOTION_MIN_LEVEL = 24.0
# Box side over the extent of what it holds: RTMPose's 1.25 for a body's joints; motion misses limbs that rest.
JOINTS_MARGIN = 1.25
MOTION_MARGIN = 2.0
# Smoothing over time, in frames at 30 fps. A box that keeps the size of a quarter of a second's largest is twice as
# large as a tuck, whose joints are then off by more.
MEDIAN_NUM_FRAMES = 5
SMOOTHING_NUM_FRAMES = 3
# A box is drawn around joints that are surer than this, if there are this many of them.
BOX_MIN_CONFIDENCE = 0.3
BOX_MIN_JOINTS = 6

_THORAX = JOINT_NAMES.index("thorax")


@dataclass(frozen=True)
class Boxes:
    """A box of the network's aspect ratio for each frame: centre_px (T, 2), height_px (T,), angle (T,), all float64.

    angle: radians by which the box is turned, clockwise as seen.
    """

    centre_px: NDArray[np.float64]
    height_px: NDArray[np.float64]
    angle: NDArray[np.float64]


def boxes_from_motion(frames_THWC: NDArray[np.uint8], crop_size: tuple[int, int]) -> Boxes:
    """A wide box for each frame around what moves; the whole frame where the video is small or nothing moves.

    crop_size (height, width) gives the aspect ratio.
    """
    num_frames, height, width, _ = frames_THWC.shape
    whole = _whole_frame_boxes(num_frames, height, width, crop_size)
    if max(height, width) <= WHOLE_FRAME_SIDE_PX or num_frames < 3:
        return whole
    low_high_T22 = _motion_extents(frames_THWC)
    moving = np.asarray(np.isfinite(low_high_T22).all((1, 2)))
    if moving.mean() < 0.25:
        return whole
    boxes = _boxes_of_extents(_fill_gaps(low_high_T22, moving), MOTION_MARGIN, crop_size)
    return replace(boxes, height_px=np.minimum(boxes.height_px, whole.height_px))


def boxes_from_pose(pose: Pose2D, before: Boxes, crop_size: tuple[int, int]) -> Boxes:
    """Boxes around the sure joints of `pose`, turned with the trunk so that it is upright in them, smoothed over time.

    `before` where no frame has enough sure joints.
    """
    sure = pose.confidence >= BOX_MIN_CONFIDENCE
    found = sure.sum(-1) >= BOX_MIN_JOINTS
    if not found.any():
        return before
    joints_px = pose.joints_px.astype(np.float64)
    angle_T = _smooth_angle(trunk_angle(joints_px), pose.confidence[:, [0, _THORAX]].min(-1))
    # Extents along the axes of the turned box.
    along_TJ2 = joints_px @ rotation(angle_T)
    low_T2 = np.where(sure[..., None], along_TJ2, np.inf).min(1)
    high_T2 = np.where(sure[..., None], along_TJ2, -np.inf).max(1)
    low_T2[~found] = high_T2[~found] = 0.0
    # A middle in pixels of the frame: neighbours' boxes are turned by other angles.
    middle_T2 = np.einsum("tab,tb->ta", rotation(angle_T), (low_T2 + high_T2) / 2)
    half_T2 = (high_T2 - low_T2) / 2
    low_high_T22 = _fill_gaps(np.stack([middle_T2 - half_T2, middle_T2 + half_T2], 1), found)
    boxes = _boxes_of_extents(low_high_T22, JOINTS_MARGIN, crop_size)
    # Unsure limbs may be missing from the extents: never less than half of the clip's usual box.
    height_px = np.maximum(boxes.height_px, 0.5 * np.median(boxes.height_px))
    return Boxes(boxes.centre_px, height_px, angle_T)


def crop_to_frame(
    centre_px: NDArray[np.float64], height_px: float, crop_size: tuple[int, int], angle: float = 0.0
) -> NDArray[np.float64]:
    """The 2x3 matrix that takes a crop's pixel coordinates to the frame's; the crop is turned clockwise by `angle`."""
    matrix = rotation(np.float64(angle)) * (height_px / crop_size[0])
    middle = 0.5 * np.array([crop_size[1], crop_size[0]])
    return np.concatenate([matrix, (centre_px - matrix @ middle)[:, None]], 1)


def rotation(angle: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """Matrices (..., 2, 2) that turn clockwise, as seen where y points down, by `angle` (...) radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack([np.stack([cosine, -sine], -1), np.stack([sine, cosine], -1)], -2)


def trunk_angle(joints_px: NDArray[np.floating]) -> NDArray[np.float64]:
    """Radians by which the trunk of joints_px (..., 17, 2) is turned from upright, clockwise as seen.

    Taken from the root to the thorax: the neck follows the head.
    """
    up = np.asarray(joints_px[..., _THORAX, :] - joints_px[..., 0, :], np.float64)
    return np.asarray(np.arctan2(up[..., 0], -up[..., 1]))


def cut_crop(
    frame_HWC: NDArray[np.uint8], to_frame: NDArray[np.float64], crop_size: tuple[int, int]
) -> NDArray[np.uint8]:
    """The crop (h, w, 3) whose pixel coordinates `to_frame` (2, 3) takes to the frame's; black outside the frame."""
    # Bilinear sampling skips pixels of a frame that is more than twice as fine as the crop: average them first.
    shrink = int(np.sqrt(abs(np.linalg.det(to_frame[:, :2]))))
    if shrink >= 2:
        height, width = (max(1, side // shrink) for side in frame_HWC.shape[:2])
        per_axis = np.array([width / frame_HWC.shape[1], height / frame_HWC.shape[0]])
        frame_HWC = np.asarray(cv2.resize(frame_HWC, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        to_frame = to_frame * per_axis[:, None]
    # OpenCV puts the first pixel's centre at 0, we at 0.5.
    opencv_matrix = to_frame.copy()
    opencv_matrix[:, 2] += 0.5 * to_frame[:, :2].sum(1) - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    crop = cv2.warpAffine(frame_HWC, opencv_matrix, (crop_size[1], crop_size[0]), flags=flags)
    return np.asarray(crop, np.uint8)


def _whole_frame_boxes(num_frames: int, height: int, width: int, crop_size: tuple[int, int]) -> Boxes:
    box_height = max(height, width * crop_size[0] / crop_size[1])
    centre_T2 = np.tile(np.array([width / 2, height / 2]), (num_frames, 1))
    return Boxes(centre_T2, np.full(num_frames, float(box_height)), np.zeros(num_frames))


def _motion_extents(frames_THWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(T, 2, 2) lowest and highest (x, y) of what differs from the temporal median; not finite where nothing does."""
    num_frames, height, width, _ = frames_THWC.shape
    shrink = min(1.0, MOTION_SIDE_PX / max(height, width))
    small_size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small_ThwC = np.stack([cv2.resize(frame, small_size, interpolation=cv2.INTER_AREA) for frame in frames_THWC])
    sampled = np.linspace(0, num_frames - 1, min(num_frames, MOTION_NUM_BACKGROUND_FRAMES)).round().astype(int)
    background_hwC = np.median(small_ThwC[sampled], axis=0).astype(np.float32)
    extents = np.full((num_frames, 2, 2), np.nan)
    to_frame = np.array([width / small_size[0], height / small_size[1]])
    for frame, small_hwC in enumerate(small_ThwC):
        # The channel that differs most: a red leotard may be as bright as the wall behind it.
        difference_hw = np.abs(small_hwC - background_hwC).max(-1)
        weight_hw = np.where(difference_hw >= MOTION_MIN_LEVEL, difference_hw, np.float32(0))
        if weight_hw.any():
            x_low, x_high = _weighted_range(weight_hw.sum(0))
            y_low, y_high = _weighted_range(weight_hw.sum(1))
            extents[frame] = np.array([[x_low, y_low], [x_high, y_high]]) * to_frame
    return extents


def _weighted_range(weight: NDArray[np.float32]) -> tuple[float, float]:
    """Positions between which the middle nine tenths of the weight lie: a waving hand elsewhere is left out."""
    share = np.cumsum(weight) / weight.sum()
    return float(np.searchsorted(share, 0.05)), float(np.searchsorted(share, 0.95) + 1)


def _smooth_angle(angle_T: NDArray[np.float64], weight_T: NDArray[np.floating]) -> NDArray[np.float64]:
    """Directions averaged over three frames, each counting as much as it is sure: a somersault turns by 30 degrees in
    one."""
    # The small weight decides where nothing is sure.
    pointer_T = (weight_T.astype(np.float64) + 1e-3) * np.exp(1j * angle_T)
    real_T, imaginary_T = (uniform_filter1d(part, 3, mode="nearest") for part in (pointer_T.real, pointer_T.imag))
    return np.asarray(np.arctan2(imaginary_T, real_T))


def _fill_gaps(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """values (T, ...) with the frames that are not known filled in linearly from those that are."""
    frames = np.arange(len(values))
    flat = values.reshape(len(values), -1)
    filled = [np.interp(frames, frames[known], column[known]) for column in flat.T]
    return np.stack(filled, -1).reshape(values.shape)


def _boxes_of_extents(low_high_T22: NDArray[np.float64], margin: float, crop_size: tuple[int, int]) -> Boxes:
    # The median drops outliers, the maximum keeps limbs that move out for a moment, the mean stops the box jumping.
    low_T2, high_T2 = (
        median_filter(low_high_T22[:, side], size=(MEDIAN_NUM_FRAMES, 1), mode="nearest") for side in (0, 1)
    )
    centre_T2 = uniform_filter1d((low_T2 + high_T2) / 2, SMOOTHING_NUM_FRAMES, axis=0, mode="nearest")
    # Twice the larger distance from the centre, so that what is off-centre after smoothing is still inside.
    extent_T2 = 2 * np.maximum(high_T2 - centre_T2, centre_T2 - low_T2)
    height_T = np.maximum(extent_T2[:, 1], extent_T2[:, 0] * crop_size[0] / crop_size[1])
    height_T = maximum_filter1d(height_T, SMOOTHING_NUM_FRAMES, mode="nearest")
    height_T = uniform_filter1d(height_T, SMOOTHING_NUM_FRAMES, mode="nearest")
    return Boxes(centre_T2, np.maximum(margin * height_T, 8.0), np.zeros(len(centre_T2)))
