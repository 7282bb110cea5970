"""Windows of 2D joints, and solved examples of them, as the lifter reads them.

Path:    Pose2D -> (examples.py, inside of lifting.py) -> Pose3D (S_dd)
Letters: B clips, N windows, F = 16 frames of a window, J = 17 joints, A = J + 1 points (joints and the reference),
         K prompts, P examples
Units:   metre; `ray` is (X/Z, Y/Z)
Frames:  camera, x right, y down, z forward

A window is normalised by a path (the torso's centre in each frame, smoothed, "the reference") and one scale. The
reference is carried as the last of the A points: its input is where it is, its target also how deep.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from finephys.skeleton import BONES, JOINT_NAMES, MIRROR, NUM_JOINTS

# The examples are at this rate; a faster clip is read as several interleaved sequences of about this rate.
WINDOW_FPS = 30.0

# About the root-mean-square distance of the joints from the torso's centre in the image plane, in metres, of a person
# standing. It only centres what the network predicts.
NOMINAL_EXTENT_M = 0.42
# The lengths of the skeleton's 16 bones together: the mean over training's performers.
NOMINAL_BONES_M = 3.69
# No body is smaller than this share of it.
_SMALLEST_SIZE = 0.1

# The reference follows the joints that the detector loses least and that move least against each other.
_TORSO = ("root", "right_hip", "left_hip", "spine", "thorax", "left_shoulder", "right_shoulder")
_REFERENCE_WEIGHT = tuple(1.0 if name in _TORSO else 0.05 for name in JOINT_NAMES)
# Standard deviation, in frames, of the kernel that smooths the reference, and the weight it gives to far frames so
# that a gap of any length is bridged.
_REFERENCE_SMOOTHING = 1.0
_REFERENCE_FLOOR = 1e-4
# Apparent extents are read relative to this (a standing body that fills two thirds of a 37 degree view).
_NOMINAL_SCALE = 0.1


@dataclass(frozen=True)
class Windows:
    """2D windows in the network's terms.

    points_NFA2: joints relative to the reference over the scale, then the reference relative to its mean over the
    scale.  sure_NFA: confidence, 0 where missing.  reference_NF2: rays.  scale_N: extent in rays.
    """

    points_NFA2: Tensor
    sure_NFA: Tensor
    reference_NF2: Tensor
    scale_N: Tensor

    def chosen(self, index: Tensor) -> "Windows":
        """Those that `index` (U,) names."""
        return Windows(self.points_NFA2[index], self.sure_NFA[index], self.reference_NF2[index], self.scale_N[index])

    def followed_by(self, other: "Windows") -> "Windows":
        """These and then the other's."""
        return Windows(
            torch.cat([self.points_NFA2, other.points_NFA2]),
            torch.cat([self.sure_NFA, other.sure_NFA]),
            torch.cat([self.reference_NF2, other.reference_NF2]),
            torch.cat([self.scale_N, other.scale_N]),
        )

    def scene(self) -> Tensor:
        """(N, 4): where in the view, how large, how much was seen."""
        mean_N2 = self.reference_NF2.mean(1)
        log_scale_N1 = (self.scale_N / _NOMINAL_SCALE).log()[:, None]
        return torch.cat([mean_N2 / _NOMINAL_SCALE, log_scale_N1, self.sure_NFA.mean((1, 2))[:, None]], -1)


@dataclass(frozen=True)
class Examples:
    """Windows with their solution: target_PFA3 is joints about the reference over NOMINAL_EXTENT_M, then the
    reference's (x, y) as seen and the logarithm of its depth's correction; gravity_P3 unit."""

    windows: Windows
    target_PFA3: Tensor
    gravity_P3: Tensor
    size_P: Tensor

    def followed_by(self, other: "Examples") -> "Examples":
        """These and then the other's."""
        return Examples(
            self.windows.followed_by(other.windows),
            torch.cat([self.target_PFA3, other.target_PFA3]),
            torch.cat([self.gravity_P3, other.gravity_P3]),
            torch.cat([self.size_P, other.size_P]),
        )

    def mirrored(self) -> "Examples":
        """Their mirror images."""
        flip_3 = self.gravity_P3.new_tensor([-1.0, 1.0, 1.0])
        mirror, windows = [*MIRROR, NUM_JOINTS], self.windows
        return Examples(
            Windows(
                windows.points_NFA2[:, :, mirror] * flip_3[:2],
                windows.sure_NFA[:, :, mirror],
                windows.reference_NF2 * flip_3[:2],
                windows.scale_N,
            ),
            self.target_PFA3[:, :, mirror] * flip_3,
            self.gravity_P3 * flip_3,
            self.size_P,
        )


def nearest_examples(query: Windows, examples: Examples, count: int, is_allowed_NP: Tensor | None = None) -> Tensor:
    """(N, count) long: the examples whose normalised 2D is nearest to each window's, mean over what the query saw.

    is_allowed_NP bool: which examples a window may take; all without it.
    """
    weight_NX = query.sure_NFA[:, :, :NUM_JOINTS, None].expand(-1, -1, -1, 2).flatten(1)
    query_NX = query.points_NFA2[:, :, :NUM_JOINTS].flatten(1)
    example_PX = examples.windows.points_NFA2[:, :, :NUM_JOINTS].flatten(1)
    # sum w (q - e)^2 without its first term, which is the same for all examples.
    distance_NP = weight_NX @ example_PX.square().T - 2 * (weight_NX * query_NX) @ example_PX.T
    if is_allowed_NP is not None:
        distance_NP = distance_NP.masked_fill(~is_allowed_NP, torch.inf)
    return distance_NP.topk(count, dim=1, largest=False).indices


