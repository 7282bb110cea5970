"""The solve over time minimises what it says, from either end; the recursion and flight do what they are for."""

import pytest
import torch

from finephys.physics.body import STANDARD_GRAVITY, angular_momentum, center_of_mass
from finephys.physics.trajectory import (
    acceleration,
    factorise,
    falls,
    filter_both_ways,
    filter_forward,
    fold_points,
    impose_flight,
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


def test_flight_imposes_parabola_and_angular_momentum(body, flight_clip):
    """A noisy flight falls at g and keeps its angular momentum better; on the ground nothing changes."""
    generator = torch.Generator().manual_seed(0)
    truth = flight_clip.truth[:, :, 1:].double()
    x = truth + 0.005 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    dt_s = flight_clip.dt_s.double()
    gravity = STANDARD_GRAVITY * flight_clip.gravity.double()
    flying = torch.ones_like(x[:, :, 0, 0])

    def drift(x):
        momentum = angular_momentum(body, x[:, :-1], x.diff(dim=1)) * 30
        return (momentum - momentum.mean(1, keepdim=True)).norm(dim=-1).mean()

    imposed = impose_flight(body, x, flying, gravity, dt_s, torch.full_like(dt_s, 1e8), torch.full_like(dt_s, 80.0))
    fall = acceleration(center_of_mass(body, imposed), dt_s)
    assert (fall - gravity[:, None]).norm(dim=-1).max() < 1e-3
    assert drift(truth) < 0.25 * drift(x)
    assert drift(imposed) < 0.4 * drift(x)
    assert (imposed - truth).norm(dim=-1).mean() < (x - truth).norm(dim=-1).mean()
    # Bodies moved as a whole: no distance within them changed.
    torch.testing.assert_close(torch.cdist(imposed, imposed), torch.cdist(x, x), atol=1e-6, rtol=0)

    grounded = impose_flight(body, x, torch.zeros_like(flying), gravity, dt_s, 1e8 * dt_s, 1e8 * dt_s)
    torch.testing.assert_close(grounded, x, atol=1e-9, rtol=0)


def test_gradients_are_exact(problem, body, flight_clip):
    inputs = [tensor[:1, :6, :2].clone().requires_grad_() for tensor in problem[:4]]
    assert torch.autograd.gradcheck(lambda *args: solved(*args, problem[4][:1]), inputs)
    assert torch.autograd.gradcheck(lambda *args: filter_both_ways(*args, problem[4][:1]), inputs)
    x = flight_clip.truth[:1, :4, 1:].double().requires_grad_()
    flight = torch.tensor([[0.2, 0.9, 0.7, 0.5]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    gravity = STANDARD_GRAVITY * flight_clip.gravity[:1].double()
    assert torch.autograd.gradcheck(
        lambda x, flight: impose_flight(body, x, flight, gravity, one / 30, 50 * one, 5 * one), (x, flight)
    )


def test_falls_count_parabolas_that_are_all_in_flight():
    """Thrown at 1.25 times what g would do, of 41 frames the last 31 in flight: 31 - 13 + 1 spans of 13 frames."""
    time_s = torch.arange(41, dtype=torch.float64) / 30
    gravity = torch.tensor([0.0, STANDARD_GRAVITY, 0.0], dtype=torch.float64)
    path = torch.tensor([1.0, -3.0, 0.2]) * time_s[:, None] + 1.25 * gravity * time_s[:, None].square() / 2
    flight = (torch.arange(41) >= 10).double()
    clips = torch.stack([path, path])
    total, number = falls(clips, gravity.expand(2, 3), torch.stack([flight, 0 * flight]), torch.full((2,), 1 / 30), 0.4)
    assert number.tolist() == [19, 0]
    assert total.tolist() == pytest.approx([19 * 1.25, 0])
    # Too short for a span.
    total, number = falls(clips[:, :12], gravity.expand(2, 3), torch.ones(2, 12), torch.full((2,), 1 / 30), 0.4)
    assert total.tolist() == number.tolist() == [0, 0]
