"""The 28 leaps, jumps and saltos of gym99's floor: what shape the body has when, and how it leaves the floor.

Path:    gym99 label -> Element -> finephys/gymnast/airborne.py
Units:   second, metre, degree, radian a second;  Frames: she faces +x at the take-off

What the classes are follows FineGym's names and the FIG Code of Points: a switch leap swings one leg forward and
exchanges both in the air; a Johnson is one with a quarter turn into a side split; a ring has the head back and the rear
foot at head height. Times of flight are those of elite floor exercise: 0.5 to 0.6 s for leaps, 0.8 s for single and
1.0 s for double saltos. Only shapes and counts stand here: how fast she turns follows from physics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finephys.gymnast.shapes import ANGLE_NAMES, HIGHEST, LOWEST, body_shape

FLOATS = NDArray[np.float64]
Keys = tuple[tuple[float, FLOATS], ...]

RIGHT, LEFT = 0, 1
_BOTH = (RIGHT, LEFT)

# The performer for whom times and speeds are written; others move in times scaled by the root of their size (Froude).
REFERENCE_HEIGHT_M = 1.55


@dataclass(frozen=True, kw_only=True)
class Entry:
    """How she comes to the take-off: out of a flight (last stride, hurdle, handspring) or not, then on the floor.

    shapes: (phase, angles), phase 0..1 over flight_s and 1..2 over contact_s;  lean_deg, pitch_rate: of the pelvis at
    the first touch, positive backward;  forward_mps, sink_mps: of the centre of mass then;  crouch_*: how far she goes
    down, forward and bends over, after which share of the contact.
    """

    flight_s: float
    contact_s: float
    shapes: Keys
    lean_deg: float = 0.0
    pitch_rate: float = 0.0
    forward_mps: float = 0.0
    sink_mps: float = 0.0
    crouch_share: float = 0.0
    crouch_m: float = 0.0
    crouch_shift_m: float = 0.0
    crouch_lean_deg: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Element:
    """One element that flies.

    shapes: (share of the flight, angles), from take-off to touchdown;  landing_shapes: likewise afterwards;
    somersaults: positive backward;  twists: positive to the left, as turns of a leap;  forward_mps: of the flight;
    lean_deg, landing_lean_deg: of the pelvis at its ends, positive away from where she faced at the take-off;
    step_m: how far ahead the second foot, or the foot that stumbles, comes down.
    """

    entry: Entry
    flight_s: float
    landing_s: float
    shapes: Keys
    landing_shapes: Keys
    takes_off_from: tuple[int, ...] = _BOTH
    lands_on: tuple[int, ...] = _BOTH
    somersaults: float = 0.0
    twists: float = 0.0
    forward_mps: float = 0.0
    lean_deg: float = 0.0
    landing_lean_deg: float = 0.0
    step_m: float = 0.0
    stumbles_with: int | None = None


# Key shapes.

_STAND = body_shape(hip=3, knee=5, arm=8, out=14, elbow=8)
_FINISH = body_shape(hip=4, knee=6, arm=150, out=22, chest_flex=-6)
_ARMS_BACK = body_shape(hip=40, knee=50, chest_flex=18, arm=-45, out=15)
_ARMS_SIDE = {"arm": 10.0, "out": 84.0, "elbow": 4.0}
_ARMS_UP = {"arm": 165.0, "out": 10.0, "elbow": 5.0}
_WRAPPED = {"arm": 35.0, "out": 2.0, "arm_in": 50.0, "elbow": 125.0}

_RISING = body_shape(hip=6, knee=20, point=62, arm=120, out=25, chest_flex=-4)
_LANDING = body_shape(hip=42, knee=34, point=22, chest_flex=14, arm=45, out=40)
_CROUCHED = body_shape(hip=55, knee=60, chest_flex=24, arm=60, out=45)

_TUCK = body_shape(hip=128, knee=132, point=60, chest_flex=46, head_flex=20, arm=62, out=8, elbow=42)
_PIKE = body_shape(hip=128, knee=3, point=65, chest_flex=48, head_flex=18, arm=78, out=6, elbow=25)
_STRETCHED = body_shape(hip=-6, knee=3, point=68, chest_flex=-8, arm=25, out=12, arm_in=20, elbow=25)
_STRAIGHT_UP = body_shape(hip=-6, knee=4, point=66, chest_flex=-6, **_ARMS_UP)
_HOLLOW = body_shape(hip=14, knee=5, point=66, chest_flex=14, arm=100, out=25)
_TWISTING = body_shape(hip=2, knee=3, point=68, chest_flex=2, **_WRAPPED)
_PUCK = body_shape(hip=62, knee=78, point=60, chest_flex=18, **_WRAPPED)
_OPEN_PIKE = body_shape(hip=66, knee=3, point=66, chest_flex=12, **_WRAPPED)
_OPENED = body_shape(hip=10, knee=6, point=60, chest_flex=4, arm=40, out=78, elbow=10)

_SPLIT_RIGHT = body_shape(
    right_hip=92, left_hip=-78, right_knee=2, left_knee=4, point=68, left_turnout=15, chest_flex=-22, **_ARMS_SIDE
)
_SPLIT_LEFT = body_shape(
    left_hip=92, right_hip=-78, left_knee=2, right_knee=4, point=68, right_turnout=15, chest_flex=-22, **_ARMS_SIDE
)
_SIDE_SPLIT = body_shape(hip=62, open=82, knee=2, point=68, turnout=20, chest_flex=14, arm=60, out=70)


# How she arrives.

_FROM_STAND = Entry(
    flight_s=0.0,
    contact_s=0.55,
    shapes=((1.0, _STAND), (1.52, _ARMS_BACK), (1.8, body_shape(_ARMS_BACK, arm=10, chest_flex=8))),
    crouch_share=0.56,
    crouch_m=0.21,
    crouch_shift_m=-0.07,
    crouch_lean_deg=-22,
)
_STRIDE_START = body_shape(
    right_hip=-30, right_knee=36, right_point=60, left_hip=48, left_knee=52, left_point=25,
    arm=0, out=35, right_arm=35, left_arm=-30, elbow=20,
)  # fmt: skip
_STRIDE_TOUCH = body_shape(
    right_hip=-14, right_knee=62, right_point=50, left_hip=30, left_knee=14, left_point=22,
    out=45, right_arm=0, left_arm=10, elbow=12, chest_flex=2,
)  # fmt: skip
_STRIDE = Entry(
    flight_s=0.2,
    contact_s=0.19,
    shapes=((0.0, _STRIDE_START), (1.0, _STRIDE_TOUCH)),
    lean_deg=6,
    forward_mps=2.9,
    sink_mps=-1.25,
)
_HURDLE = Entry(
    flight_s=0.24,
    contact_s=0.13,
    shapes=(
        (0.0, body_shape(right_hip=45, right_knee=70, left_hip=8, left_knee=38, point=35, **_ARMS_UP)),
        (0.5, body_shape(hip=30, knee=30, point=40, chest_flex=6, **_ARMS_UP)),
        (1.0, body_shape(hip=20, knee=10, point=18, chest_flex=8, **_ARMS_UP)),
    ),
    lean_deg=10,
    forward_mps=3.6,
    sink_mps=-1.9,
)
_SNAP_DOWN = Entry(
    flight_s=0.17,
    contact_s=0.12,
    shapes=(
        (0.0, body_shape(hip=8, knee=10, point=60, chest_flex=-20, head_flex=-20, arm=172, out=8)),
        (1.0, body_shape(hip=38, knee=12, point=22, chest_flex=18, head_flex=5, arm=150, out=8)),
    ),
    lean_deg=-24,
    pitch_rate=5.5,
    forward_mps=-2.9,
    sink_mps=-1.3,
)
_AERIAL_STRIDE = replace(
    _STRIDE,
    contact_s=0.27,
    shapes=(
        (0.0, body_shape(_STRIDE_START, right_hip=-34, right_knee=55, arm=150, out=15)),
        (1.0, body_shape(_STRIDE_TOUCH, arm=140, out=15, left_hip=42)),
        (1.45, body_shape(right_hip=-40, right_knee=15, right_point=60, left_hip=70, left_knee=30, left_point=10,
                          chest_flex=40, arm=60, out=40)),
    ),
    forward_mps=2.2,
    sink_mps=-1.6,
)  # fmt: skip


def _leap(takeoff: FLOATS, *shapes: tuple[float, FLOATS], lands_on: int, **changes: object) -> Element:
    """From the left foot onto one foot, the other stepping on ahead."""
    first, second = ("right", "left") if lands_on == RIGHT else ("left", "right")
    touchdown = body_shape(
        **{f"{first}_hip": 24, f"{first}_knee": 14, f"{first}_point": 38},
        **{f"{second}_hip": -42, f"{second}_knee": 8, f"{second}_point": 60},
        chest_flex=-4, arm=25, out=74,
    )  # fmt: skip
    after = body_shape(hip=18, knee=24, arm=30, out=70, chest_flex=4)
    element = Element(
        entry=_STRIDE,
        flight_s=0.58,
        landing_s=0.5,
        shapes=((0.0, takeoff), *shapes, (1.0, touchdown)),
        landing_shapes=((0.55, after), (1.0, body_shape(_STAND, arm=60, out=60))),
        takes_off_from=(LEFT,),
        lands_on=(lands_on,),
        forward_mps=2.3,
        step_m=0.42,
    )
    return replace(element, **changes)  # type: ignore[arg-type]


_SWING_TAKEOFF = body_shape(
    right_hip=62, right_knee=12, right_point=66, left_hip=-16, left_knee=17, left_point=46, arm=30, out=60
)
_SWUNG = body_shape(right_hip=78, right_knee=3, right_point=68, left_hip=-34, left_knee=6, left_point=68, **_ARMS_SIDE)
_EXCHANGE = body_shape(right_hip=5, left_hip=22, knee=12, point=66, **_ARMS_SIDE)
_RING = body_shape(
    left_hip=106, left_knee=3, right_hip=-66, right_knee=98, point=68, chest_flex=-48, head_flex=-58, arm=140, out=30
)


def _switch(split: FLOATS, *, late: float = 0.86, **changes: object) -> Element:
    return _leap(
        _SWING_TAKEOFF, (0.17, _SWUNG), (0.34, _EXCHANGE), (0.54, split), (0.66, split),
        (late, body_shape(split, left_hip=58, right_hip=-52, right_knee=15)),
        lands_on=LEFT, **changes,
    )  # fmt: skip


def _split_leap(**changes: object) -> Element:
    return _leap(
        _SWING_TAKEOFF, (0.34, _SPLIT_RIGHT), (0.6, _SPLIT_RIGHT),
        (0.84, body_shape(_SPLIT_RIGHT, right_hip=52, left_hip=-50)),
        lands_on=RIGHT, **changes,
    )  # fmt: skip


def _turned_split_leap() -> Element:
    """Arms overhead, which is how so many turns fit into a leap, and less time in the split."""
    split = body_shape(_SPLIT_RIGHT, **_ARMS_UP)
    takeoff = body_shape(_SWING_TAKEOFF, right_hip=45, **_ARMS_UP)
    closing = body_shape(split, right_hip=25, left_hip=-25)
    return _leap(
        takeoff, (0.33, split), (0.54, split), (0.78, closing),
        lands_on=RIGHT, twists=1.5, forward_mps=1.4, flight_s=0.61, step_m=0.25,
    )  # fmt: skip


def _jump(*shapes: tuple[float, FLOATS], **changes: object) -> Element:
    """From both feet onto both feet."""
    together = body_shape(hip=10, knee=6, point=66, arm=100, out=55)
    element = Element(
        entry=_FROM_STAND,
        flight_s=0.57,
        landing_s=0.55,
        shapes=((0.0, _RISING), *shapes, (0.86, together), (1.0, body_shape(_LANDING, hip=26, knee=22, point=42))),
        landing_shapes=((0.4, body_shape(_CROUCHED, arm=30, out=60)), (1.0, body_shape(_STAND, arm=20, out=70))),
        forward_mps=0.25,
    )
    return replace(element, **changes)  # type: ignore[arg-type]


def _johnson() -> Element:
    side = body_shape(_SIDE_SPLIT, **_ARMS_SIDE)
    together = body_shape(hip=12, open=14, knee=6, point=64, arm=60, out=40)
    return _leap(
        _SWING_TAKEOFF, (0.17, _SWUNG), (0.32, body_shape(hip=22, open=22, knee=14, point=66, **_ARMS_SIDE)),
        (0.48, side), (0.6, side), (0.85, together),
        lands_on=LEFT, twists=0.75, flight_s=0.6, forward_mps=1.3, step_m=0.25,
    )  # fmt: skip


def _salto_back(*shapes: tuple[float, FLOATS], twists: float = 0.0, count: int = 1, **changes: object) -> Element:
    return _salto(_SNAP_DOWN, 1, shapes, twists, count, **{"forward_mps": -1.9, "lean_deg": 8, **changes})


def _salto_forward(*shapes: tuple[float, FLOATS], twists: float = 0.0, count: int = 1, **changes: object) -> Element:
    return _salto(_HURDLE, -1, shapes, twists, count, **{"forward_mps": 2.6, "lean_deg": -4, **changes})


def _salto(entry: Entry, sign: int, shapes: Keys, twists: float, count: int, **changes: object) -> Element:
    """Lands a little short of upright, on feet that are ahead of her on her way, wherever her twists make her look."""
    faces_way = (sign < 0) == (round(2 * twists) % 2 == 0)
    touchdown = body_shape(_LANDING, hip=30, knee=26, point=22, chest_flex=18) if faces_way else _LANDING
    element = Element(
        entry=entry,
        flight_s=0.8 if count == 1 else 1.02,
        landing_s=0.55,
        shapes=((0.0, body_shape(_RISING, **_ARMS_UP)), *shapes, (1.0, touchdown)),
        landing_shapes=((0.3, _CROUCHED), (1.0, _FINISH)),
        somersaults=sign * count,
        twists=twists,
        landing_lean_deg=sign * (-6.0 if faces_way else -20.0),
    )
    return replace(element, **changes)  # type: ignore[arg-type]


def _twisted(forward: bool, twists: float) -> Element:
    salto = _salto_forward if forward else _salto_back
    # More twists want a longer wrap, and a longer flight.
    wrap = 0.30 - 0.035 * twists
    shapes = ((0.1, _HOLLOW), (wrap, _TWISTING), (1 - wrap * 0.9, _TWISTING), (0.92, _OPENED))
    return salto(*shapes, twists=twists, flight_s=0.79 + 0.03 * twists)


def _double(shape: FLOATS, twists: float = 0.0, open_: FLOATS = _PUCK) -> Element:
    if twists == 0:
        keys: Keys = ((0.1, _STRAIGHT_UP), (0.26, shape), (0.78, shape), (0.91, _OPENED))
    elif twists == 1:
        # The twist in the first somersault, open; then the shape.
        keys = ((0.07, _HOLLOW), (0.15, open_), (0.4, open_), (0.68, shape), (0.82, shape), (0.93, _OPENED))
    else:
        keys = ((0.08, _HOLLOW), (0.18, _PUCK), (0.76, _PUCK), (0.92, _OPENED))
    return _salto_back(*keys, twists=twists, count=2, flight_s=1.02 + 0.02 * twists)


def _aerial_walkover() -> Element:
    arms = {"arm": 20.0, "out": 60.0}
    takeoff = body_shape(
        right_hip=-62, right_knee=6, right_point=66, left_hip=48, left_knee=8, left_point=58, chest_flex=34, **arms
    )
    split = body_shape(right_hip=-62, left_hip=82, knee=3, point=68, chest_flex=-10, head_flex=-20, **arms)
    swapping = body_shape(right_hip=-30, left_hip=62, knee=5, point=64, chest_flex=-36, head_flex=-30, **arms)
    touchdown = body_shape(
        right_hip=-36, right_knee=22, right_point=35, left_hip=44, left_knee=4, left_point=64,
        chest_flex=-52, head_flex=-30, arm=130, out=40,
    )  # fmt: skip
    return Element(
        entry=_AERIAL_STRIDE,
        flight_s=0.46,
        landing_s=0.6,
        shapes=((0.0, takeoff), (0.4, split), (0.7, swapping), (1.0, touchdown)),
        landing_shapes=((0.5, body_shape(_STAND, chest_flex=-20, arm=150, out=20, left_hip=30)), (1.0, _FINISH)),
        takes_off_from=(LEFT,),
        lands_on=(RIGHT,),
        somersaults=-1,
        forward_mps=1.9,
        lean_deg=-58,
        landing_lean_deg=52,
        step_m=0.42,
    )


_STAG = body_shape(
    right_hip=98, right_knee=128, left_hip=-62, left_knee=4, left_turnout=12, point=68, chest_flex=-20, arm=70, out=75
)
_ARABIAN = _salto_back(
    (0.08, body_shape(_RISING, **_ARMS_UP)), (0.16, _TWISTING), (0.24, _TWISTING), (0.36, _TUCK), (0.8, _TUCK),
    (0.92, _OPENED),
    twists=0.5, count=2, flight_s=1.04,
)  # fmt: skip

ELEMENTS: Mapping[int, Element] = {
    6: _switch(_SPLIT_LEFT, twists=0.5, forward_mps=1.7, step_m=0.3),
    7: _switch(_SPLIT_LEFT, twists=1.0, forward_mps=1.5, flight_s=0.6, step_m=0.3),
    8: _split_leap(twists=1.0, forward_mps=1.6, step_m=0.3),
    9: _turned_split_leap(),
    10: _switch(_SPLIT_LEFT),
    11: _jump((0.4, _SPLIT_RIGHT), (0.58, _SPLIT_RIGHT), twists=1.0),
    12: _jump((0.36, _SPLIT_RIGHT), (0.6, _SPLIT_RIGHT)),
    13: _johnson(),
    14: _jump((0.38, _SIDE_SPLIT), (0.6, _SIDE_SPLIT), twists=1.0),
    15: _switch(_RING),
    16: _jump((0.36, _STAG), (0.6, _STAG)),
    24: _ARABIAN,
    25: _salto_forward((0.1, _STRAIGHT_UP), (0.3, _TUCK), (0.7, _TUCK), (0.9, _OPENED), flight_s=0.74),
    26: _aerial_walkover(),
    27: _twisted(True, 2),
    28: _twisted(True, 1),
    29: _twisted(True, 1.5),
    30: _salto_forward((0.12, _STRAIGHT_UP), (0.32, _STRETCHED), (0.78, _STRETCHED), (0.92, _OPENED), flight_s=0.8),
    31: _double(_STRETCHED),
    32: _twisted(False, 3),
    33: _twisted(False, 2),
    34: _twisted(False, 2.5),
    35: _twisted(False, 1.5),
    36: _double(_TUCK, 2),
    37: _double(_TUCK, 1),
    38: _double(_TUCK),
    39: _double(_PIKE, 1, _OPEN_PIKE),
    40: _double(_PIKE),
}


def varied(element: Element, rng: np.random.Generator, height_m: float) -> Element:
    """The element as somebody of this height does it this time: amplitude, timing, bent knees, a step on landing."""
    pace = np.sqrt(height_m / REFERENCE_HEIGHT_M)
    amplitude, bent, early = rng.uniform(0.93, 1.02), np.radians(rng.choice([0, 0, 4, 10])), rng.uniform(-0.015, 0.015)
    arms = np.radians(rng.uniform(-8, 8, 2))

    def of(shape: FLOATS) -> FLOATS:
        changed = shape.copy()
        for index, name in enumerate(ANGLE_NAMES):
            if name.endswith(("_hip", "_open")):
                changed[index] *= amplitude
            elif name.endswith("_knee"):
                changed[index] += bent
            elif name.endswith("_out"):
                changed[index] += arms[0] * (changed[index] > 0.5)
        return np.clip(changed, LOWEST, HIGHEST)

    inner = tuple((share + early, of(shape)) for share, shape in element.shapes[1:-1])
    stumbles = len(element.lands_on) == 2 and rng.random() < 0.3
    return replace(
        element,
        entry=replace(
            element.entry,
            flight_s=element.entry.flight_s * pace,
            contact_s=element.entry.contact_s * pace,
            pitch_rate=element.entry.pitch_rate / pace,
            forward_mps=element.entry.forward_mps * pace,
            sink_mps=element.entry.sink_mps * pace,
            crouch_m=element.entry.crouch_m * pace**2,
        ),
        shapes=(element.shapes[0], *inner, element.shapes[-1]),
        flight_s=element.flight_s * pace * rng.uniform(0.96, 1.05),
        landing_s=element.landing_s * rng.uniform(0.95, 1.2),
        forward_mps=element.forward_mps * pace * rng.uniform(0.88, 1.1),
        stumbles_with=int(rng.integers(2)) if stumbles else None,
        step_m=rng.uniform(0.15, 0.3) if stumbles else element.step_m * pace**2,
    )
