"""What tells the network that a body is in the air: how high it is above its floor, and what the floor pushes."""

import pytest
import torch

from finephys.physics.body import STANDARD_GRAVITY, center_of_mass, joints_of
from finephys.physics.observation import FLOOR_S, features, num_features, observe
from finephys.skeleton import NUM_JOINTS

FPS = 30
NUM_FRAMES = 60
CLEARANCE, PUSH = -2, -1


@pytest.fixture
def hop(body, states):
    """(1, T, 16, 3) float32 in a camera 4 m away, y down: a stiff body that hops at frames 20 to 32."""
    time_s = (torch.arange(NUM_FRAMES) - 20).clamp(0, 12) / FPS
    rise_m = STANDARD_GRAVITY * time_s * (12 / FPS - time_s) / 2
    x = states.x[0] - center_of_mass(body, states.x[0])
    return (x + torch.tensor([0, 0, 4.0]) - rise_m[:, None, None] * torch.tensor([0, 1.0, 0]))[None].float()


def seen_by_network(body, x, gravity):
    bones = torch.full((1, 16), 0.3)
    dt_s = torch.tensor([1 / FPS])
    joints = joints_of(x)
    rays, sure, static = torch.zeros_like(joints[..., :2]), torch.ones_like(joints[..., 0]), torch.tensor([True])
    seen = observe(body.to(x), x, bones, gravity, dt_s)
    found = features(body.to(x), seen, joints, rays, sure, static, dt_s)
    assert found.shape == (1, x.shape[1], num_features())
    assert joints.shape[2] == NUM_JOINTS
    return found


def test_a_hop(body, hop):
    found = seen_by_network(body, hop, torch.tensor([[0.0, 1.0, 0.0]]))
    clearance_m, push_g = 0.1 * found[0, :, CLEARANCE], found[0, :, PUSH]
    assert clearance_m[26].item() == pytest.approx(STANDARD_GRAVITY * 0.2**2 / 2, abs=0.01)
    assert clearance_m[:20].max() < 1e-3
    assert clearance_m[33:].max() < 1e-3
    assert push_g[23:30].abs().max() < 0.15
    assert push_g[:16] == pytest.approx(1, abs=0.1)
    # Landing and taking off push harder than standing.
    assert push_g[18:22].max() > 1.5
    assert push_g[31:35].max() > 1.5


def test_a_tilted_camera_sees_the_same(body, hop):
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, 0, 0], [0, 0, -0.5], [0, 0.5, 0]]))
    gravity = torch.tensor([[0.0, 1.0, 0.0]])
    level, tilted = seen_by_network(body, hop, gravity), seen_by_network(body, hop @ turn.mT, gravity @ turn.mT)
    torch.testing.assert_close(tilted[..., CLEARANCE:], level[..., CLEARANCE:], atol=1e-3, rtol=0)


def test_the_floor_is_looked_for_nearby(body, hop):
    """A box to stand on, a second after the floor, is floor."""
    step_m = 0.3 * (torch.arange(NUM_FRAMES) >= 15)
    found = seen_by_network(
        body, hop - step_m[:, None, None] * torch.tensor([0, 1.0, 0]), torch.tensor([[0.0, 1.0, 0.0]])
    )
    frames = 15 + int(FLOOR_S * FPS)
    assert 0.1 * found[0, 15, CLEARANCE].item() == pytest.approx(0.3, abs=0.01)
    assert 0.1 * found[0, frames + 5 :, CLEARANCE].max() < 1e-3
