"""Re-estimate joints with Euler-Lagrange dynamics, forward and backward in time.

Path:    Pose3D -> PhysicsPose
Solves:  M a = f + E^T (lambda o D) for a, with f = internal muscles + contacts + weight (dynamics.py); then a motion
         that obeys a, the image and the bones (trajectory.py, refine.py)
Letters: B clips, T frames, J = 17 joints, P = 16 points (joints without the root), D width, N features
Units:   metre, second, kilogram; always float32 or better
Frames:  camera, x right, y down, z forward; gravity as a vector in it
[1] FinePhys, arXiv:2505.13437.  We differ: the mass matrix is derived, not predicted; accelerations come in parallel
    from S_dd, never from a rollout; forward and reverse time are one banded solve (`recursion="solve"`), the paper's
    recursion stays as "bidirectional" and "forward"; the image is looked at again.

The network predicts only what mechanics leaves open (muscles, contacts, what to trust), as corrections to values read
off S_dd: its last layers start at zero, so that an untrained PhysNet is a sane smoother on constant bones. How large
the body is, which one camera cannot tell, is read off its fall.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from finephys.physics.body import (
    NUM_POINTS,
    STANDARD_GRAVITY,
    Body,
    bone_lengths,
    center_of_mass,
    constraint_lengths,
    gravity_force,
    joints_of,
    on_body,
    points_of,
)
from finephys.physics.dynamics import contact_force, forward_dynamics, internal_force
from finephys.physics.flight import impose_flight, scale_of_fall
from finephys.physics.observation import Observed, features, num_features, observe, scaled, seen_rays
from finephys.physics.refine import refine
from finephys.physics.trajectory import (
    factorise,
    filter_both_ways,
    filter_forward,
    fold_points,
    smooth,
    solve,
)
from finephys.physics.turning_frame import smooth_turning
from finephys.pose.camera import unproject
from finephys.skeleton import BONES, JOINT_NAMES, MIRROR_BONES, NUM_JOINTS

Recursion = Literal["solve", "bidirectional", "forward", "none"]
# What an ablation may leave out, see PhysNet.without.
Term = Literal["image", "bones", "dynamics", "flight", "forces", "scale", "turning"]

# S_dd is differentiated twice: this much smoothing, in the frame that turns with the body, makes its noise (a few
# centimetres) comparable to accelerations. What other times give stands in assets/pipeline.md.
SMOOTHING_S = 0.065
# The least that the result is smoothed, in that frame too.
LAST_SMOOTHING_S = 0.016
# Where the untrained network balances image, S_dd, bones and dynamics; the heads scale each by up to e^TRUST_RANGE.
IMAGE_NOISE_M = 0.03
POSITION_NOISE_M = 0.05
BONE_NOISE_M = 0.005
DYNAMICS_TIME_S = 0.034
FLIGHT_PATH_TIME_S = 0.25
# Shorter: a slow error of the shape looks like a slow loss of angular momentum, and must not turn the body for it.
FLIGHT_TURN_TIME_S = 0.17
# One over the relative variance of S_dd's own scale, before training, against that of flights (scale_of_fall).
SCALE_PRIOR = 1000.0
# Height above the lowest point over which the floor's push is shared while nothing has been learned.
CONTACT_HEIGHT_M = 0.05
FRICTION = 0.8
# Logits of "in flight" and of "take S_dd" before training: flight must be learned before it is imposed.
FLIGHT_BIAS = -4.0
GATE_BIAS = -1.0
# Half the distance between a small child's hip joints is ten times this.
SHORTEST_BONE_M = 0.005
# A body that flies for less rises less than 3 cm, which no lifted ankle tells from standing.
SHORTEST_FLIGHT_S = 0.15
# Called in flight is what is three times as likely as not to be: a scale read off a body that stands does more harm
# than one that is missed.
CALLED_LOGIT = math.log(3)
# What a head output of 1 means, and the logarithm of how far trust can be moved. Larger ones fit motions of training
# better and others worse (assets/pipeline.md).
MUSCLE_MPS2 = 10.0
OFFSET_M = 0.1
TRUST_RANGE = 2.5
# What of S_dd's share in the fusion flight takes away: it breaks the momentum and the bones that S_pp keeps there.
HELD_BACK_IN_FLIGHT = 0.9


@dataclass(frozen=True)
class PhysicsPose:
    """joints_pp_BTJ3: S_pp, metres, camera frame.  gate_BTJ: share of S_dd in the fusion, 0..1.  flight_logit_BT.
    acceleration_BTJ3: a_EL of the Euler-Lagrange equations, m/s^2.  correction_B: mean square of the network's outputs
    that correct what was read off S_dd."""

    joints_pp_BTJ3: Tensor
    gate_BTJ: Tensor
    flight_logit_BT: Tensor
    acceleration_BTJ3: Tensor
    correction_B: Tensor


def called_flights(flight_logit_BT: Tensor, dt_s_B: Tensor) -> Tensor:
    """Which frames are called in flight, (B, T) bool: logits above CALLED_LOGIT for SHORTEST_FLIGHT_S or longer.

    What the clip's start or end cuts may have lasted longer and counts.
    """
    called = []
    for logit_T, dt_s in zip(flight_logit_BT, dt_s_B.tolist(), strict=True):
        num_frames = max(1, math.ceil(SHORTEST_FLIGHT_S / dt_s - 1e-6))
        # Frames from which on all are in flight for so long, and then the frames that these stretches cover.
        is_on_floor_11T = functional.pad((logit_T <= CALLED_LOGIT).to(logit_T)[None, None], (num_frames - 1,) * 2)
        starts = 1 - functional.max_pool1d(is_on_floor_11T, num_frames, stride=1)
        called.append(functional.max_pool1d(starts, num_frames, stride=1)[0, 0] > 0.5)
    return torch.stack(called)


@dataclass(frozen=True, kw_only=True)
class PhysNetConfig:
    """The shipped Phys-Net."""

    # Of the tokens of the transformer.
    width: int = 96
    # Its layers.
    num_layers: int = 3
    # Heads of each attention.
    num_heads: int = 4
    # How far in time a frame attends, either way.
    attention_s: float = 0.6
    # Looks at the image, each followed by the dynamics again; 0 for none.
    num_gauss_newton_steps: int = 4
    # "solve" over all time at once, or step "bidirectional" or "forward" as arXiv:2505.13437 does; "none": no
    # mechanics, the same network moves S_dd's joints directly: the black box to compare with.
    recursion: Recursion = "solve"

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")
        if self.recursion not in get_args(Recursion):
            raise ValueError(f"recursion is {self.recursion!r}, wanted one of {', '.join(get_args(Recursion))}")
        if self.num_gauss_newton_steps < 0:
            raise ValueError(f"num_gauss_newton_steps is {self.num_gauss_newton_steps}, wanted 0 or more")


# Accelerations do not depend on mass or height; lengths are read off S_dd.
_BODY = Body.from_anthropometry(mass_kg=50.0, height_m=1.6).to(torch.empty(0, dtype=torch.float32))

# What the heads predict per frame, and how many numbers of each.
HEADS = {
    "muscle": NUM_POINTS * 3,
    "normal": NUM_POINTS,
    "tangent": NUM_POINTS * 3,
    "position_trust": NUM_POINTS,
    "dynamics_trust": NUM_POINTS,
    "image_trust": NUM_JOINTS,
    "gate": NUM_JOINTS,
    "flight": 1,
}
# Those that correct what was read off S_dd, for which training asks a price.
CORRECTIONS = ("muscle", "tangent", "position_trust", "dynamics_trust", "image_trust")


class PhysNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """S_dd and the 2D joints it came from -> S_pp. See the module's docstring."""

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        width: int = 96,
        num_layers: int = 3,
        num_heads: int = 4,
        attention_s: float = 0.6,
        num_gauss_newton_steps: int = 4,
        recursion: Recursion = "solve",
    ) -> None:
        super().__init__()
        PhysNetConfig(
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            attention_s=attention_s,
            num_gauss_newton_steps=num_gauss_newton_steps,
            recursion=recursion,
        )
        self.attention_s, self.num_gauss_newton_steps, self.recursion = attention_s, num_gauss_newton_steps, recursion
        # Terms that an ablation leaves out; nothing else sets it.
        self.without: frozenset[Term] = frozenset()
        self.embed = nn.Linear(num_features(), width)
        # Order in time by a convolution rather than by position codes: a clip may be of any length.
        self.order = nn.Conv1d(width, width, 9, padding=4, groups=width)
        layer = nn.TransformerEncoderLayer(
            width, num_heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.frame_heads = nn.Linear(width, sum(HEADS.values()))
        # Logarithm of how much more certain than SCALE_PRIOR S_dd's own scale is.
        self.scale_prior = nn.Parameter(torch.zeros(1))
        # Logarithms of how much harder than by default the centre of mass and the body's turning follow mechanics in
        # flight.
        self.flight_trust = nn.Parameter(torch.zeros(2))
        nn.init.zeros_(self.frame_heads.weight)
        nn.init.zeros_(self.frame_heads.bias)

    def forward(
        self,
        joints_dd_BTJ3: Tensor,
        joints_px_BTJ2: Tensor,
        confidence_BTJ: Tensor,
        intrinsics_B33: Tensor,
        gravity_B3: Tensor,
        dt_s_B: Tensor,
        is_static_B: Tensor,
    ) -> PhysicsPose:
        """S_pp and what belongs to it.

        joints_dd_BTJ3: S_dd, metres, absolute in the camera frame.  joints_px_BTJ2, confidence_BTJ: the detected 2D;
        a joint that is not finite counts as not seen.
        intrinsics_B33: pixels.  gravity_B3: unit, points down.  dt_s_B: seconds between frames.  is_static_B: bool;
        the camera stands still, or joints were brought into the view of one that does (pose/camera_motion.py). Where it
        moves, neither the parabola nor the conservation of momentum holds in its frame and both are off. T >= 2.
        Computes in float32 whatever autocast says.
        Raises ValueError, naming clip and frame, for S_dd that is not finite or that has a bone without length.
        """
        _check(joints_dd_BTJ3, joints_px_BTJ2, confidence_BTJ)
        with torch.autocast(joints_dd_BTJ3.device.type, enabled=False):
            joints_dd_BTJ3, confidence_BTJ, dt_s_B = (t.float() for t in (joints_dd_BTJ3, confidence_BTJ, dt_s_B))
            rays_BTJ2 = unproject(joints_px_BTJ2.float(), intrinsics_B33.float()[:, None])
            is_seen_BTJ = torch.isfinite(rays_BTJ2).all(-1)
            rays_BTJ2 = torch.where(is_seen_BTJ[..., None], rays_BTJ2, seen_rays(joints_dd_BTJ3))
            confidence_BTJ = confidence_BTJ * is_seen_BTJ
            return self._re_estimate(
                joints_dd_BTJ3, rays_BTJ2, confidence_BTJ, gravity_B3.float(), dt_s_B, is_static_B.bool()
            )

    def _re_estimate(
        self,
        joints_dd_BTJ3: Tensor,
        rays_BTJ2: Tensor,
        confidence_BTJ: Tensor,
        gravity_B3: Tensor,
        dt_s_B: Tensor,
        is_static_B: Tensor,
    ) -> PhysicsPose:
        body = _BODY.to(joints_dd_BTJ3)
        # Noise makes every distance longer, so lengths are read where most of it is smoothed away.
        smooth_BTP3 = self._smooth(body, points_of(joints_dd_BTJ3), dt_s_B, SMOOTHING_S)
        bones_B = bone_lengths(joints_of(smooth_BTP3)).median(1).values
        bones_B = 0.5 * (bones_B + bones_B[:, list(MIRROR_BONES)])
        _check_bones(bones_B)
        seen = observe(body, smooth_BTP3, bones_B, gravity_B3, dt_s_B)
        features_BTN = features(body, seen, joints_dd_BTJ3, rays_BTJ2, confidence_BTJ, is_static_B, dt_s_B)
        hidden_BTD = self._encode(features_BTN, dt_s_B)
        names = zip(HEADS, self.frame_heads(hidden_BTD).float().split(list(HEADS.values()), -1))
        head = dict(names)
        if self.recursion == "none":
            return _moved_directly(seen, joints_dd_BTJ3, head)
        if "forces" in self.without:
            head |= {name: torch.zeros_like(head[name]) for name in ("muscle", "normal", "tangent")}
        if "flight" in self.without:
            head["flight"] = torch.full_like(head["flight"], -torch.inf)

        flight_logit_BT = head["flight"][..., 0] + FLIGHT_BIAS
        flight_BT = torch.sigmoid(flight_logit_BT)
        # In the frame of a moving camera nothing falls freely.
        free_BT = flight_BT * is_static_B[:, None]
        # The clamp: beyond it, it is no body that was seen.
        prior = SCALE_PRIOR * self.scale_prior.float().exp()
        center_BT3 = center_of_mass(body, points_of(joints_dd_BTJ3))
        is_free_BT = called_flights(flight_logit_BT.detach(), dt_s_B) & is_static_B[:, None]
        scale_B = scale_of_fall(center_BT3, seen.gravity_B3, free_BT, is_free_BT, dt_s_B, prior).clamp(0.5, 2.0)
        if "scale" in self.without:
            scale_B = torch.ones_like(scale_B)
        seen, observed_BTP3 = scaled(seen, scale_B), scale_B[:, None, None, None] * points_of(joints_dd_BTJ3)
        bones_B = scale_B[:, None] * bones_B

        a_BTP3 = _euler_lagrange(body, seen, head, flight_BT, is_static_B)
        x_BTP3 = self._integrate(
            seen,
            observed_BTP3,
            rays_BTJ2,
            confidence_BTJ,
            bones_B,
            a_BTP3,
            head,
            free_BT,
            dt_s_B,
        )
        return PhysicsPose(
            joints_pp_BTJ3=joints_of(x_BTP3),
            gate_BTJ=torch.sigmoid(head["gate"] + GATE_BIAS) * (1 - HELD_BACK_IN_FLIGHT * free_BT[..., None]),
            flight_logit_BT=flight_logit_BT,
            acceleration_BTJ3=joints_of(a_BTP3),
            correction_B=torch.cat([head[name] for name in CORRECTIONS], -1).square().mean((1, 2)),
        )

    def _smooth(self, body: Body, x_BTP3: Tensor, dt_s_B: Tensor, time_constant_s: float) -> Tensor:
        if "turning" in self.without:
            return smooth(x_BTP3, dt_s_B, time_constant_s)
        return smooth_turning(body, x_BTP3, dt_s_B, time_constant_s)

    def _encode(self, features_BTN: Tensor, dt_s_B: Tensor) -> Tensor:
        hidden_BTD = self.embed(features_BTN.to(self.embed.weight.dtype))
        hidden_BTD = hidden_BTD + self.order(hidden_BTD.transpose(1, 2)).transpose(1, 2)
        num_clips, num_frames, _ = features_BTN.shape
        frame = torch.arange(num_frames, device=features_BTN.device)
        apart_s_BTT = (frame[:, None] - frame).abs() * dt_s_B[:, None, None]
        too_far_BTT = apart_s_BTT > self.attention_s
        num_heads = self.layers.layers[0].self_attn.num_heads
        mask = too_far_BTT[:, None].expand(num_clips, num_heads, num_frames, num_frames).flatten(0, 1)
        encoded_BTD: Tensor = self.norm(self.layers(hidden_BTD, mask=mask))
        return encoded_BTD

    def _integrate(
        self,
        seen: Observed,
        observed_BTP3: Tensor,
        rays_BTJ2: Tensor,
        confidence_BTJ: Tensor,
        bones_B: Tensor,
        a_BTP3: Tensor,
        head: dict[str, Tensor],
        flight_BT: Tensor,
        dt_s_B: Tensor,
    ) -> Tensor:
        """Motion x_BTP3 between the observed points, the accelerations and the image, on the bones."""
        body = _BODY.to(observed_BTP3)
        # Not below a tenth: a joint that is never seen still has a place.
        sure_BTJ = 0.1 + 0.9 * confidence_BTJ
        weight_BTP = sure_BTJ[..., 1:] * _trust(head["position_trust"])
        stiffness_BTP = (DYNAMICS_TIME_S / dt_s_B)[:, None, None].pow(4) * _trust(head["dynamics_trust"])
        path_trust, turn_trust = _trust(self.flight_trust.float()).unbind()
        path_stiffness_B = path_trust * (FLIGHT_PATH_TIME_S / dt_s_B).pow(4)
        turn_stiffness_B = turn_trust * (FLIGHT_TURN_TIME_S / dt_s_B).pow(4)
        lengths_BC = constraint_lengths(bones_B)
        length_weight = BONE_NOISE_M**-2
        image_weight_BTJ = confidence_BTJ.square() * _trust(head["image_trust"]) / IMAGE_NOISE_M**2
        prior_weight_BTP = weight_BTP / POSITION_NOISE_M**2
        if "image" in self.without:
            image_weight_BTJ = torch.zeros_like(image_weight_BTJ)
        if "bones" in self.without:
            length_weight = 0.0
        if "dynamics" in self.without:
            # Not zero, which the recursion would divide by.
            stiffness_BTP = 1e-6 * stiffness_BTP
        if self.recursion == "solve":
            factor = factorise(fold_points(weight_BTP), fold_points(stiffness_BTP))

        def follow_dynamics(target_BTP3: Tensor) -> Tensor:
            if self.recursion == "solve":
                return solve(factor, target_BTP3, weight_BTP, a_BTP3, stiffness_BTP, dt_s_B)
            if self.recursion == "bidirectional":
                return filter_both_ways(target_BTP3, weight_BTP, a_BTP3, stiffness_BTP, dt_s_B)
            return filter_forward(target_BTP3, weight_BTP, a_BTP3, stiffness_BTP, dt_s_B)

        def fly(x: Tensor) -> Tensor:
            return impose_flight(body, x, flight_BT, seen.gravity_B3, dt_s_B, path_stiffness_B, turn_stiffness_B)

        x_BTP3 = follow_dynamics(observed_BTP3)
        for look in range(self.num_gauss_newton_steps):
            x_BTP3 = refine(body, x_BTP3, rays_BTJ2, image_weight_BTJ, lengths_BC, length_weight, prior_weight_BTP)
            x_BTP3 = follow_dynamics(x_BTP3)
            # The costliest part; imposed after every look, momentum drifts by a tenth less and joints err no less.
            if look % 2:
                x_BTP3 = fly(x_BTP3)
        # Putting each frame on the bones, and turning it, has roughened the shape; the path of the centre is to stay.
        center_BT13 = center_of_mass(body, x_BTP3)[:, :, None]
        x_BTP3 = self._smooth(body, x_BTP3, dt_s_B, LAST_SMOOTHING_S)
        if "bones" not in self.without:
            x_BTP3 = on_body(x_BTP3, bones_B[:, None])
        # What that did to the momentum in flight is undone by moving bodies as a whole, which bones survive.
        return fly(x_BTP3 - center_of_mass(body, x_BTP3)[:, :, None] + center_BT13)


def _moved_directly(seen: Observed, joints_dd_BTJ3: Tensor, head: dict[str, Tensor]) -> PhysicsPose:
    """The black box: the muscles' outputs are offsets of S_dd's points; nothing of it is mixed with S_dd again."""
    offset_BTP3 = OFFSET_M * head["muscle"].unflatten(-1, (NUM_POINTS, 3))
    return PhysicsPose(
        joints_pp_BTJ3=joints_dd_BTJ3 + joints_of(offset_BTP3),
        gate_BTJ=torch.zeros_like(head["gate"]),
        flight_logit_BT=head["flight"][..., 0] + FLIGHT_BIAS,
        acceleration_BTJ3=joints_of(seen.a_BTP3),
        correction_B=torch.zeros_like(joints_dd_BTJ3[:, 0, 0, 0]),
    )


def _euler_lagrange(
    body: Body, seen: Observed, head: dict[str, Tensor], flight_BT: Tensor, is_static_B: Tensor
) -> Tensor:
    """a_EL_BTP3 in m/s^2: muscles that conserve momentum, contacts that only push, and weight."""
    muscle_BTP3 = seen.a_BTP3 + MUSCLE_MPS2 * head["muscle"].unflatten(-1, (NUM_POINTS, 3))
    f_BTP3 = internal_force(body, seen.x_BTP3, body.mass @ muscle_BTP3)

    # Untrained, the floor gives what the observed centre of mass asks for, at the lowest points.
    demand_BT3 = seen.center_a_BT3 - seen.gravity_B3[:, None]
    push_BT1 = (demand_BT3 * seen.up_B3[:, None]).sum(-1, keepdim=True).clamp_min(0.0)
    share_BTP = functional.softmax(-seen.height_BTP / CONTACT_HEIGHT_M, -1)
    weights_BTP = share_BTP * push_BT1 / STANDARD_GRAVITY
    normal_BTP = _inverse_softplus(weights_BTP) + head["normal"]
    slide_BT3 = demand_BT3 / (FRICTION * (push_BT1 + 0.1 * STANDARD_GRAVITY))
    tangent_BTP3 = slide_BT3[:, :, None] + head["tangent"].unflatten(-1, (NUM_POINTS, 3))
    floor_BTP3 = contact_force(body, normal_BTP, tangent_BTP3, seen.up_B3[:, None], 1 - flight_BT, FRICTION)
    external_BTP3 = floor_BTP3 + gravity_force(body, seen.gravity_B3)[:, None]

    # In the frame of a moving camera the body's own path is not mechanics: take it as it was seen.
    carried_BTP3 = body.mass.sum(1)[:, None] * seen.center_a_BT3[:, :, None]
    f_BTP3 = f_BTP3 + torch.where(is_static_B[:, None, None, None], external_BTP3, carried_BTP3)
    a_BTP3, _ = forward_dynamics(body, seen.x_BTP3, seen.v_BTP3, f_BTP3)
    return a_BTP3


def _trust(logit: Tensor) -> Tensor:
    """A factor between e^-TRUST_RANGE and e^TRUST_RANGE, 1 at 0."""
    return (TRUST_RANGE * torch.tanh(logit / 3.0)).exp()


def _inverse_softplus(y: Tensor) -> Tensor:
    """x with softplus(x) = y for y >= 1e-4, that of 1e-4 below."""
    y = y.clamp_min(1e-4)
    return y + torch.log(-torch.expm1(-y))


def _check(joints_dd_BTJ3: Tensor, joints_px_BTJ2: Tensor, confidence_BTJ: Tensor) -> None:
    shape = tuple(confidence_BTJ.shape)
    if len(shape) != 3 or shape[1] < 2 or shape[2] != NUM_JOINTS:
        raise ValueError(f"confidence has shape {shape}, wanted (B, T, {NUM_JOINTS}) with T >= 2")
    if tuple(joints_dd_BTJ3.shape) != (*shape, 3) or tuple(joints_px_BTJ2.shape) != (*shape, 2):
        raise ValueError(
            f"joints_dd {tuple(joints_dd_BTJ3.shape)} and joints_px {tuple(joints_px_BTJ2.shape)} do not belong to "
            f"confidence {shape}, wanted (B, T, {NUM_JOINTS}, 3) and (B, T, {NUM_JOINTS}, 2)"
        )
    finite_BT = torch.isfinite(joints_dd_BTJ3).all(-1).all(-1)
    if not bool(finite_BT.all()):
        clip, frame = (~finite_BT).nonzero()[0].tolist()
        raise ValueError(f"joints_dd is not finite in batch element {clip}, frame {frame}")


def _check_bones(bones_B: Tensor) -> None:
    is_short_B = bones_B < SHORTEST_BONE_M
    if bool(is_short_B.any()):
        clip, bone = is_short_B.nonzero()[0].tolist()
        parent, child = (JOINT_NAMES[joint] for joint in BONES[bone])
        raise ValueError(
            f"joints_dd has bones of {bones_B[clip, bone].item():.2g} m between {parent} and {child} in batch element "
            f"{clip}, wanted {SHORTEST_BONE_M} m or more: is the lifter trained?"
        )
