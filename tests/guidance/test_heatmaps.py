"""The maps: where they peak, what their values are, and that gradients reach joints and depth."""

import math

import pytest
import torch

from finephys.guidance.heatmaps import (
    DEPTH_SCALE_M,
    LIMB_SIGMA_CELLS,
    NUM_GUIDANCE_CHANNELS,
    body_mask,
    heatmaps,
    relative_depth,
)
from finephys.skeleton import BONES, NUM_BONES, NUM_JOINTS

IMAGE, MAP = (128, 96), (32, 24)


def random_pose(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    joints = torch.rand(2, 3, NUM_JOINTS, 2, generator=generator) * torch.tensor([96.0, 128.0])
    return joints, torch.randn(2, 3, NUM_JOINTS, generator=generator) * 0.3


def test_a_joint_at_a_cells_centre_peaks_there_with_one():
    joints, depth = random_pose()
    # Column 5, row 9 of cells that are 4x4 pixels.
    joints[0, 0, 3] = torch.tensor([4 * 5.5, 4 * 9.5])
    maps = heatmaps(joints, depth, IMAGE, MAP)
    assert maps.shape == (2, 3, NUM_GUIDANCE_CHANNELS, *MAP)
    assert maps.dtype == torch.float32
    assert divmod(int(maps[0, 0, 3].argmax()), MAP[1]) == (9, 5)
    assert maps[0, 0, 3, 9, 5] == 1.0


def test_joint_maps_have_their_centroid_on_the_joint():
    joints = torch.full((1, 1, NUM_JOINTS, 2), 50.3)
    joint_map = heatmaps(joints, torch.zeros(1, 1, NUM_JOINTS), IMAGE, MAP)[0, 0, 0]
    columns = torch.arange(MAP[1]) + 0.5
    centroid_px = 4 * (joint_map.sum(0) * columns).sum() / joint_map.sum()
    assert float(centroid_px) == pytest.approx(50.3, abs=0.05)


def test_a_limb_is_the_gaussian_of_the_distance_to_its_segment():
    joints, depth = random_pose(1)
    limb = 4
    parent, child = BONES[limb]
    limb_map = heatmaps(joints, depth, IMAGE, MAP)[1, 2, NUM_JOINTS + limb]
    start, end = (joints[1, 2, parent] / 4).tolist(), (joints[1, 2, child] / 4).tolist()
    # The distance by brute force over points of the segment.
    shares = torch.linspace(0, 1, 20001)
    points = torch.stack([start[axis] + shares * (end[axis] - start[axis]) for axis in (0, 1)], -1)
    for row, column in ((0, 0), (10, 7), (31, 23), (18, 12)):
        distance = (points - torch.tensor([column + 0.5, row + 0.5])).norm(dim=-1).min()
        wanted = math.exp(-(float(distance) ** 2) / (2 * LIMB_SIGMA_CELLS**2))
        assert float(limb_map[row, column]) == pytest.approx(wanted, abs=1e-4)


def test_depth_is_drawn_along_the_limb_with_its_sign():
    joints = torch.zeros(1, 1, NUM_JOINTS, 2)
    depth = torch.zeros(1, 1, NUM_JOINTS)
    limb = 2
    parent, child = BONES[limb]
    joints[..., parent, :] = torch.tensor([10.0, 66.0])
    joints[..., child, :] = torch.tensor([70.0, 66.0])
    depth[..., parent], depth[..., child] = -0.4, 0.4
    maps = heatmaps(joints, depth, IMAGE, MAP)[0, 0]
    row = 16
    near, far = maps[NUM_JOINTS + NUM_BONES + limb, row, 2], maps[NUM_JOINTS + NUM_BONES + limb, row, 17]
    assert near < 0 < far
    # A cell on the parent: the limb is 1 there, the depth its own.
    assert float(near) == pytest.approx(math.tanh(-0.4 / DEPTH_SCALE_M), abs=1e-4)


def test_gradients_are_those_of_differences():
    joints, depth = random_pose(2)
    joints, depth = joints[:1, :1].double(), depth[:1, :1].double()
    weights = torch.randn(NUM_GUIDANCE_CHANNELS, 8, 6)

    def total(joints_px: torch.Tensor, depth_m: torch.Tensor) -> torch.Tensor:
        return (heatmaps(joints_px.float(), depth_m.float(), IMAGE, (8, 6)) * weights).sum()

    joints.requires_grad_()
    depth.requires_grad_()
    total(joints, depth).backward()
    for values, step in ((joints, 0.02), (depth, 0.002)):
        flat = values.detach().flatten()
        index = 11
        plus, minus = flat.clone(), flat.clone()
        plus[index] += step
        minus[index] -= step
        shifted = [changed.reshape(values.shape) for changed in (plus, minus)]
        if values is joints:
            difference = total(shifted[0], depth) - total(shifted[1], depth)
        else:
            difference = total(joints, shifted[0]) - total(joints, shifted[1])
        assert float(values.grad.flatten()[index]) == pytest.approx(float(difference) / (2 * step), rel=2e-2, abs=1e-3)


def test_gradients_stay_finite_for_a_collapsed_skeleton():
    joints = torch.full((1, 1, NUM_JOINTS, 2), 40.0, requires_grad=True)
    depth = torch.zeros(1, 1, NUM_JOINTS, requires_grad=True)
    heatmaps(joints, depth, IMAGE, MAP).square().sum().backward()
    assert torch.isfinite(joints.grad).all()
    assert torch.isfinite(depth.grad).all()


def test_body_mask_covers_the_joints_and_little_else():
    joints = torch.tensor([[48.0, 64.0]]).repeat(NUM_JOINTS, 1)
    joints[3] = torch.tensor([48.0, 104.0])
    joints[2] = torch.tensor([48.0, 84.0])
    mask = body_mask(joints[None, None], IMAGE, MAP)
    assert mask.shape == (1, 1, 1, *MAP)
    assert mask[0, 0, 0, 20, 12] == 1
    assert mask[0, 0, 0, 2, 2] == 0
    assert 0.02 < float(mask.mean()) < 0.2


def test_relative_depth_is_zero_at_the_root():
    joints = torch.randn(2, 4, NUM_JOINTS, 3)
    depth = relative_depth(joints)
    assert (depth[..., 0] == 0).all()
    assert torch.equal(depth[..., 5], joints[..., 5, 2] - joints[..., 0, 2])


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"joints_px .*16, 2.*wanted .*17, 2"):
        heatmaps(torch.zeros(1, 1, 16, 2), torch.zeros(1, 1, 16), IMAGE, MAP)
    with pytest.raises(ValueError, match="depth"):
        heatmaps(torch.zeros(1, 1, 17, 2), torch.zeros(1, 2, 17), IMAGE, MAP)
