"""Euler-Lagrange dynamics of the rod tree: what the engines say, what is conserved, and what is reversible."""

import itertools

import mujoco
import numpy as np
import pytest
import torch

from finephys.physics import dynamics
from finephys.physics.body import (
    STANDARD_GRAVITY,
    Body,
    angular_momentum,
    bone_lengths,
    center_of_mass,
    gravity_force,
    joints_of,
    mass_matrix,
)
from finephys.physics.dynamics import (
    contact_force,
    forward_dynamics,
    internal_force,
    inverse_dynamics,
    project_velocity,
    verlet_step,
)

GRAVITY = torch.tensor([0.0, -STANDARD_GRAVITY, 0.0], dtype=torch.float64)


@pytest.fixture(autouse=True, params=["one after the other", "side by side", "side by side as on a GPU"])
def every_solver(request, monkeypatch):
    if request.param != "one after the other":
        monkeypatch.setattr(dynamics, "FEW_SYSTEMS", 0)
    if request.param == "side by side as on a GPU":
        monkeypatch.setattr(dynamics, "_eliminate_triangle", dynamics._eliminate_squares)


def random_forces(num: int, seed: int = 0, newtons: float = 100.0) -> torch.Tensor:
    return newtons * torch.randn(num, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def start(body: Body, x: torch.Tensor, v: torch.Tensor, f: torch.Tensor, dt_s: float) -> torch.Tensor:
    """The frame before x, on the body's lengths: x - dt v + dt^2/2 a to third order."""
    a, _ = forward_dynamics(body, x, v, f)
    # One backward step whose "previous" frame is the linear guess of the next: x_prev = 2x - (x + dt v) + dt^2 (a / 2).
    half_force = mass_matrix(body).to(x) @ (a / 2)
    return verlet_step(body, x, x + dt_s * v, half_force, dt_s)


def roll_out(body, x, v, force, dt_s, num_steps):
    """Frames (num_steps + 1, ..., 16, 3) from x, v under force(x)."""
    frames = [start(body, x, v, force(x), dt_s), x]
    for _ in range(num_steps):
        frames.append(verlet_step(body, frames[-1], frames[-2], force(frames[-1]), dt_s))
    return torch.stack(frames[1:])


def test_accelerations_agree_with_the_engines(body, engine, states):
    forces = random_forces(len(states.x)) + gravity_force(body, GRAVITY)
    ours, _ = forward_dynamics(body, states.x, states.v, forces)
    for q, qd, f, a in zip(states.q, states.qd, forces.numpy(), ours.numpy()):
        engine.set(q, qd)
        expected = engine.accelerations(f)
        assert np.abs(a - expected).max() <= 1e-6 * max(1.0, np.abs(expected).max())


def test_verlet_is_second_order_against_mujoco(body, mujoco_tree, states):
    x, v = states.x[:2], 0.5 * states.v[:2]
    duration_s = 0.3
    expected = []
    for q, qd in zip(states.q[:2], states.qd[:2]):
        mujoco_tree.model.opt.gravity[:] = GRAVITY.numpy()
        mujoco_tree.set(q, 0.5 * qd)
        mujoco_tree.data.qfrc_applied[:] = 0
        for _ in range(round(duration_s / mujoco_tree.model.opt.timestep)):
            mujoco.mj_step(mujoco_tree.model, mujoco_tree.data)
        mujoco.mj_forward(mujoco_tree.model, mujoco_tree.data)
        expected.append(mujoco_tree.points())
    mujoco_tree.model.opt.gravity[:] = 0
    weight = gravity_force(body, GRAVITY)
    errors = []
    for rate in (120, 240, 480, 960):
        end = roll_out(body, x, v, lambda x: weight.expand_as(x), 1 / rate, round(duration_s * rate))[-1]
        errors.append((end - torch.tensor(np.stack(expected))).square().mean().sqrt().item())
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert all(3.5 < ratio < 4.6 for ratio in ratios), (errors, ratios)


@pytest.mark.parametrize(("dtype", "tolerance_m"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_bones_keep_their_lengths_over_a_second(body, states, dtype, tolerance_m):
    x, v = states.x[:6].to(dtype), 0.3 * states.v[:6].to(dtype)
    weight = gravity_force(body, GRAVITY.to(dtype))
    muscles = random_forces(6, seed=1, newtons=10.0).to(dtype)
    frames = roll_out(body, x, v, lambda x: weight + internal_force(body, x, muscles), 1 / 120, 120)
    lengths = (body.incidence.to(dtype) @ frames).norm(dim=-1)
    assert (lengths - body.lengths_m.to(dtype)).abs().max() <= tolerance_m
    assert (frames[-1] - frames[0]).norm(dim=-1).min() > 1  # it did move


def test_flight_conserves_what_it_must(body, states):
    """The centre of mass flies a parabola and angular momentum stays, whatever the muscles do."""
    x, v, dt_s, num = states.x[:6], 0.3 * states.v[:6], 1 / 120, 120
    weight = gravity_force(body, GRAVITY)
    muscles = random_forces(6, seed=2, newtons=10.0)
    frames = roll_out(body, x, v, lambda x: weight + internal_force(body, x, muscles), dt_s, num)

    time_s = dt_s * torch.arange(num + 1, dtype=torch.float64)[:, None, None]
    parabola = center_of_mass(body, x) + time_s * center_of_mass(body, v) + 0.5 * time_s**2 * GRAVITY
    assert (center_of_mass(body, frames) - parabola).abs().max() <= 1e-10

    # The discrete momentum that Verlet keeps exactly: positions of one frame, displacement to the next.
    momentum = angular_momentum(body, frames[:-1], (frames[1:] - frames[:-1]) / dt_s)
    assert (momentum - momentum[0]).abs().max() <= 1e-10 * momentum.norm(dim=-1).max()
    # And muscles did change the shape: without them it ends elsewhere.
    limp = roll_out(body, x, v, lambda x: weight.expand_as(x), dt_s, num)
    assert (limp[-1] - frames[-1]).norm(dim=-1).mean() > 0.1


def test_internal_forces_have_no_resultant_and_no_moment(body, states):
    f = internal_force(body, states.x, random_forces(len(states.x)))
    r = states.x - center_of_mass(body, states.x)[:, None]
    assert f.sum(-2).abs().max() < 1e-9
    assert torch.linalg.cross(r, f).sum(-2).abs().max() < 1e-9
    torch.testing.assert_close(internal_force(body, states.x, f), f, atol=1e-9, rtol=0)
    assert f.abs().max() > 10


def test_time_reversal_returns_to_the_start(body, states):
    x, v, dt_s = states.x[:6], 0.3 * states.v[:6], 1 / 120
    muscles = random_forces(6, seed=3, newtons=10.0)
    frames = roll_out(body, x, v, lambda x: internal_force(body, x, muscles), dt_s, 60)
    now, following = frames[-2], frames[-1]
    for _ in range(59):
        now, following = verlet_step(body, now, following, internal_force(body, now, muscles), dt_s), now
    assert (now - frames[0]).abs().max() <= 1e-9


def test_inverse_of_forward_is_the_force(body, states, engine):
    """On forces that the rods do not swallow; and in the engines' joint coordinates on every force."""
    forces = random_forces(len(states.x))
    a, _ = forward_dynamics(body, states.x, states.v, forces)
    effective = inverse_dynamics(body, states.x, states.v, a)
    again, _ = forward_dynamics(body, states.x, states.v, effective)
    torch.testing.assert_close(again, a)
    torch.testing.assert_close(inverse_dynamics(body, states.x, states.v, again), effective)
    for q, qd, f, g in zip(states.q, states.qd, forces.numpy(), effective.numpy()):
        engine.set(q, qd)
        jacobian = engine.jacobian().reshape(48, -1)
        np.testing.assert_allclose(jacobian.T @ g.reshape(-1), jacobian.T @ f.reshape(-1), atol=1e-8 * np.abs(f).max())


def test_projected_velocity_keeps_the_lengths(body, states):
    v = project_velocity(body, states.x, random_forces(len(states.x)))
    stretch = ((body.incidence @ states.x) * (body.incidence @ v)).sum(-1)
    assert stretch.abs().max() < 1e-10
    torch.testing.assert_close(project_velocity(body, states.x, states.v), states.v)


def test_gradients_are_exact(body, states):
    x, v, f = (t[:1].clone().requires_grad_() for t in (states.x, states.v, random_forces(1)))
    assert torch.autograd.gradcheck(lambda *args: forward_dynamics(body, *args), (x, v, f))
    assert torch.autograd.gradcheck(lambda *args: inverse_dynamics(body, *args), (x, v, f))
    previous = start(body, states.x[:1], states.v[:1], f.detach(), 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: verlet_step(body, *args, 0.01), (x, previous, f))
    assert torch.autograd.gradcheck(lambda *args: internal_force(body, *args), (x, f))


def test_leading_dimensions_and_float32(body, states):
    forces = random_forces(len(states.x))
    a, multiplier = forward_dynamics(body, states.x, states.v, forces)
    folded, folded_multiplier = forward_dynamics(
        body, *(t.reshape(2, 3, 4, 16, 3) for t in (states.x, states.v, forces))
    )
    torch.testing.assert_close(folded.reshape(a.shape), a)
    torch.testing.assert_close(folded_multiplier.reshape(multiplier.shape), multiplier)
    one, _ = forward_dynamics(body, states.x[3], states.v[3], forces[3])
    torch.testing.assert_close(one, a[3])
    single, _ = forward_dynamics(body, states.x.float(), states.v.float(), forces.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), a, rtol=1e-3, atol=1e-3 * a.abs().max().item())


def test_each_clip_may_have_its_own_lengths_and_time_step(body, states):
    x = torch.stack([states.x[0], 2 * states.x[0]])
    both = Body.from_bone_lengths(torch.stack([lengths_of(states.x[0]), lengths_of(2 * states.x[0])]), body.mass_kg)
    dt_s = torch.tensor([0.01, 0.02], dtype=torch.float64)
    following = verlet_step(both, x, x, torch.zeros_like(x), dt_s)
    torch.testing.assert_close(following, x)
    following = verlet_step(both, x, x, gravity_force(body, GRAVITY).expand_as(x), dt_s)
    drop = (following - x)[..., 1]
    torch.testing.assert_close(drop, (-STANDARD_GRAVITY * dt_s**2)[:, None].expand(2, 16))


def lengths_of(x: torch.Tensor) -> torch.Tensor:
    return bone_lengths(joints_of(x))


def test_contacts_push_inside_the_friction_cone(body):
    generator = torch.Generator().manual_seed(0)
    normal = 3 * torch.randn(5, 16, dtype=torch.float64, generator=generator)
    tangent = 9 * torch.randn(5, 16, 3, dtype=torch.float64, generator=generator)
    up = torch.nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64, generator=generator), dim=-1)
    probability = torch.tensor([1.0, 1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    f = contact_force(body, normal, tangent, up, probability, friction=0.8)
    push = (f * up[:, None]).sum(-1)
    slide = (f - push[..., None] * up[:, None]).norm(dim=-1)
    assert (push[:4] > 0).all()
    assert (slide[:4] < 0.8 * push[:4]).all()
    assert (f[4] == 0).all()


def test_failures_name_the_place(body, states):
    x = states.x[:6].reshape(2, 3, 16, 3).clone()
    zero = torch.zeros_like(x)

    bad = x.clone()
    bad[1, 2, 12] = bad[1, 2, 11]  # wrist on elbow
    with pytest.raises(ValueError, match=r"left_elbow-left_wrist, batch element 1, frame 2"):
        forward_dynamics(body, bad, zero, zero)
    bad = x.clone()
    bad[0, 1, 9, 0] = torch.nan
    with pytest.raises(ValueError, match=r"x is not finite at point head, batch element 0, frame 1"):
        forward_dynamics(body, bad, zero, zero)
    bad = zero.clone()
    bad[1, 0, 2, 1] = torch.inf
    with pytest.raises(ValueError, match=r"not finite.*batch element 1, frame 0"):
        forward_dynamics(body, x, zero, bad)
    bad = zero.clone()
    bad[1, 1, 2] = 1e5  # newtons on an ankle, for a tenth of a second
    with pytest.raises(ValueError, match=r"no solution.*batch element 1, frame 1"):
        verlet_step(body, x, x, bad, 0.1)
    bad = x.clone()
    bad[0, 2, 5] = torch.nan
    with pytest.raises(ValueError, match=r"no solution.*batch element 0, frame 2"):
        verlet_step(body, x, bad, zero, 0.01)
    on_a_line = x.clone()
    on_a_line[1, 1] = torch.arange(16.0)[:, None] * torch.tensor([0.0, 1.0, 0.0])
    with pytest.raises(ValueError, match=r"no inertia.*batch element 1, frame 1"):
        internal_force(body, on_a_line, zero)
