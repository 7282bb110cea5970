"""The solve over time minimises what it says, from either end; the recursion and flight do what they are for."""

import pytest
import torch

from finephys.physics.trajectory import (
    acceleration,
    factorise,
    filter_both_ways,
    filter_forward,
    fold_points,
    smooth,
    solve,
    velocity,
)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    num_clips, num_frames, num_points = 2, 21, 5

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    target = noise(num_clips, num_frames, num_points, 3)
    weight = noise(num_clips, num_frames, num_points).exp()
    stiffness = 10 * noise(num_clips, num_frames, num_points).exp()
    a = noise(num_clips, num_frames, num_points, 3) * 10
    return target, weight, a, stiffness, torch.tensor([1 / 30, 1 / 50], dtype=torch.float64)


def solved(target, weight, a, stiffness, dt_s):
    return solve(factorise(fold_points(weight), fold_points(stiffness)), target, weight, a, stiffness, dt_s)


def cost(x, target, weight, a, stiffness, dt_s):
    change = dt_s[:, None, None, None].square() * a[:, 1:-1]
    bend = (x.diff(n=2, dim=1) - change).square().sum(-1)
    return (weight * (x - target).square().sum(-1)).sum() + (stiffness[:, 1:-1] * bend).sum()


def test_solve_minimises_its_cost(problem):
    x = solved(*problem).requires_grad_()
    cost(x, *problem).backward()
    assert x.grad.abs().max() < 1e-9


def test_solve_is_the_same_in_reverse_time(problem):
    target, weight, a, stiffness, dt_s = problem
    backward = solved(target.flip(1), weight.flip(1), a.flip(1), stiffness.flip(1), dt_s)
    torch.testing.assert_close(backward.flip(1), solved(*problem))
    both = filter_both_ways(*problem)
    backward = filter_both_ways(target.flip(1), weight.flip(1), a.flip(1), stiffness.flip(1), dt_s)
    torch.testing.assert_close(backward.flip(1), both)


@pytest.mark.parametrize("method", [solved, filter_forward, filter_both_ways])
def test_a_motion_that_obeys_its_accelerations_passes_unchanged(problem, method):
    _, weight, _, stiffness, dt_s = problem
    time_s = dt_s[:, None] * torch.arange(21)
    constant = torch.tensor([1.0, -9.8, 3.0], dtype=torch.float64)
    motion = (0.5 * time_s[..., None].square() * constant)[:, :, None].expand(2, 21, 5, 3)
    a = constant.expand_as(motion)
    result = method(motion, weight, a, stiffness, dt_s)
    # The forward filter needs its first frames to find the velocity.
    settled = slice(None) if method is solved else slice(8, -8)
    torch.testing.assert_close(
        result[:, settled], motion[:, settled], atol=2e-3 if method is not solved else 1e-9, rtol=0
    )
    torch.testing.assert_close(acceleration(motion, dt_s), a, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", [solved, filter_forward, filter_both_ways])
def test_noise_is_reduced(problem, method):
    target, weight, _, stiffness, dt_s = problem
    quiet = method(target, torch.ones_like(weight), torch.zeros_like(target), 20 * torch.ones_like(stiffness), dt_s)
    assert quiet.std() < 0.7 * target.std()


def test_smoothing_keeps_lines_and_does_not_depend_on_the_frame_rate():
    def wave(fps):
        time_s = torch.arange(0, 4, 1 / fps, dtype=torch.float64)
        return torch.sin(time_s / 0.06)[None, :, None, None], torch.tensor([1 / fps], dtype=torch.float64)

    for fps in (50, 100):
        x, dt_s = wave(fps)
        middle = smooth(x, dt_s, 0.06)[0, fps : 3 * fps]
        assert middle.std().item() / x[0, fps : 3 * fps].std().item() == pytest.approx(0.5, abs=0.05)
    line = (torch.arange(9.0, dtype=torch.float64) * 3 + 1)[None, :, None, None]
    torch.testing.assert_close(smooth(line, dt_s, 0.1), line)
    torch.testing.assert_close(velocity(line, dt_s), torch.full_like(line, 3 * fps))


def test_gradients_are_exact(problem):
    inputs = [tensor[:1, :6, :2].clone().requires_grad_() for tensor in problem[:4]]
    assert torch.autograd.gradcheck(lambda *args: solved(*args, problem[4][:1]), inputs)
    assert torch.autograd.gradcheck(lambda *args: filter_both_ways(*args, problem[4][:1]), inputs)
