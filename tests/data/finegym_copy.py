"""A small copy of FineGym in the official formats: three videos whose frames say their numbers, one of them missing."""

import json
from pathlib import Path

import numpy as np

from finephys.data.gym99 import GYM99_FLOOR
from tests.data.numbered import write_numbered

# Ids with every letter that YouTube uses.
VIDEOS = ("aB3_-xYz012", "-0LtLS9wROr", "missing__id")
# (video, event, segment, label, split, event start, segment start and end); 93 is no floor class.
ELEMENTS = (
    (VIDEOS[0], "E_000002_000012", "A_0001_0002", 6, "train", 2.0, 1.5, 2.5),
    (VIDEOS[0], "E_000002_000012", "A_0003_0004", 24, "val", 2.0, 3.0, 4.1),
    (VIDEOS[0], "E_000002_000012", "A_0005_0006", 40, "train", 2.0, 5.0, 5.2),
    (VIDEOS[0], "E_000014_000018", "A_0000_0001", 93, "train", 14.0, 0.0, 1.0),
    (VIDEOS[1], "E_000000_000009", "A_0000_0001", 17, "train", 0.5, 0.0, 1.0),
    (VIDEOS[1], "E_000000_000009", "A_0018_0019", 18, "val", 0.5, 18.0, 19.0),
    (VIDEOS[2], "E_000000_000009", "A_0000_0001", 10, "train", 0.0, 0.0, 1.0),
)
UNANNOTATED = f"{VIDEOS[1]}_E_000050_000059_A_0000_0001"


def clip_id(number: int) -> str:
    return "_".join(ELEMENTS[number][:3])


def write_copy(folder: Path) -> dict[str, Path]:
    """Write the files; returns the options of jobs/build_shards.py."""
    annotation: dict[str, dict[str, dict]] = {}
    lines: dict[str, list[str]] = {"train": [f"{UNANNOTATED} 7"], "val": []}
    for video, event, segment, label, split, event_s, start_s, end_s in ELEMENTS:
        routine = annotation.setdefault(video, {}).setdefault(
            event, {"event": 2, "timestamps": [[event_s, event_s + 9]], "segments": {}}
        )
        routine["segments"][segment] = {"stages": 1, "timestamps": [[start_s, end_s]]}
        lines[split].append(f"{video}_{event}_{segment} {label}")
    annotation[VIDEOS[0]]["E_000090_000099"] = {"event": 1, "timestamps": [[90.0, 99.0]], "segments": None}
    categories = [f"Clabel: {label:3}; set: 21; Glabel:  67; (FX) {one.name}" for label, one in GYM99_FLOOR.items()]
    files = {
        "annotation": folder / "annotation.json",
        "categories": folder / "categories.txt",
        "train": folder / "train.txt",
        "val": folder / "val.txt",
        "videos": folder / "videos",
    }
    files["annotation"].write_text(json.dumps(annotation))
    files["categories"].write_text("Clabel:   0; set:  1; Glabel:   1; (VT) round-off\n" + "\n".join(categories) + "\n")
    for split in ("train", "val"):
        files[split].write_text("\n".join(lines[split]) + "\n")
    files["videos"].mkdir()
    write_numbered(files["videos"] / f"{VIDEOS[0]}.mp4", 600)
    write_numbered(files["videos"] / f"{VIDEOS[1]}.mkv", 300, fps=25)
    (files["videos"] / "notes.txt").write_text("not a video")
    return files


def pyskl(num_persons: int = 2, num_frames: int = 10) -> dict:
    """PYSKL's poses of the first element: the last person is the surest."""
    rng = np.random.default_rng(0)
    keypoint = rng.uniform(0, 100, (num_persons, num_frames, 17, 2)).astype(np.float16)
    score = np.full((num_persons, num_frames, 17), 0.2, np.float16)
    score[-1] = 0.9
    one = {
        "frame_dir": clip_id(0), "total_frames": num_frames, "img_shape": (100, 200), "original_shape": (100, 200),
        "label": 6, "keypoint": keypoint, "keypoint_score": score,
    }  # fmt: skip
    return {"split": {"train": [clip_id(0)], "val": []}, "annotations": [one]}
