"""The real FineGym: its official annotation, category and split files, and PYSKL's 2D poses, as the floor elements.

Path:    (before the path) annotation.json, categories, split files -> Element, in which split, with which pose
Letters: T frames, J = 17 joints
Units:   second, pixel

FineGym [1] names an element by its video, event and segment: `{11 characters}_E_{6}_{6}_A_{4}_{4}`, of which the first
eleven are the YouTube id (it may hold `_` and `-`) and the numbers are truncated seconds, not cut points. Event times
count from the video's start, segment times from the event's. gym99's official train and val splits share videos and
even events: a model that saw the performer, hall and camera of a "new" clip is flattered. Splits here are by video
unless the official ones are asked for.
[1] Shao et al., FineGym, CVPR 2020. https://sdolivia.github.io/FineGym. Annotations are CC BY-NC 4.0: read from the
    user's copy, never shipped.
"""

import hashlib
import io
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finephys.data.clips import Split
from finephys.data.gym99 import GYM99_FLOOR
from finephys.skeleton import coco_to_h36m

_CLIP_ID = re.compile(r"(?P<video>.{11})_(?P<event>E_\d{6}_\d{6})_(?P<segment>A_\d{4}_\d{4})")
_CATEGORY = re.compile(r"Clabel:\s*(?P<label>\d+);\s*set:\s*\d+;\s*Glabel:\s*\d+;\s*(?P<name>.+)")

# Of a hundred videos, how many the split by video gives to val and to test.
_VAL_PERCENT, _TEST_PERCENT = 10, 10


