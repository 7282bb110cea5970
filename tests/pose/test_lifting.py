import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finephys.pose.camera import project
from finephys.pose.estimator import Pose2D
from finephys.pose.examples import window_table
from finephys.pose.lifting import Lifter, LifterConfig, Pose3D, Prompts
from finephys.pose.lifting_training import LiftingTraining, LiftingTrainingConfig, build, choose_bank, collate
from finephys.pose.windows import EPISODE_PROMPTS, sample_window
from finephys.skeleton import MIRROR

SMALL = LifterConfig(width=16, num_layers=3, num_heads=2, bank_size=24)
INTRINSICS = np.array([[180.0, 0.0, 64.0], [0.0, 180.0, 64.0], [0.0, 0.0, 1.0]], np.float32)


@pytest.fixture(scope="module")
def lifter() -> Lifter:
    """A small lifter with a real bank and weights that are random everywhere."""
    torch.manual_seed(0)
    lifter = Lifter(**asdict(SMALL))
    lifter.set_bank(*choose_bank(SMALL.bank_size, SMALL.window_frames, num_candidates=100))
    with torch.no_grad():
        for head in (lifter.point_head, lifter.frame_head, lifter.scene_head):
            head.weight.normal_(0, 0.02)
        lifter.missing_token.normal_()
    return lifter


def clip(num_frames: int, seed: int = 0) -> Pose2D:
    """A walking-sized tangle that moves smoothly."""
    rng = np.random.default_rng(seed)
    sway = np.sin(np.linspace(0, 3, num_frames))[:, None, None]
    joints_px = 64 + rng.normal(0, 15, (17, 2)) + sway * rng.normal(0, 4, (17, 2))
    return Pose2D(joints_px.astype(np.float32), np.full((num_frames, 17), 0.9, np.float32))


@pytest.mark.parametrize("num_frames", [2, 16, 33, 100])
@pytest.mark.parametrize("fps", [25.0, 30.0, 60.0])
def test_any_length_is_lifted_in_front_of_the_camera(lifter: Lifter, num_frames: int, fps: float) -> None:
    pose = lifter.lift(clip(num_frames), INTRINSICS, fps)
    assert isinstance(pose, Pose3D)
    assert pose.joints_cam_m.shape == (num_frames, 17, 3)
    assert pose.joints_cam_m.dtype == np.float32
    assert np.isfinite(pose.joints_cam_m).all()
    assert pose.root_cam_m[:, 2].min() > 0.5
    assert np.linalg.norm(pose.gravity_cam) == pytest.approx(1.0, abs=1e-5)
    assert 0 < pose.static_probability < 1


def test_the_mirror_image_of_a_clip_is_lifted_to_the_mirror_image_of_its_motion(lifter: Lifter) -> None:
    pose, mirror = clip(40), list(MIRROR)
    intrinsics = INTRINSICS + np.array([[0, 0, 7.0], [0, 0, 0], [0, 0, 0]], np.float32)
    flipped_px = pose.joints_px[:, mirror] * [-1, 1] + [2 * intrinsics[0, 2], 0]
    flipped = Pose2D(flipped_px.astype(np.float32), pose.confidence[:, mirror])
    one, other = lifter.lift(pose, intrinsics, 30.0), lifter.lift(flipped, intrinsics, 30.0)
    np.testing.assert_allclose(other.joints_cam_m, one.joints_cam_m[:, mirror] * [-1, 1, 1], atol=2e-3)
    np.testing.assert_allclose(other.gravity_cam, one.gravity_cam * [-1, 1, 1], atol=1e-4)


def test_a_clip_without_frames_enough_or_of_other_joints_is_refused(lifter: Lifter) -> None:
    with pytest.raises(ValueError, match="T >= 2"):
        lifter.lift(clip(1), INTRINSICS, 30.0)
    pose = clip(5)
    with pytest.raises(ValueError, match=r"\(5, 16, 2\)"):
        lifter.lift(Pose2D(pose.joints_px[:, :16], pose.confidence[:, :16]), INTRINSICS, 30.0)
    with pytest.raises(ValueError, match="fps 0"):
        lifter.lift(pose, INTRINSICS, 0)


