"""A contact sheet of the floor elements: a row of frames for each class, so that a person can judge the movement.

Path:    shards -> output/FX-JUMP.jpg, FX-TURN.jpg, FX-SALTO.jpg
Units:   pixel

    python -m finephys.gymnast.contact_sheet --output finephys/assets/readme
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from finephys.command_line import run
from finephys.data import storage
from finephys.data.clips import Clip, read_shard
from finephys.data.gym99 import GYM99_FLOOR
from finephys.data.video import decode_video

NUM_FRAMES = 10
_TITLE_PX = 18
_JPEG_QUALITY = 88


@dataclass(frozen=True, kw_only=True)
class ContactSheetConfig:
    """Which clips to show and where."""

    output: Path
    """Folder for one picture a subset: FX-JUMP.jpg, FX-TURN.jpg, FX-SALTO.jpg."""
    data: str = "finephys/assets/clips"
    """Folder of Parquet shards."""


def main(config: ContactSheetConfig) -> None:
    """Write the sheets. Raises ValueError where `data` lacks a class."""
    shown = _largest(config.data)
    missing = sorted(set(GYM99_FLOOR) - set(shown))
    if missing:
        raise ValueError(f"data {config.data} has no train clip of class {missing[0]}, {GYM99_FLOOR[missing[0]].name}")
    config.output.mkdir(parents=True, exist_ok=True)
    for subset in ("FX-JUMP", "FX-TURN", "FX-SALTO"):
        rows = [_row(shown[label]) for label in sorted(shown) if shown[label].subset == subset]
        path = config.output / f"{subset}.jpg"
        writing = path.with_name(f".writing-{path.name}")
        Image.fromarray(np.concatenate(rows)).save(writing, format="JPEG", quality=_JPEG_QUALITY, optimize=True)
        os.replace(writing, path)
        print(path)


def _largest(data: str) -> dict[int, Clip]:
    """For each floor class the train clip in which the performer is largest."""
    found: dict[int, tuple[float, Clip]] = {}
    for shard in storage.list_shards(data):
        for clip in read_shard(storage.local_path(shard)):
            if clip.split != "train" or clip.label not in GYM99_FLOOR or clip.joints_px is None:
                continue
            size_px = float(np.median(np.ptp(clip.joints_px, axis=1).max(-1)))
            if size_px > found.get(clip.label, (0.0, clip))[0]:
                found[clip.label] = size_px, clip
    return {label: clip for label, (_, clip) in found.items()}


def _row(clip: Clip) -> NDArray[np.uint8]:
    """Frames spread over the clip, side by side, under the class's id and name."""
    frames = decode_video(clip.video).frames_THWC
    index = np.linspace(0, len(frames) - 1, NUM_FRAMES).round().astype(int)
    strip = np.concatenate(list(frames[index]), axis=1)
    title = Image.new("RGB", (strip.shape[1], _TITLE_PX), "white")
    text = f"{clip.label}  {clip.label_name}"
    ImageDraw.Draw(title).text((4, 2), text, fill="black", font=ImageFont.load_default(13))
    return np.concatenate([np.asarray(title), strip])


if __name__ == "__main__":
    run(
        main,
        ContactSheetConfig,
        description="Draw a contact sheet of the floor elements in a folder of shards.",
        examples=("--output finephys/assets/readme", "--data outputs/clips --output outputs/sheets"),
    )
