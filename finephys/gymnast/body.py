"""A performer's body: a rest mesh cut into 13 rigid parts, posed by a Motion; its joints with or without the skin.

Path:    (before the path) Motion + Performer -> joints in the world, mesh in the world
Letters: T frames, J = 17 H36M joints, P = 13 parts (finephys/gymnast/mocap.py), V vertices
Units:   metre;  Frames: world, y up, floor at y = 0

Every bone of the body model turns with one of the parts, so that linear blend skinning needs one transform a part. All
joints are points fixed to parts: bones and the pelvis triangle keep their lengths exactly, and posing them needs no
skin. The model's rest pose (arms raised) is first turned into mocap's (arms hanging); hands and toes are stiff.
"""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, label, maximum, maximum_filter1d
from scipy.spatial.transform import Rotation

from finephys.gymnast.body_model import Shape, load_body_model
from finephys.gymnast.mocap import HUMANOID_HIP_HEIGHT_M, NUM_PARTS, PART_NAMES, Motion
from finephys.skeleton import JOINT_NAMES

FLOATS = NDArray[np.float64]

# The bone whose head a part turns about, and the part that carries that head. Bones below inherit the part.
_PART_BONES: dict[str, tuple[str, str | None]] = {
    "pelvis": ("root", None),
    "chest": ("spine03", "pelvis"),
    "head": ("neck01", "chest"),
    **{
        f"{side}_{part}": (f"{bone}.{side[0].upper()}", parent.format(side=side))
        for side in ("right", "left")
        for part, bone, parent in (
            ("thigh", "upperleg01", "pelvis"),
            ("shin", "lowerleg01", "{side}_thigh"),
            ("foot", "foot", "{side}_shin"),
            ("upper_arm", "upperarm01", "chest"),
            ("forearm", "lowerarm01", "{side}_upper_arm"),
        )
    },
}
# Parts that hang down in mocap's rest pose, with the bone that their far end reaches.
_HANGING = {"thigh": "lowerleg01", "shin": "foot", "upper_arm": "lowerarm01", "forearm": "wrist"}

# Joint -> (bone heads whose mean it is, the part it is fixed to). The waist turns at spine03, so its head is rigid with
# the pelvis. "head" is the middle of the eyes and "neck" the base of the skull, as finephys.skeleton mixes COCO's.
_JOINT_BONES: dict[str, tuple[tuple[str, ...], str]] = {
    "root": (("upperleg01.R", "upperleg01.L"), "pelvis"),
    "spine": (("spine03",), "pelvis"),
    "thorax": (("neck01",), "chest"),
    "neck": (("head",), "head"),
    "head": (("eye.L", "eye.R"), "head"),
    **{
        f"{side}_{joint}": ((f"{bone}.{side[0].upper()}",), part if part in ("pelvis", "chest") else f"{side}_{part}")
        for side in ("right", "left")
        for joint, bone, part in (
            ("hip", "upperleg01", "pelvis"),
            ("knee", "lowerleg01", "thigh"),
            ("ankle", "foot", "shin"),
            ("shoulder", "upperarm01", "chest"),
            ("elbow", "lowerarm01", "upper_arm"),
            ("wrist", "wrist", "forearm"),
        )
    },
}

# Below this a sole counts as touching; a flight peaks above the second. Measured on the captures: errors of the
# recorded height reach 5 cm, the lowest flights (running) 8 cm.
CONTACT_HEIGHT_M = 0.03
FLIGHT_PEAK_M = 0.07

# Directions in which each bone's outermost vertices stand for its skin when the lowest point of the body is sought.
_NUM_SUPPORT_DIRECTIONS = 32
# Where skin folds, none of those is lowest; every so many vertices keep it above the floor to 5 mm there too.
_SUPPORT_STRIDE = 3


@dataclass(frozen=True, kw_only=True)
class Performer:
    """Who performs. name: keeps splits apart;  leotard, skin, hair, trim, cap: names of finephys.gymnast.motions'
    palette; without a trim the leotard has one colour, without a cap the hair shows."""

    name: str
    shape: Shape
    leotard: str
    skin: str
    hair: str
    trim: str | None = None
    cap: str | None = None