@dataclass(frozen=True, kw_only=True)
class Element:
    """One floor element. start_s, end_s: from the video's first frame."""

    clip_id: str
    video_id: str
    label: int
    official_split: Split
    start_s: float
    end_s: float

    @property
    def event_id(self) -> str:
        """The video and the routine in it."""
        return self.clip_id.rsplit("_A_", 1)[0]

    @property
    def split_by_video(self) -> Split:
        """A split that follows from the video alone: about 80 % train, 10 % val, 10 % test, on every machine alike."""
        percent = int.from_bytes(hashlib.sha256(self.video_id.encode()).digest()[:8], "big") % 100
        if percent < _VAL_PERCENT:
            return "val"
        return "test" if percent < _VAL_PERCENT + _TEST_PERCENT else "train"

    @property
    def prompt(self) -> str:
        """An English sentence, one of the class's phrasings, chosen by the clip's id."""
        phrasings = GYM99_FLOOR[self.label].phrasings
        number = int.from_bytes(hashlib.sha256(self.clip_id.encode()).digest()[8:16], "big")
        return f"A gymnast {phrasings[number % len(phrasings)]}."


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What the official splits share."""

    num_videos: int
    num_shared_videos: int
    num_events: int
    num_shared_events: int


def read_elements(
    annotation: Path, categories: Path, split_files: Mapping[Split, Path]
) -> tuple[list[Element], list[dict[str, str]]]:
    """The floor elements (gym99 ids 6 to 40) of the split files, sorted by clip_id, and those that cannot be (clip_id,
    error): not annotated, or with no time of their own.

    Raises FileNotFoundError, and ValueError, naming file and line, on files that are not FineGym's, on categories whose
    names contradict ours, and on a clip in two splits.
    """
    _check_categories(categories)
    events = _read_annotation(annotation)
    elements: dict[str, Element] = {}
    failures = []
    for split, path in split_files.items():
        for number, clip_id, label in _read_split(path):
            if label not in GYM99_FLOOR:
                continue
            if clip_id in elements:
                raise ValueError(f"{path}, line {number}: clip {clip_id} is in two splits or twice in one")
            try:
                start_s, end_s = _span(events, clip_id)
            except ValueError as error:
                failures.append({"clip_id": clip_id, "error": str(error)})
                continue
            elements[clip_id] = Element(
                clip_id=clip_id,
                video_id=clip_id[:11],
                label=label,
                official_split=split,
                start_s=start_s,
                end_s=end_s,
            )
    return [elements[clip_id] for clip_id in sorted(elements)], failures


def find_leak(elements: Iterable[Element]) -> Leak:
    """How many videos and events stand in more than one official split."""
    splits_of_video: dict[str, set[str]] = {}
    splits_of_event: dict[str, set[str]] = {}
    for element in elements:
        splits_of_video.setdefault(element.video_id, set()).add(element.official_split)
        splits_of_event.setdefault(element.event_id, set()).add(element.official_split)
    return Leak(
        num_videos=len(splits_of_video),
        num_shared_videos=sum(len(splits) > 1 for splits in splits_of_video.values()),
        num_events=len(splits_of_event),
        num_shared_events=sum(len(splits) > 1 for splits in splits_of_event.values()),
    )


# --- PYSKL's poses


@dataclass(frozen=True, kw_only=True)
class DetectedPose:
    """HRNet's keypoints of one clip in H36M terms, as shares of the picture's width and height.

    joints (T,17,2) float32, 0..1 inside the picture; confidence (T,17) float32.
    """

    joints: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def at(self, num_frames: int, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """joints_px (T,17,2) and confidence (T,17) for num_frames frames over the same time, nearest in time."""
        index = np.linspace(0, len(self.joints) - 1, num_frames).round().astype(int)
        return self.joints[index] * np.array([width, height], np.float32), self.confidence[index]


def read_poses(path: Path) -> dict[str, DetectedPose]:
    """PYSKL's gym_hrnet.pkl, by clip_id: of several persons the one detected most surely.

    The pickle may hold numpy arrays and plain containers and nothing else; what asks for more is refused unread.
    Raises FileNotFoundError; ValueError on another file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"poses {path} do not exist")
    try:
        annotations = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()["annotations"]
        return {str(one["frame_dir"]): _pose(one) for one in annotations}
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"poses {path} are no PYSKL annotations: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays, numbers and plain containers; any other name in the file is an error, not an import."""

    _ALLOWED = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict")}
        | {
            (f"numpy.{core}.{module}", name)
            for core in ("core", "_core")
            for module, name in (
                ("multiarray", "_reconstruct"),
                ("multiarray", "scalar"),
                ("numeric", "_frombuffer"),
            )
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        # numpy 1's core is numpy 2's _core.
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def _pose(annotation: Mapping[str, Any]) -> DetectedPose:
    keypoints = np.asarray(annotation["keypoint"], np.float32)
    scores = np.asarray(annotation["keypoint_score"], np.float32)
    if keypoints.ndim != 4 or keypoints.shape[2:] != (17, 2) or scores.shape != keypoints.shape[:3]:
        raise ValueError(
            f"keypoint {keypoints.shape} and keypoint_score {scores.shape} of {annotation['frame_dir']} are not "
            "(M, T, 17, 2) and (M, T, 17)"
        )
    person = int(scores.mean((1, 2)).argmax())
    height, width = annotation["img_shape"]
    joints, confidence = coco_to_h36m(keypoints[person], scores[person])
    size = np.array([width, height], np.float32)
    return DetectedPose(joints=np.asarray(joints / size, np.float32), confidence=confidence)


# --- the official files


def _check_categories(path: Path) -> None:
    """gym99's names may change from release to release; ids that mean something else must not pass silently."""
    names = {}
    for number, line in _lines(path):
        match = _CATEGORY.fullmatch(line)
        if match is None:
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is no category, wanted 'Clabel: 6; set: 21; ...'")
        names[int(match["label"])] = match["name"]
    for label, known in GYM99_FLOOR.items():
        if not names.get(label, "").startswith("(FX)"):
            raise ValueError(
                f"{path}: class {label} is {names.get(label, 'absent')!r}, wanted gym99's (FX) {known.name}"
            )


def _read_annotation(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"annotation {path} does not exist")
    try:
        videos = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"annotation {path} is no JSON: {error}") from error
    if not isinstance(videos, dict) or not all(isinstance(events, dict) for events in videos.values()):
        raise ValueError(f"annotation {path} is not FineGym's: wanted {{video: {{event: {{...}}}}}}")
    return videos


def _read_split(path: Path) -> list[tuple[int, str, int]]:
    entries = []
    for number, line in _lines(path):
        clip_id, _, label = line.rpartition(" ")
        if _CLIP_ID.fullmatch(clip_id) is None or not label.isdigit():
            raise ValueError(f"{path}, line {number}: {line[:60]!r} is no split line, wanted 'CLIP_ID LABEL'")
        entries.append((number, clip_id, int(label)))
    return entries


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"file {path} does not exist")
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def _span(events: Mapping[str, Mapping[str, Any]], clip_id: str) -> tuple[float, float]:
    """Start and end in seconds of the video. Raises ValueError where the annotation does not have them."""
    match = _CLIP_ID.fullmatch(clip_id)
    assert match is not None
    event = events.get(match["video"], {}).get(match["event"])
    if event is None:
        raise ValueError(f"event {match['event']} of video {match['video']} is not annotated")
    segment = (event.get("segments") or {}).get(match["segment"])
    if segment is None:
        raise ValueError(f"segment {match['segment']} of event {match['event']} is not annotated")
    try:
        event_start_s = float(event["timestamps"][0][0])
        # Stages follow each other; a floor element has one.
        start_s, end_s = float(segment["timestamps"][0][0]), float(segment["timestamps"][-1][1])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"segment {match['segment']} has no timestamps") from error
    if not 0 <= start_s < end_s:
        raise ValueError(f"segment {match['segment']} lasts from {start_s} to {end_s} s")
    return event_start_s + start_s, event_start_s + end_s
