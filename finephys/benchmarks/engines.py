"""The rod tree in MuJoCo and in Pinocchio: the same rods, as rigid bodies on joints with 32 degrees of freedom.

Path:    beside it: what our dynamics is tested against and timed beside
Units:   metre, second, kilogram

A rod turns about two hinges, x then z, at its upper end, and lies along its own y. About its own axis it has no
inertia; MuJoCo refuses that, so it gets AXIAL, which is far below the tolerances of the tests. Both engines come with
the `dev` extra.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import pinocchio as pin
from numpy.typing import NDArray

from finephys.physics import body as body_module
from finephys.physics.body import Body
from finephys.skeleton import BONES, JOINT_NAMES, NUM_JOINTS

FLOATS = NDArray[np.float64]

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

    def set(self, q: FLOATS, qd: FLOATS) -> None:
        self.data.qpos[:], self.data.qvel[:] = q, qd
        mujoco.mj_forward(self.model, self.data)

    def points(self) -> FLOATS:
        return np.stack([self.data.site(str(joint)).xpos for joint in range(1, NUM_JOINTS)])

    def _jacobian(self, function: Callable[..., Any]) -> FLOATS:
        rows = []
        for joint in range(1, NUM_JOINTS):
            site, jacobian = self.data.site(str(joint)), np.zeros((3, self.num_dof))
            function(self.model, self.data, jacobian, None, site.xpos, self.model.site_bodyid[site.id])
            rows.append(jacobian)
        return np.stack(rows)

    def jacobian(self) -> FLOATS:
        return self._jacobian(mujoco.mj_jac)

    def mass(self) -> FLOATS:
        full = np.zeros((self.num_dof, self.num_dof))
        mujoco.mj_fullM(self.model, self.data, full)
        return full

    def accelerations(self, f: FLOATS) -> FLOATS:
        """The points' accelerations (16, 3) under point forces f (16, 3)."""
        self.data.qfrc_applied[:] = np.einsum("pcd,pc->d", self.jacobian(), f)
        mujoco.mj_forward(self.model, self.data)
        accelerations: FLOATS = self.jacobian() @ self.data.qacc + self._jacobian(mujoco.mj_jacDot) @ self.data.qvel
        return accelerations


class Pinocchio:
    """pin.Model of the same tree, of the same coordinates in Pinocchio's own order of joints."""

    def __init__(self, body: Body) -> None:
        self.rods, pelvis = rods_of(body), pelvis_of(body)
        self.model = pin.Model()
        self.model.gravity = pin.Motion.Zero()
        free = self.model.addJoint(0, pin.JointModelFreeFlyer(), pin.SE3.Identity(), "0")
        inertia = pin.Inertia(pelvis.mass, np.array([0, pelvis.height, 0]), np.diag(pelvis.inertia))
        self.model.appendBodyToJoint(free, inertia, pin.SE3.Identity())
        self.frames: dict[int, int] = {}
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

    def set(self, q: FLOATS, qd: FLOATS) -> None:
        # MuJoCo's q: quaternion wxyz; joint order is depth first in both. Velocities of the base differ in frame only.
        self.q = np.concatenate([q[:3], q[4:7], q[3:4], q[7:]])
        self.qd = qd.copy()
        self.qd[:3] = pin.Quaternion(self.q[3:7]).matrix().T @ qd[:3]
        pin.forwardKinematics(self.model, self.data, self.q, self.qd)
        pin.updateFramePlacements(self.model, self.data)
        pin.computeJointJacobians(self.model, self.data, self.q)

    def points(self) -> FLOATS:
        return np.stack([self.data.oMf[self.frames[joint]].translation for joint in range(1, NUM_JOINTS)])

    def jacobian(self) -> FLOATS:
        aligned = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        return np.stack(
            [pin.getFrameJacobian(self.model, self.data, self.frames[j], aligned)[:3] for j in range(1, NUM_JOINTS)]
        )

    def mass(self) -> FLOATS:
        upper = np.triu(pin.crba(self.model, self.data, self.q))
        full: FLOATS = upper + upper.T - np.diag(upper.diagonal())
        return full

    def generalised_force(self, qdd: FLOATS) -> FLOATS:
        force: FLOATS = pin.rnea(self.model, self.data, self.q, self.qd, qdd)
        return force

    def accelerations(self, f: FLOATS) -> FLOATS:
        qdd = pin.aba(self.model, self.data, self.q, self.qd, np.einsum("pcd,pc->d", self.jacobian(), f))
        pin.forwardKinematics(self.model, self.data, self.q, self.qd, qdd)
        aligned = pin.ReferenceFrame.LOCAL_WORLD_ALIGNED
        accelerations = [
            pin.getFrameClassicalAcceleration(self.model, self.data, self.frames[joint], aligned).linear
            for joint in range(1, NUM_JOINTS)
        ]
        return np.stack(accelerations)

    @property
    def velocity(self) -> FLOATS:
        return self.qd