@dataclass(frozen=True, kw_only=True)
class RestBody:
    """A body in the body model's rest pose, arms raised sideways.

    vertices_m, normals (V,3): the skin.  anchors_m (P,3): the point each part turns about, same pose.
    joints_m (17,3): same pose.  alignment (P,3,3): from that pose to mocap's rest pose, per part.
    """

    vertices_m: FLOATS
    normals: FLOATS
    anchors_m: FLOATS
    joints_m: FLOATS
    alignment: FLOATS
    hip_height_m: float

    @property
    def size(self) -> float:
        """How many times as large as the captured person this body is, by the height of its hips."""
        return self.hip_height_m / HUMANOID_HIP_HEIGHT_M


@dataclass(frozen=True, kw_only=True)
class PosedMesh:
    """vertices_m (T,V,3) in the world, normals (T,V,3) unit, float32."""

    vertices_m: NDArray[np.float32]
    normals: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """What all bodies share. faces (F,3); part_weights (V,P) and bone_weights (V,bones) sum to one a vertex; bone (V,):
    the bone, an index into bone_names, that moves the vertex most; support (S,): vertices that stand for the skin."""

    faces: NDArray[np.int32]
    part_weights: FLOATS
    bone_weights: FLOATS
    bone: NDArray[np.int64]
    bone_names: tuple[str, ...]
    support: NDArray[np.int64]


def part_tree() -> tuple[tuple[int, ...], NDArray[np.int64]]:
    """Each part's parent (-1 for the pelvis), and the part (17,) that each joint is fixed to."""
    above = [_PART_BONES[name][1] for name in PART_NAMES]
    parents = tuple(-1 if name is None else PART_NAMES.index(name) for name in above)
    return parents, np.array([PART_NAMES.index(_JOINT_BONES[name][1]) for name in JOINT_NAMES])


def rest_body(shape: Shape) -> RestBody:
    """The body of this shape at rest; the last few hundred are remembered. Takes tens of milliseconds otherwise."""
    return _rest_body(shape)


def performer_joints(motion: Motion, performer: Performer) -> FLOATS:
    """The performer's H36M-17 joints (T,17,3) in the world, metres, on the floor; no skin is posed.

    `motion` must have been cut for a body of rest_body(performer.shape).size.
    """
    body = rest_body(performer.shape)
    rotations, anchors_m, _ = _pose_on_floor(motion, body)
    return _posed_joints(rotations, anchors_m, body)


def performer_contacts(motion: Motion, performer: Performer) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """in_flight (T,): nothing touches the floor;  feet_in_contact (T,2): right, left foot on the floor."""
    rotations, anchors_m, in_flight = _pose_on_floor(motion, rest_body(performer.shape))
    if motion.contacts is not None:
        return motion.contacts.in_flight, motion.contacts.feet
    heights_m = _support_heights_m(rotations, anchors_m, rest_body(performer.shape))
    mesh = shared_mesh()
    part = mesh.part_weights[mesh.support].argmax(-1)
    feet_m = [heights_m[:, part == PART_NAMES.index(name)].min(-1) for name in ("right_foot", "left_foot")]
    return in_flight, (np.stack(feet_m, -1) < CONTACT_HEIGHT_M) & ~in_flight[:, None]


def performer_mesh(motion: Motion, performer: Performer) -> tuple[FLOATS, PosedMesh]:
    """The same joints (T,17,3) as performer_joints, and the skinned mesh around them."""
    body, mesh = rest_body(performer.shape), shared_mesh()
    rotations, anchors_m, _ = _pose_on_floor(motion, body)
    num_frames, num_vertices = len(rotations), len(body.vertices_m)
    offsets_m = anchors_m - np.einsum("tpab,pb->tpa", rotations, body.anchors_m)
    vertices_m = np.empty((num_frames, num_vertices, 3), np.float32)
    normals = np.empty_like(vertices_m)
    for frame in range(num_frames):
        blended = (mesh.part_weights @ rotations[frame].reshape(NUM_PARTS, 9)).reshape(-1, 3, 3)
        vertices_m[frame] = np.einsum("vab,vb->va", blended, body.vertices_m) + mesh.part_weights @ offsets_m[frame]
        turned = np.einsum("vab,vb->va", blended, body.normals)
        normals[frame] = turned / np.linalg.norm(turned, axis=-1, keepdims=True)
    return _posed_joints(rotations, anchors_m, body), PosedMesh(vertices_m=vertices_m, normals=normals)


