"""The rod tree in MuJoCo and in Pinocchio: the same rods, as rigid bodies on joints with 32 degrees of freedom.

A rod turns about two hinges, x then z, at its upper end, and lies along its own y. About its own axis it has no
inertia; MuJoCo refuses that, so it gets AXIAL, which is far below the tolerances of the tests.
"""

from dataclasses import dataclass

import mujoco
import numpy as np
import pinocchio as pin
import pytest
import torch

from finephys.physics import body as body_module
from finephys.physics.body import STANDARD_GRAVITY, Body, center_of_mass, gravity_force, joints_of
from finephys.physics.dynamics import forward_dynamics, internal_force, verlet_step
from finephys.pose.camera import project
from finephys.skeleton import BONES, JOINT_NAMES, NUM_JOINTS

AXIAL = 1e-13
TRUNK_MASS_SUM = 0.9999  # the published percentages
HINGED_BONES = [(parent, child) for parent, child in BONES if parent != 0]


@dataclass
class Rod:
    """A bone's inertia: mass in kg, centre from its upper end and radius of gyration in metres."""

    mass: float
    center: float
    radius: float
    length: float


def rods_of(body: Body) -> dict[int, Rod]:
    """The rods by their lower joint; several on one bone, and the points at its end, are added up."""
    lengths = dict(zip(body_module.CONSTRAINTS, body.lengths_m.tolist()))
    rods = {}
    for parent, child in HINGED_BONES:
        parts = [
            (m, c, k) for a, b, m, c, k in body_module._rods() if (a, b) == (JOINT_NAMES[parent], JOINT_NAMES[child])
        ]
        if "ankle" in JOINT_NAMES[child]:
            parts.append((body_module.FOOT_MASS, 1.0, 0.0))
        if "wrist" in JOINT_NAMES[child]:
            parts.append((body_module.HAND_MASS, 1.0, 0.0))
        length = lengths[(parent, child)]
        mass = sum(m for m, _, _ in parts)
        if mass == 0:
            rods[child] = Rod(1e-12, length / 2, length / 4, length)
            continue
        center = sum(m * c for m, c, _ in parts) / mass
        second = sum(m * (c**2 + k**2) for m, c, k in parts) / mass
        radius = (second - center**2) ** 0.5
        rods[child] = Rod(body.mass_kg * mass / TRUNK_MASS_SUM, center * length, radius * length, length)
    return rods


@dataclass
class Pelvis:
    mass: float
    height: float
    inertia: tuple[float, float, float]
    half_hips: float
    spine: float


def pelvis_of(body: Body) -> Pelvis:
    """The pelvis triangle as a rigid body: origin mid-hip, x to the left hip, y to the spine."""
    right, spine = body_module.POINT_NAMES.index("right_hip"), body_module.POINT_NAMES.index("spine")
    half_hips = body.lengths_m[0].item() / 2
    height = (body.lengths_m[1].item() ** 2 - half_hips**2) ** 0.5
    mean, (vertical, lateral) = body_module._pelvis()
    mass = body.mass_kg * body_module.LOWER_TRUNK_MASS / TRUNK_MASS_SUM
    along_y = (vertical[spine].item() * height) ** 2
    along_x = (lateral[right].item() * 2 * half_hips) ** 2
    inertia = (mass * along_y, mass * along_x, mass * (along_x + along_y))
    return Pelvis(mass, mean[spine].item() * height, inertia, half_hips, height)


class MuJoCo:
    """mujoco.MjModel of the tree; q is (position 3, quaternion wxyz, 26 angles)."""

    def __init__(self, body: Body) -> None:
        self.rods, pelvis = rods_of(body), pelvis_of(body)
        offsets = {1: (-pelvis.half_hips, 0.0), 4: (pelvis.half_hips, 0.0), 7: (0.0, pelvis.spine)}
        inertia = " ".join(repr(value) for value in (*pelvis.inertia[:2], pelvis.inertia[2] - AXIAL))
        xml = f"""<mujoco><compiler angle="radian"/><option gravity="0 0 0" timestep="5e-4" integrator="RK4">
            <flag contact="disable" constraint="disable"/></option><worldbody><body name="0"><freejoint/>
            <inertial pos="0 {pelvis.height!r} 0" mass="{pelvis.mass!r}" diaginertia="{inertia}"/>"""
        for joint, (x, y) in offsets.items():
            xml += f'<site name="{joint}" pos="{x!r} {y!r} 0"/>'
            xml += self._children(joint, x, y)
        self.model = mujoco.MjModel.from_xml_string(xml + "</body></worldbody></mujoco>")
        self.data = mujoco.MjData(self.model)
        self.num_dof = self.model.nv

    def _children(self, joint: int, x: float, y: float) -> str:
        xml = ""
        for child in (c for p, c in HINGED_BONES if p == joint):
            rod = self.rods[child]
            transverse = rod.mass * rod.radius**2 + AXIAL
            xml += f"""<body name="{child}" pos="{x!r} {y!r} 0"><joint axis="1 0 0"/><joint axis="0 0 1"/>
                <inertial pos="0 {rod.center!r} 0" mass="{rod.mass!r}" diaginertia="{transverse} {AXIAL} {transverse}"/>
                <site name="{child}" pos="0 {rod.length!r} 0"/>{self._children(child, 0.0, rod.length)}</body>"""
        return xml

    def set(self, q: np.ndarray, qd: np.ndarray) -> None:
        self.data.qpos[:], self.data.qvel[:] = q, qd
        mujoco.mj_forward(self.model, self.data)

    def points(self) -> np.ndarray:
        return np.stack([self.data.site(str(joint)).xpos for joint in range(1, NUM_JOINTS)])

    def _jacobian(self, function) -> np.ndarray:
        rows = []
        for joint in range(1, NUM_JOINTS):
            site, jacobian = self.data.site(str(joint)), np.zeros((3, self.num_dof))
            function(self.model, self.data, jacobian, None, site.xpos, self.model.site_bodyid[site.id])
            rows.append(jacobian)
        return np.stack(rows)

    def jacobian(self) -> np.ndarray:
        return self._jacobian(mujoco.mj_jac)

    def mass(self) -> np.ndarray:
        full = np.zeros((self.num_dof, self.num_dof))
        mujoco.mj_fullM(self.model, self.data, full)
        return full

    def accelerations(self, f: np.ndarray) -> np.ndarray:
        """The points' accelerations (16, 3) under point forces f (16, 3)."""
        self.data.qfrc_applied[:] = np.einsum("pcd,pc->d", self.jacobian(), f)
        mujoco.mj_forward(self.model, self.data)
        return self.jacobian() @ self.data.qacc + self._jacobian(mujoco.mj_jacDot) @ self.data.qvel


