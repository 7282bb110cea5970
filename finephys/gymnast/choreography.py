"""A floor class of gym99 and a body -> the skeleton's motion, physically exact in flight.

Path:    (before the path) gym99 label, height, seed -> Choreography -> gymnast -> shard; or straight to guidance
Letters: T frames, J = 17 joints
Units:   metre, second;  Frames: world, y up, floor at y = 0; the element starts out facing +x

Everything here is numpy on the baked body: no renderer, no motion capture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finephys.data.gym99 import floor_class
from finephys.gymnast.airborne import Airborne
from finephys.gymnast.body_model import Shape
from finephys.gymnast.elements import ELEMENTS, varied
from finephys.gymnast.mocap import Contacts, Motion, mirror
from finephys.gymnast.rig import Rig, joints_of_parts, rig_of
from finephys.gymnast.turning import TURNS, Turning, varied_turn
from finephys.skeleton import MIRROR

FLOATS = NDArray[np.float64]

FPS = 30.0
_NUM_ATTEMPTS = 8


@dataclass(frozen=True, kw_only=True)
class Choreography:
    """One performance. joints_world_m (T,17,3);  in_flight (T,): nothing touches the floor;  feet_in_contact (T,2):
    right, left;  motion: the same as part rotations, for finephys/gymnast/body.py to pose a skin on."""

    joints_world_m: FLOATS
    in_flight: NDArray[np.bool_]
    feet_in_contact: NDArray[np.bool_]
    motion: Motion


def choreograph(
    label: int | str,
    *,
    height_m: float | None = None,
    seed: int = 0,
    fps: float = FPS,
    shape: Shape | None = None,
    max_frames: int | None = None,
) -> Choreography:
    """The floor class `label` (gym99 id or name) as one gymnast does it once.

    She has the body `shape`, or an average one of height_m (1.35 to 1.70; 1.55 by default). The seed decides how well
    she does it and on which side; fps only when she is looked at; of more than max_frames the first are left out.
    Raises ValueError on an unknown class, on both a height and a shape, on a height outside 1.35..1.70 and fps <= 0.
    """
    if fps <= 0:
        raise ValueError(f"fps is {fps}, wanted a positive number")
    if shape is not None and height_m is not None:
        raise ValueError("both height_m and shape are given, wanted one of them")
    known = floor_class(label)
    rig = rig_of(Shape.of_height(1.55 if height_m is None else height_m) if shape is None else shape)
    rng = np.random.default_rng([seed, known.label])
    is_mirrored = bool(rng.random() < 0.5)
    performance = _performance(known.label, rig, rng)
    times_s = np.arange(int(performance.duration_s * fps + 1e-6) + 1)[-(max_frames or 0) :] / fps
    posed = performance.at(times_s)
    joints_m = joints_of_parts(rig, posed.rotations, posed.root_m)
    motion = Motion(
        root_m=posed.root_m,
        rotations=posed.rotations,
        fps=fps,
        leaves_floor=True,
        contacts=Contacts(in_flight=posed.in_flight, feet=posed.feet),
    )
    if is_mirrored:
        joints_m = joints_m[:, MIRROR] * [1.0, 1.0, -1.0]
        motion = mirror(motion)
    assert motion.contacts is not None
    return Choreography(
        joints_world_m=joints_m,
        in_flight=motion.contacts.in_flight,
        feet_in_contact=motion.contacts.feet,
        motion=motion,
    )


def _performance(label: int, rig: Rig, rng: np.random.Generator) -> Airborne | Turning:
    if label in TURNS:
        return Turning(rig, varied_turn(TURNS[label], rng, rig.height_m))
    for attempt in range(_NUM_ATTEMPTS):
        try:
            return Airborne(rig, varied(ELEMENTS[label], rng, rig.height_m))
        except ArithmeticError:
            # Some timings of a few twisting saltos have no take-off near the guess; another performance has.
            if attempt == _NUM_ATTEMPTS - 1:
                raise
    raise AssertionError
