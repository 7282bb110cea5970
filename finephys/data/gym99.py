"""The 35 floor elements of gym99: id, name, subset, and how an English sentence tells the movement.

Path:    label -> prompt, for the choreographed gymnast and for the real FineGym alike

Ids and names are FineGym's gym99 [1]; sentences are ours. A phrasing says what the body does, in the present tense,
and goes on from "A gymnast ": the class name alone would leave a text encoder to know the sport.
[1] Shao et al., FineGym, CVPR 2020; its floor classes are 6 to 40, and 21 is its set "leap-jump-hop", 22 "turn", 23 to
    25 side, front and back salto.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from finephys.data.clips import Subset


@dataclass(frozen=True, kw_only=True)
class FloorClass:
    """One class. label: gym99 id;  name: FineGym's, without "(FX)";  phrasings: what "A gymnast" does."""

    label: int
    name: str
    subset: Subset
    phrasings: tuple[str, ...]


_JUMPS = {
    6: (
        "switch leap with 0.5 turn",
        "leaps off one foot, switches her legs in mid-air into a split and turns half around before she lands",
        "swings one leg forward, exchanges her legs in the air into a wide split and makes half a turn",
        "jumps and switches her legs in mid-air while turning around by half",
    ),
    7: (
        "switch leap with 1 turn",
        "leaps off one foot, switches her legs in mid-air into a split and makes a full turn before she lands",
        "swings one leg forward, exchanges her legs in the air and spins once around in the split",
        "jumps and switches her legs in mid-air while turning once all the way around",
    ),
    8: (
        "split leap with 1 turn",
        "leaps off one foot into a split and turns once all the way around in the air",
        "takes off from one leg, opens her legs into a wide split and spins a full turn before landing",
        "does a split leap with a full turn",
    ),
    9: (
        "split leap with 1.5 turn or more",
        "leaps off one foot into a split and turns one and a half times in the air",
        "takes off from one leg, opens her legs into a wide split and spins one and a half turns before landing",
        "does a split leap with a turn and a half",
    ),
    10: (
        "switch leap",
        "leaps off one foot and switches her legs in mid-air into a wide split",
        "swings one leg forward, then exchanges her legs in the air and lands out of a full split",
        "jumps and switches her legs in mid-air, one in front and one behind",
    ),
    11: (
        "split jump with 1 turn",
        "jumps off both feet into a split, one leg forward and one back, and makes a full turn in the air",
        "takes off from both feet, opens her legs into a front split and spins once around before landing",
        "does a split jump with a full turn",
    ),
    12: (
        "split jump",
        "jumps off both feet and opens her legs into a front split, one leg forward and one back",
        "takes off from both feet, splits her legs wide in the air and lands on both feet",
        "does a high split jump from two feet",
    ),
    13: (
        "johnson with additional 0.5 turn",
        "leaps, switches her legs while turning sideways into a side split, and turns a further half before landing",
        "swings one leg forward, switches it with a quarter turn into a straddle in the air and goes on half a turn",
        "does a Johnson leap, a switch leap into a side split, with another half turn",
    ),
    14: (
        "straddle pike or side split jump with 1 turn",
        "jumps off both feet, lifts both legs sideways into a wide straddle and makes a full turn in the air",
        "takes off from both feet and spins once around with her legs spread to the sides and her body folded forward",
        "does a straddle jump with a full turn",
    ),
    15: (
        "switch leap to ring position",
        "leaps, switches her legs in mid-air and arches back until her rear foot comes up to her head",
        "exchanges her legs in the air into a split with the rear leg bent up behind her and her head thrown back",
        "does a switch leap into a ring, head back and rear foot up at head height",
    ),
    16: (
        "stag jump",
        "jumps off both feet with her front knee bent and her other leg stretched out behind her like a leaping stag",
        "takes off from both feet, folds her front leg under her thigh and stretches the rear leg back in the air",
        "does a stag jump, front leg bent and rear leg straight",
    ),
}
_TURNS = {
    17: (
        "2 turn, free leg in 180 split throughout",
        "spins twice on one foot with her other leg held straight up beside her head",
        "turns two times around on one leg while a hand holds the other leg up in a vertical split",
        "pivots twice on one foot with her legs in a standing split all the time",
    ),
    18: (
        "2 turn in tuck stand",
        "squats down on one leg and spins twice around with the other leg stretched out in front of her",
        "turns two times in a deep crouch on one foot, her free leg held forward above the floor",
        "spins twice low over the floor in a squat on one leg",
    ),
    19: (
        "3 turn on one leg, free leg optional below horizontal",
        "spins three times around on one foot with her other foot held at the knee",
        "rises onto the ball of one foot and pivots three full turns, the free leg bent and low",
        "does a triple pirouette on one leg",
    ),
    20: (
        "2 turn on one leg, free leg optional below horizontal",
        "spins twice around on one foot with her other foot held at the knee",
        "rises onto the ball of one foot and pivots two full turns, the free leg bent and low",
        "does a double pirouette on one leg",
    ),
    21: (
        "1 turn on one leg, free leg optional below horizontal",
        "spins once around on one foot with her other foot held at the knee",
        "rises onto the ball of one foot and pivots one full turn, the free leg bent and low",
        "does a single pirouette on one leg",
    ),
    22: (
        "2 turn or more with heel of free leg forward at horizontal",
        "spins twice around on one foot with her other leg stretched straight out in front at hip height",
        "pivots two full turns on one leg while the free leg is held forward and level",
        "turns twice on the ball of one foot, the free leg horizontal in front of her throughout",
    ),
    23: (
        "1 turn with heel of free leg forward at horizontal",
        "spins once around on one foot with her other leg stretched straight out in front at hip height",
        "pivots one full turn on one leg while the free leg is held forward and level",
        "turns once on the ball of one foot, the free leg horizontal in front of her throughout",
    ),
}
_SALTOS = {
    24: (
        "arabian double salto tucked",
        "jumps up backward with a half twist and turns two forward somersaults in a tight tuck",
        "takes off backward, twists half around and rolls over forward twice in the air with her knees to her chest",
        "does an Arabian double front somersault, tucked",
    ),
    25: (
        "salto forward tucked",
        "jumps off both feet and turns one forward somersault with her knees pulled to her chest",
        "runs, jumps and rolls over forward once in the air in a tuck",
        "does a tucked front flip and lands on her feet",
    ),
    26: (
        "aerial walkover forward",
        "kicks one leg up behind her and goes over forward in the air without her hands, legs in a split",
        "steps and turns over forward in a wide split, one foot landing after the other, her hands never on the floor",
        "does a front aerial, a walkover with no hands",
    ),
    27: (
        "salto forward stretched with 2 twist",
        "turns one forward somersault with a straight body while twisting twice",
        "jumps and flips forward stretched out, spinning two full twists before she lands",
        "does a front layout with a double twist",
    ),
    28: (
        "salto forward stretched with 1 twist",
        "turns one forward somersault with a straight body while twisting once",
        "jumps and flips forward stretched out, with one full twist before she lands",
        "does a front layout with a full twist",
    ),
    29: (
        "salto forward stretched with 1.5 twist",
        "turns one forward somersault with a straight body while twisting one and a half times and lands facing back",
        "jumps and flips forward stretched out, with one and a half twists",
        "does a front layout with one and a half twists",
    ),
    30: (
        "salto forward stretched",
        "turns one forward somersault with her whole body straight",
        "runs, jumps and flips over forward once, stretched out from hands to toes",
        "does a front layout without a twist",
    ),
    31: (
        "double salto backward stretched",
        "jumps high and turns two backward somersaults with her whole body straight",
        "flips over backward twice in the air, stretched out all the way",
        "does a double layout backward",
    ),
    32: (
        "salto backward stretched with 3 twist",
        "turns one backward somersault with a straight body while twisting three times",
        "jumps and flips backward stretched out, spinning three full twists before she lands",
        "does a back layout with a triple twist",
    ),
    33: (
        "salto backward stretched with 2 twist",
        "turns one backward somersault with a straight body while twisting twice",
        "jumps and flips backward stretched out, spinning two full twists before she lands",
        "does a back layout with a double twist",
    ),
    34: (
        "salto backward stretched with 2.5 twist",
        "turns one backward somersault with a straight body while twisting two and a half times",
        "jumps and flips backward stretched out with two and a half twists and lands facing the other way",
        "does a back layout with two and a half twists",
    ),
    35: (
        "salto backward stretched with 1.5 twist",
        "turns one backward somersault with a straight body while twisting one and a half times",
        "jumps and flips backward stretched out with one and a half twists and lands facing the other way",
        "does a back layout with one and a half twists",
    ),
    36: (
        "double salto backward tucked with 2 twist",
        "jumps high and turns two backward somersaults in a tuck while twisting twice",
        "flips over backward twice with her knees bent and spins two full twists on the way",
        "does a tucked double back with two twists",
    ),
    37: (
        "double salto backward tucked with 1 twist",
        "jumps high and turns two backward somersaults in a tuck while twisting once",
        "flips over backward twice with her knees bent and makes one full twist on the way",
        "does a tucked double back with a full twist",
    ),
    38: (
        "double salto backward tucked",
        "jumps high and turns two backward somersaults in a tight tuck",
        "flips over backward twice in the air with her knees pulled to her chest",
        "does a tucked double back flip",
    ),
    39: (
        "double salto backward piked with 1 twist",
        "jumps high and turns two backward somersaults folded at the hips with straight legs while twisting once",
        "flips over backward twice in a pike and makes one full twist on the way",
        "does a piked double back with a full twist",
    ),
    40: (
        "double salto backward piked",
        "jumps high and turns two backward somersaults folded at the hips with straight legs",
        "flips over backward twice in the air in a pike, her hands reaching for her straight legs",
        "does a piked double back flip",
    ),
}
_SUBSETS: Mapping[Subset, Mapping[int, tuple[str, ...]]] = {"FX-JUMP": _JUMPS, "FX-TURN": _TURNS, "FX-SALTO": _SALTOS}

# By gym99 id, ascending.
GYM99_FLOOR: Mapping[int, FloorClass] = {
    label: FloorClass(label=label, name=name, subset=subset, phrasings=tuple(phrasings))
    for subset, classes in _SUBSETS.items()
    for label, (name, *phrasings) in classes.items()
}


def floor_class(name_or_label: str | int) -> FloorClass:
    """The class of this gym99 id (as a number or in digits) or this name.

    Raises ValueError, listing the known names, where there is none.
    """
    wanted = str(name_or_label)
    for known in GYM99_FLOOR.values():
        if wanted in (known.name, str(known.label)):
            return known
    names = "; ".join(f"{known.label} {known.name}" for known in GYM99_FLOOR.values())
    raise ValueError(f"unknown floor class {wanted!r}, wanted the id or name of one of: {names}")