def _pose_on_floor(motion: Motion, body: RestBody) -> tuple[FLOATS, FLOATS, NDArray[np.bool_]]:
    """_pose_parts, raised or lowered so that the body stands, lies or rolls on the floor; and in_flight (T,).

    In flight the body keeps its course: its correction there is a straight line from take-off to landing, which leaves
    its acceleration alone.
    """
    rotations, anchors_m = _pose_parts(motion, body)
    if motion.contacts is not None:
        return rotations, anchors_m, motion.contacts.in_flight
    lowest_m = _support_heights_m(rotations, anchors_m, body).min(-1)
    in_flight = np.zeros(len(lowest_m), bool)
    if motion.leaves_floor:
        in_flight = _flights(lowest_m)
    frames = np.arange(len(lowest_m))
    if in_flight.all():
        return rotations, anchors_m, in_flight
    lift_m = np.interp(frames, frames[~in_flight], -lowest_m[~in_flight])
    # The lowest point jumps from heel to toe; the body must not, nor may it sink into the floor.
    smooth_m = gaussian_filter1d(maximum_filter1d(lift_m, 3, mode="nearest"), 1.0, mode="nearest")
    anchors_m[:, :, 1] += np.maximum(smooth_m, -lowest_m)[:, None]
    return rotations, anchors_m, in_flight


def _flights(lowest_m: FLOATS) -> NDArray[np.bool_]:
    """Stretches above CONTACT_HEIGHT_M that at some moment are clearly off it; lower ones are errors of capture."""
    stretch, num_stretches = label(lowest_m > CONTACT_HEIGHT_M)
    peaks_m = maximum(lowest_m, stretch, np.arange(1, num_stretches + 1))
    flights: NDArray[np.bool_] = np.isin(stretch, 1 + np.flatnonzero(np.asarray(peaks_m) > FLIGHT_PEAK_M))
    return flights


def _pose_parts(motion: Motion, body: RestBody) -> tuple[FLOATS, FLOATS]:
    """Each part's rotation from the rest pose (T,P,3,3) and the point it turns about in the world (T,P,3)."""
    rotations = motion.rotations @ body.alignment
    anchors_m = np.empty((len(rotations), NUM_PARTS, 3))
    for name, (_, parent_name) in _PART_BONES.items():
        part = PART_NAMES.index(name)
        if parent_name is None:
            anchors_m[:, part] = motion.root_m
        else:
            parent = PART_NAMES.index(parent_name)
            arm = body.anchors_m[part] - body.anchors_m[parent]
            anchors_m[:, part] = anchors_m[:, parent] + rotations[:, parent] @ arm
    return rotations, anchors_m


def _posed_joints(rotations: FLOATS, anchors_m: FLOATS, body: RestBody) -> FLOATS:
    parts = np.array([PART_NAMES.index(_JOINT_BONES[name][1]) for name in JOINT_NAMES])
    arms = body.joints_m - body.anchors_m[parts]
    joints_m: FLOATS = anchors_m[:, parts] + np.einsum("tjab,jb->tja", rotations[:, parts], arms)
    return joints_m


def _support_heights_m(rotations: FLOATS, anchors_m: FLOATS, body: RestBody) -> FLOATS:
    """Heights (T,S) of the vertices that may be the lowest, as skinning would place them."""
    mesh = shared_mesh()
    weights = mesh.part_weights[mesh.support]
    offsets_m = anchors_m[:, :, 1] - np.einsum("tpb,pb->tp", rotations[:, :, 1], body.anchors_m)
    weighted_m = weights[:, :, None] * body.vertices_m[mesh.support][:, None, :]
    turned_m = rotations[:, :, 1].reshape(len(rotations), -1) @ weighted_m.reshape(len(weights), -1).T
    heights_m: FLOATS = turned_m + offsets_m @ weights.T
    return heights_m


