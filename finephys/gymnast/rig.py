"""One body as choreography needs it: where joints and soles are at given angles, its masses, and legs that reach.

Path:    (before the path) angles -> joints and part rotations in the pelvis's frame
Letters: N poses, J = 17 joints, P = 13 parts
Units:   metre, kilogram, radian;  Frames: the pelvis's (x forward, y up, z right, origin the mid-hip) or the world

Masses are those of finephys/physics/body.py (de Leva 1996, a tree of rods): the same centre of mass and angular
momentum that Phys-Net knows, on this body's own bone lengths.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finephys.gymnast.body import RestBody, part_tree, rest_body, shared_mesh
from finephys.gymnast.body_model import Shape
from finephys.gymnast.mocap import NUM_PARTS, PART_NAMES
from finephys.gymnast.shapes import local_rotations
from finephys.physics.body import Body, points_of

FLOATS = NDArray[np.float64]

SIDES = ("right", "left")
# Body mass index of elite gymnasts; only forces would depend on it.
_BODY_MASS_INDEX = 20.0
# The share of the foot, from the heel, on which she turns and takes off: the body has no joint at the ball of the foot,
# so that a raised heel stands on the toes.
_BALL_SHARE = 0.88
# A leg is never stretched further than this share of its length: the knee would snap.
_MAX_REACH = 0.9995


@dataclass(frozen=True, kw_only=True, eq=False)
class Rig:
    """part_offsets_m (P,3): from the parent's turning point to the part's, in the parent's frame;  joint_parts (J,) and
    joint_offsets_m (J,3): each joint in the frame of the part it is fixed to;  soles_m: per side the lowest skin (K,3)
    of the foot about the ankle;  balls_m: per side the ball of the foot (3,), likewise;  mass (16,16): between points;
    height_m: standing."""

    part_offsets_m: FLOATS
    parents: tuple[int, ...]
    joint_parts: NDArray[np.int64]
    joint_offsets_m: FLOATS
    soles_m: tuple[FLOATS, FLOATS]
    balls_m: tuple[FLOATS, FLOATS]
    mass: FLOATS
    height_m: float

    @property
    def leg_m(self) -> tuple[float, float]:
        """Lengths of thigh and shin."""
        thigh, shin = (self.part_offsets_m[PART_NAMES.index(f"right_{name}")] for name in ("shin", "foot"))
        return float(np.linalg.norm(thigh)), float(np.linalg.norm(shin))

    @property
    def centre_weights(self) -> FLOATS:
        """The weights (16,) with which the points (all joints but the root) make the centre of mass."""
        weights: FLOATS = self.mass.sum(0) / self.mass.sum()
        return weights


@functools.lru_cache(maxsize=256)
def rig_of(shape: Shape) -> Rig:
    """The rig of a body; remembered."""
    body = rest_body(shape)
    parents, joint_parts = part_tree()
    offsets_m = np.zeros((NUM_PARTS, 3))
    for part, parent in enumerate(parents):
        if parent >= 0:
            offsets_m[part] = body.alignment[parent] @ (body.anchors_m[part] - body.anchors_m[parent])
    joint_offsets_m = np.einsum("jab,jb->ja", body.alignment[joint_parts], body.joints_m - body.anchors_m[joint_parts])
    soles = tuple(_sole(body, f"{side}_foot") for side in SIDES)
    height_m = float(np.ptp(body.vertices_m[:, 1]))
    without_mass = Rig(
        part_offsets_m=offsets_m,
        parents=parents,
        joint_parts=joint_parts,
        joint_offsets_m=joint_offsets_m,
        soles_m=(soles[0], soles[1]),
        balls_m=(_ball(soles[0]), _ball(soles[1])),
        mass=np.eye(16),
        height_m=height_m,
    )
    _, joints_m = pose(without_mass, np.zeros((1, 24)))
    mass = Body.from_joints(torch.from_numpy(joints_m), _BODY_MASS_INDEX * height_m**2).mass.numpy()
    return Rig(**{**vars(without_mass), "mass": mass})


def pose(rig: Rig, angles: FLOATS) -> tuple[FLOATS, FLOATS]:
    """Part rotations (N,13,3,3) and joints (N,17,3) of angles (N,24), in the pelvis's frame."""
    rotations = chain(rig, local_rotations(angles))
    return rotations, joints_of_parts(rig, rotations, np.zeros((len(angles), 3)))


def chain(rig: Rig, local: FLOATS) -> FLOATS:
    """Part rotations relative to their parents -> relative to the frame of the pelvis's own; both (N,13,3,3)."""
    rotations = local.copy()
    for part, parent in enumerate(rig.parents):
        if parent >= 0:
            rotations[:, part] = rotations[:, parent] @ local[:, part]
    return rotations


def joints_of_parts(rig: Rig, rotations: FLOATS, root_m: FLOATS) -> FLOATS:
    """Joints (N,17,3) of part rotations (N,13,3,3) and mid-hips (N,3), in the frame that these are in."""
    joints_m: FLOATS = anchors_of(rig, rotations, root_m)[:, rig.joint_parts] + np.einsum(
        "njab,jb->nja", rotations[:, rig.joint_parts], rig.joint_offsets_m
    )
    return joints_m


