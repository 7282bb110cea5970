"""The skeleton is a tree with a mirror, and COCO keypoints land where H36M has its joints."""

import numpy as np
import pytest

from finephys.skeleton import (
    BONES,
    COCO_MIRROR,
    COCO_MIXTURE,
    COCO_NAMES,
    JOINT_NAMES,
    MIRROR,
    MIRROR_BONES,
    NUM_JOINTS,
    PARENTS,
    coco_to_h36m,
)


def test_parents_make_one_tree_rooted_at_the_mid_hip() -> None:
    for joint in range(1, NUM_JOINTS):
        ancestor, steps = joint, 0
        while ancestor != 0:
            ancestor, steps = PARENTS[ancestor], steps + 1
            assert steps < NUM_JOINTS


def test_mirror_swaps_left_and_right_names_and_keeps_the_tree() -> None:
    swap = {"left": "right", "right": "left"}
    for names, mirror in ((JOINT_NAMES, MIRROR), (COCO_NAMES, COCO_MIRROR)):
        for joint, name in enumerate(names):
            side, _, part = name.partition("_")
            assert names[mirror[joint]] == (f"{swap[side]}_{part}" if side in swap else name)
    bones = set(BONES)
    for index, (parent, child) in enumerate(BONES):
        assert (MIRROR[parent], MIRROR[child]) in bones
        assert BONES[MIRROR_BONES[index]] == (MIRROR[parent], MIRROR[child])


def test_coco_mixture_is_an_average_and_keeps_shared_joints() -> None:
    np.testing.assert_allclose(COCO_MIXTURE.sum(1), 1.0, atol=1e-6)
    keypoints = np.random.default_rng(0).normal(size=(5, 17, 2)).astype(np.float32)
    joints, _ = coco_to_h36m(keypoints, np.ones((5, 17)))
    for name in ("left_wrist", "right_knee", "left_hip"):
        np.testing.assert_allclose(joints[:, JOINT_NAMES.index(name)], keypoints[:, COCO_NAMES.index(name)], atol=1e-6)
    hips = keypoints[:, [COCO_NAMES.index("left_hip"), COCO_NAMES.index("right_hip")]]
    np.testing.assert_allclose(joints[:, 0], hips.mean(1), atol=1e-6)


def test_a_mixed_joint_is_as_sure_as_its_least_sure_keypoint() -> None:
    confidence = np.ones((1, 17))
    confidence[0, COCO_NAMES.index("left_hip")] = 0.2
    _, sure = coco_to_h36m(np.zeros((1, 17, 2)), confidence)
    assert sure[0, JOINT_NAMES.index("root")] == pytest.approx(0.2)
    assert sure[0, JOINT_NAMES.index("right_hip")] == 1.0


def test_another_number_of_keypoints_is_refused() -> None:
    with pytest.raises(ValueError, match="17 keypoints"):
        coco_to_h36m(np.zeros((4, 16, 2)), np.ones((4, 16)))
