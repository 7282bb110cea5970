"""The demo data, clip by clip: what is in clip number n, and how it is made.

Path:    seed, number -> Plan -> Clip (finephys/data/clips.py)

Clip n depends on the seed and on n alone, not on how many clips are asked for nor on who makes them in what order.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from finephys.data.clips import Clip, Split
from finephys.data.video import encode_video
from finephys.gymnast.body import Performer, performer_contacts, rest_body
from finephys.gymnast.choreography import choreograph
from finephys.gymnast.film import film
from finephys.gymnast.mocap import Motion, load_capture, recombine, tumble
from finephys.gymnast.motions import ARENAS, MOTIONS, NUM_PERFORMERS, MotionClass, performers, prompt_for

FPS = 30.0
MAX_FRAMES = 64
# The detector, for which tumbled clips are made, looks at three frames, or at every other one of five: short clips
# show it more bodies in the time that rendering takes.
TUMBLED_FRAMES = 8
IMAGE_SIZE = 128
# Measured: 873 clips stay below 30 MB, and colours keep their edges.
CRF = 21


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who does what in clip `number`."""

    number: int
    split: Split
    label_name: str
    performer: Performer


def num_planned_clips() -> int:
    """How many clips the shipped data has: one round through the table of motions."""
    return sum(motion.num_train + motion.num_test for motion in MOTIONS.values())


def plan_clips(num_clips: int, seed: int) -> list[Plan]:
    """The first `num_clips` clips; any beginning of the list mixes splits and motions as the whole does.

    Raises ValueError where num_clips < 1.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips is {num_clips}, wanted at least 1")
    round_: list[tuple[float, Split, str]] = [
        ((index + 0.5) / count, split, label_name)
        for label_name, motion in MOTIONS.items()
        for split, count in _counts(motion).items()
        for index in range(count)
    ]
    round_.sort()
    people = {split: performers(split, seed) for split in NUM_PERFORMERS}
    num_done = dict.fromkeys(NUM_PERFORMERS, 0)
    plans = []
    for number in range(num_clips):
        _, split, label_name = round_[number % len(round_)]
        performer = people[split][num_done[split] % len(people[split])]
        num_done[split] += 1
        plans.append(Plan(number=number, split=split, label_name=label_name, performer=performer))
    return plans


def make_clip(plan: Plan, seed: int, tumbled_share: float = 0.0) -> Clip:
    """Pose, film and encode one clip, with all its ground truth.

    tumbled_share: of the clips, whose body has limbs of two motions, or is bent, and is turned any way
    (mocap.recombine, tumble). They are TUMBLED_FRAMES long.
    """
    rng = np.random.default_rng([seed, 1, plan.number])
    motion_class, performer = MOTIONS[plan.label_name], plan.performer
    motion = _motion(plan, rng)
    tumbling_rng = np.random.default_rng([seed, 2, plan.number])
    if tumbling_rng.random() < tumbled_share:
        donor = _motion(replace(plan, label_name=_donor(plan.split, tumbling_rng)), tumbling_rng)
        motion = recombine(motion, donor, tumbling_rng)
        start = int(tumbling_rng.integers(len(motion.root_m) - TUMBLED_FRAMES + 1))
        frames = slice(start, start + TUMBLED_FRAMES)
        motion = replace(motion, root_m=motion.root_m[frames], rotations=motion.rotations[frames], contacts=None)
        motion = tumble(motion, tumbling_rng)
    in_flight, feet_in_contact = performer_contacts(motion, performer)
    arena = str(rng.choice(list(ARENAS)))
    filmed = film(motion, performer, arena, IMAGE_SIZE, plan.split, rng)
    return Clip(
        clip_id=f"{_short_name(plan.label_name)}-{performer.name}-c{plan.number:03d}",
        split=plan.split,
        subset=motion_class.subset,
        label=motion_class.label,
        label_name=plan.label_name,
        prompt=prompt_for(plan.label_name, performer, arena, int(rng.integers(len(motion_class.phrasings)))),
        video=encode_video(filmed.frames, FPS, CRF),
        fps=FPS,
        num_frames=len(filmed.frames),
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        performer=performer.name,
        joints_px=filmed.joints_px,
        joints_confidence=filmed.visible,
        joints_cam_m=filmed.joints_cam_m,
        intrinsics=filmed.intrinsics,
        rotation=filmed.rotation,
        translation=filmed.translation,
        is_static=filmed.is_static,
        in_flight=in_flight,
        feet_in_contact=feet_in_contact,
    )


def _counts(motion: MotionClass) -> dict[Split, int]:
    return {"train": motion.num_train, "test": motion.num_test}


def _donor(split: Split, rng: np.random.Generator) -> str:
    """A motion that the split shows: training never shows any part of one that is kept for the test."""
    return str(rng.choice([name for name, motion in MOTIONS.items() if _counts(motion)[split] > 0]))


def _short_name(label_name: str) -> str:
    """For file names: FineGym's names have commas and are long, so that its elements go by their id."""
    label = MOTIONS[label_name].label
    return label_name.replace(" ", "_") if label < 0 else f"fx{label:02d}"


def _motion(plan: Plan, rng: np.random.Generator) -> Motion:
    """Choreography of a floor element, or a window of a recording."""
    motion_class, shape = MOTIONS[plan.label_name], plan.performer.shape
    if motion_class.label >= 0:
        seed = int(rng.integers(2**31))
        return choreograph(motion_class.label, shape=shape, seed=seed, fps=FPS, max_frames=MAX_FRAMES).motion
    capture, size = load_capture(str(rng.choice(motion_class.captures))), rest_body(shape).size
    start_frame, num_frames = _window(plan.label_name, capture.num_frames(FPS, size), size, rng)
    return capture.motion(start_frame, num_frames, fps=FPS, size=size, is_mirrored=bool(rng.random() < 0.5))


def _window(label_name: str, available: int, size: float, rng: np.random.Generator) -> tuple[int, int]:
    """First frame and number of frames of a clip, with the motion's key stretch inside."""
    motion_class = MOTIONS[label_name]
    num_frames = min(int(rng.integers(motion_class.num_frames[0], motion_class.num_frames[1] + 1)), available)
    first, last = 0, available - num_frames
    if motion_class.key_s is not None:
        frames_a_second = FPS * math.sqrt(size)
        first = max(first, math.ceil(motion_class.key_s[1] * frames_a_second) - num_frames)
        last = max(first, min(last, math.floor(motion_class.key_s[0] * frames_a_second)))
    return int(rng.integers(first, last + 1)), num_frames
