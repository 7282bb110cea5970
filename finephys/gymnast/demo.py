"""The demo data, clip by clip: what is in clip number n, and how it is made.

Path:    seed, number -> Plan -> Clip (finephys/data/clips.py)

Clip n depends on the seed and on n alone, not on how many clips are asked for nor on who makes them in what order.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finephys.data.clips import Clip, Split
from finephys.data.video import encode_video
from finephys.gymnast.body import Performer, performer_contacts, performer_mesh, rest_body
from finephys.gymnast.choreography import choreograph
from finephys.gymnast.mocap import Motion, load_capture
from finephys.gymnast.motions import ARENAS, MOTIONS, NUM_PERFORMERS, MotionClass, performers, prompt_for
from finephys.gymnast.render import Renderer, fit_camera, joint_visibility, to_camera, to_pixels

FPS = 30.0
MAX_FRAMES = 64
IMAGE_SIZE = 128
# Measured on the shipped shards: 173 clips stay below 9 MB and colours keep their edges.
CRF = 18


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


def make_clip(plan: Plan, seed: int) -> Clip:
    """Pose, film and encode one clip, with all its ground truth."""
    rng = np.random.default_rng([seed, 1, plan.number])
    motion_class, performer = MOTIONS[plan.label_name], plan.performer
    motion = _motion(plan, rng)
    num_frames = len(motion.root_m)
    joints_m, mesh = performer_mesh(motion, performer)
    in_flight, feet_in_contact = performer_contacts(motion, performer)
    arena = str(rng.choice(list(ARENAS)))
    camera = fit_camera(mesh, IMAGE_SIZE, rng)
    renderer = Renderer(performer, arena, camera, IMAGE_SIZE, motion.root_m[:, [0, 2]].mean(0))
    frames, visible = [], []
    for frame in range(num_frames):
        image, depth_m = renderer.draw(mesh.vertices_m[frame], mesh.normals[frame])
        frames.append(image)
        visible.append(joint_visibility(joints_m[frame], depth_m, renderer))

    def each_frame(value: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.repeat(value[None].astype(np.float32), num_frames, axis=0)

    return Clip(
        clip_id=f"{_short_name(plan.label_name)}-{performer.name}-c{plan.number:03d}",
        split=plan.split,
        subset=motion_class.subset,
        label=motion_class.label,
        label_name=plan.label_name,
        prompt=prompt_for(plan.label_name, performer, arena, int(rng.integers(len(motion_class.phrasings)))),
        video=encode_video(np.stack(frames), FPS, CRF),
        fps=FPS,
        num_frames=num_frames,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        performer=performer.name,
        joints_px=to_pixels(joints_m, camera).astype(np.float32),
        joints_confidence=np.stack(visible),
        joints_cam_m=to_camera(joints_m, camera).astype(np.float32),
        intrinsics=each_frame(camera.intrinsics),
        rotation=each_frame(camera.rotation),
        translation=each_frame(camera.translation),
        is_static=True,
        in_flight=in_flight,
        feet_in_contact=feet_in_contact,
    )


def _counts(motion: MotionClass) -> dict[Split, int]:
    return {"train": motion.num_train, "test": motion.num_test}


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
