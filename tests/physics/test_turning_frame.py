"""What turns as a whole keeps its size when it is smoothed, and what shakes is smoothed as before."""

import pytest
import torch

from finephys.physics.body import Body, center_of_mass, inertia
from finephys.physics.trajectory import smooth
from finephys.physics.turning_frame import smooth_turning

DT_S = torch.tensor([1 / 30], dtype=torch.float64)
NUM_FRAMES = 40
TIME_CONSTANT_S = 0.06


def spinning(body: Body, x: torch.Tensor, axis: int, rate: float) -> torch.Tensor:
    """(1, T, 16, 3): the body x (16, 3), flying past, spins about a principal axis, 2 the longest."""
    _, axes = torch.linalg.eigh(inertia(body, x))
    spin = torch.linalg.cross(axes[:, axis].expand(3, 3), 1.0 * torch.eye(3, dtype=x.dtype)).mT
    time_s = torch.arange(NUM_FRAMES, dtype=x.dtype) * DT_S
    turned = (x - center_of_mass(body, x)) @ torch.linalg.matrix_exp(rate * time_s[:, None, None] * spin).mT
    return (turned + (time_s[:, None] * torch.tensor([1.0, 0.5, 2.0], dtype=x.dtype))[:, None])[None]


def largest(x: torch.Tensor) -> float:
    """Of the distances, away from the ends."""
    return x[:, 8:-8].norm(dim=-1).max().item()


@pytest.mark.parametrize(("axis", "rate"), [(2, 12.0), (1, 12.0), (0, 20.0)])
def test_what_turns_keeps_its_size(body, states, axis, rate):
    x = spinning(body, states.x[0], axis, rate)
    assert largest(smooth(x, DT_S, TIME_CONSTANT_S) - x) > 0.05
    assert largest(smooth_turning(body, x, DT_S, TIME_CONSTANT_S) - x) < 0.05 * largest(
        smooth(x, DT_S, TIME_CONSTANT_S) - x
    )


def test_what_shakes_is_smoothed_as_before(body, states):
    noise = 0.02 * torch.randn(1, NUM_FRAMES, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = spinning(body, states.x[0], 2, 12.0)
    left = smooth_turning(body, x + noise, DT_S, TIME_CONSTANT_S) - smooth_turning(body, x, DT_S, TIME_CONSTANT_S)
    before = smooth(noise, DT_S, TIME_CONSTANT_S)
    assert left[:, 8:-8].std().item() == pytest.approx(before[:, 8:-8].std().item(), rel=0.1)
    # What does not turn has a frame that stands still.
    still = states.x[:1, None].expand(1, NUM_FRAMES, 16, 3)
    torch.testing.assert_close(smooth_turning(body, still, DT_S, TIME_CONSTANT_S), still)


def test_a_turned_camera_sees_the_same(body, states):
    x = spinning(body, states.x[1], 2, 9.0)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn * torch.linalg.det(turn)
    torch.testing.assert_close(
        smooth_turning(body, x @ turn.mT, DT_S, TIME_CONSTANT_S),
        smooth_turning(body, x, DT_S, TIME_CONSTANT_S) @ turn.mT,
    )


@pytest.mark.parametrize("num_frames", [2, 3, 5])
def test_short_clips_and_bodies_without_width(body, states, num_frames):
    x = spinning(body, states.x[0], 2, 12.0)[:, :num_frames]
    line = x.clone()
    line[..., :2] = 0
    for moving in (x, line, torch.zeros_like(x)):
        moving.requires_grad_()
        result = smooth_turning(body, moving, DT_S, TIME_CONSTANT_S)
        result.square().sum().backward()
        assert result.shape == x.shape
        assert torch.isfinite(result).all()
        assert torch.isfinite(moving.grad).all()