def body_size(joints_m_PFJ3: Tensor) -> Tensor:
    """(...,) from joints (..., F, 17, 3) metres: all bones' lengths, mean over frames, over NOMINAL_BONES_M."""
    parents, children = zip(*BONES)
    lengths_m = (joints_m_PFJ3[..., list(children), :] - joints_m_PFJ3[..., list(parents), :]).norm(dim=-1)
    size: Tensor = lengths_m.sum(-1).mean(-1) / NOMINAL_BONES_M
    # What a lifter that has learned nothing yet makes of a body has no size at all.
    return size.clamp_min(_SMALLEST_SIZE)


def solved(joints_PFJ3: Tensor, gravity_P3: Tensor, size_P: Tensor, rays_PFJ2: Tensor | None = None) -> Examples:
    """Solved windows in the network's terms, of bodies size_P times as large as usual.

    Their 2D halves are exact projections.
    """
    if rays_PFJ2 is None:
        rays_PFJ2 = joints_PFJ3[..., :2] / joints_PFJ3[..., 2:]
    windows = normalise(rays_PFJ2, torch.ones_like(rays_PFJ2[..., 0]))
    # The reference's depth is the torso's mean depth.
    weight_J = joints_PFJ3.new_tensor(_REFERENCE_WEIGHT)
    depth_PF = (joints_PFJ3[..., 2] * weight_J).sum(-1) / weight_J.sum()
    reference_PF3 = torch.cat([windows.reference_NF2, torch.ones_like(depth_PF)[..., None]], -1) * depth_PF[..., None]
    extent_P1 = size_P[:, None] * NOMINAL_EXTENT_M
    correction_PF1 = (depth_PF * windows.scale_N[:, None] / extent_P1).log()[..., None]
    about_PFJ3 = (joints_PFJ3 - reference_PF3[:, :, None]) / extent_P1[..., None, None]
    path_PF13 = torch.cat([windows.points_NFA2[:, :, -1], correction_PF1], -1)[:, :, None]
    return Examples(windows, torch.cat([about_PFJ3, path_PF13], 2), gravity_P3, size_P)


def window_table(num_frames: int, fps: list[float], window_frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Overlapping windows that cover clips of num_frames at about WINDOW_FPS, a quarter of a window apart.

    -> clip_N and frame_NF long, weight_NF float32: which clip, which of its frames, with what share in the blend
    (a triangle; 0 where a short clip does not fill its window).
    """
    ramp_F = torch.arange(window_frames, dtype=torch.float32)
    triangle_F = torch.minimum(ramp_F + 1, window_frames - ramp_F)
    of_rate: dict[int, Tensor] = {}
    for step in {max(1, round(rate / WINDOW_FPS)) for rate in fps}:
        parts = []
        for phase in range(min(step, num_frames)):
            last = (num_frames - phase - 1) // step + 1 - window_frames
            starts = torch.tensor(sorted({*range(0, max(last, 0), window_frames // 4), max(last, 0)}))
            parts.append(phase + step * (starts[:, None] + torch.arange(window_frames)))
        of_rate[step] = torch.cat(parts)
    frames = [of_rate[max(1, round(rate / WINDOW_FPS))] for rate in fps]
    clip_N = torch.arange(len(fps)).repeat_interleave(torch.tensor([len(part) for part in frames]))
    frame_NF = torch.cat(frames)
    weight_NF = torch.where(frame_NF < num_frames, triangle_F, 0.0)
    return clip_N, frame_NF.clamp_max(num_frames - 1), weight_NF


def normalise(rays_NFJ2: Tensor, sure_NFJ: Tensor) -> Windows:
    """Windows about their reference and at unit extent, from rays and confidence (0: missing)."""
    weight_NFJ = sure_NFJ.square() * sure_NFJ.new_tensor(_REFERENCE_WEIGHT)
    time_F = torch.arange(rays_NFJ2.shape[1], dtype=rays_NFJ2.dtype, device=rays_NFJ2.device)
    kernel_FF = (-0.5 * ((time_F[:, None] - time_F) / _REFERENCE_SMOOTHING).square()).exp() + _REFERENCE_FLOOR
    weighted_NF2 = kernel_FF @ (weight_NFJ[..., None] * rays_NFJ2).sum(2)
    weight_NF1 = kernel_FF @ weight_NFJ.sum(2)[..., None]
    reference_NF2 = weighted_NF2 / weight_NF1.clamp_min(1e-8)

    offset_NFJ2 = rays_NFJ2 - reference_NF2[:, :, None]
    distance_NFJ = offset_NFJ2.norm(dim=-1)
    seen_NFJ = sure_NFJ > 0
    # A wild joint must not shrink the rest.
    median_N = torch.where(seen_NFJ, distance_NFJ, torch.nan).flatten(1).nanmedian(1).values.nan_to_num()
    distance_NFJ = torch.minimum(distance_NFJ, 2.5 * median_N[:, None, None])
    mean_square_N = (sure_NFJ * distance_NFJ.square()).sum((1, 2)) / sure_NFJ.sum((1, 2)).clamp_min(1e-8)
    # A window in which nothing was seen, or one point only, has no extent.
    scale_N = torch.where(mean_square_N > 1e-8, mean_square_N, _NOMINAL_SCALE**2).sqrt()

    path_NF2 = reference_NF2 - reference_NF2.mean(1, keepdim=True)
    points_NFA2 = torch.cat([offset_NFJ2, path_NF2[:, :, None]], 2) / scale_N[:, None, None, None]
    sure_NFA = torch.cat([sure_NFJ, torch.ones_like(sure_NFJ[..., :1])], 2)
    # What was not seen has no place.
    points_NFA2 = torch.where(sure_NFA[..., None] > 0, points_NFA2, 0.0)
    return Windows(points_NFA2, sure_NFA, reference_NF2, scale_N)