@functools.lru_cache(maxsize=512)
def _rest_body(shape: Shape) -> RestBody:
    model = load_body_model()
    vertices_m, heads_m = (shape.scale * points_m for points_m in model.rest(shape))
    head = dict(zip(model.bone_names, heads_m, strict=True))
    joints_m = np.stack([np.mean([head[bone] for bone in _JOINT_BONES[name][0]], axis=0) for name in JOINT_NAMES])
    anchors_m = np.stack([head[_PART_BONES[name][0]] for name in PART_NAMES])
    anchors_m[PART_NAMES.index("pelvis")] = joints_m[JOINT_NAMES.index("root")]
    alignment = np.stack([_alignment(name, head) for name in PART_NAMES])
    leg_m = sum(
        float(np.linalg.norm(head[above] - head[below]))
        for above, below in (("upperleg01.R", "lowerleg01.R"), ("lowerleg01.R", "foot.R"))
    )
    return RestBody(
        vertices_m=vertices_m,
        normals=_vertex_normals(vertices_m, shared_mesh().faces),
        anchors_m=anchors_m,
        joints_m=joints_m,
        alignment=alignment,
        hip_height_m=leg_m + float(head["foot.R"][1] - vertices_m[:, 1].min()),
    )


def _alignment(part: str, head: dict[str, FLOATS]) -> FLOATS:
    """The smallest rotation that makes a limb of the rest pose hang straight down; none for other parts."""
    side, _, limb = part.partition("_")
    if limb not in _HANGING:
        return np.eye(3)
    suffix = side[0].upper()
    along = head[f"{_HANGING[limb]}.{suffix}"] - head[_PART_BONES[part][0]]
    down = np.array([0.0, -1.0, 0.0])
    axis = np.cross(along, down)
    angle = np.arctan2(np.linalg.norm(axis), along @ down)
    matrix: FLOATS = Rotation.from_rotvec(axis / np.linalg.norm(axis) * angle).as_matrix()
    return matrix


def _vertex_normals(vertices_m: FLOATS, faces: NDArray[np.int32]) -> FLOATS:
    corners = vertices_m[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros_like(vertices_m)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], face_normals)
    normalised: FLOATS = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    return normalised


@functools.cache
def shared_mesh() -> Mesh:
    """The topology, the skin weights and the vertices that touch the floor first; the same for all shapes."""
    model = load_body_model()
    names, bones = model.bone_names, model.skin_bones.astype(np.int64)
    weights = model.skin_weights.astype(np.float64)
    part_of_bone = np.zeros(len(names), np.int64)
    roots = {bone: PART_NAMES.index(part) for part, (bone, _) in _PART_BONES.items()}
    for index, name in enumerate(names):
        parent = model.bone_parents[index]
        part_of_bone[index] = roots[name] if name in roots else part_of_bone[parent]
    bone_weights = np.zeros((len(weights), len(names)))
    for column in range(weights.shape[1]):
        np.add.at(bone_weights, (np.arange(len(weights)), bones[:, column]), weights[:, column])
    bone_weights /= bone_weights.sum(-1, keepdims=True)
    part_weights = bone_weights @ (part_of_bone[:, None] == np.arange(NUM_PARTS))
    bone = bones[np.arange(len(bones)), weights.argmax(-1)]
    return Mesh(
        faces=model.faces.astype(np.int32),
        part_weights=part_weights,
        bone_weights=bone_weights,
        bone=bone,
        bone_names=names,
        support=_support(model.mean_m[: 3 * len(bone)].reshape(-1, 3).astype(np.float64), bone),
    )


def _support(vertices_m: FLOATS, bone: NDArray[np.int64]) -> NDArray[np.int64]:
    """Per bone, the vertices farthest out in directions spread over the sphere (Fibonacci); and every third of all."""
    steps = np.arange(_NUM_SUPPORT_DIRECTIONS) + 0.5
    polar, azimuth = np.arccos(1 - 2 * steps / _NUM_SUPPORT_DIRECTIONS), np.pi * (1 + 5**0.5) * steps
    directions = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], -1)
    chosen = set(range(0, len(vertices_m), _SUPPORT_STRIDE))
    for index in np.unique(bone):
        members = np.flatnonzero(bone == index)
        chosen.update(members[(vertices_m[members] @ directions.T).argmax(0)].tolist())
    return np.array(sorted(chosen))
