"""What mechanics makes of a flight: its path is a parabola, its angular momentum stays, and its fall tells its size.

Path:    inside PhysNet
Letters: B clips, T frames, K = T - 2 inner frames, P = 16 points, L = 4 limbs, G = L + 1 parts that turn,
         h the time between frames (s)
Units:   metre, second; stiffnesses have no unit, (time constant / h)^4
"""

import torch
from torch import Tensor
from torch.nn import functional

from finephys.physics.body import NUM_POINTS, POINT_NAMES, Body, center_of_mass
from finephys.physics.dynamics import rigid_spin
from finephys.physics.trajectory import factorise, per_clip, second_difference_operator

# What turns so that momentum stays: knees and ankles about hips, elbows and wrists about shoulders, and last the body.
_ANCHORS = [POINT_NAMES.index(f"{side}_{name}") for name in ("hip", "shoulder") for side in ("right", "left")]
# The two points after each.
_ENDS = [[anchor + 1, anchor + 2] for anchor in _ANCHORS]
# So much less certain than how the whole body lies is how a limb does. Turning the body alone for the errors of its
# limbs spoils what was right: at one stiffness the error of held-out aerials was 45.3 mm, with limbs 44.1.
_LIMB_UNCERTAINTY = 2.0


def impose_flight(
    body: Body,
    x_BTP3: Tensor,
    flight_BT: Tensor,
    gravity_mps2_B3: Tensor,
    dt_s_B: Tensor,
    path_stiffness_B: Tensor,
    turn_stiffness_B: Tensor,
) -> Tensor:
    """Move and turn each frame's body, and its limbs, so that in flight momentum is what gravity makes it.

    One Gauss-Newton step on the least corrections with  c'' = g  for the centre of mass and  L' = 0  for angular
    momentum, weighed by path_stiffness_B and turn_stiffness_B times the probability that a frame and both its
    neighbours are in flight, from flight_BT. Arms and legs turn about shoulders and hips; bones keep their lengths.
    x_BTP3 the sixteen points; returns the same shape.
    """
    if x_BTP3.shape[1] < 3:
        return x_BTP3
    in_flight_BK = flight_BT[:, :-2] * flight_BT[:, 1:-1] * flight_BT[:, 2:]

    center_BT3 = center_of_mass(body, x_BTP3)
    fall = gravity_mps2_B3[:, None] * per_clip(dt_s_B, center_BT3).square() - torch.diff(center_BT3, n=2, dim=1)
    operator = second_difference_operator(x_BTP3.shape[1], x_BTP3)
    path_BK = path_stiffness_B[:, None] * in_flight_BK
    factor = factorise(torch.ones_like(flight_BT), functional.pad(path_BK, (1, 1)))
    shift_BT3 = torch.cholesky_solve(operator.T @ (path_BK[..., None] * fall), factor)

    r_BTP3 = x_BTP3 - center_BT3[:, :, None]
    turns_BTG3 = _steadying_turns(body, r_BTP3, turn_stiffness_B[:, None] * in_flight_BK, dt_s_B)
    arms_BTL23 = r_BTP3[:, :, _ENDS] - r_BTP3[:, :, _ANCHORS, None]
    turned_BTL23 = _rotate(arms_BTL23, turns_BTG3[:, :, :-1, None]) - arms_BTL23
    ends = torch.tensor(_ENDS, device=x_BTP3.device).flatten()
    r_BTP3 = r_BTP3.index_add(2, ends, turned_BTL23.flatten(2, 3))
    r_BTP3 = r_BTP3 - center_of_mass(body, r_BTP3)[:, :, None]
    return (center_BT3 + shift_BT3)[:, :, None] + _rotate(r_BTP3, turns_BTG3[:, :, -1:])


