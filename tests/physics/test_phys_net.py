"""Phys-Net: helpful before training, every head learns from both outputs, and physics is off where it does not hold."""

from typing import get_args

import pytest
import torch

from finephys.guidance.fuse import fuse
from finephys.physics.body import STANDARD_GRAVITY, bone_lengths, center_of_mass
from finephys.physics.phys_net import HEADS, PhysNet, PhysNetConfig, Term, called_flights
from finephys.physics.trajectory import acceleration

RECURSIONS = ("solve", "bidirectional", "forward")


def mpjpe(joints, truth):
    return ((joints - joints[:, :, :1]) - (truth - truth[:, :, :1])).norm(dim=-1).mean()


def force_flight(net: PhysNet, logit: float = 12.0) -> PhysNet:
    """The flight head says `logit` at all times."""
    with torch.no_grad():
        _biases(net)["flight"].fill_(logit)
    return net


def _biases(net: PhysNet) -> dict[str, torch.Tensor]:
    return dict(zip(HEADS, net.frame_heads.bias.split(list(HEADS.values())), strict=True))


def fall_error(body, joints, clip):
    fall = acceleration(center_of_mass(body, joints[:, :, 1:].double()), clip.dt_s.double())
    return (fall - STANDARD_GRAVITY * clip.gravity[:, None].double()).norm(dim=-1).mean()


@pytest.mark.parametrize("recursion", RECURSIONS)
@torch.no_grad()
def test_untrained_it_already_helps(flight_clip, recursion):
    result = PhysNet(recursion=recursion)(*flight_clip.inputs())
    joints_dd, truth = flight_clip.joints_dd, flight_clip.truth
    fused = fuse(joints_dd, result.joints_pp_BTJ3, result.gate_BTJ)
    assert mpjpe(result.joints_pp_BTJ3, truth) < 0.9 * mpjpe(joints_dd, truth)
    assert mpjpe(fused, truth) < 0.9 * mpjpe(joints_dd, truth)
    assert (result.joints_pp_BTJ3 - joints_dd).norm(dim=-1).mean() < 0.1
    jitter = (joints_dd - truth).diff(n=2, dim=1).norm(dim=-1).mean()
    assert (result.joints_pp_BTJ3 - truth).diff(n=2, dim=1).norm(dim=-1).mean() < 0.6 * jitter


@torch.no_grad()
def test_flight_and_the_solve_beat_the_data(body, flight_clip):
    """What is gained in flight, with and without a look at the image, and that the body then falls at g."""
    joints_dd, truth = flight_clip.joints_dd, flight_clip.truth
    dynamics_only = force_flight(PhysNet(num_gauss_newton_steps=0))(*flight_clip.inputs()).joints_pp_BTJ3
    assert mpjpe(dynamics_only, truth) < 0.98 * mpjpe(joints_dd, truth)
    jitter, jitter_dd = ((joints - truth).diff(n=2, dim=1).norm(dim=-1).mean() for joints in (dynamics_only, joints_dd))
    assert jitter < 0.55 * jitter_dd
    assert fall_error(body, dynamics_only, flight_clip) < 0.3
    net = force_flight(PhysNet())
    result = net(*flight_clip.inputs()).joints_pp_BTJ3
    assert mpjpe(result, truth) < 0.7 * mpjpe(joints_dd, truth)
    # This S_dd is where the truth is but for noise, and a fall that is read off noise says less of the distance.
    net.without = frozenset({"scale"})
    kept = net(*flight_clip.inputs()).joints_pp_BTJ3
    distances = [(joints - truth).norm(dim=-1).mean() for joints in (joints_dd, result, kept)]
    assert distances[1] < 0.95 * distances[0]
    assert distances[2] < 0.9 * distances[0]
    assert fall_error(body, joints_dd, flight_clip) > 5
    assert fall_error(body, result, flight_clip) < 0.3