def test_what_a_missing_joint_says_does_not_matter(lifter: Lifter) -> None:
    pose = clip(40)
    confidence = pose.confidence.copy()
    confidence[10:20, 3] = 0.0
    confidence[25] = 0.1
    lifted = []
    for junk in (0.0, 1e6, np.nan, np.inf):
        joints_px = pose.joints_px.copy()
        joints_px[confidence < SMALL.missing_below] = junk
        lifted.append(lifter.lift(Pose2D(joints_px, confidence), INTRINSICS, 30.0).joints_cam_m)
        np.testing.assert_array_equal(lifted[0], lifted[-1])
    # A missing joint is a token of its own, not a joint at the centre that is seen badly.
    assert not np.allclose(lifted[0], lifter.lift(pose, INTRINSICS, 30.0).joints_cam_m, atol=1e-4)


def test_a_clip_in_which_nothing_was_seen_stays_finite(lifter: Lifter) -> None:
    pose = clip(20)
    lifted = lifter.lift(Pose2D(np.full_like(pose.joints_px, np.nan), np.zeros_like(pose.confidence)), INTRINSICS, 30.0)
    assert np.isfinite(lifted.joints_cam_m).all()


def test_clips_in_a_batch_do_not_see_each_other(lifter: Lifter) -> None:
    poses = [clip(40, seed) for seed in (1, 2)]
    joints_px = torch.from_numpy(np.stack([pose.joints_px for pose in poses]))
    confidence = torch.from_numpy(np.stack([pose.confidence for pose in poses]))
    intrinsics = torch.from_numpy(INTRINSICS).expand(2, 3, 3)
    rates = (30.0, 60.0)
    with torch.no_grad():
        together, gravity, static = lifter(joints_px, confidence, intrinsics, torch.tensor(rates))
    for index, (pose, fps) in enumerate(zip(poses, rates)):
        alone = lifter.lift(pose, INTRINSICS, fps)
        np.testing.assert_allclose(together[index].numpy(), alone.joints_cam_m, atol=1e-4)
        np.testing.assert_allclose(gravity[index].numpy(), alone.gravity_cam, atol=1e-5)
        assert torch.sigmoid(static[index]).item() == pytest.approx(alone.static_probability, abs=1e-5)


def test_pixels_and_focal_length_scaled_together_change_nothing(lifter: Lifter) -> None:
    pose = clip(20)
    lifted = lifter.lift(pose, INTRINSICS, 30.0)
    doubled = INTRINSICS * np.array([[2.0], [2.0], [1.0]], np.float32)
    again = lifter.lift(Pose2D(2 * pose.joints_px, pose.confidence), doubled, 30.0)
    np.testing.assert_allclose(again.joints_cam_m, lifted.joints_cam_m, atol=1e-3)


def test_windows_cover_every_frame_and_their_number_is_linear() -> None:
    for num_frames in (2, 15, 16, 17, 33, 100):
        for fps in (30.0, 60.0):
            _, frame_NF, weight_NF = window_table(num_frames, [fps], 16)
            assert set(frame_NF[weight_NF > 0].tolist()) == set(range(num_frames))
    counts = [len(window_table(num_frames, [30.0], 16)[0]) for num_frames in (160, 320, 640)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0])


def test_a_long_clip_costs_what_its_length_says(lifter: Lifter) -> None:
    def seconds(num_frames: int) -> float:
        pose = clip(num_frames)
        lifter.lift(pose, INTRINSICS, 30.0)
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            lifter.lift(pose, INTRINSICS, 30.0)
            best = min(best, time.process_time() - start)
        return float(best)

    # 8 times as long: quadratic would be 64 times the cost.
    assert seconds(4000) < 20 * seconds(500)


def test_examples_of_the_bank_are_their_own_prompts_and_mirror_images(lifter: Lifter) -> None:
    """With all of the guess let through and one prompt, an example's 2D is completed to its own 3D."""
    untrained = Lifter(**{**asdict(SMALL), "num_prompts": 1})
    untrained.set_bank(lifter.bank_joints_cam_m_PFJ3, lifter.bank_gravity_P3)
    torch.nn.init.ones_(untrained.guess_share)
    intrinsics = torch.from_numpy(INTRINSICS)
    truth_m = lifter.bank_joints_cam_m_PFJ3[7]
    mirrored_m = truth_m[:, list(MIRROR)] * torch.tensor([-1.0, 1.0, 1.0])
    for joints_m in (truth_m, mirrored_m):
        joints_px = project(joints_m, intrinsics).numpy()
        pose = untrained.lift(Pose2D(joints_px, np.ones((16, 17), np.float32)), INTRINSICS, 30.0)
        np.testing.assert_allclose(pose.joints_cam_m, joints_m.numpy(), atol=2e-3)