def anchors_of(rig: Rig, rotations: FLOATS, root_m: FLOATS) -> FLOATS:
    """The points (N,13,3) that parts turn about."""
    anchors_m = np.empty((len(rotations), NUM_PARTS, 3))
    for part, parent in enumerate(rig.parents):
        if parent < 0:
            anchors_m[:, part] = root_m
        else:
            anchors_m[:, part] = anchors_m[:, parent] + rotations[:, parent] @ rig.part_offsets_m[part]
    return anchors_m


def centre_of_mass(rig: Rig, joints_m: FLOATS) -> FLOATS:
    """Centre of mass (N,3) of joints (N,17,3)."""
    centre: FLOATS = rig.centre_weights @ joints_m[:, 1:]
    return centre


def points(joints_m: FLOATS) -> FLOATS:
    """The sixteen points of the mass matrix."""
    return points_of(torch.from_numpy(joints_m)).numpy()  # type: ignore[no-any-return]


def sole_depth_m(rig: Rig, side: int, foot_rotations: FLOATS) -> FLOATS:
    """How far below the ankle (N,) the sole of a foot with these world rotations (N,3,3) reaches."""
    depth: FLOATS = -(foot_rotations[:, 1] @ rig.soles_m[side].T).min(-1)
    return depth


def bend_leg(
    rig: Rig, side: int, rotations: FLOATS, root_m: FLOATS, ankle_m: FLOATS, foot: FLOATS, hinge: FLOATS
) -> None:
    """Turn thigh, shin and foot, in place, so that the ankle is at ankle_m (N,3) and the foot has the rotation `foot`.

    rotations (N,13,3,3) and root_m (N,3) in the world; hinge (N,3): where the knee's axis should point as nearly as it
    can. Where the ankle is out of reach the leg is straight and points at it.
    """
    thigh, shin, foot_part = (PART_NAMES.index(f"{SIDES[side]}_{name}") for name in ("thigh", "shin", "foot"))
    upper_m, lower_m = rig.leg_m
    hip_m = root_m + rotations[:, 0] @ rig.part_offsets_m[thigh]
    reach = ankle_m - hip_m
    distance_m = np.linalg.norm(reach, axis=-1, keepdims=True)
    down = reach / distance_m
    length_m = np.clip(distance_m[:, 0], abs(upper_m - lower_m) + 0.05, (upper_m + lower_m) * _MAX_REACH)
    axis = hinge - (hinge * down).sum(-1, keepdims=True) * down
    axis /= np.linalg.norm(axis, axis=-1, keepdims=True)
    # Knee forward: the thigh leans ahead of the line from hip to ankle, the shin behind it.
    ahead = np.arccos(np.clip((upper_m**2 + length_m**2 - lower_m**2) / (2 * upper_m * length_m), -1, 1))
    behind = np.arccos(np.clip((lower_m**2 + length_m**2 - upper_m**2) / (2 * lower_m * length_m), -1, 1))
    rotations[:, thigh] = _limb(down, axis, ahead)
    rotations[:, shin] = _limb(down, axis, -behind)
    rotations[:, foot_part] = foot


def reachable_height_m(rig: Rig, side: int, pelvis: FLOATS, root_m: FLOATS, ankle_m: FLOATS) -> FLOATS:
    """The greatest height (N,) of the mid-hip, above the same spot, from which the leg reaches the ankle."""
    thigh = PART_NAMES.index(f"{SIDES[side]}_thigh")
    hip = pelvis @ rig.part_offsets_m[thigh]
    away_m = np.hypot(*(root_m + hip - ankle_m)[:, [0, 2]].T)
    length_m = _MAX_REACH * sum(rig.leg_m)
    height_m: FLOATS = ankle_m[:, 1] + np.sqrt(np.maximum(length_m**2 - away_m**2, 0.0)) - hip[:, 1]
    return height_m


def _limb(down: FLOATS, axis: FLOATS, angle: FLOATS) -> FLOATS:
    """Rotations (N,3,3) of a limb whose -y points along `down` turned by `angle` about `axis`, its z."""
    turned = down * np.cos(angle)[:, None] + np.cross(axis, down) * np.sin(angle)[:, None]
    return np.stack([np.cross(-turned, axis), -turned, axis], -1)


def _sole(body: RestBody, part_name: str) -> FLOATS:
    """The skin of the foot that can touch the floor, about the ankle: in any direction below the horizontal it has the
    foot's outermost vertices."""
    mesh, part = shared_mesh(), PART_NAMES.index(part_name)
    own = mesh.part_weights[:, part] > 0.97
    vertices_m = body.vertices_m[own] - body.anchors_m[part]
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    depths = np.linspace(0.05, np.pi / 2 + 0.6, 16)
    directions = np.array([[np.cos(a) * np.sin(d), -np.cos(d), np.sin(a) * np.sin(d)] for a in angles for d in depths])
    outermost: FLOATS = vertices_m[np.unique((vertices_m @ directions.T).argmax(0))]
    return outermost


def _ball(sole_m: FLOATS) -> FLOATS:
    """The ball of the foot: on the sole, towards the toes."""
    heel, toe = sole_m[:, 0].min(), sole_m[:, 0].max()
    low = sole_m[sole_m[:, 1] < sole_m[:, 1].min() + 0.02]
    return np.array([heel + _BALL_SHARE * (toe - heel), sole_m[:, 1].min(), low[:, 2].mean()])
