"""The gymnast as a tree of rigid rods: one constant mass matrix for sixteen points.

Path:    Pose3D -> Body -> dynamics
Solves:  kinetic energy = 1/2 tr(v^T M v) for the points' velocities v, whatever the pose
Letters: 16 points = H36M-17 without the root, which is the mid-hip; 16 distance constraints
Units:   metre, second, kilogram

A rod of mass m between points a and b, centre of mass at the fraction c of its length from a, radius of gyration k (a
fraction of its length) has position a(1-s) + bs along it, so that its kinetic energy needs only the first and second
moments of s: M_aa = m[(1-c)^2+k^2], M_ab = m[c(1-c)-k^2], M_bb = m[c^2+k^2]. The pelvis is a rigid triangle (right hip,
left hip, spine) with one more direction of spread. Sums of these are a constant M, independent of pose and of lengths
(natural coordinates: Garcia de Jalon and Bayo, 1994). The root is eliminated because a point that always lies between
two others makes the distance constraints singular.

[1] P. de Leva, Adjustments to Zatsiorsky-Seluyanov's segment inertia parameters, J. Biomech. 29(9), 1996, table 4,
    females (mean: 61.9 kg, 1.735 m). We differ: rods have no thickness, so each trunk part keeps its mass, centre of
    mass, and its moments for somersaulting and twisting, and its moment for cartwheeling follows from those two.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor

from finephys.skeleton import BONES, JOINT_NAMES, MIRROR_BONES, NUM_BONES, NUM_JOINTS, PARENTS

NUM_POINTS = NUM_JOINTS - 1
POINT_NAMES = JOINT_NAMES[1:]
STANDARD_GRAVITY = 9.80665  # m/s^2, CGPM 1901

# (a, b) joints whose distance is constant: the pelvis triangle, then every bone that does not start at the root.
CONSTRAINTS = ((1, 4), (1, 7), (4, 7), *((parent, child) for parent, child in BONES if parent != 0))
NUM_CONSTRAINTS = len(CONSTRAINTS)
CONSTRAINT_NAMES = tuple(f"{JOINT_NAMES[a]}-{JOINT_NAMES[b]}" for a, b in CONSTRAINTS)

# Lengths in metres of a female 1.735 m tall [1]. HJC hip, KJC knee, AJC ankle, SJC shoulder, EJC elbow, WJC wrist joint
# centre; MIDH mid-hip, MIDS mid-shoulder, OMPH navel, XYPH xiphoid, SUPR suprasternale, CERV C7, MIDG mid-jaw, VERT top
# of the head.
REFERENCE_HEIGHT_M = 1.735
THIGH_M = 0.3685  # HJC-KJC
SHANK_M = 0.4386  # KJC-AJC
UPPER_ARM_M = 0.2751  # SJC-EJC
FOREARM_M = 0.2643  # EJC-WJC
TRUNK_M = 0.4979  # MIDH-MIDS
LOWER_TRUNK_M = 0.1815  # MIDH-OMPH
MIDDLE_TRUNK_M = 0.2053  # OMPH-XYPH
UPPER_TRUNK_M = 0.1425  # XYPH-SUPR
HEAD_M = 0.2002  # MIDG-VERT
NECK_M = 0.6148 + 0.2437 - HEAD_M - TRUNK_M  # MIDS-MIDG, from MIDH-CERV and CERV-VERT
# Not in [1]: half the distance between the hip joint centres and between the shoulder joint centres (joint centres lie
# well inside the breadths that anthropometry measures), as fractions of height like the rest.
HALF_HIPS_M = 0.050 * REFERENCE_HEIGHT_M
HALF_SHOULDERS_M = 0.100 * REFERENCE_HEIGHT_M
# H36M's spine lies half-way between mid-hip and mid-shoulder (finephys/skeleton.py).
SPINE_M = TRUNK_M / 2

# Fractions of the body's mass [1].
HEAD_MASS = 0.0668
UPPER_TRUNK_MASS = 0.1545
MIDDLE_TRUNK_MASS = 0.1465
LOWER_TRUNK_MASS = 0.1247
UPPER_ARM_MASS = 0.0255
FOREARM_MASS = 0.0138
HAND_MASS = 0.0056
THIGH_MASS = 0.1478
SHANK_MASS = 0.0481
FOOT_MASS = 0.0129

# How much of the upper trunk moves with the shoulder girdle. Ours: raised arms lift the shoulders and little else.
GIRDLE_SHARE = 0.4


@dataclass(frozen=True, kw_only=True, eq=False)
class Body:
    """What is constant about one body, or about bodies that differ only in their bone lengths.

    mass_kg: the whole body's.  mass: M, (16, 16) kg, between the points.  incidence: E, (16, 16), row k has -1 and 1 at
    the ends of CONSTRAINTS[k], so E x are the vectors along the constraints.  lengths_m (..., 16): of CONSTRAINTS.
    """

    mass_kg: float
    mass: Tensor
    incidence: Tensor
    lengths_m: Tensor

    @classmethod
    def from_anthropometry(cls, mass_kg: float, height_m: float) -> "Body":
        """A female athlete of this mass and height, with the proportions of [1].

        Raises ValueError unless both are positive and finite.
        """
        for name, value in (("mass_kg", mass_kg), ("height_m", height_m)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}, wanted a positive number")
        limbs = {"knee": THIGH_M, "ankle": SHANK_M, "elbow": UPPER_ARM_M, "wrist": FOREARM_M}
        sides = {"hip": HALF_HIPS_M, "shoulder": HALF_SHOULDERS_M}
        middle = {"spine": SPINE_M, "thorax": TRUNK_M - SPINE_M, "neck": NECK_M, "head": HEAD_M}
        length_of = limbs | sides | middle
        bones_m = [length_of[JOINT_NAMES[child].split("_")[-1]] for _, child in BONES]
        scale = height_m / REFERENCE_HEIGHT_M
        return cls.from_bone_lengths(scale * torch.tensor(bones_m, dtype=torch.float64), mass_kg)

    @classmethod
    def from_joints(cls, joints_m: Tensor, mass_kg: float = 50.0) -> "Body":
        """The body that moves in joints_m (..., T, 17, 3) metres: median bone lengths, left and right alike.

        Lengths have the leading dimensions of joints_m. Only forces depend on mass_kg, accelerations do not.
        Raises ValueError where a bone has no length or is not finite, naming it and the batch element.
        """
        bones_m = bone_lengths(joints_m).median(-2).values
        return cls.from_bone_lengths(0.5 * (bones_m + bones_m[..., list(MIRROR_BONES)]), mass_kg)

    @classmethod
    def from_bone_lengths(cls, bones_m: Tensor, mass_kg: float) -> "Body":
        """A body from the lengths (..., 16) in metres of skeleton.BONES; the pelvis stands upright on the hips."""
        if bones_m.shape[-1] != NUM_BONES:
            raise ValueError(f"bones_m has shape {tuple(bones_m.shape)}, wanted (..., {NUM_BONES})")
        bad = ~(torch.isfinite(bones_m) & (bones_m > 0))
        if bad.any():
            *element, bone = bad.nonzero()[0].tolist()
            parent, child = BONES[bone]
            raise ValueError(
                f"bone {JOINT_NAMES[parent]}-{JOINT_NAMES[child]} of batch element {tuple(element)} has length "
                f"{bones_m[(*element, bone)].item():.3g} m, wanted a positive number"
            )
        mass = mass_kg * _unit_mass_matrix()
        return cls(
            mass_kg=mass_kg,
            mass=mass.to(bones_m),
            incidence=_incidence().to(bones_m),
            lengths_m=constraint_lengths(bones_m),
        )

    def to(self, like: Tensor) -> "Body":
        """This body with the dtype and device of `like`; itself where it has them already."""
        if self.mass.dtype == like.dtype and self.mass.device == like.device:
            return self
        # From our own float64 constants, so that a float32 body that is asked for float64 is exact again.
        mass = self.mass_kg * _unit_mass_matrix()
        return replace(self, mass=mass.to(like), incidence=self.incidence.to(like), lengths_m=self.lengths_m.to(like))

    @cached_property
    def inverse_mass(self) -> Tensor:
        """M^-1 (16, 16), 1/kg; inverted in float64."""
        inverse: Tensor = torch.linalg.inv(self.mass_kg * _unit_mass_matrix())
        return inverse.to(self.mass)

    @cached_property
    def constraint_response(self) -> Tensor:
        """M^-1 E^T (16, 16): accelerations of the points per unit tension along each constraint's vector."""
        return self.inverse_mass @ self.incidence.T

    @cached_property
    def constraint_coupling(self) -> Tensor:
        """A = E M^-1 E^T (16, 16)."""
        return self.incidence @ self.constraint_response

    @cached_property
    def center_weights(self) -> Tensor:
        """The weights (16,) with which the points make the centre of mass; they sum to one."""
        return self.mass.sum(0) / self.mass_kg


