"""Stage a floor element for a camera: which element a sentence means, and the motion that then guides generation.

Path:    prompt or gym99 class, body, camera -> Staged -> FinePhysPipeline (joints_cam_m) or the page's stick figure
Letters: T frames, J = 17 joints
Units:   metre, pixel, second, degree;  Frames: camera, x right, y down, z forward

Nothing here needs weights: the skeleton is there at once, the video follows.
"""

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from finephys.data.clips import Clip
from finephys.data.gym99 import GYM99_FLOOR, floor_class
from finephys.gymnast.body_model import HEIGHT_RANGE_M
from finephys.gymnast.cameras import Camera, aim_camera, to_camera, to_pixels

# As the demo clips (finephys/gymnast/demo.py): longer performances lose their beginning.
FPS = 30.0
MAX_FRAMES = 64
# Joints lie inside the body: so much of the picture is left around them for head, hands and feet. The angle of view is
# the middle of those that the demo clips are filmed with.
_FILL = 0.72
_FIELD_OF_VIEW_DEG = 32.0
PITCH_RANGE_DEG = (-5.0, 20.0)
# What says nothing about the movement.
_STOP_WORDS = {
    "a", "an", "and", "at", "before", "but", "by", "doe", "gymnast", "her", "herself", "in", "into", "of", "off", "on",
    "one", "or", "she", "the", "to", "up", "with",
}  # fmt: skip
# Words of everyday that gym99 has its own for.
_SYNONYMS = {"backflip": ("salto", "backward"), "frontflip": ("salto", "forward"), "somersault": ("salto",)}