@torch.no_grad()
def test_a_moving_camera_switches_the_parabola_off(body, flight_clip):
    net = force_flight(PhysNet())
    static = net(*flight_clip.inputs())
    moving = net(*flight_clip.inputs(is_static=False))
    assert fall_error(body, static.joints_pp_BTJ3, flight_clip) < 0.3
    assert fall_error(body, moving.joints_pp_BTJ3, flight_clip) > 1
    assert static.gate_BTJ.max() < 0.3 * moving.gate_BTJ.min()
    # A camera that falls with the body sees it float: only a net that leaves gravity out lets it.
    fallen = flight_clip.truth - center_of_mass(body, flight_clip.truth[:, :, 1:])[:, :, None]
    inputs = list(flight_clip.inputs(is_static=False))
    inputs[0] = fallen + torch.tensor([0.0, 0.0, 4.0])
    inputs[2] = torch.zeros_like(inputs[2])  # the image still shows the fall
    floating = net(*inputs).joints_pp_BTJ3
    assert acceleration(center_of_mass(body, floating[:, :, 1:]), flight_clip.dt_s).norm(dim=-1).mean() < 0.5


@torch.no_grad()
def test_bones_are_constant_and_symmetric(flight_clip):
    lengths = bone_lengths(PhysNet()(*flight_clip.inputs()).joints_pp_BTJ3)
    assert lengths.std(1).max() < 1e-5
    assert bone_lengths(flight_clip.joints_dd).std(1).max() > 0.02
    torch.testing.assert_close(lengths[..., [1, 2]], lengths[..., [4, 5]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("recursion", RECURSIONS)
@pytest.mark.parametrize("output", ["joints_pp", "fused"])
def test_gradients_reach_every_head(flight_clip, recursion, output):
    """From the joints alone, as the denoising loss does; at the start and after the last layers have left zero."""
    torch.manual_seed(0)
    net = PhysNet(recursion=recursion)
    for is_trained in (False, True):
        if is_trained:
            torch.nn.init.normal_(net.frame_heads.weight, std=0.02)
        net.zero_grad()
        # In between, so that both contacts and the parabola have a say.
        force_flight(net, logit=3.5)
        result = net(*flight_clip.inputs())
        joints = result.joints_pp_BTJ3
        if output == "fused":
            joints = fuse(flight_clip.joints_dd, joints, result.gate_BTJ)
        (joints - flight_clip.truth).square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
        for name, gradient in zip(HEADS, net.frame_heads.weight.grad.split(list(HEADS.values()))):
            assert (gradient.abs().max() > 0) == (name != "gate" or output == "fused"), name
        assert net.flight_trust.grad.abs().min() > 0
        if is_trained:
            assert net.embed.weight.grad.abs().max() > 0


def test_gradients_stay_finite_on_terrible_input(flight_clip):
    """Swapped sides, joints of which the detector knows nothing, bodies behind the camera."""
    joints_dd, joints_px, confidence, *rest = (t.clone() for t in flight_clip.inputs())
    joints_dd[0, 7:9] = joints_dd[0, 7:9][:, [0, 4, 5, 6, 1, 2, 3, 7, 8, 9, 10, 14, 15, 16, 11, 12, 13]]
    joints_px[1, 3] = torch.nan
    joints_px[2] *= 100
    confidence[1] = 0
    joints_dd[3, :, :, 2] -= 4.5
    joints_dd.requires_grad_()
    net = force_flight(PhysNet(), logit=3.0)
    result = net(joints_dd, joints_px, confidence, *rest)
    (result.joints_pp_BTJ3.square().mean() + result.gate_BTJ.mean() + result.flight_logit_BT.mean()).backward()
    assert torch.isfinite(result.joints_pp_BTJ3).all()
    assert torch.isfinite(joints_dd.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("num_frames", [2, 3, 5, 150])
@torch.no_grad()
def test_any_length(flight_clip, num_frames):
    many = [t.repeat_interleave(5, 1)[:1, :num_frames] for t in flight_clip.inputs()[:3]]
    result = PhysNet()(*many, *(t[:1] for t in flight_clip.inputs()[3:]))
    assert result.joints_pp_BTJ3.shape == (1, num_frames, 17, 3)
    assert result.gate_BTJ.shape == (1, num_frames, 17)
    assert result.flight_logit_BT.shape == (1, num_frames)
    assert result.acceleration_BTJ3.shape == (1, num_frames, 17, 3)
    assert torch.isfinite(result.joints_pp_BTJ3).all()


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_batch(flight_clip):
    net = PhysNet()
    together = net(*flight_clip.inputs()).joints_pp_BTJ3
    alone = net(*(t[2:3] for t in flight_clip.inputs())).joints_pp_BTJ3
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=0)


@torch.no_grad()
def test_save_and_load(tmp_path, flight_clip):
    torch.manual_seed(0)
    net = PhysNet(width=32, num_layers=1, num_gauss_newton_steps=1, recursion="bidirectional")
    torch.nn.init.normal_(net.frame_heads.weight, std=0.02)
    net.save_pretrained(tmp_path, safe_serialization=True)
    again = PhysNet.from_pretrained(tmp_path)
    assert again.recursion == "bidirectional"
    assert again.num_gauss_newton_steps == 1
    expected = net(*flight_clip.inputs())
    torch.testing.assert_close(again(*flight_clip.inputs()).joints_pp_BTJ3, expected.joints_pp_BTJ3)

    net.half().save_pretrained(tmp_path, safe_serialization=True)
    half = PhysNet.from_pretrained(tmp_path)(*flight_clip.inputs()).joints_pp_BTJ3
    torch.testing.assert_close(half.float(), expected.joints_pp_BTJ3, atol=5e-3, rtol=0)


def test_size():
    assert sum(p.numel() for p in PhysNet().parameters()) <= 300_000


def test_what_is_refused(flight_clip):
    with pytest.raises(ValueError, match="recursion is 'backward'"):
        PhysNet(recursion="backward")
    with pytest.raises(ValueError, match="width 97"):
        PhysNetConfig(width=97)
    net, inputs = PhysNet(), list(flight_clip.inputs())
    with pytest.raises(ValueError, match=r"joints_dd \(4, 31, 17, 3\)"):
        net(inputs[0][:, 1:], *inputs[1:])
    broken = inputs[0].clone()
    broken[2, 5, 3, 1] = torch.nan
    with pytest.raises(ValueError, match="batch element 2, frame 5"):
        net(broken, *inputs[1:])
    collapsed = inputs[0].clone()
    collapsed[1] = collapsed[1, :, :1]
    with pytest.raises(ValueError, match="between root and right_hip in batch element 1"):
        net(collapsed, *inputs[1:])


@pytest.mark.parametrize("term", get_args(Term))
def test_each_term_matters_and_is_taken_out(flight_clip, term):
    torch.manual_seed(0)
    net = force_flight(PhysNet()).eval()
    torch.nn.init.normal_(net.frame_heads.weight, std=0.1)
    with torch.no_grad():
        whole = net(*flight_clip.inputs()).joints_pp_BTJ3
        net.without = frozenset({term})
        without = net(*flight_clip.inputs()).joints_pp_BTJ3
        net.without = frozenset()
        again = net(*flight_clip.inputs()).joints_pp_BTJ3
    assert torch.isfinite(without).all()
    assert (without - whole).abs().max() > 1e-4
    assert torch.equal(again, whole)
    if term == "bones":
        assert bone_lengths(without).std(1).max() > 1e-3


@torch.no_grad()
def test_a_fall_tells_how_large_the_body_is(flight_clip):
    """S_dd a fifth too large and too far looks the same; only a camera that stands still sees how fast it falls."""
    joints_dd, *others = flight_clip.inputs()
    net = force_flight(PhysNet())
    torch.nn.init.constant_(net.scale_prior, -8.0)
    sizes = []
    for scale, is_static in ((1.0, True), (1.2, True), (1.2, False)):
        inputs = [scale * joints_dd, *others[:-1], torch.full_like(others[-1], is_static)]
        sizes.append((bone_lengths(net(*inputs).joints_pp_BTJ3) / bone_lengths(flight_clip.truth)).mean().item())
    assert sizes[0] == pytest.approx(1, abs=0.05)
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert sizes[2] > 1.15


def test_a_flight_lasts_long_enough_to_leave_the_floor():
    """Runs of 4 and 5 frames at 30 a second, and short ones that the clip's ends cut; at 60 a second 8 are too few."""
    logit = 0.5 * torch.ones(1, 40)  # likelier than not is not enough
    logit[0, 6:10] = logit[0, 20:25] = logit[0, :2] = logit[0, 38:] = 2
    called = called_flights(logit, torch.tensor([1 / 30]))[0]
    assert called.nonzero().flatten().tolist() == [0, 1, *range(20, 25), 38, 39]
    logit = -torch.ones(2, 40)
    logit[0, 5:13] = logit[1, 5:14] = 2
    called = called_flights(logit, torch.tensor([1 / 60, 1 / 60]))
    assert called.sum(1).tolist() == [0, 9]