def bone_lengths(joints_m: Tensor) -> Tensor:
    """Lengths (..., 16) of skeleton.BONES in joints (..., 17, 3)."""
    if joints_m.shape[-2:] != (NUM_JOINTS, 3):
        raise ValueError(f"joints_m has shape {tuple(joints_m.shape)}, wanted (..., {NUM_JOINTS}, 3)")
    parents = [parent for parent, _ in BONES]
    children = [child for _, child in BONES]
    lengths: Tensor = torch.linalg.vector_norm(joints_m[..., children, :] - joints_m[..., parents, :], dim=-1)
    return lengths


def constraint_lengths(bones_m: Tensor) -> Tensor:
    """Lengths (..., 16) of CONSTRAINTS from those (..., 16) of skeleton.BONES: the spine stands upright on the hips."""
    of = {child: bones_m[..., index] for index, (_, child) in enumerate(BONES)}
    right_hip, left_hip, spine = of[1], of[4], of[7]
    pelvis = [right_hip + left_hip, torch.hypot(right_hip, spine), torch.hypot(left_hip, spine)]
    return torch.stack(pelvis + [of[child] for _, child in CONSTRAINTS[len(pelvis) :]], -1)


def on_body(x: Tensor, bones_m: Tensor) -> Tensor:
    """Points x (..., 16, 3) with the directions of their bones kept and the lengths bones_m (..., 16) of BONES.

    The spine is made perpendicular to the hips, and the centre of mass stays where it was. A bone without direction
    comes out without length.
    """
    joints = joints_of(x)
    parents = [parent for parent, _ in BONES]
    vectors = joints[..., 1:, :] - joints[..., parents, :]
    right_hip, left_hip, spine = (POINT_NAMES.index(name) for name in ("right_hip", "left_hip", "spine"))
    directions = _direction(vectors)
    hips = directions[..., left_hip : left_hip + 1, :]
    up = vectors[..., spine : spine + 1, :]
    upright = _direction(up - (up * hips).sum(-1, keepdim=True) * hips)
    directions = torch.cat([directions[..., :spine, :], upright, directions[..., spine + 1 :, :]], -2)
    directions = torch.cat([-hips, directions[..., right_hip + 1 :, :]], -2)
    placed = _ancestors().to(x) @ (bones_m[..., None] * directions)
    weights = _unit_mass_matrix().sum(0).to(x)
    return placed + (weights @ x - weights @ placed)[..., None, :]