@dataclass(frozen=True, kw_only=True)
class Staging:
    """What is performed, by which body, and from where it is seen.

    label: gym99 id;  height_m: 1.35 to 1.70;  performance: seed of how well she does it and on which side;
    bearing_deg: along which direction of the hall the camera looks, 0 is that of her run-up;  pitch_deg: down.
    max_seconds: of a longer performance the end is shown.
    """

    label: int
    height_m: float = 1.55
    performance: int = 0
    bearing_deg: float = 90.0
    pitch_deg: float = 8.0
    max_seconds: float = MAX_FRAMES / FPS

    def __post_init__(self) -> None:
        if self.label not in GYM99_FLOOR:
            raise ValueError(f"label is {self.label}, wanted {min(GYM99_FLOOR)} to {max(GYM99_FLOOR)}")
        ranges = {"height_m": HEIGHT_RANGE_M, "pitch_deg": PITCH_RANGE_DEG, "bearing_deg": (0.0, 360.0)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted {low:g} to {high:g}")
        if self.performance < 0:
            raise ValueError(f"performance is {self.performance}, wanted a number from 0 on")
        if not 0.5 <= self.max_seconds < math.inf:
            raise ValueError(f"max_seconds is {self.max_seconds}, wanted at least 0.5")


@dataclass(frozen=True, kw_only=True)
class Staged:
    """joints_cam_m (T,17,3), joints_px (T,17,2), camera (intrinsics for a picture of the size that was asked for),
    in_flight (T,), feet_in_contact (T,2): right, left."""

    joints_cam_m: NDArray[np.float32]
    joints_px: NDArray[np.float32]
    camera: Camera
    fps: float
    in_flight: NDArray[np.bool_]
    feet_in_contact: NDArray[np.bool_]


# Choreography takes longer than a small model does.
@functools.lru_cache(maxsize=128)
def stage(staging: Staging, height: int, width: int) -> Staged:
    """The performance as a still camera sees it in a picture of height x width pixels; read only, it is remembered."""
    # Here, because it brings torch along, which reading a table or showing --help does without.
    from finephys.gymnast.choreography import choreograph

    max_frames = min(MAX_FRAMES, max(2, round(staging.max_seconds * FPS)))
    performed = choreograph(
        staging.label, height_m=staging.height_m, seed=staging.performance, fps=FPS, max_frames=max_frames
    )
    joints_m = performed.joints_world_m
    side = min(height, width)
    camera = aim_camera(
        joints_m.reshape(-1, 3),
        side,
        math.radians(staging.bearing_deg),
        pitch=math.radians(staging.pitch_deg),
        field_of_view=math.radians(_FIELD_OF_VIEW_DEG),
        fill=_FILL,
    )
    # The square that she was aimed at lies in the middle of the picture.
    margin_px = np.array([(width - side) / 2, (height - side) / 2])
    intrinsics = camera.intrinsics.copy()
    intrinsics[:2, 2] += margin_px
    return Staged(
        joints_cam_m=to_camera(joints_m, camera).astype(np.float32),
        joints_px=(to_pixels(joints_m, camera) + margin_px).astype(np.float32),
        camera=replace(camera, intrinsics=intrinsics),
        fps=FPS,
        in_flight=performed.in_flight,
        feet_in_contact=performed.feet_in_contact,
    )


def staged_clip(staging: Staging, *, clip_id: str, split: str, prompt: str, performer: str, side: int) -> Clip:
    """The same as a driving clip with ground truth and without a video, in a picture of side x side pixels."""
    staged = stage(staging, side, side)
    known, num_frames = GYM99_FLOOR[staging.label], len(staged.joints_px)
    is_inside = np.all((staged.joints_px >= 0) & (staged.joints_px <= side), axis=-1)

    def every_frame(value: NDArray[np.float64]) -> NDArray[np.float32]:
        return np.repeat(value[None].astype(np.float32), num_frames, axis=0)

    return Clip(
        clip_id=clip_id,
        split=split,
        subset=known.subset,
        label=known.label,
        label_name=known.name,
        prompt=prompt,
        video=b"",
        fps=staged.fps,
        num_frames=num_frames,
        height=side,
        width=side,
        performer=performer,
        joints_px=staged.joints_px,
        joints_confidence=is_inside.astype(np.float32),
        joints_cam_m=staged.joints_cam_m,
        intrinsics=every_frame(staged.camera.intrinsics),
        rotation=every_frame(staged.camera.rotation),
        translation=every_frame(staged.camera.translation),
        is_static=True,
        in_flight=staged.in_flight,
        feet_in_contact=staged.feet_in_contact,
    )


def label_of(name_or_label: str) -> int:
    """The gym99 id of a class that is given by its name or id. Raises ValueError on an unknown one."""
    text = name_or_label.strip()
    return floor_class(int(text) if text.isdecimal() else text.lower()).label


def label_of_prompt(prompt: str) -> int | None:
    """The class that a sentence tells of; None where it shares no word with any class.

    A class's name in the sentence decides, the longest one first; else the words that it shares with a class's name
    and phrasings, rare ones counting more (inverse document frequency).
    """
    words = _words(prompt)
    sentence = f" {' '.join(words)} "
    named = [
        (len(known.name), label)
        for label, known in GYM99_FLOOR.items()
        if f" {' '.join(_words(known.name))} " in sentence
    ]
    if named:
        return max(named)[1]
    scores = {
        label: sum(1 / _COMMONNESS[word] for word in set(words) & vocabulary) / math.sqrt(len(vocabulary))
        for label, vocabulary in _VOCABULARY.items()
    }
    best = max(scores, key=lambda label: scores[label])
    return best if scores[best] > 0 else None


def _words(text: str) -> list[str]:
    """The words that count, without a final s."""
    plain = [word.removesuffix("s") for word in re.findall(r"[a-z]+|\d+(?:\.\d+)?", text.lower())]
    known = [synonym for word in plain for synonym in _SYNONYMS.get(word, (word,))]
    return [word for word in known if word and word not in _STOP_WORDS]


_VOCABULARY = {
    label: {word for sentence in (known.name, *known.phrasings) for word in _words(sentence)}
    for label, known in GYM99_FLOOR.items()
}
_COMMONNESS = Counter(word for vocabulary in _VOCABULARY.values() for word in vocabulary)
