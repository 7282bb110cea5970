"""States of the rod tree in the engines, and clips of bodies in flight."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from finephys.benchmarks.engines import MuJoCo, Pinocchio
from finephys.physics.body import STANDARD_GRAVITY, Body, center_of_mass, gravity_force, joints_of
from finephys.physics.dynamics import forward_dynamics, internal_force, verlet_step
from finephys.pose.camera import project
from finephys.skeleton import NUM_JOINTS


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Many tiny operations: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def body() -> Body:
    return Body.from_anthropometry(mass_kg=45.0, height_m=1.5)


@pytest.fixture(scope="session")
def mujoco_tree(body: Body) -> MuJoCo:
    return MuJoCo(body)


@pytest.fixture(scope="session", params=[MuJoCo, Pinocchio])
def engine(request, body: Body):
    return request.param(body)


@dataclass
class Motion:
    """Random states of the tree: q (N, 33), qd (N, 32) for the engines, x, v (N, 16, 3) float64 for us."""

    q: np.ndarray
    qd: np.ndarray
    x: torch.Tensor
    v: torch.Tensor


@pytest.fixture(scope="session")
def states(mujoco_tree: MuJoCo) -> Motion:
    rng = np.random.default_rng(5)
    num = 24
    q = np.concatenate(
        [rng.normal(size=(num, 3)), rng.normal(size=(num, 4)), rng.uniform(-1.2, 1.2, (num, mujoco_tree.num_dof - 6))],
        1,
    )
    q[:, 3:7] /= np.linalg.norm(q[:, 3:7], axis=1, keepdims=True)
    qd = rng.normal(size=(num, mujoco_tree.num_dof)) * 3
    x, v = [], []
    for index in range(num):
        mujoco_tree.set(q[index], qd[index])
        x.append(mujoco_tree.points())
        v.append(mujoco_tree.jacobian() @ qd[index])
    return Motion(q, qd, torch.tensor(np.stack(x)), torch.tensor(np.stack(v)))


@dataclass
class FlightClip:
    """Bodies in free flight before a static camera (B = 4, T = 32, 30 fps), as detected and as lifted."""

    truth: torch.Tensor
    joints_dd: torch.Tensor
    joints_px: torch.Tensor
    confidence: torch.Tensor
    intrinsics: torch.Tensor
    gravity: torch.Tensor
    dt_s: torch.Tensor

    def inputs(self, *, is_static: bool = True) -> tuple[torch.Tensor, ...]:
        static = torch.full((len(self.dt_s),), is_static)
        return (
            self.joints_dd,
            self.joints_px,
            self.confidence,
            self.intrinsics,
            self.gravity,
            self.dt_s,
            static,
        )


def fly(body: Body, x: torch.Tensor, v: torch.Tensor, muscles: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Frames (B, T, 16, 3) at 30 fps of a flight under gravity along y and internal forces, by fine Verlet steps."""
    num_steps = 8
    dt_s = 1 / 30 / num_steps
    weight = gravity_force(body, torch.tensor([0.0, STANDARD_GRAVITY, 0.0], dtype=x.dtype))
    a, _ = forward_dynamics(body, x, v, weight + internal_force(body, x, muscles))
    previous, frames = verlet_step(body, x, x + dt_s * v, body.mass @ a / 2, dt_s), [x]
    for step in range((num_frames - 1) * num_steps):
        force = weight + internal_force(body, x, muscles * np.sin(8 * step * dt_s))
        previous, x = x, verlet_step(body, x, previous, force, dt_s)
        if (step + 1) % num_steps == 0:
            frames.append(x)
    return torch.stack(frames, 1)


@pytest.fixture(scope="session")
def flight_clip(body: Body, states: Motion) -> FlightClip:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    num, num_frames = 4, 32
    x = states.x[:num] - center_of_mass(body, states.x[:num])[:, None] + torch.tensor([0.0, 0.0, 4.0])
    spin = 3 * noise(num, 1, 3)
    leap = 0.3 * noise(num, 1, 3) - torch.tensor([0.0, STANDARD_GRAVITY * num_frames / 30 / 2, 0.0])
    r = x - center_of_mass(body, x)[:, None]
    v = torch.linalg.cross(spin.expand_as(r), r) + leap
    # So that limbs swing about as those of held-out aerials: smoothed over 0.065 s, turning frame and all, points are
    # off by 43 mm here and by 37 mm there.
    truth = joints_of(fly(body, x, v, 10 * noise(num, 16, 3), num_frames)).float()
    intrinsics = torch.tensor([[192.0, 0, 64], [0, 192, 64], [0, 0, 1]]).expand(num, 3, 3)
    joints_px = project(truth, intrinsics[:, None]) + 1.5 * noise(num, num_frames, NUM_JOINTS, 2).float()
    slow = 0.04 * noise(num, 1, NUM_JOINTS, 3) * torch.tensor([0.5, 0.5, 1.5])
    joints_dd = truth + (0.03 * noise(num, num_frames, NUM_JOINTS, 3) + slow).float()
    return FlightClip(
        truth=truth,
        joints_dd=joints_dd,
        joints_px=joints_px,
        confidence=torch.ones(num, num_frames, NUM_JOINTS),
        intrinsics=intrinsics,
        gravity=torch.tensor([[0.0, 1.0, 0.0]]).expand(num, 3),
        dt_s=torch.full((num,), 1 / 30),
    )