def points_of(joints_m: Tensor) -> Tensor:
    """The sixteen points (..., 16, 3) of seventeen joints (..., 17, 3)."""
    return joints_m[..., 1:, :]


def joints_of(x: Tensor) -> Tensor:
    """Seventeen joints (..., 17, 3) of sixteen points (..., 16, 3): the root is the mid-hip."""
    right_hip, left_hip = JOINT_NAMES.index("right_hip") - 1, JOINT_NAMES.index("left_hip") - 1
    root = 0.5 * (x[..., right_hip : right_hip + 1, :] + x[..., left_hip : left_hip + 1, :])
    return torch.cat([root, x], -2)


def mass_matrix(body: Body) -> Tensor:
    """M (16, 16) in kg: symmetric, positive definite, the same for each of x, y and z, at every pose."""
    return body.mass


def center_of_mass(body: Body, x: Tensor) -> Tensor:
    """Centre of mass (..., 3) of points x (..., 16, 3); of velocities or accelerations likewise."""
    return body.to(x).center_weights @ x


def inertia(body: Body, x: Tensor) -> Tensor:
    """Inertia tensor (..., 3, 3) in kg m^2 about the centre of mass of points x (..., 16, 3)."""
    body = body.to(x)
    r = x - center_of_mass(body, x)[..., None, :]
    second_moment = r.transpose(-1, -2) @ (body.mass @ r)
    trace = second_moment.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return trace * torch.eye(3, dtype=x.dtype, device=x.device) - second_moment


