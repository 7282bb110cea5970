"""What the demo gymnast performs, in whose body and where, and how a prompt says so.

Path:    (before the path) motion name, Performer, arena -> prompt; which motions and performers each split has

The palette is narrow on purpose: a tiny text encoder and UNet can learn every colour that a prompt can name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finephys.data.clips import Split, Subset
from finephys.data.gym99 import GYM99_FLOOR
from finephys.gymnast.body import Performer
from finephys.gymnast.body_model import SHAPE_RANGE, Shape

RGB = tuple[float, float, float]

# sRGB, 0..1.
LEOTARDS: Mapping[str, RGB] = {
    "red": (0.80, 0.10, 0.12),
    "blue": (0.12, 0.25, 0.80),
    "green": (0.08, 0.55, 0.25),
    "purple": (0.48, 0.15, 0.62),
    "black": (0.10, 0.10, 0.12),
    "white": (0.93, 0.93, 0.95),
}
SKINS: Mapping[str, RGB] = {
    "fair": (0.96, 0.80, 0.70),
    "tan": (0.82, 0.62, 0.46),
    "brown": (0.58, 0.39, 0.27),
    "dark": (0.36, 0.23, 0.16),
}
CAPS: Mapping[str, RGB] = {"white": (0.93, 0.93, 0.95), "red": (0.80, 0.10, 0.12), "blue": (0.12, 0.25, 0.80)}
# Parts of a leotard that are white, or black on a white one. Half of the leotards have none.
TRIMS: tuple[str | None, ...] = (None, None, "sleeves", "belt")
# One in four wears a cap.
_CAP_SHARE = 0.25
HAIRS: Mapping[str, RGB] = {"black": (0.08, 0.07, 0.07), "brown": (0.33, 0.19, 0.10), "blonde": (0.86, 0.70, 0.36)}


@dataclass(frozen=True, kw_only=True)
class Arena:
    """The hall around the gymnast, sRGB 0..1."""

    wall: RGB
    floor: RGB
    mat: RGB


ARENAS: Mapping[str, Arena] = {
    "blue": Arena(wall=(0.45, 0.58, 0.76), floor=(0.36, 0.40, 0.48), mat=(0.55, 0.64, 0.78)),
    "grey": Arena(wall=(0.68, 0.69, 0.71), floor=(0.42, 0.43, 0.45), mat=(0.60, 0.61, 0.63)),
    "beige": Arena(wall=(0.86, 0.79, 0.67), floor=(0.55, 0.47, 0.37), mat=(0.74, 0.66, 0.53)),
    "green": Arena(wall=(0.60, 0.73, 0.60), floor=(0.34, 0.43, 0.36), mat=(0.52, 0.65, 0.54)),
    "pink": Arena(wall=(0.88, 0.70, 0.73), floor=(0.53, 0.40, 0.44), mat=(0.76, 0.60, 0.64)),
    "teal": Arena(wall=(0.47, 0.70, 0.71), floor=(0.32, 0.45, 0.46), mat=(0.50, 0.65, 0.66)),
}


@dataclass(frozen=True, kw_only=True)
class MotionClass:
    """One label of the demo data.

    label, subset: gym99's for its floor elements, which are choreographed (finephys/gymnast/choreography.py);
    captures: otherwise, names of recordings (finephys/gymnast/mocap.py);
    phrasings: what "A gymnast ..." does, present tense;
    num_train, num_test: clips of it in the shipped data;  num_frames: shortest and longest clip at 30 fps;
    key_s: the stretch of the recording (finephys/gymnast/mocap.py, for the captured person) that every clip contains.
    """

    phrasings: tuple[str, ...]
    num_train: int
    num_test: int
    captures: tuple[str, ...] = ()
    label: int = -1
    subset: Subset = "other"
    num_frames: tuple[int, int] = (48, 64)
    key_s: tuple[float, float] | None = None


# Motions with num_train = 0 are held out: a model meets them in the test split for the first time.
MOTIONS: Mapping[str, MotionClass] = {
    **{
        known.name: MotionClass(
            label=known.label, subset=known.subset, phrasings=known.phrasings, num_train=17, num_test=3
        )
        for known in GYM99_FLOOR.values()
    },
    "backflip": MotionClass(
        captures=("backflip",),
        phrasings=(
            "jumps backward, turns over once in the air and lands on her feet",
            "does a backflip from standing and lands upright",
        ),
        num_train=0,
        num_test=4,
        key_s=(0.35, 1.25),
    ),
    "spinkick": MotionClass(
        captures=("spinkick",),
        phrasings=(
            "leaps up, spins around and kicks high in the air",
            "does a jumping spin kick and lands on one foot",
        ),
        num_train=0,
        num_test=3,
    ),
    "roll": MotionClass(
        captures=("roll",),
        phrasings=(
            "crouches, rolls forward over her back and stands up again",
            "does a forward roll on the floor",
        ),
        num_train=0,
        num_test=3,
    ),
    "cartwheel": MotionClass(
        captures=("cartwheel",),
        phrasings=(
            "turns a cartwheel sideways over both hands",
            "does a cartwheel, hands on the floor and legs swinging over her head",
        ),
        num_train=20,
        num_test=2,
        key_s=(0.8, 1.9),
    ),
    "jump": MotionClass(
        captures=("jump",),
        phrasings=(
            "crouches, jumps forward with both feet and lands in a squat",
            "swings her arms and jumps forward into the air",
        ),
        num_train=18,
        num_test=2,
        key_s=(0.65, 1.35),
    ),
    "spin": MotionClass(
        captures=("spin",),
        phrasings=(
            "spins around and jumps while turning in the air",
            "turns quickly on the spot with a spinning jump",
        ),
        num_train=20,
        num_test=2,
        key_s=(0.95, 1.95),
    ),
    "kick": MotionClass(
        captures=("kick",),
        phrasings=("steps forward and kicks one leg high", "does a high kick while standing on one leg"),
        num_train=12,
        num_test=2,
    ),
    "punch": MotionClass(
        captures=("punch",),
        phrasings=("steps forward and punches with one arm", "throws a straight punch from a wide stance"),
        num_train=8,
        num_test=1,
    ),
    "dance": MotionClass(
        captures=("dance_a",),
        phrasings=("dances with steps to the side and swinging arms", "does a dance step and turns her body"),
        num_train=12,
        num_test=1,
    ),
    "hop dance": MotionClass(
        captures=("dance_b",),
        phrasings=(
            "dances with little hops from foot to foot",
            "hops and sways through a dance on the spot",
        ),
        num_train=0,
        num_test=3,
    ),
    "run": MotionClass(
        captures=("run",),
        phrasings=("runs across the floor with long strides", "sprints in a straight line"),
        num_train=10,
        num_test=1,
        num_frames=(32, 36),
    ),
    "walk": MotionClass(
        captures=("walk",),
        phrasings=("walks across the floor", "walks in a straight line at an even pace"),
        num_train=10,
        num_test=1,
        num_frames=(36, 48),
    ),
    "turning walk": MotionClass(
        captures=("turn_left0", "turn_right0"),
        phrasings=("walks and turns to one side", "walks along a curve across the floor"),
        num_train=6,
        num_test=1,
    ),
    "crawl": MotionClass(
        captures=("crawl",),
        phrasings=("crawls forward on hands and knees", "moves along the floor on all fours"),
        num_train=10,
        num_test=1,
    ),
    "get up from front": MotionClass(
        captures=("getup_facedown",),
        phrasings=("lies face down on the floor, pushes up and gets to her feet", "rises from lying on her front"),
        num_train=9,
        num_test=1,
        key_s=(1.9, 2.7),
    ),
    "get up from back": MotionClass(
        captures=("getup_faceup",),
        phrasings=("lies on her back, rolls over and gets to her feet", "rises from lying on her back"),
        num_train=9,
        num_test=1,
        num_frames=(56, 64),
        key_s=(1.7, 3.1),
    ),
}

NUM_PERFORMERS: Mapping[Split, int] = {"train": 36, "test": 12}


def motion_name(name_or_label: str) -> str:
    """The name of a motion, which may be given by its gym99 id in digits.

    Raises ValueError, listing the known names, on an unknown one.
    """
    if name_or_label.isdecimal() and int(name_or_label) in GYM99_FLOOR:
        return GYM99_FLOOR[int(name_or_label)].name
    if name_or_label not in MOTIONS:
        raise ValueError(
            f"unknown motion {name_or_label!r}, wanted a gym99 id from {min(GYM99_FLOOR)} to {max(GYM99_FLOOR)} or one "
            f"of: {'; '.join(sorted(MOTIONS))}"
        )
    return name_or_label


def prompt_for(label_name: str, performer: Performer | None = None, arena: str | None = None, phrasing: int = 0) -> str:
    """An English sentence for a motion (name or gym99 id), with the looks where they are given.

    phrasing counts through the motion's phrasings, modulo their number.
    Raises ValueError, listing the known names, on an unknown motion, and likewise on an unknown arena.
    """
    label_name = motion_name(label_name)
    if arena is not None and arena not in ARENAS:
        raise ValueError(f"unknown arena {arena!r}, wanted one of: {', '.join(ARENAS)}")
    phrasings = MOTIONS[label_name].phrasings
    who = "A gymnast"
    if performer is not None:
        who = f"A gymnast with {performer.skin} skin and {_head(performer)} in a {performer.leotard} leotard"
        if performer.trim is not None:
            who += f" with {_TRIM_WORDS[performer.trim]}".format("black" if performer.leotard == "white" else "white")
    where = "" if arena is None else f", in a {arena} hall"
    return f"{who} {phrasings[phrasing % len(phrasings)]}{where}."


_TRIM_WORDS = {"sleeves": "{} sleeves", "belt": "a {} belt"}


def _head(performer: Performer) -> str:
    return f"{performer.hair} hair" if performer.cap is None else f"a {performer.cap} cap"


def performers(split: Split, seed: int) -> list[Performer]:
    """The people of one split, the same for the same seed. No two splits share a body; all share the palette.

    Raises ValueError on a split that the demo data does not have.
    """
    if split not in NUM_PERFORMERS:
        raise ValueError(f"the demo data has no split {split!r}, wanted one of: {', '.join(NUM_PERFORMERS)}")
    rng = np.random.default_rng([seed, list(NUM_PERFORMERS).index(split)])
    count = NUM_PERFORMERS[split]
    first = 0 if split == "train" else NUM_PERFORMERS["train"]
    # Another seed's people are others; the shipped ones, of seed 0, have the short names.
    of_seed = f"s{seed}" if seed else ""
    leotards, skins, hairs = (_dealt(list(palette), count, rng) for palette in (LEOTARDS, SKINS, HAIRS))
    return [
        Performer(
            name=f"p{first + index:02d}{of_seed}",
            shape=random_shape(rng),
            leotard=leotards[index],
            skin=skins[index],
            hair=hairs[index],
            trim=TRIMS[int(rng.integers(len(TRIMS)))],
            cap=str(rng.choice(list(CAPS))) if rng.random() < _CAP_SHARE else None,
        )
        for index in range(count)
    ]


def random_shape(rng: np.random.Generator) -> Shape:
    """A gymnast's body."""
    shape = {name: rng.uniform(low, high) for name, (low, high) in SHAPE_RANGE.items()}
    # Gymnasts are 1.35 to 1.70 m tall.
    return Shape(**shape, scale=rng.uniform(0.92, 0.965))


def _dealt(names: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` names in random order, each as often as the others, give or take one."""
    return [names[index % len(names)] for index in rng.permutation(count)]
