"""Real motion capture, from the files that the pybullet package ships, as body-part rotations on an even time grid.

Path:    (before the path) motion capture -> Motion -> gymnast -> shard
Letters: T frames, P = 15 body parts
Units:   metre, second;  Frames: world, y up; the captured person starts off facing +x, with the right hand at +z

The files are DeepMimic's [1]: a root position, and quaternions of a spherical or angles of a hinge joint, each relative
to its parent part. Every part's rotation here is relative to standing upright with the arms hanging down.
We differ: frames of 16 to 60 a second are retimed with rotation splines, and three files, whose flights do not fall at
9.81 m/s^2 as recorded, are slowed or sped up until they do.
[1] Peng et al., DeepMimic, ACM TOG 2018. https://github.com/xbpeng/DeepMimic
"""

import functools
import json
import os
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

FLOATS = NDArray[np.float64]

# (name, parent, first column of the file, whether a hinge). A hinge turns about +z: it bends forward or backward.
_PARTS: tuple[tuple[str, int, int, bool], ...] = (
    ("pelvis", -1, 4, False),
    ("chest", 0, 8, False),
    ("head", 1, 12, False),
    ("right_thigh", 0, 16, False),
    ("right_shin", 3, 20, True),
    ("right_foot", 4, 21, False),
    ("right_upper_arm", 1, 25, False),
    ("right_forearm", 6, 29, True),
    ("left_thigh", 0, 30, False),
    ("left_shin", 8, 34, True),
    ("left_foot", 9, 35, False),
    ("left_upper_arm", 1, 39, False),
    ("left_forearm", 11, 43, True),
)
PART_NAMES = tuple(name for name, *_ in _PARTS)
NUM_PARTS = len(_PARTS)
# rotations[:, MIRROR_PARTS] swaps left and right.
MIRROR_PARTS = (0, 1, 2, 8, 9, 10, 11, 12, 3, 4, 5, 6, 7)

# Height of the captured person's hips above the soles when standing, of DeepMimic's humanoid.
HUMANOID_HIP_HEIGHT_M = 0.88

# Factors on the recorded duration that make the centre of mass fall as gravity wants it to (spin and backflip), and
# make the runner's flights last as long as they should.
_DURATION_FACTOR = {"backflip": 0.849, "spin": 0.77, "run": 1.10}

# Where the captured person leaves the floor.
_AIRBORNE = ("backflip", "dance_b", "jump", "run", "spin", "spinkick")

# How often a cycle is repeated; all others are played once.
_REPEATS = {"walk": 3, "run": 4}

# What moves together where parts of two motions are put together, and how often a limb is the other motion's.
_LIMBS = (
    ("chest", "head"),
    ("right_upper_arm", "right_forearm"),
    ("left_upper_arm", "left_forearm"),
    # Both legs together: a tuck stays a tuck.
    ("right_thigh", "right_shin", "right_foot", "left_thigh", "left_shin", "left_foot"),
)
_RECOMBINED_SHARE = 0.5
# Standard deviation of how far what hangs on the pelvis and the chest is turned besides, about each axis.
_SWING_RAD = 0.25
_SIDES = ("right", "left")
_SWUNG_PARTS = ("chest", "right_upper_arm", "left_upper_arm", "right_thigh", "left_thigh")

# How a gymnast bends, in degrees about the axis through both hips (forward where the part hangs, as thighs do, or
# backward where it stands, as the chest does): tucked or piked, and arched. Assumed, wider than anybody is.
_BENDS: tuple[dict[str, tuple[float, float]], ...] = (
    {
        "chest": (-60, -10),
        "head": (-50, 10),
        "thigh": (60, 150),
        "shin": (-150, 0),
        "upper_arm": (0, 170),
        "forearm": (0, 120),
    },
    {
        "chest": (0, 50),
        "head": (0, 40),
        "thigh": (-40, 20),
        "shin": (-70, 0),
        "upper_arm": (90, 190),
        "forearm": (0, 40),
    },
)
_TUCKED_SHARE = 0.7
# Standard deviation of how far left and right differ, about the same axis, and of how far a limb is spread; and of how
# far trunk and head lean sideways.
_SIDE_DEGREES = {"thigh": 10.0, "shin": 10.0, "upper_arm": 25.0, "forearm": 20.0}
_LEAN_DEGREES = 10.0
# Hinges do not spread, and a knee does not bend forward, nor an elbow backward.
_HINGE_DEGREES = {"shin": (-160.0, 0.0), "forearm": (0.0, 150.0)}
# How long a body takes from one bend to the next: a tuck is opened in that time.
_BEND_S = 0.4

# How fast a tumbled body turns, root mean square, and one that also bends; and how far from the hips a limb of the
# largest gymnast reaches.
_TUMBLE_RAD_S = 1.5
_SOMERSAULT_RAD_S = 4.0
_REACH_M = 1.2


