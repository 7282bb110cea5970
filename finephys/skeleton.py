"""The skeleton that every hop speaks: H36M-17 joints, their tree, their mirror, and COCO-17 in their terms.

Path:    everywhere
Letters: T frames, J = 17 joints
Units:   positions in whatever unit the caller has; nothing here is metric

The order and the names are Human3.6M's (Ionescu et al., TPAMI 2014) as used by the lifting literature
(Pavllo et al., CVPR 2019). "neck" is the joint between thorax and head that H36M calls neck/nose.
"""

import numpy as np
from numpy.typing import NDArray

JOINT_NAMES = (
    "root",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "spine",
    "thorax",
    "neck",
    "head",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
)
NUM_JOINTS = len(JOINT_NAMES)

# Parent of each joint; the root (mid-hip) has none.
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 9, 8, 11, 12, 8, 14, 15)

# (parent, child) for each of the 16 bones, in the order of the child joints.
BONES = tuple((parent, child) for child, parent in enumerate(PARENTS) if parent >= 0)
NUM_BONES = len(BONES)

# joints[..., MIRROR, :] swaps left and right.
MIRROR = (0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13)

# bone_lengths[..., MIRROR_BONES] swaps left and right in the order of BONES.
MIRROR_BONES = tuple(MIRROR[child] - 1 for _, child in BONES)

COCO_NAMES = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)
COCO_MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def _coco_mixture() -> NDArray[np.float32]:
    """Row j holds the weights with which COCO keypoints make H36M joint j; each row sums to one."""
    coco = {name: index for index, name in enumerate(COCO_NAMES)}
    mixture = np.zeros((NUM_JOINTS, len(COCO_NAMES)), np.float32)
    for joint, name in enumerate(JOINT_NAMES):
        if name in coco:
            mixture[joint, coco[name]] = 1.0
    hips = [coco["left_hip"], coco["right_hip"]]
    shoulders = [coco["left_shoulder"], coco["right_shoulder"]]
    mixture[JOINT_NAMES.index("root"), hips] = 0.5
    # COCO has no spine: H36M's lies close to half-way between mid-hip and mid-shoulder.
    mixture[JOINT_NAMES.index("spine"), hips + shoulders] = 0.25
    mixture[JOINT_NAMES.index("thorax"), shoulders] = 0.5
    mixture[JOINT_NAMES.index("neck"), [coco["nose"], *shoulders]] = (0.5, 0.25, 0.25)
    mixture[JOINT_NAMES.index("head"), [coco["left_eye"], coco["right_eye"]]] = 0.5
    return mixture


COCO_MIXTURE = _coco_mixture()


def coco_to_h36m(
    keypoints_px: NDArray[np.floating], confidence: NDArray[np.floating]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn COCO-17 keypoints into H36M-17 joints.

    keypoints_px (..., 17, 2), confidence (..., 17) in [0, 1] -> joints (..., 17, 2), confidence (..., 17), float32.
    A joint mixed of several keypoints is as sure as the least sure of them.
    Raises ValueError on any other number of keypoints.
    """
    if keypoints_px.shape[-2] != len(COCO_NAMES) or confidence.shape[-1] != len(COCO_NAMES):
        raise ValueError(
            f"keypoints_px {keypoints_px.shape} and confidence {confidence.shape} must have {len(COCO_NAMES)} keypoints"
        )
    joints = np.einsum("jk,...kc->...jc", COCO_MIXTURE, keypoints_px.astype(np.float32))
    used = COCO_MIXTURE > 0
    sure = np.where(used, confidence[..., None, :].astype(np.float32), np.inf).min(-1)
    return joints, sure.astype(np.float32)
