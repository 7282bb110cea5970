"""Fusion takes shape from both motions and the centre of mass from physics."""

import pytest
import torch

from finephys.guidance.fuse import fuse
from finephys.physics.body import Body, center_of_mass, points_of


@pytest.fixture
def motions():
    generator = torch.Generator().manual_seed(0)
    data_driven, physical = torch.randn(2, 3, 5, 17, 3, generator=generator, dtype=torch.float64)
    gate = torch.rand(3, 5, 17, generator=generator, dtype=torch.float64)
    return data_driven, physical + 4.0, gate


def center(joints):
    return center_of_mass(Body.from_anthropometry(45.0, 1.5), points_of(joints))


def test_the_centre_of_mass_is_the_physical_one(motions):
    data_driven, physical, gate = motions
    torch.testing.assert_close(center(fuse(data_driven, physical, gate)), center(physical))


def test_a_closed_gate_is_physics_and_an_open_one_is_the_data_on_the_physical_path(motions):
    data_driven, physical, gate = motions
    torch.testing.assert_close(fuse(data_driven, physical, torch.zeros_like(gate)), physical)
    moved = data_driven - center(data_driven)[..., None, :] + center(physical)[..., None, :]
    torch.testing.assert_close(fuse(data_driven, physical, torch.ones_like(gate)), moved)


def test_one_joint_of_one_frame_follows_its_gate(motions):
    data_driven, physical, _ = motions
    gate = torch.zeros(3, 5, 17, dtype=torch.float64)
    gate[1, 2, 13] = 1.0
    fused = fuse(data_driven, physical, gate)
    changed = (fused - physical).norm(dim=-1) > 1e-9
    # The wrist moved by far the most; its frame shifts to keep its centre of mass; other frames are untouched.
    assert changed.nonzero()[:, :2].unique(dim=0).tolist() == [[1, 2]]
    assert (fused - physical).norm(dim=-1)[1, 2].argmax() == 13


def test_fusion_is_differentiable(motions):
    inputs = [tensor[:1, :2].clone().requires_grad_() for tensor in motions]
    assert torch.autograd.gradcheck(fuse, inputs)


def test_shapes_that_do_not_belong_together_are_refused(motions):
    data_driven, physical, gate = motions
    with pytest.raises(ValueError, match=r"gate \(3, 5, 16\)"):
        fuse(data_driven, physical, gate[..., 1:])
