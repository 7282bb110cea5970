"""Phys-Net learns behind a frozen lifter, from the clips that have a truth and from no others."""

import numpy as np
import pytest
import torch

from finephys.guidance.fuse import fuse
from finephys.physics.phys_net import PhysicsPose, PhysNet, PhysNetConfig
from finephys.physics.training import PhysicsTraining, PhysicsTrainingConfig, build, collate, pose_losses
from finephys.pose.lifting import Lifter


@pytest.fixture
def rows(flight_clip):
    return [
        {
            "joints_cam_m": flight_clip.truth[clip].numpy(),
            "intrinsics": flight_clip.intrinsics[clip].numpy(),
            "gravity": flight_clip.gravity[clip].numpy(),
            "fps": 30.0,
            "in_flight": np.ones(32, np.bool_),
            "is_static": True,
            "is_stabilised": False,
            "height": 128,
            "width": 128,
        }
        for clip in range(4)
    ]


@pytest.fixture
def lifter(flight_clip):
    torch.manual_seed(0)
    lifter = Lifter(width=32, num_layers=2, num_heads=2, merge_layer=1, num_prompts=1, bank_size=4)
    lifter.set_bank(flight_clip.truth[:, :16], flight_clip.gravity)
    # Untrained, its own part of the answer is zero: let it answer by analogy alone.
    torch.nn.init.ones_(lifter.guess_share)
    return lifter


def test_it_learns_and_the_lifter_does_not(rows, lifter):
    torch.manual_seed(0)
    module = PhysicsTraining(PhysNet(), lifter)
    module.train()
    assert not module.lifter.training
    batch = collate(rows, np.random.default_rng(0))
    before = {name: value.clone() for name, value in module.lifter.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 3e-3)
    history = []
    for _ in range(12):
        losses = module(batch)
        assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
    assert history[-1]["flight"] < 0.5 * history[0]["flight"]
    assert history[-1]["mpjpe_fused_mm"] < history[-1]["mpjpe_dd_mm"]
    assert all(torch.equal(value, before[name]) for name, value in module.lifter.state_dict().items())


def exact_pose(truth, flight_logit):
    return PhysicsPose(
        joints_pp_BTJ3=truth,
        gate_BTJ=torch.full(truth.shape[:-1], 0.5),
        flight_logit_BT=torch.full(truth.shape[:2], flight_logit),
        acceleration_BTJ3=torch.zeros_like(truth),
        correction_B=torch.zeros(len(truth)),
    )


def test_the_truth_costs_nothing(flight_clip):
    truth, flying = flight_clip.truth, torch.ones(4, 32, dtype=torch.bool)
    losses = pose_losses(exact_pose(truth, 20.0), truth, truth, flying, flight_clip.dt_s)
    assert losses["physics"] < 1e-3
    moved = truth + torch.tensor([0.3, 0.0, 0.0])
    losses = pose_losses(exact_pose(moved, 20.0), moved, truth, flying, flight_clip.dt_s)
    assert losses["mpjpe_fused_mm"] < 0.1
    assert losses["root"].item() == pytest.approx(0.3, abs=1e-3)
    assert losses["path"] < 1e-3
    losses = pose_losses(exact_pose(truth, -2.0), truth, truth, flying, flight_clip.dt_s)
    assert losses["flight"].item() == pytest.approx(2.127, abs=1e-2)


def test_clips_without_truth_count_for_nothing(flight_clip):
    flying = torch.ones(4, 32, dtype=torch.bool)
    truth = flight_clip.truth.clone()
    truth[1] = torch.nan
    has_truth = torch.tensor([True, False, True, True])
    joints = flight_clip.joints_dd.clone().requires_grad_()
    losses = pose_losses(exact_pose(joints, 0.0), joints, truth, flying, flight_clip.dt_s, has_truth)
    losses["physics"].backward()
    assert torch.isfinite(joints.grad).all()
    assert (joints.grad[1] == 0).all()
    kept = [0, 2, 3]
    alone = pose_losses(exact_pose(joints[kept], 0.0), joints[kept], truth[kept], flying[kept], flight_clip.dt_s[kept])
    torch.testing.assert_close(losses["physics"], alone["physics"])

    nobody = pose_losses(exact_pose(joints, 0.0), joints, truth, flying, flight_clip.dt_s, torch.zeros_like(has_truth))
    assert nobody["physics"] == 0


def test_export_and_build(rows, lifter, tmp_path):
    torch.manual_seed(1)
    phys_net = PhysNet(width=32, num_layers=1, num_gauss_newton_steps=1)
    torch.nn.init.normal_(phys_net.frame_heads.weight, std=0.02)
    module = PhysicsTraining(phys_net, lifter)
    module.export(tmp_path)
    with pytest.raises(FileNotFoundError, match="needs a trained lifter"):
        build(PhysicsTrainingConfig(), tmp_path)
    lifter.save_pretrained(tmp_path / "lifter", safe_serialization=True)
    batch = collate(rows, np.random.default_rng(0))
    again = build(PhysicsTrainingConfig(), tmp_path)
    torch.testing.assert_close(again(batch)["loss"], module(batch)["loss"])

    (tmp_path / "phys_net").rename(tmp_path / "elsewhere")
    config = PhysicsTrainingConfig(phys_net=PhysNetConfig(width=64, recursion="forward"))
    fresh = build(config, tmp_path)
    assert fresh.phys_net.config.width == 64
    assert fresh.phys_net.recursion == "forward"


def test_windows_of_different_lengths_are_refused(rows):
    rows[1] = rows[1] | {"joints_cam_m": rows[1]["joints_cam_m"][:20]}
    with pytest.raises(ValueError, match=r"windows have \[20, 32\] frames"):
        collate(rows, np.random.default_rng(0))


def test_the_fused_motion_is_what_is_judged(flight_clip):
    """Opening the gate on a bad S_dd must cost."""
    flying = torch.ones(4, 32, dtype=torch.bool)
    pose = exact_pose(flight_clip.truth, 20.0)
    cost = [
        pose_losses(
            pose,
            fuse(flight_clip.joints_dd, flight_clip.truth, torch.full((4, 32, 17), gate)),
            flight_clip.truth,
            flying,
            flight_clip.dt_s,
        )["physics"]
        for gate in (0.0, 0.5, 1.0)
    ]
    assert cost[0] < cost[1] < cost[2]


def test_the_black_box_starts_as_the_data_learns_and_has_its_own_folder(rows, lifter, tmp_path):
    lifter.save_pretrained(tmp_path / "lifter")
    config = PhysicsTrainingConfig(phys_net=PhysNetConfig(recursion="none"))
    module = build(config, tmp_path)
    batch = collate(rows, np.random.default_rng(0))
    losses = module(batch)
    assert losses["mpjpe_fused_mm"].item() == pytest.approx(losses["mpjpe_dd_mm"].item(), rel=1e-5)
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        losses = module(batch)
        losses["loss"].backward()
        optimizer.step()
    assert losses["mpjpe_fused_mm"] < 0.9 * losses["mpjpe_dd_mm"]
    assert sum(p.numel() for p in module.phys_net.parameters()) == sum(p.numel() for p in PhysNet().parameters())
    module.export(tmp_path)
    assert not (tmp_path / "phys_net").exists()
    assert build(config, tmp_path).phys_net.recursion == "none"
    assert build(PhysicsTrainingConfig(), tmp_path).phys_net.recursion == "solve"