def test_saved_and_loaded_it_lifts_the_same(lifter: Lifter, tmp_path: Path) -> None:
    LiftingTraining(lifter, LiftingTrainingConfig(lifter=SMALL)).export(tmp_path)
    assert not list(tmp_path.rglob("*.bin"))
    loaded = build(LiftingTrainingConfig(lifter=SMALL), tmp_path).lifter
    assert loaded.dtype == torch.float32
    pose = clip(33)
    wanted = lifter.lift(pose, INTRINSICS, 30.0)
    np.testing.assert_array_equal(loaded.lift(pose, INTRINSICS, 30.0).joints_cam_m, wanted.joints_cam_m)


def test_prompts_that_are_given_take_the_banks_place_for_their_own_clip_only(lifter: Lifter) -> None:
    rows = [sample_window(index, 0, num_frames=16, num_prompts=EPISODE_PROMPTS) for index in range(2)]
    batch = {name: torch.stack([torch.from_numpy(np.asarray(row[name])) for row in rows]) for name in rows[0]}
    fps = batch["fps"].float()
    arguments = (batch["joints_px"], batch["confidence"], batch["intrinsics"], fps)
    mixed, of_bank = (
        lifter.lift_both_ways(
            *arguments, Prompts(batch["prompt_joints_cam_m"], batch["prompt_gravity"], torch.tensor([is_given, False]))
        ).joints_BTJ3.detach()
        for is_given in (True, False)
    )
    given = (rows[0]["prompt_joints_cam_m"], rows[0]["prompt_gravity"])
    alone = lifter.lift(Pose2D(rows[0]["joints_px"], rows[0]["confidence"]), rows[0]["intrinsics"], 30.0, given)
    np.testing.assert_allclose(mixed[0].numpy(), alone.joints_cam_m, atol=1e-4)
    np.testing.assert_allclose(mixed[1].numpy(), of_bank[1].numpy(), atol=1e-4)
    assert not np.allclose(mixed[0].numpy(), of_bank[0].numpy(), atol=1e-3)
    with pytest.raises(ValueError, match="1 prompts are given"):
        lifter.lift(clip(20), INTRINSICS, 30.0, (given[0][:1], given[1][:1]))
    with pytest.raises(ValueError, match="prompts have shapes"):
        lifter.lift(clip(20), INTRINSICS, 30.0, (given[0][:, :5], given[1]))


def test_a_clip_without_prompts_is_completed_by_its_own_first_lifting(lifter: Lifter) -> None:
    """Of a clip of one window there is one prompt: itself. Where down is was said before it."""
    row = sample_window(3, 0, num_frames=16, num_prompts=EPISODE_PROMPTS)
    pose = Pose2D(row["joints_px"], row["confidence"])
    batch = [torch.from_numpy(row[name])[None] for name in ("joints_px", "confidence", "intrinsics")]
    nobodys = Prompts(torch.ones(1, 2, 16, 17, 3), torch.ones(1, 2, 3), torch.tensor([False]))
    with torch.no_grad():
        first = lifter.lift_both_ways(*batch, torch.tensor([30.0]), nobodys)
    itself = (first.joints_BTJ3.repeat(2, 1, 1, 1).numpy(), first.gravity_B3.repeat(2, 1).numpy())
    expected = lifter.lift(pose, row["intrinsics"], 30.0, itself).joints_cam_m
    lifted = lifter.lift(pose, row["intrinsics"], 30.0)
    np.testing.assert_allclose(lifted.joints_cam_m, expected, atol=1e-4)
    np.testing.assert_allclose(lifted.gravity_cam, first.gravity_B3[0], atol=1e-6)
    assert np.abs(expected - first.joints_BTJ3[0].numpy()).max() > 0.01


