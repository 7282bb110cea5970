import numpy as np
import pytest
import torch

from finephys.physics.body import (
    STANDARD_GRAVITY,
    angular_momentum,
    bone_lengths,
    center_of_mass,
    joints_of,
    points_of,
)
from finephys.physics.flight import impose_flight, scale_of_fall
from finephys.physics.trajectory import acceleration
from finephys.pose.recombination import graft
from finephys.pose.tracks import flights


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
    assert (imposed - truth).norm(dim=-1).mean() < 1.05 * (x - truth).norm(dim=-1).mean()
    torch.testing.assert_close(bone_lengths(joints_of(imposed)), bone_lengths(joints_of(x)), atol=1e-9, rtol=0)

    grounded = impose_flight(body, x, torch.zeros_like(flying), gravity, dt_s, 1e8 * dt_s, 1e8 * dt_s)
    torch.testing.assert_close(grounded, x, atol=1e-9, rtol=0)


def test_what_spins_fast_with_a_limb_astray_keeps_its_momentum_and_is_not_turned_away(body):
    """Somersaults whose arm is slowly led astray: held to their momentum they do not turn as a whole for it."""
    tracks = flights("test")
    x = torch.stack([points_of(torch.from_numpy(track.joints_m[::4].astype(np.float64))) for track in tracks])
    momentum = angular_momentum(body, x[:, :-1], x.diff(dim=1)) * 30
    truth = x[momentum.norm(dim=-1).mean(1).argsort()[-6:]]
    rng = np.random.default_rng(0)
    bent = []
    for motion in joints_of(truth).numpy():
        for limb in ("left_arm", "right_leg"):
            motion = graft(rng, limb, motion, motion, 30.0)
        bent.append(points_of(torch.from_numpy(motion)))
    bent = torch.stack(bent)
    ones = torch.ones(len(bent), dtype=torch.float64)
    gravity = torch.tensor([0.0, -STANDARD_GRAVITY, 0.0], dtype=torch.float64).expand(len(bent), 3)

    def drift(x):
        momentum = angular_momentum(body, x[:, :-1], x.diff(dim=1)) * 30
        return (momentum - momentum.mean(1, keepdim=True)).norm(dim=-1).mean(1) / momentum.norm(dim=-1).mean(1)

    def error_m(x):
        centred = (x - center_of_mass(body, x)[:, :, None]) - (truth - center_of_mass(body, truth)[:, :, None])
        return centred.norm(dim=-1).mean()

    held = impose_flight(body, bent, ones[:, None].expand(bent.shape[:2]), gravity, ones / 30, 1e6 * ones, 1e4 * ones)
    assert drift(truth).mean() < 0.05
    assert drift(held).mean() < 0.3 * drift(bent).mean()
    assert error_m(held) < 1.1 * error_m(bent)


def test_what_the_picture_shows_is_turned_least(body, flight_clip):
    """A body that hangs still but for one frame: turned about the line of sight it is believed more than across it."""
    away = torch.tensor([0.0, 0.0, 5.0], dtype=torch.float64)
    pose = points_of(flight_clip.truth[0, 0].double())
    pose = pose - center_of_mass(body, pose)
    one = torch.ones(1, dtype=torch.float64)
    corrected = []
    for about in ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]):
        turn = torch.linalg.matrix_exp(
            0.1 * torch.linalg.cross(torch.tensor([about] * 3).double(), torch.eye(3).double())
        )
        still = pose.repeat(1, 21, 1, 1)
        seen = still.clone()
        seen[0, 10] = pose @ turn
        held = impose_flight(body, seen + away, one.expand(1, 21), 0 * away[None], one / 30, 0 * one, 0.3 * one)
        corrected.append(1 - ((held - away - still)[0, 10].norm() / (seen - still)[0, 10].norm()).item())
    assert min(corrected[1:]) > 0.3
    assert corrected[0] < 0.85 * min(corrected[1:])


def test_gradients_are_exact(body, flight_clip):
    x = flight_clip.truth[:1, :4, 1:].double().requires_grad_()
    flight = torch.tensor([[0.2, 0.9, 0.7, 0.5]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    gravity = STANDARD_GRAVITY * flight_clip.gravity[:1].double()
    assert torch.autograd.gradcheck(
        lambda x, flight: impose_flight(body, x, flight, gravity, one / 30, 50 * one, 5 * one), (x, flight)
    )


def test_a_fall_tells_the_scale():
    """Lifted 1.25 times too large and too far, of 41 frames the last 31 in flight; and what a flight weighs."""
    time_s = torch.arange(41, dtype=torch.float64)[:, None] / 30
    gravity = torch.tensor([0.0, STANDARD_GRAVITY, 0.5], dtype=torch.float64)
    thrown = torch.tensor([0.3, 0.2, 5.0]) + torch.tensor([1.0, -3.0, 0.2]) * time_s + gravity * time_s.square() / 2
    lifted = 1.25 * thrown
    is_flight = torch.arange(41) >= 10

    def scale(center, is_flight, prior):
        flights = is_flight[None], torch.tensor([1 / 30])
        return scale_of_fall(center[None], gravity[None], is_flight[None].double(), *flights, prior).item()

    assert scale(lifted, is_flight, 1e-6) == pytest.approx(0.8, abs=2e-3)
    assert scale(thrown, is_flight, 1e-6) == pytest.approx(1, abs=1e-3)
    # The longer the flight, the more it weighs against what was lifted; before it, the same path is no fall.
    scales = [scale(lifted, is_flight & (torch.arange(41) < end), 1000.0) for end in (10, 18, 26, 34, 42)]
    assert scales[0] == 1
    assert scales == sorted(scales, reverse=True)
    assert scales[1] > 0.98
    assert scales[-1] < 0.85
    # What the clip's ends leave of a flight is too little to tell.
    assert scale(lifted, torch.arange(41) % 40 == 0, 1000.0) == 1
    # Two flights of one body agree.
    bounced = torch.cat([lifted[10:], lifted[10:].flip(0)])
    both = torch.ones(62, dtype=torch.bool)
    both[30] = False
    assert scale(bounced, both, 1e-6) == pytest.approx(0.8, abs=5e-3)
