from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from finephys.physics.body import bone_lengths
from finephys.pose import windows
from finephys.pose.recombination import LIMBS, Limb, graft
from finephys.pose.tracks import captured
from finephys.pose.windows import sample_window
from finephys.skeleton import JOINT_NAMES

FPS = 60.0


def _two_motions() -> tuple[np.ndarray, np.ndarray]:
    tracks = [track for track in captured("train") if track.performer == 0]
    one, other = tracks[0], next(track for track in tracks[1:] if len(track.joints_m) > 40)
    return one.joints_m[:40].astype(np.float64), other.joints_m[:40].astype(np.float64)


@pytest.mark.parametrize("limb", LIMBS)
def test_only_the_limb_moves_and_bones_keep_their_lengths(limb: Limb) -> None:
    joints_m, donor_m = _two_motions()
    grafted_m = graft(np.random.default_rng(0), limb, joints_m, donor_m, FPS)
    moved = {
        name for index, name in enumerate(JOINT_NAMES) if np.abs(grafted_m[:, index] - joints_m[:, index]).max() > 1e-3
    }
    wanted = {
        "upper_body": set(JOINT_NAMES[JOINT_NAMES.index("spine") :]),
        "left_arm": {"left_elbow", "left_wrist"},
        "right_arm": {"right_elbow", "right_wrist"},
        "left_leg": {"left_knee", "left_ankle"},
        "right_leg": {"right_knee", "right_ankle"},
    }[limb]
    assert moved == wanted
    # The recordings' own bones are off by millimetres from body to body of one shape.
    lengths_m = bone_lengths(torch.from_numpy(grafted_m))
    assert (lengths_m - bone_lengths(torch.from_numpy(joints_m))).abs().max() < 0.02


def test_a_limb_moves_against_the_trunk_as_the_donors_does_wherever_the_donor_is() -> None:
    joints_m, donor_m = _two_motions()
    elsewhere_m = donor_m @ Rotation.from_rotvec([0.3, 1.0, -0.5]).as_matrix().T + [1.0, 2.0, 3.0]
    for limb in LIMBS:
        one = graft(np.random.default_rng(1), limb, joints_m, donor_m, FPS)
        np.testing.assert_allclose(graft(np.random.default_rng(1), limb, joints_m, elsewhere_m, FPS), one, atol=1e-9)
    # Elbows bend as the donor's do, whatever the arm hangs on.
    grafted_m = graft(np.random.default_rng(2), "left_arm", joints_m, donor_m, FPS)
    shoulder, wrist = JOINT_NAMES.index("left_shoulder"), JOINT_NAMES.index("left_wrist")
    reach_m, donors_m = (np.linalg.norm(m[:, wrist] - m[:, shoulder], axis=-1) for m in (grafted_m, donor_m))
    np.testing.assert_allclose(reach_m, donors_m, atol=1e-9)


def test_a_limb_grafted_on_its_own_motion_is_only_turned_a_little() -> None:
    joints_m, _ = _two_motions()
    angles_deg = []
    for seed in range(40):
        grafted_m = graft(np.random.default_rng(seed), "left_arm", joints_m, joints_m, FPS)
        bone, before = (m[:, 12] - m[:, 11] for m in (grafted_m, joints_m))
        cosine = (bone * before).sum(-1) / np.linalg.norm(bone, axis=-1) / np.linalg.norm(before, axis=-1)
        angles_deg.append(np.degrees(np.arccos(cosine.clip(-1, 1))).mean())
    assert 8 < np.mean(angles_deg) < 30
    assert max(angles_deg) < 70


def test_windows_of_training_are_recombined_and_those_of_the_test_split_are_not() -> None:
    def window(index: int, split: str, keeps_mechanics: bool) -> np.ndarray:
        row = sample_window(index, 0, split=split, is_corrupted=False, keeps_mechanics=keeps_mechanics)
        return np.asarray(row["joints_cam_m"])

    def differ(split: str) -> list[bool]:
        return [np.abs(window(index, split, True) - window(index, split, False)).max() > 0.01 for index in range(60)]

    assert 0.3 < np.mean(differ("train")) < 0.7
    assert not any(differ("test"))


def test_where_mechanics_is_kept_nobody_in_flight_and_no_leg_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    grafted: list[str] = []

    def recorded(rng: np.random.Generator, limb: Limb, *rest: Any) -> np.ndarray:
        grafted.append(limb)
        return graft(rng, limb, *rest)

    # Made before: flights graft shapes of their own.
    sample_window(0, 0)
    monkeypatch.setattr(windows, "graft", recorded)
    num_grafts = 0
    for index in range(60):
        grafted.clear()
        row = sample_window(index, 3, is_corrupted=False)
        assert not (grafted and row["in_flight"].any())
        assert not [limb for limb in grafted if limb.endswith("leg")]
        num_grafts += len(grafted)
    assert num_grafts > 10
    grafted.clear()
    for index in range(60):
        sample_window(index, 3, is_corrupted=False, keeps_mechanics=False)
    assert {"left_leg", "right_leg"} <= set(grafted)