@dataclass(frozen=True, kw_only=True)
class Contacts:
    """What is known of contact, not read off heights. in_flight (T,);  feet (T,2): right, left foot on the floor."""

    in_flight: NDArray[np.bool_]
    feet: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How a body moves, whoever's body it is.

    root_m (T,3): the middle of the hips, metres, world;  rotations (T,P,3,3): each part's rotation from standing
    upright with the arms hanging to its place in the world, in the order of PART_NAMES;  fps: frames a second;
    leaves_floor: there may be flights; otherwise any gap to the floor is an error of the recording.
    contacts: known of choreography, which places this very body on the floor exactly; recordings have to be fitted.
    """

    root_m: FLOATS
    rotations: FLOATS
    fps: float
    leaves_floor: bool
    contacts: Contacts | None = None


class MotionCapture:
    """One recorded motion as smooth functions of time. `duration_s` is how long it lasts for the captured person."""

    def __init__(self, times_s: FLOATS, root_m: FLOATS, local_rotations: list[Rotation], leaves_floor: bool) -> None:
        """times_s (K,) ascending, root_m (K,3), local_rotations: for each part K rotations relative to its parent."""
        self.leaves_floor = leaves_floor
        self.duration_s = float(times_s[-1])
        self._root_spline = CubicSpline(times_s, root_m)
        self._rotation_splines = [RotationSpline(times_s, rotations) for rotations in local_rotations]

    def num_frames(self, fps: float, size: float = 1.0) -> int:
        """How many frames at `fps` the whole motion gives for a body of this size."""
        return int(self.duration_s * np.sqrt(size) * fps + 1e-6) + 1

    def motion(
        self, start_frame: int, num_frames: int, *, fps: float, size: float = 1.0, is_mirrored: bool = False
    ) -> Motion:
        """Cut a window out of the motion, for a body `size` times as large as the captured person's.

        A body scaled by b moves in time scaled by sqrt(b) (Froude): its flights then fall with the same gravity.
        start_frame counts frames at `fps` of the body of this size.  Raises ValueError on a window outside the motion.
        """
        available = self.num_frames(fps, size)
        if start_frame < 0 or num_frames < 1 or start_frame + num_frames > available:
            raise ValueError(f"frames {start_frame}..{start_frame + num_frames} do not lie in the motion's {available}")
        times_s = (start_frame + np.arange(num_frames)) / fps / np.sqrt(size)
        relative = np.stack([spline(times_s).as_matrix() for spline in self._rotation_splines], 1)
        motion = Motion(
            root_m=size * self._root_spline(times_s),
            rotations=_in_world(relative),
            fps=fps,
            leaves_floor=self.leaves_floor,
        )
        return mirror(motion) if is_mirrored else motion


def mirror(motion: Motion) -> Motion:
    """The same motion seen in a mirror that stands along the direction faced at first: left and right are swapped."""
    flip = np.array([1.0, 1.0, -1.0])
    rotations = motion.rotations[:, MIRROR_PARTS] * flip[:, None] * flip
    contacts = motion.contacts and Contacts(in_flight=motion.contacts.in_flight, feet=motion.contacts.feet[:, ::-1])
    return replace(motion, root_m=motion.root_m * flip, rotations=rotations, contacts=contacts)


def recombine(motion: Motion, donor: Motion, rng: np.random.Generator) -> Motion:
    """The motion with some of the donor's limbs, moving against the pelvis or the chest as the donor's do, but for a
    turn of each that stays.

    Nobody moves like this: it is for poses that no recording holds. A donor that is too short stays on its last pose.
    """
    frames = np.minimum(np.arange(len(motion.root_m)), len(donor.root_m) - 1)
    local = _relative_to_parents(motion.rotations)
    of_donor = _relative_to_parents(donor.rotations)[frames]
    for limb in _LIMBS:
        if rng.random() < _RECOMBINED_SHARE:
            parts = [PART_NAMES.index(name) for name in limb]
            local[:, parts] = of_donor[:, parts]
    for name in _SWUNG_PARTS:
        swing = Rotation.from_rotvec(rng.normal(0, _SWING_RAD, 3)).as_matrix()
        local[:, PART_NAMES.index(name)] = local[:, PART_NAMES.index(name)] @ swing
    return replace(motion, rotations=_in_world(local))


def bend(motion: Motion, rng: np.random.Generator) -> Motion:
    """The pelvis moves as it did, and the feet against the shins; all else bends from one random tuck, pike or arch to
    another, but that each arm moves as it did in half of the cases. For the shapes of somersaults and rolls, whose
    recordings are few.
    """
    local = _relative_to_parents(motion.rotations)
    first, second = _random_bend(rng), _random_bend(rng)
    share_T1 = np.minimum(np.arange(len(local)) / motion.fps / _BEND_S, 1.0)[:, None]
    kept = {f"{side}_{name}" for side in _SIDES if rng.random() < 0.5 for name in ("upper_arm", "forearm")}
    for part in first.keys() - kept:
        degrees_T2 = (1 - share_T1) * first[part] + share_T1 * second[part]
        # Spread first: a leg that is bent forward is still spread sideways.
        local[:, PART_NAMES.index(part)] = Rotation.from_euler("xz", degrees_T2, degrees=True).as_matrix()
    return replace(motion, rotations=_in_world(local))


def _random_bend(rng: np.random.Generator) -> dict[str, FLOATS]:
    """Degrees of spread and of bend (2,) of each part."""
    bends = _BENDS[0] if rng.random() < _TUCKED_SHARE else _BENDS[1]
    degrees = {}
    for name, (low, high) in bends.items():
        bent = rng.uniform(low, high)
        if name not in _SIDE_DEGREES:
            degrees[name] = np.array([rng.normal(0, _LEAN_DEGREES), bent])
            continue
        for side in _SIDES:
            spread, more = rng.normal(0, _SIDE_DEGREES[name], 2)
            if name in _HINGE_DEGREES:
                degrees[f"{side}_{name}"] = np.array([0.0, np.clip(bent + more, *_HINGE_DEGREES[name])])
            else:
                degrees[f"{side}_{name}"] = np.array([spread, bent + more])
    return degrees


def _in_world(relative: FLOATS) -> FLOATS:
    """Rotations (T,P,3,3) relative to the parent parts -> in the world."""
    rotations = relative.copy()
    for part, (_, parent, _, _) in enumerate(_PARTS):
        if parent >= 0:
            rotations[:, part] = rotations[:, parent] @ relative[:, part]
    return rotations


def _relative_to_parents(rotations: FLOATS) -> FLOATS:
    """And back."""
    relative = rotations.copy()
    for part, (_, parent, _, _) in enumerate(_PARTS):
        if parent >= 0:
            relative[:, part] = rotations[:, parent].transpose(0, 2, 1) @ rotations[:, part]
    return relative


def tumble(motion: Motion, rng: np.random.Generator) -> Motion:
    """The same movements, or in half of the cases bent ones, with the whole body turned any way and turning on: not a
    motion that anybody could perform, but every side of every pose. Half of them are in the air: the hips keep their
    course, raised so that no limb can reach the floor. The others roll on it.
    """
    is_bent = rng.random() < 0.5
    if is_bent:
        motion = bend(motion, rng)
    orientation = Rotation.random(random_state=rng)
    velocity = rng.normal(0, (_SOMERSAULT_RAD_S if is_bent else _TUMBLE_RAD_S) / np.sqrt(3), 3)
    times_s = np.arange(len(motion.root_m)) / motion.fps
    turned = (Rotation.from_rotvec(times_s[:, None] * velocity) * orientation).as_matrix()
    rotations = turned[:, None] @ motion.rotations
    if rng.random() < 0.5:
        return replace(motion, rotations=rotations, leaves_floor=False, contacts=None)
    raised_m = motion.root_m.copy()
    raised_m[:, 1] += max(0.0, _REACH_M - float(raised_m[:, 1].min()))
    nowhere = np.zeros((len(times_s), 2), bool)
    in_flight = np.ones(len(times_s), bool)
    return replace(motion, root_m=raised_m, rotations=rotations, contacts=Contacts(in_flight=in_flight, feet=nowhere))


@functools.cache
def load_capture(name: str) -> MotionCapture:
    """Read a recorded motion by the name that pybullet_data gives it, such as "backflip" or "turn_left0".

    Raises FileNotFoundError where there is no such recording.
    """
    with open(_capture_path(name), encoding="utf-8") as file:
        rows = np.asarray(json.load(file)["Frames"], np.float64)
    rows = _repeat(rows, _REPEATS.get(name, 1))
    # Column 0 is the time until the next frame.
    times_s = np.concatenate([[0.0], np.cumsum(rows[:-1, 0])]) * _DURATION_FACTOR.get(name, 1.0)
    locals_: list[Rotation] = []
    for _, _, column, is_hinge in _PARTS:
        if is_hinge:
            locals_.append(Rotation.from_rotvec(rows[:, column, None] * np.array([0.0, 0.0, 1.0])))
        else:
            locals_.append(Rotation.from_quat(rows[:, column : column + 4], scalar_first=True))
    return MotionCapture(times_s, rows[:, 1:4], locals_, name in _AIRBORNE)


def _capture_path(name: str) -> str:
    import pybullet_data

    folder = os.path.join(pybullet_data.getDataPath(), "data", "motions")
    for path in (f"humanoid3d_{name}.txt", os.path.join("walker", f"{name}.txt")):
        if os.path.isfile(os.path.join(folder, path)):
            return os.path.join(folder, path)
    raise FileNotFoundError(f"pybullet_data has no motion named {name!r} in {folder}")


def _repeat(rows: FLOATS, repeats: int) -> FLOATS:
    """Play a cycle several times, each from where the one before ended; its last frame is its first again."""
    stride = np.zeros(rows.shape[1])
    stride[[1, 3]] = rows[-1, [1, 3]] - rows[0, [1, 3]]
    return np.concatenate(
        [*[rows[:-1] + cycle * stride for cycle in range(repeats - 1)], rows + (repeats - 1) * stride]
    )
