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
# How far the rays to the centre of mass are off, in units of a ray (x / z), and how fast a body comes nearer than it
# was lifted to. With these and PhysNet's SCALE_PRIOR the logarithm of the scale of held-out aerials was off by 0.034
# (root mean square), by 0.042 as read off the fall of parabolas of 0.4 s, and by 0.062 unscaled.
RAY_NOISE = 0.01
APPROACH_NOISE_MPS = 1.0
# What S_dd has nearer to the camera, or behind it, counts as there.
NEAREST_M = 0.1
# So much less certain than how the whole body lies is how a limb does. Turning the body alone for the errors of its
# limbs spoils what was right: at one stiffness the error of held-out aerials was 45.3 mm, with limbs, then twice as
# uncertain, 44.1.
_LIMB_UNCERTAINTY = 3.0
# A turn about the line of sight shows in the picture, and is less often wrong than one that changes depths.
_UNCERTAINTY_IN_VIEW = 0.3


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
    spread_BTG33 = _spread(functional.normalize(center_BT3, dim=-1))
    turns_BTG3 = _steadying_turns(body, r_BTP3, spread_BTG33, turn_stiffness_B[:, None] * in_flight_BK, dt_s_B)
    arms_BTL23 = r_BTP3[:, :, _ENDS] - r_BTP3[:, :, _ANCHORS, None]
    turned_BTL23 = _rotate(arms_BTL23, turns_BTG3[:, :, :-1, None]) - arms_BTL23
    ends = torch.tensor(_ENDS, device=x_BTP3.device).flatten()
    r_BTP3 = r_BTP3.index_add(2, ends, turned_BTL23.flatten(2, 3))
    r_BTP3 = r_BTP3 - center_of_mass(body, r_BTP3)[:, :, None]
    return (center_BT3 + shift_BT3)[:, :, None] + _rotate(r_BTP3, turns_BTG3[:, :, -1:])


def _steadying_turns(body: Body, r_BTP3: Tensor, spread_BTG33: Tensor, stiffness_BK: Tensor, dt_s_B: Tensor) -> Tensor:
    """Rotation vectors u (B, T, G, 3), of the limbs and last of the whole body, that minimise
    sum |spread^-1 u|^2 + sum s |h I^-1 (L_next - L)|^2  with L linear in u.

    r_BTP3: points about the centre of mass. Momentum between frames is Verlet's, L = r x M r_next / h. With
    p = M r / h, and q the arms of the points that turn with a part, it changes by
    (tr C - C) u_next - (tr D - D) u,  C = sum q_next p^T,  D = sum q p_next^T. That momentum turns with the body is in
    it; without, what spins fast is turned the wrong way.
    """
    num_clips, num_frames = r_BTP3.shape[:2]
    p_BT1P3 = ((body.to(r_BTP3).mass @ r_BTP3) / per_clip(dt_s_B, r_BTP3))[:, :, None]
    q_BTGP3 = _arms(r_BTP3)
    momentum_BT3 = torch.linalg.cross(p_BT1P3[:, :-1, 0], r_BTP3[:, 1:]).sum(2)
    by_next = _turning(q_BTGP3[:, 1:], p_BT1P3[:, :-1], spread_BTG33[:, 1:])
    by_this = -_turning(q_BTGP3[:, :-1], p_BT1P3[:, 1:], spread_BTG33[:, :-1])

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
    turns_BTG3: Tensor = (spread_BTG33 @ pulled[..., None])[..., 0]
    return turns_BTG3


def _arms(r_BTP3: Tensor) -> Tensor:
    """(B, T, G, P, 3): of the points that turn with each part, from what they turn about; zero for the others."""
    is_end_LP = functional.one_hot(torch.tensor(_ENDS), NUM_POINTS).sum(1).to(r_BTP3)
    limbs_BTLP3 = is_end_LP[..., None] * (r_BTP3[:, :, None] - r_BTP3[:, :, _ANCHORS, None])
    return torch.cat([limbs_BTLP3, r_BTP3[:, :, None]], 2)


def _turning(q_BTGP3: Tensor, p_BT1P3: Tensor, spread_BTG33: Tensor) -> Tensor:
    """(B, T, 3, 3 G): (tr C - C) spread for each part, C = sum q p^T, side by side."""
    c_BTG33 = q_BTGP3.transpose(-1, -2) @ p_BT1P3
    trace = c_BTG33.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] * torch.eye(3).to(c_BTG33)
    return ((trace - c_BTG33) @ spread_BTG33).transpose(2, 3).flatten(3)


