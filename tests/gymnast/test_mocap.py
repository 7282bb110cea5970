"""Motions made of others, for the detector: whose limbs they have, and that they stay above the floor."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from finephys.gymnast.body import performer_contacts, performer_joints, rest_body
from finephys.gymnast.mocap import PART_NAMES, Motion, bend, load_capture, recombine, tumble
from finephys.gymnast.motions import performers

LIMBS = {"chest": "pelvis", "head": "chest", "right_forearm": "right_upper_arm", "left_shin": "left_thigh"}


@pytest.fixture(scope="module")
def motions() -> tuple[Motion, Motion]:
    """A run, and a shorter crawl, of one body."""
    size = rest_body(performers("train", 0)[0].shape).size
    run, crawl = (load_capture(name).motion(0, num, fps=30, size=size) for name, num in (("run", 24), ("crawl", 16)))
    return run, crawl


def relative(motion: Motion, part: str, parent: str) -> NDArray[np.float64]:
    rotations = motion.rotations
    return rotations[:, PART_NAMES.index(parent)].transpose(0, 2, 1) @ rotations[:, PART_NAMES.index(part)]


def test_a_recombined_motion_has_each_limb_from_one_of_two_motions(motions: tuple[Motion, Motion]) -> None:
    motion, donor = motions
    num_of_donor = dict.fromkeys(LIMBS, 0)
    for seed in range(20):
        new = recombine(motion, donor, np.random.default_rng(seed))
        np.testing.assert_array_equal(new.root_m, motion.root_m)
        np.testing.assert_allclose(new.rotations[:, 0], motion.rotations[:, 0])
        for part, parent in LIMBS.items():
            seen, own, other = (relative(one, part, parent) for one in (new, motion, donor))
            # The donor is shorter: it stays on its last pose.
            other = other[np.minimum(np.arange(len(own)), len(other) - 1)]
            # Up to a turn that stays.
            between = [one.transpose(0, 2, 1) @ seen for one in (own, other)]
            is_own, is_other = (np.ptp(turn, axis=0).max() < 1e-9 for turn in between)
            assert is_own != is_other
            num_of_donor[part] += is_other
    assert all(0 < num < 20 for num in num_of_donor.values())


def test_tumbled_motions_are_turned_as_a_whole_in_the_air_or_on_the_floor(motions: tuple[Motion, Motion]) -> None:
    motion, performer = motions[0], performers("train", 0)[0]
    kinds = set()
    for seed in range(24):
        new = tumble(motion, np.random.default_rng(seed))
        is_same = [
            np.allclose(relative(new, part, parent), relative(motion, part, parent), atol=1e-9)
            for part, parent in LIMBS.items()
        ]
        # Bent ones are bent all over, but for an arm.
        assert all(is_same) or not any(is_same[index] for index in (0, 1, 3))
        in_flight, _ = performer_contacts(new, performer)
        assert in_flight.all() or not in_flight.any()
        lowest_m = performer_joints(new, performer)[..., 1].min(-1)
        assert lowest_m.min() > 0
        # Skin lies around the joints.
        assert in_flight.all() or lowest_m.max() < 0.35
        kinds.add((bool(in_flight.all()), all(is_same)))
    assert len(kinds) == 4


def test_a_bent_body_goes_from_one_bend_to_another_that_joints_allow(motions: tuple[Motion, Motion]) -> None:
    motion = motions[0]
    lowest, highest = [], []
    num_arms_kept = 0
    for seed in range(40):
        new = bend(motion, np.random.default_rng(seed))
        np.testing.assert_array_equal(new.root_m, motion.root_m)
        np.testing.assert_allclose(new.rotations[:, 0], motion.rotations[:, 0])
        for side in ("right", "left"):
            # Hips, x ahead and y up, z to the right: where a thigh points, and how far a knee is bent.
            thigh = relative(new, f"{side}_thigh", "pelvis")
            shin = Rotation.from_matrix(relative(new, f"{side}_shin", f"{side}_thigh")).as_rotvec(degrees=True)
            np.testing.assert_allclose(shin[:, :2], 0, atol=1e-6)
            assert shin[:, 2].min() > -160.1
            assert shin[:, 2].max() < 0.1
            forward = np.degrees(np.arctan2(-thigh[:, 0, 1], thigh[:, 1, 1]))
            lowest.append(forward.min())
            highest.append(forward.max())
            np.testing.assert_allclose(
                relative(new, f"{side}_foot", f"{side}_shin"),
                relative(motion, f"{side}_foot", f"{side}_shin"),
                atol=1e-9,
            )
            arm = (f"{side}_forearm", f"{side}_upper_arm")
            num_arms_kept += np.allclose(relative(new, *arm), relative(motion, *arm), atol=1e-9)
            # It moves steadily.
            assert np.abs(np.diff(shin[:, 2])).max() < 25
    # Arched bodies and tucked ones.
    assert min(lowest) < 0
    assert max(highest) > 120
    assert 20 < num_arms_kept < 60