class Pinocchio:
    """pin.Model of the same tree, of the same coordinates in Pinocchio's own order of joints."""

    def __init__(self, body: Body) -> None:
        self.rods, pelvis = rods_of(body), pelvis_of(body)
        self.model = pin.Model()
        self.model.gravity = pin.Motion.Zero()
        free = self.model.addJoint(0, pin.JointModelFreeFlyer(), pin.SE3.Identity(), "0")
        inertia = pin.Inertia(pelvis.mass, np.array([0, pelvis.height, 0]), np.diag(pelvis.inertia))
        self.model.appendBodyToJoint(free, inertia, pin.SE3.Identity())
        self.frames = {}
        for joint, (x, y) in {1: (-pelvis.half_hips, 0.0), 4: (pelvis.half_hips, 0.0), 7: (0.0, pelvis.spine)}.items():
            self._add(joint, free, pin.SE3(np.eye(3), np.array([x, y, 0.0])))
        self.data = self.model.createData()
        self.num_dof = self.model.nv

    def _add(self, joint: int, parent: int, place: pin.SE3) -> None:
        self.frames[joint] = self.model.addFrame(pin.Frame(f"point{joint}", parent, place, pin.FrameType.OP_FRAME))
        for child in (c for p, c in HINGED_BONES if p == joint):
            rod = self.rods[child]
            about_x = self.model.addJoint(parent, pin.JointModelRX(), place, f"{child}x")
            about_z = self.model.addJoint(about_x, pin.JointModelRZ(), pin.SE3.Identity(), f"{child}z")
            transverse = rod.mass * rod.radius**2
            inertia = pin.Inertia(rod.mass, np.array([0, rod.center, 0]), np.diag([transverse, 0, transverse]))
            self.model.appendBodyToJoint(about_z, inertia, pin.SE3.Identity())
            self._add(child, about_z, pin.SE3(np.eye(3), np.array([0, rod.length, 0])))

    def set(self, q: np.ndarray, qd: np.ndarray) -> None:
        # MuJoCo's q: quaternion wxyz; joint order is depth first in both. Velocities of the base differ in frame only.
        self.q = np.concatenate([q[:3], q[4:7], q[3:4], q[7:]])
        self.qd = qd.copy()
        self.qd[:3] = pin.Quaternion(self.q[3:7]).matrix().T @ qd[:3]
        pin.forwardKinematics(self.model, self.data, self.q, self.qd)
        pin.updateFramePlacements(self.model, self.data)
        pin.computeJointJacobians(self.model, self.data, self.q)

    def points(self) -> np.ndarray:
        return np.stack([self.data.oMf[self.frames[joint]].translation for joint in range(1, NUM_JOINTS)])

    def jacobian(self) -> np.ndarray:
        aligned = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        return np.stack(
            [pin.getFrameJacobian(self.model, self.data, self.frames[j], aligned)[:3] for j in range(1, NUM_JOINTS)]
        )

    def mass(self) -> np.ndarray:
        upper = np.triu(pin.crba(self.model, self.data, self.q))
        return upper + upper.T - np.diag(upper.diagonal())

    def generalised_force(self, qdd: np.ndarray) -> np.ndarray:
        return pin.rnea(self.model, self.data, self.q, self.qd, qdd)

    def accelerations(self, f: np.ndarray) -> np.ndarray:
        qdd = pin.aba(self.model, self.data, self.q, self.qd, np.einsum("pcd,pc->d", self.jacobian(), f))
        pin.forwardKinematics(self.model, self.data, self.q, self.qd, qdd)
        aligned = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        accelerations = [
            pin.getFrameClassicalAcceleration(self.model, self.data, self.frames[joint], aligned).linear
            for joint in range(1, NUM_JOINTS)
        ]
        return np.stack(accelerations)

    @property
    def velocity(self) -> np.ndarray:
        return self.qd


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
    truth = joints_of(fly(body, x, v, 15 * noise(num, 16, 3), num_frames)).float()
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