def _spread(sight_BT3: Tensor) -> Tensor:
    """(B, T, G, 3, 3), symmetric: how far each part may lie turned from where it was seen, about which axis; the whole
    body 1 about axes across the line of sight, sight_BT3."""
    part_G11 = torch.tensor([_LIMB_UNCERTAINTY] * len(_ANCHORS) + [1.0]).to(sight_BT3)[:, None, None]
    along_BT33 = sight_BT3[..., None] * sight_BT3[..., None, :]
    return part_G11 * (torch.eye(3).to(sight_BT3) - (1 - _UNCERTAINTY_IN_VIEW) * along_BT33)[:, :, None]


def scale_of_fall(
    center_BT3: Tensor,
    gravity_mps2_B3: Tensor,
    flight_BT: Tensor,
    is_flight_BT: Tensor,
    dt_s_B: Tensor,
    prior: Tensor | float,
) -> Tensor:
    """How many times larger than it was lifted a body must be (B,) for its flights to be seen where they were.

    center_BT3: the lifted centre of mass, metres, in the frame of a camera that stands still.  gravity_mps2_B3.
    flight_BT: 0 to 1.  is_flight_BT: bool.  dt_s_B: seconds between frames.
    A camera cannot tell a small body nearby from a large one far away, but both fall at the same g. What is thrown
    from p with v is at p + v t + g t^2 / 2; that it lies on the rays to center_BT3, the lifted centre of mass, is
    linear in p and v. Least squares find them for each run of frames where is_flight_BT, which flight_BT weighs; the
    depth of p over the lifted one is the scale. Flights count by one over its relative variance, `prior`
    is that of the lifted scale, 1.
    """
    scales = []
    for clip, is_flight_T in enumerate(is_flight_BT.cpu()):
        total = weight = torch.as_tensor(prior).to(center_BT3).double().squeeze()
        changes = is_flight_T.to(torch.int8).diff(
            prepend=torch.zeros(1, dtype=torch.int8), append=torch.zeros(1, dtype=torch.int8)
        )
        for start, end in zip((changes > 0).nonzero(), (changes < 0).nonzero(), strict=True):
            if end - start < 4:
                # What the clip's start or end leaves of a flight tells nothing.
                continue
            depth_ratio, certainty = _thrown(
                center_BT3[clip, start:end].double(),
                gravity_mps2_B3[clip].double(),
                flight_BT[clip, start:end].double(),
                dt_s_B[clip],
            )
            total, weight = total + certainty * depth_ratio, weight + certainty
        scales.append(total / weight)
    return torch.stack(scales).to(center_BT3)


def _thrown(center_T3: Tensor, gravity_mps2_3: Tensor, flight_T: Tensor, dt_s: Tensor) -> tuple[Tensor, Tensor]:
    """Of one flight: the depth of its middle over the lifted depth, and one over the variance of that."""
    unit_66 = torch.eye(6).to(center_T3)
    time_T = (torch.arange(len(center_T3)).to(center_T3) - (len(center_T3) - 1) / 2) * dt_s
    z_T1 = center_T3[:, 2:].clamp_min(NEAREST_M)
    z = (z_T1[:, 0] - gravity_mps2_3[2] * time_T.square() / 2).mean().clamp_min(NEAREST_M)
    approach = (time_T * z_T1[:, 0]).sum() / time_T.square().sum() / z
    # What takes a place to how far right and below the ray it lies, and p, v and g to places.
    off_T23 = unit_66[:2, :3] - (center_T3[:, :2] / z_T1)[:, :, None] * unit_66[2, :3]
    by_time_T3 = torch.stack([torch.ones_like(time_T), time_T, time_T.square() / 2], -1)
    rows_T233 = by_time_T3[:, None, :, None] * off_T23[:, :, None]
    certainty_T1 = flight_T[:, None].sqrt() / RAY_NOISE
    fall = (certainty_T1 * (rows_T233[:, :, 2] @ gravity_mps2_3)).flatten()
    thrown = (certainty_T1[..., None] * rows_T233[:, :, :2].flatten(2)).flatten(0, 1)
    # How fast it comes nearer is hardly seen, and taken from how it was lifted.
    nearer = (unit_66[5] - approach * unit_66[2])[None] / APPROACH_NOISE_MPS
    covariance_66 = torch.linalg.inv(thrown.T @ thrown + nearer.T @ nearer)
    thrown_z = -(covariance_66 @ (thrown.T @ fall))[2]
    return thrown_z / z, z.square() / covariance_66[2, 2]


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