def angular_momentum(body: Body, x: Tensor, v: Tensor) -> Tensor:
    """Angular momentum (..., 3) in kg m^2/s about the centre of mass; x, v (..., 16, 3) in m and m/s."""
    body = body.to(x)
    r = x - center_of_mass(body, x)[..., None, :]
    moments: Tensor = torch.linalg.cross(r, body.mass @ v)
    return moments.sum(-2)


def gravity_force(body: Body, gravity: Tensor) -> Tensor:
    """The weight of each point (..., 16, 3) in newtons for gravity (..., 3) in m/s^2, pointing down."""
    return body.to(gravity).mass.sum(1)[:, None] * gravity[..., None, :]


def _direction(vectors: Tensor) -> Tensor:
    # 1e-8 m^2: a tenth of a millimetre, where a direction means nothing and its gradient must not explode.
    return vectors * (vectors.square().sum(-1, keepdim=True) + 1e-8).rsqrt()


@cache
def _ancestors() -> Tensor:
    """(16, 16): 1 where the bone of the column (by its child) lies between the root and the point of the row."""
    ancestors = torch.zeros(NUM_POINTS, NUM_POINTS, dtype=torch.float64)
    for joint in range(1, NUM_JOINTS):
        above = joint
        while above != 0:
            ancestors[joint - 1, above - 1] = 1.0
            above = PARENTS[above]
    return ancestors


@cache
def _incidence() -> Tensor:
    incidence = torch.zeros(NUM_CONSTRAINTS, NUM_POINTS, dtype=torch.float64)
    for row, (a, b) in enumerate(CONSTRAINTS):
        incidence[row, a - 1] = -1.0
        incidence[row, b - 1] = 1.0
    return incidence


@cache
def _unit_mass_matrix() -> Tensor:
    """M of a body of 1 kg, float64."""
    mass = torch.zeros(NUM_POINTS, NUM_POINTS, dtype=torch.float64)
    for name_a, name_b, m, c, k in _rods():
        a, b = POINT_NAMES.index(name_a), POINT_NAMES.index(name_b)
        mass[a, a] += m * ((1 - c) ** 2 + k**2)
        mass[b, b] += m * (c**2 + k**2)
        mass[a, b] += m * (c * (1 - c) - k**2)
        mass[b, a] += m * (c * (1 - c) - k**2)
    mean, spreads = _pelvis()
    for direction in (mean, *spreads):
        mass += LOWER_TRUNK_MASS * torch.outer(direction, direction)
    for name, m in (("ankle", FOOT_MASS), ("wrist", HAND_MASS)):
        for side in ("right", "left"):
            point = POINT_NAMES.index(f"{side}_{name}")
            mass[point, point] += m
    # The published percentages add up to 99.99.
    return mass / mass.sum()