def test_windows_that_are_sure_of_gravity_count_by_their_inverse_variance(
    lifter: Lifter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two windows the first says down is ahead and is three times as sure as the second, which says it is right."""
    ahead, right = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([1.0, 0.0, 0.0])
    complete = Lifter.complete

    def known(self: Lifter, *arguments: Any) -> tuple[torch.Tensor, ...]:
        joints, _, static, spread, scene = complete(self, *arguments)
        return joints, torch.stack([ahead, right]), static, spread, scene.new_tensor([[0.1, 0.1], [0.1, 0.3]])

    monkeypatch.setattr(Lifter, "complete", known)
    pose = clip(20)
    batch = (torch.from_numpy(value)[None] for value in (pose.joints_px, pose.confidence, INTRINSICS))
    with torch.no_grad():
        gravity = lifter.lift_batch(*batch, torch.tensor([30.0])).gravity_B3[0]
    torch.testing.assert_close(gravity, torch.nn.functional.normalize(9 * ahead + right, dim=0))


def test_the_result_is_as_large_as_the_prompts_that_are_given(lifter: Lifter) -> None:
    """A world twice as large looks the same: only the prompts can tell, and everything scales with them."""
    row = sample_window(3, 0, num_frames=16, num_prompts=EPISODE_PROMPTS)
    pose = Pose2D(row["joints_px"], row["confidence"])
    usual, large = (
        lifter.lift(pose, row["intrinsics"], 30.0, (factor * row["prompt_joints_cam_m"], row["prompt_gravity"]))
        for factor in (1.0, 2.0)
    )
    np.testing.assert_allclose(large.joints_cam_m, 2 * usual.joints_cam_m, rtol=1e-4, atol=1e-3)


def test_every_output_says_how_far_off_it_expects_to_be(lifter: Lifter) -> None:
    lifted = lifter.lift(clip(40), INTRINSICS, 30.0)
    assert lifted.joints_spread_m is not None
    assert lifted.root_spread is not None
    assert lifted.gravity_spread_deg is not None
    assert lifted.joints_spread_m.shape == (40, 17)
    assert lifted.joints_spread_m.min() > 0
    assert lifted.root_spread > 0
    assert lifted.gravity_spread_deg > 0


def test_weights_saved_without_spreads_say_that_they_know_none(lifter: Lifter, tmp_path: Path) -> None:
    """As weights of before there were any: their config has no has_spread."""
    old = Lifter(**{**asdict(SMALL), "has_spread": False})
    old.set_bank(lifter.bank_joints_cam_m_PFJ3, lifter.bank_gravity_P3)
    old.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["has_spread"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Lifter.from_pretrained(tmp_path).lift(clip(20), INTRINSICS, 30.0).joints_spread_m is None


def test_shipped_weights_say_how_far_off_they_expect_to_be() -> None:
    shipped = Lifter.from_pretrained("finephys/assets/pipeline", subfolder="lifter", torch_dtype=torch.float32)
    assert shipped.lift(clip(20), INTRINSICS, 30.0).joints_spread_m is not None


def test_without_prompts_the_bank_does_not_matter(lifter: Lifter) -> None:
    torch.manual_seed(0)
    alone = Lifter(**{**asdict(SMALL), "num_prompts": 0})
    torch.nn.init.normal_(alone.point_head.weight, 0, 0.02)
    before = alone.lift(clip(20), INTRINSICS, 30.0).joints_cam_m
    alone.set_bank(lifter.bank_joints_cam_m_PFJ3, lifter.bank_gravity_P3)
    np.testing.assert_array_equal(alone.lift(clip(20), INTRINSICS, 30.0).joints_cam_m, before)


def test_sizes_are_within_what_the_pipeline_allows() -> None:
    lifter = Lifter(**asdict(LifterConfig()))
    assert sum(parameter.numel() for parameter in lifter.parameters()) <= 1_500_000
    assert sum(buffer.numel() for buffer in lifter.buffers()) <= 300_000


def test_impossible_configs_name_both_fields() -> None:
    with pytest.raises(ValueError, match=r"width 10 .* num_heads 4"):
        LifterConfig(width=10)
    with pytest.raises(ValueError, match=r"num_prompts 9 .*bank_size \(8\)"):
        LifterConfig(num_prompts=9, bank_size=8)


def test_a_few_steps_of_training_lower_the_loss(lifter: Lifter) -> None:
    torch.manual_seed(0)
    config = LiftingTrainingConfig(lifter=SMALL)
    fresh = Lifter(**asdict(SMALL))
    fresh.set_bank(lifter.bank_joints_cam_m_PFJ3, lifter.bank_gravity_P3)
    module = LiftingTraining(fresh, config)
    batch = collate([sample_window(index, 0, num_prompts=2) for index in range(16)], np.random.default_rng(0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        terms = module(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
        optimizer.step()
        losses.append(terms["mpjpe_mm"].item())
    assert losses[-1] < 0.6 * losses[0]