def _steadying_turns(body: Body, r_BTP3: Tensor, stiffness_BK: Tensor, dt_s_B: Tensor) -> Tensor:
    """Rotation vectors u (B, T, G, 3), of the limbs and last of the whole body, that minimise
    sum |u / uncertainty|^2 + sum s |h I^-1 (L_next - L)|^2  with L linear in u.

    r_BTP3: points about the centre of mass. Momentum between frames is Verlet's, L = r x M r_next / h. With
    p = M r / h, and q the arms of the points that turn with a part, it changes by
    (tr C - C) u_next - (tr D - D) u,  C = sum q_next p^T,  D = sum q p_next^T. That momentum turns with the body is in
    it; without, what spins fast is turned the wrong way.
    """
    num_clips, num_frames = r_BTP3.shape[:2]
    p_BT1P3 = ((body.to(r_BTP3).mass @ r_BTP3) / per_clip(dt_s_B, r_BTP3))[:, :, None]
    q_BTGP3 = _arms(r_BTP3)
    momentum_BT3 = torch.linalg.cross(p_BT1P3[:, :-1, 0], r_BTP3[:, 1:]).sum(2)
    by_next = _turning(q_BTGP3[:, 1:], p_BT1P3[:, :-1])
    by_this = -_turning(q_BTGP3[:, :-1], p_BT1P3[:, 1:])

    # In radians, and weighed: how far a change of momentum would turn a rigid body until the next frame.
    changes = torch.cat(
        [
            momentum_BT3.diff(dim=1)[..., None],
            -by_this[:, :-1],
            by_this[:, 1:] - by_next[:, :-1],
            by_next[:, 1:],
        ],
        -1,
    )
    changes = per_clip(dt_s_B, changes) * rigid_spin(body, r_BTP3[:, 1:-1], changes)
    changes = (stiffness_BK + 1e-12).sqrt()[..., None, None] * changes
    off_BK31, changes = changes[..., :1], changes[..., 1:]
    # Solved in the momenta, of which there are fewer than turns. Momenta up to two frames apart share turns.
    a_turn = changes.shape[-1] // 3
    same = changes @ changes.transpose(-1, -2) + torch.eye(3).to(changes)
    next_one = changes[:, :-1, :, a_turn:] @ changes[:, 1:, :, : 2 * a_turn].transpose(-1, -2)
    one_after = changes[:, :-2, :, 2 * a_turn :] @ changes[:, 2:, :, :a_turn].transpose(-1, -2)
    num = num_frames - 2
    bands = [functional.pad(band, (0,) * 5 + (num - band.shape[1],)) for band in (0.5 * same, next_one, one_after)]
    # In rows of num + 1 blocks, cut into rows of num, each starts one block later than the one before.
    rows = functional.pad(torch.stack(bands, 2), (0,) * 5 + (num - 2,)).flatten(1, 2)
    upper = rows[:, : num * num].unflatten(1, (num, num)).transpose(2, 3).reshape(num_clips, 3 * num, 3 * num)
    factor = torch.linalg.cholesky(upper + upper.transpose(1, 2))
    pull_BK31 = -torch.cholesky_solve(off_BK31.flatten(1)[..., None], factor).reshape(off_BK31.shape)
    first, second, third = (changes.transpose(-1, -2) @ pull_BK31)[..., 0].split(a_turn, -1)
    pulled = functional.pad(first, (0, 0, 0, 2)) + functional.pad(second, (0, 0, 1, 1))
    pulled = (pulled + functional.pad(third, (0, 0, 2, 0))).unflatten(-1, (-1, 3))
    turns_BTG3: Tensor = _uncertainty(pulled) * pulled
    return turns_BTG3


def _arms(r_BTP3: Tensor) -> Tensor:
    """(B, T, G, P, 3): of the points that turn with each part, from what they turn about; zero for the others."""
    is_end_LP = functional.one_hot(torch.tensor(_ENDS), NUM_POINTS).sum(1).to(r_BTP3)
    limbs_BTLP3 = is_end_LP[..., None] * (r_BTP3[:, :, None] - r_BTP3[:, :, _ANCHORS, None])
    return torch.cat([limbs_BTLP3, r_BTP3[:, :, None]], 2)


def _turning(q_BTGP3: Tensor, p_BT1P3: Tensor) -> Tensor:
    """(B, T, 3, 3 G): (tr C - C) for each part, C = sum q p^T, times its uncertainty, side by side."""
    c_BTG33 = q_BTGP3.transpose(-1, -2) @ p_BT1P3
    trace = c_BTG33.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(3).to(c_BTG33)
    return (_uncertainty(c_BTG33)[..., None] * (trace - c_BTG33)).transpose(2, 3).flatten(3)


def _uncertainty(like: Tensor) -> Tensor:
    """(G, 1): of how far each part lies from where it was seen, the whole body's being 1."""
    return torch.tensor([[_LIMB_UNCERTAINTY]] * len(_ANCHORS) + [[1.0]]).to(like)


def falls(
    center_BT3: Tensor, gravity_B3: Tensor, flight_BT: Tensor, dt_s_B: Tensor, span_s: float
) -> tuple[Tensor, Tensor]:
    """Least-squares parabolas over each span of span_s: the sum of their falls in g (B,), and their number (B,).

    center_BT3 of the centre of mass; gravity_B3 in m/s^2; flight_BT between 0 and 1: a parabola counts as much as all
    of it is in flight. Both are zero for a clip that is shorter than a span.
    """
    sums = []
    for center_T3, gravity_3, flight_T, dt_s in zip(center_BT3, gravity_B3, flight_BT, dt_s_B.tolist(), strict=True):
        reach = max(2, round(span_s / 2 / dt_s))
        if len(flight_T) <= 2 * reach:
            sums.append(flight_T.new_zeros(2))
            continue
        time_s = torch.arange(-reach, reach + 1).to(center_T3) * dt_s
        # Twice the coefficient of the quadratic term.
        kernel = 2 * torch.linalg.pinv(torch.stack([torch.ones_like(time_s), time_s, time_s.square()], 1))[2]
        down_T = center_T3 @ (gravity_3 / gravity_3.square().sum())
        fall_T = functional.conv1d(down_T[None, None], kernel[None, None])[0, 0]
        is_flight_T = flight_T.unfold(0, 2 * reach + 1, 1).prod(-1)
        sums.append(torch.stack([(is_flight_T * fall_T).sum(), is_flight_T.sum()]))
    fall_B, num_B = torch.stack(sums).unbind(1)
    return fall_B, num_B


def _rotate(r: Tensor, turn: Tensor) -> Tensor:
    """Rodrigues' formula: r (..., 3) turned by the rotation vectors turn (..., 3)."""
    angle = (turn.square().sum(-1, keepdim=True) + 1e-12).sqrt()
    turn = turn.expand_as(r)
    first = torch.linalg.cross(turn, r)
    second = torch.linalg.cross(turn, first)
    turned: Tensor = (
        r + torch.sinc(angle / torch.pi) * first + 0.5 * torch.sinc(angle / (2 * torch.pi)).square() * second
    )
    return turned
