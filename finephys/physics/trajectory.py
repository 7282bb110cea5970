"""Motions that obey given accelerations: solved over all time at once, or stepped through it as the paper does.

Path:    inside PhysNet
Solves:  min over x of  sum_t w |x - target|^2 + sum_t s |D2 x - h^2 a|^2,   D2 x = x(t+1) - 2 x(t) + x(t-1)      [1]
Letters: B clips, T frames, P points, h the time between frames (s)
Units:   metre, second; weights w and stiffnesses s have no unit, s = (time constant / h)^4

[1] With a = 0 and constant weights it is Whittaker's smoother (1923); with a from a model it is the fixed-interval
    Kalman smoother of double integrators, the forward and the backward sweep in one, because the normal equations are
    the same from either end. FinePhys (arXiv:2505.13437) steps forward and in reverse and blends: `filter_forward` and
    `filter_both_ways`, whose steady-state gains follow from the same w and s (Kalata, IEEE TAES 20(2), 1984).
"""

import torch
from torch import Tensor


def second_difference_operator(num_frames: int, like: Tensor) -> Tensor:
    """D2 (T - 2, T) with rows (1, -2, 1), on the device and of the dtype of `like`; no rows for T < 3."""
    eye = torch.eye(num_frames, dtype=like.dtype, device=like.device)
    return torch.diff(eye, n=2, dim=0) if num_frames > 2 else eye[:0]


def acceleration(x_BTPC: Tensor, dt_s_B: Tensor) -> Tensor:
    """D2 x / h^2, same shape; the first and last frame repeat their neighbours'. Zero for T < 3."""
    if x_BTPC.shape[1] < 3:
        return torch.zeros_like(x_BTPC)
    inner = torch.diff(x_BTPC, n=2, dim=1) / per_clip(dt_s_B, x_BTPC).square()
    return torch.cat([inner[:, :1], inner, inner[:, -1:]], 1)


def velocity(x_BTPC: Tensor, dt_s_B: Tensor) -> Tensor:
    """Central differences, one-sided at the ends, in units of x per second; same shape."""
    step = torch.diff(x_BTPC, dim=1) / per_clip(dt_s_B, x_BTPC)
    inner = 0.5 * (step[:, 1:] + step[:, :-1])
    return torch.cat([step[:, :1], inner, step[:, -1:]], 1)


def smooth(x_BTPC: Tensor, dt_s_B: Tensor, time_constant_s: float) -> Tensor:
    """Whittaker's smoother: halves what oscillates with 1 / time_constant_s (rad/s); straight lines pass unchanged."""
    stiffness_BT = (time_constant_s / dt_s_B)[:, None].pow(4).expand(x_BTPC.shape[:2])
    factor = factorise(torch.ones_like(stiffness_BT), stiffness_BT)
    return torch.cholesky_solve(x_BTPC.flatten(2), factor).reshape(x_BTPC.shape)


def factorise(weight_NT: Tensor, stiffness_NT: Tensor) -> Tensor:
    """Cholesky factor (N, T, T) of diag(w) + D2^T diag(s) D2 for N independent trajectories.

    s of the first and last frame are not used: there is no second difference. Dense, because for the tens to hundreds
    of frames of a clip one batched LAPACK call is faster than a banded recursion of T small ones.
    """
    operator = second_difference_operator(weight_NT.shape[-1], weight_NT)
    elastic = (operator.T * stiffness_NT[:, None, 1:-1]) @ operator
    factor: Tensor = torch.linalg.cholesky(torch.diag_embed(weight_NT) + elastic)
    return factor


def solve(
    factor_NTT: Tensor, target_BTPC: Tensor, weight_BTP: Tensor, a_BTPC: Tensor, stiffness_BTP: Tensor, dt_s_B: Tensor
) -> Tensor:
    """The minimiser x_BTPC of [1]; factor_NTT = factorise of the same w and s as (B P, T)."""
    operator = second_difference_operator(target_BTPC.shape[1], target_BTPC)
    change = stiffness_BTP[..., None] * a_BTPC * per_clip(dt_s_B, a_BTPC).square()
    right_side = weight_BTP[..., None] * target_BTPC + torch.einsum("kt,bkpc->btpc", operator, change[:, 1:-1])
    num_clips, num_frames, num_points, _ = target_BTPC.shape
    by_point = right_side.transpose(1, 2).reshape(num_clips * num_points, num_frames, -1)
    solution = torch.cholesky_solve(by_point, factor_NTT)
    return solution.reshape(num_clips, num_points, num_frames, -1).transpose(1, 2)


def fold_points(values_BTP: Tensor) -> Tensor:
    """(B, T, P) -> (B P, T), the order of factorise and solve."""
    return values_BTP.transpose(1, 2).flatten(0, 1)


def filter_forward(
    target_BTPC: Tensor, weight_BTP: Tensor, a_BTPC: Tensor, stiffness_BTP: Tensor, dt_s_B: Tensor
) -> Tensor:
    """Step through time: predict by a, correct by the steady-state Kalman gains of w and s (an alpha-beta filter)."""
    index = (weight_BTP / stiffness_BTP).clamp(1e-8, 1e8).sqrt()[..., None]
    root = 0.25 * (4 + index - (8 * index + index.square()).sqrt())
    alpha = 1 - root.square()
    beta = 2 * (2 - alpha) - 4 * root
    change = a_BTPC * per_clip(dt_s_B, a_BTPC).square()
    num_frames = target_BTPC.shape[1]
    x = target_BTPC[:, 0]
    ahead = min(2, num_frames - 1)
    step = (target_BTPC[:, ahead] - x) / ahead
    frames = [x]
    for t in range(1, num_frames):
        mean_change = 0.5 * (change[:, t - 1] + change[:, t])
        predicted = x + step + 0.5 * mean_change
        surprise = target_BTPC[:, t] - predicted
        x = predicted + alpha[:, t] * surprise
        step = step + mean_change + beta[:, t] * surprise
        frames.append(x)
    return torch.stack(frames, 1)


def filter_both_ways(
    target_BTPC: Tensor, weight_BTP: Tensor, a_BTPC: Tensor, stiffness_BTP: Tensor, dt_s_B: Tensor
) -> Tensor:
    """Forward and in reverse time, blended: each direction is trusted where it has seen much of the clip."""
    target, weight, a, stiffness = (torch.cat([t, t.flip(1)]) for t in (target_BTPC, weight_BTP, a_BTPC, stiffness_BTP))
    filtered = filter_forward(target, weight, a, stiffness, torch.cat([dt_s_B, dt_s_B]))
    forward, reverse = filtered.chunk(2)
    num_frames = target_BTPC.shape[1]
    place = torch.linspace(-3.0, 3.0, num_frames, dtype=forward.dtype, device=forward.device)
    return torch.lerp(reverse.flip(1), forward, torch.sigmoid(place)[None, :, None, None])


def per_clip(values_B: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...), to go with `like`."""
    return values_B.reshape(-1, *[1] * (like.ndim - 1))
