"""The constant mass matrix is that of the tree of rods, by the engines' account and by the published table's."""

import numpy as np
import pytest
import torch

from finephys.physics.body import (
    CONSTRAINTS,
    POINT_NAMES,
    TRUNK_M,
    Body,
    angular_momentum,
    bone_lengths,
    center_of_mass,
    gravity_force,
    inertia,
    joints_of,
    mass_matrix,
    points_of,
)
from finephys.skeleton import MIRROR, MIRROR_BONES


def test_mass_matrix_agrees_with_the_engines(body, engine, states):
    mass = np.kron(mass_matrix(body).numpy(), np.eye(3))
    for q, qd, x in zip(states.q, states.qd, states.x):
        engine.set(q, qd)
        np.testing.assert_allclose(engine.points(), x.numpy(), atol=1e-12)
        jacobian = engine.jacobian().reshape(48, -1)
        expected = engine.mass()
        assert np.abs(jacobian.T @ mass @ jacobian - expected).max() <= 1e-8 * np.abs(expected).max()


def test_mass_matrix_is_symmetric_positive_definite_and_alike_on_both_sides(body):
    mass = mass_matrix(body)
    assert torch.equal(mass, mass.T)
    assert torch.linalg.eigvalsh(mass).min() > 0.1
    assert mass.sum().item() == pytest.approx(45.0, rel=1e-12)
    mirrored = [joint - 1 for joint in MIRROR[1:]]
    torch.testing.assert_close(mass[mirrored][:, mirrored], mass)


def test_the_trunk_keeps_the_published_centre_of_mass():
    """de Leva's whole trunk has its centre 0.3782 of the way from mid-shoulder to mid-hip; ours is of three parts."""
    body = Body.from_anthropometry(61.9, 1.735)
    upright = torch.zeros(16, 3, dtype=torch.float64)
    heights = {"spine": TRUNK_M / 2, "thorax": TRUNK_M, "right_shoulder": TRUNK_M, "left_shoulder": TRUNK_M}
    for name, height in heights.items():
        upright[POINT_NAMES.index(name), 1] = height
    # With every other point at the height 0 or TRUNK_M their own share is known: head and arms are at the trunk's top.
    for name in ("neck", "head", "right_elbow", "right_wrist", "left_elbow", "left_wrist"):
        upright[POINT_NAMES.index(name), 1] = TRUNK_M
    above = 0.0668 + 2 * (0.0255 + 0.0138 + 0.0056)
    trunk = center_of_mass(body, upright)[1] * 0.9999 - above * TRUNK_M
    assert trunk.item() / 0.4257 == pytest.approx((1 - 0.3782) * TRUNK_M, rel=1e-3)


def test_anthropometric_lengths_scale_with_height():
    small, tall = Body.from_anthropometry(45.0, 1.5), Body.from_anthropometry(45.0, 3.0)
    torch.testing.assert_close(tall.lengths_m, 2 * small.lengths_m)
    thigh = CONSTRAINTS.index((1, 2))
    assert small.lengths_m[thigh].item() == pytest.approx(0.3685 * 1.5 / 1.735)


def test_from_joints_finds_symmetric_lengths_through_outliers(body, states):
    joints = joints_of(states.x)
    noisy = joints.clone()
    noisy[::5] += 0.3 * torch.randn(noisy[::5].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Body.from_joints(torch.stack([noisy, 2 * noisy]))
    torch.testing.assert_close(found.lengths_m[0], body.lengths_m, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.lengths_m[1], 2 * body.lengths_m, rtol=1e-9, atol=1e-9)
    lengths = bone_lengths(joints)
    torch.testing.assert_close(lengths, lengths[..., list(MIRROR_BONES)])
    torch.testing.assert_close(joints_of(points_of(joints)), joints)


def test_angular_momentum_of_a_rigid_spin_is_inertia_times_spin(body, states):
    spin = torch.tensor([0.3, -2.0, 1.1], dtype=torch.float64)
    r = states.x - center_of_mass(body, states.x)[:, None]
    v = torch.linalg.cross(spin.expand_as(r), r) + torch.tensor([3.0, 1.0, -2.0])
    torch.testing.assert_close(angular_momentum(body, states.x, v), inertia(body, states.x) @ spin)


def test_gravity_force_weighs_the_body(body):
    gravity = torch.tensor([0.0, -9.8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gravity_force(body, gravity).sum(0), 45.0 * gravity)


@pytest.mark.parametrize(("mass_kg", "height_m", "name"), [(0.0, 1.5, "mass_kg"), (45.0, float("nan"), "height_m")])
def test_impossible_anthropometry_is_refused(mass_kg, height_m, name):
    with pytest.raises(ValueError, match=name):
        Body.from_anthropometry(mass_kg, height_m)


def test_a_bone_without_length_is_named():
    joints = torch.randn(3, 5, 17, 3, generator=torch.Generator().manual_seed(0))
    joints[1, :, 12] = joints[1, :, 11]
    joints[1, :, 15] = joints[1, :, 14]
    with pytest.raises(ValueError, match=r"left_shoulder-left_elbow of batch element \(1,\) has length 0 m"):
        Body.from_joints(joints)