def _rods() -> list[tuple[str, str, float, float, float]]:
    """(a, b, mass fraction, centre of mass from a, radius of gyration), the latter two as fractions of the length.

    Limbs and head: radius = mean of the sagittal and transverse ones of [1]. Trunk parts: see _girdle and _pelvis.
    Hands and feet are points at wrist and ankle; the bone thorax-neck has no mass of its own ([1] has it in the head).
    """
    rods = [("neck", "head", HEAD_MASS, 1 - 0.5894, (0.330 + 0.359) / 2)]  # MIDG-VERT, centre given from VERT
    for side in ("right", "left"):
        hip, knee, ankle = (f"{side}_{name}" for name in ("hip", "knee", "ankle"))
        shoulder, elbow, wrist = (f"{side}_{name}" for name in ("shoulder", "elbow", "wrist"))
        rods += [
            (hip, knee, THIGH_MASS, 0.3612, (0.369 + 0.364) / 2),
            (knee, ankle, SHANK_MASS, 0.4352, (0.267 + 0.263) / 2),
            (shoulder, elbow, UPPER_ARM_MASS, 0.5754, (0.278 + 0.260) / 2),
            (elbow, wrist, FOREARM_MASS, 0.4559, (0.261 + 0.257) / 2),
        ]
    length = TRUNK_M - SPINE_M
    # Middle trunk: centre 0.4512 from XYPH, transverse radius 0.354.
    center_m = LOWER_TRUNK_M + (1 - 0.4512) * MIDDLE_TRUNK_M - SPINE_M
    rods.append(("spine", "thorax", MIDDLE_TRUNK_MASS, center_m / length, 0.354 * MIDDLE_TRUNK_M / length))
    rods += _girdle(length)
    return rods


def _girdle(length: float) -> list[tuple[str, str, float, float, float]]:
    """Upper trunk: a rod below the thorax and one to each shoulder, which carry its moment for twisting."""
    # Centre 0.2077 from SUPR; the girdle's share lies at the height of the thorax, so the rest makes up for it.
    center = (LOWER_TRUNK_M + MIDDLE_TRUNK_M + (1 - 0.2077) * UPPER_TRUNK_M - SPINE_M) / length
    center = (center - GIRDLE_SHARE) / (1 - GIRDLE_SHARE)
    radius = 0.502 * UPPER_TRUNK_M / length / math.sqrt(1 - GIRDLE_SHARE)
    rods = [("spine", "thorax", (1 - GIRDLE_SHARE) * UPPER_TRUNK_MASS, center, radius)]
    # Longitudinal radii: 0.718 of the upper trunk, and half the middle trunk's moment (0.415); the pelvis has the rest.
    moment = UPPER_TRUNK_MASS * (0.718 * UPPER_TRUNK_M) ** 2 + MIDDLE_TRUNK_MASS * (0.415 * MIDDLE_TRUNK_M) ** 2 / 2
    share = GIRDLE_SHARE * UPPER_TRUNK_MASS
    radius = math.sqrt(moment / (share * HALF_SHOULDERS_M**2) - 0.5**2)
    rods += [("thorax", f"{side}_shoulder", share / 2, 0.5, radius) for side in ("right", "left")]
    return rods


def _pelvis() -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Lower trunk as a triangle: its centre of mass and its vertical and lateral spread, as weights of the points."""
    right, left, spine = (POINT_NAMES.index(name) for name in ("right_hip", "left_hip", "spine"))

    def weights(of_right: float, of_left: float, of_spine: float) -> Tensor:
        result = torch.zeros(NUM_POINTS, dtype=torch.float64)
        result[right], result[left], result[spine] = of_right, of_left, of_spine
        return result

    center = (1 - 0.4920) * LOWER_TRUNK_M / SPINE_M  # 0.4920 from OMPH
    vertical = 0.402 * LOWER_TRUNK_M / SPINE_M  # transverse radius
    # Longitudinal radius 0.444, and half of the middle trunk's moment (0.415).
    moment = (0.444 * LOWER_TRUNK_M) ** 2 + MIDDLE_TRUNK_MASS / LOWER_TRUNK_MASS * (0.415 * MIDDLE_TRUNK_M) ** 2 / 2
    lateral = math.sqrt(moment) / (2 * HALF_HIPS_M)
    return (
        weights((1 - center) / 2, (1 - center) / 2, center),
        (weights(-vertical / 2, -vertical / 2, vertical), weights(lateral, -lateral, 0.0)),
    )
