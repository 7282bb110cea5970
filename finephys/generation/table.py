"""The request table of a batch: one row for each clip to generate, from a file or a recipe.

Path:    Parquet, CSV or recipe -> TableRow
Units:   none

A row says whose motion (`clip`, the id of a clip of the driving data), what it looks like (`prompt`; the clip's own
where empty) and which noise (`seed`; 0 where empty). Rows may repeat a clip; two equal rows are a mistake.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from finephys.data import storage
from finephys.data.clips import check_schema
from finephys.data.gym99 import GYM99_FLOOR
from finephys.generation.staging import PITCH_RANGE_DEG, Staging, label_of
from finephys.gymnast import motions
from finephys.gymnast.body_model import HEIGHT_RANGE_M

COLUMNS = ("clip", "prompt", "seed")


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One clip to generate. staging: what is choreographed where `clip` is no driving clip;  performer: by whom."""

    clip: str
    prompt: str
    seed: int
    staging: Staging | None = None
    performer: str | None = None


@dataclass(frozen=True, kw_only=True)
class DrivingIndex:
    """Where each driving clip lies, and what it shows. By clip_id: its shard's URL, split, class and prompt."""

    shard: dict[str, str]
    split: dict[str, str]
    label_name: dict[str, str]
    prompt: dict[str, str]


# For recipes that choreograph.
NO_DRIVING = DrivingIndex(shard={}, split={}, label_name={}, prompt={})


def index_driving(data: str) -> DrivingIndex:
    """Look through the shards at `data`, a folder or URL, without reading a video.

    Raises FileNotFoundError without a shard, ValueError on one that is not readable or of an unknown schema.
    """
    names = ("clip_id", "split", "label_name", "prompt")
    index = DrivingIndex(shard={}, split={}, label_name={}, prompt={})
    for shard in storage.list_shards(data):
        filesystem, path = storage.open_filesystem(shard)
        try:
            with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
                check_schema(file.schema_arrow, shard)
                rows = file.read(columns=list(names)).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(f"shard {shard} cannot be read: {str(error).splitlines()[0]}") from error
        for row in rows:
            index.shard[row["clip_id"]] = shard
            index.split[row["clip_id"]] = row["split"]
            index.label_name[row["clip_id"]] = row["label_name"]
            index.prompt[row["clip_id"]] = row["prompt"]
    return index


def read_table(path: Path, driving: DrivingIndex) -> list[TableRow]:
    """The rows of a .parquet or .csv file, in its order.

    Raises FileNotFoundError, and ValueError, naming the row, on other columns, unknown clips, rows that repeat and
    seeds that are no number from 0 on.
    """
    if not path.is_file():
        raise FileNotFoundError(f"request table {path} does not exist")
    if path.suffix not in (".parquet", ".csv"):
        raise ValueError(f"request table {path} ends with {path.suffix!r}, wanted .parquet or .csv")
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else pyarrow.csv.read_csv(path)
    except pa.ArrowException as error:
        raise ValueError(f"request table {path} cannot be read: {str(error).splitlines()[0]}") from error
    unknown = sorted(set(table.column_names) - set(COLUMNS))
    if unknown or "clip" not in table.column_names:
        raise ValueError(
            f"request table {path} has columns {', '.join(table.column_names)}; wanted clip and, if need be, prompt "
            "and seed"
        )
    rows = [_row(path, number, plain, driving) for number, plain in enumerate(table.to_pylist(), start=1)]
    if not rows:
        raise ValueError(f"request table {path} has no rows")
    seen: dict[TableRow, int] = {}
    for number, row in enumerate(rows, start=1):
        if row in seen:
            raise ValueError(f"request table {path}, row {number}: the same as row {seen[row]}")
        seen[row] = number
    return rows


def recipe_table(
    driving: DrivingIndex,
    *,
    classes: Sequence[str],
    split: str,
    clips_per_class: int,
    looks_per_clip: int,
    seeds_per_look: int,
    seed: int,
) -> list[TableRow]:
    """classes x clips of each x looks (prompts) x seeds; without classes, all that the split has.

    A look is a leotard, skin, hair and arena, drawn from `seed` and the clip's id, and named by the prompt.
    Raises ValueError on a class that the split does not have.
    """
    of_class: dict[str, list[str]] = {}
    for clip_id in sorted(driving.shard):
        if driving.split[clip_id] == split:
            of_class.setdefault(driving.label_name[clip_id], []).append(clip_id)
    if not of_class:
        raise ValueError(f"driving data has no clip in split {split!r}")
    for name in classes:
        if name not in of_class:
            raise ValueError(
                f"driving data has no {split} clip of class {name!r}, only of {', '.join(sorted(of_class))}"
            )
    rows = []
    for name in classes or sorted(of_class):
        for clip_id in of_class[name][:clips_per_class]:
            rng = np.random.default_rng([seed, *clip_id.encode()])
            for _ in range(looks_per_clip):
                prompt = _look(name, rng)
                rows += [TableRow(clip=clip_id, prompt=prompt, seed=seed + number) for number in range(seeds_per_look)]
    return list(dict.fromkeys(rows))


def staged_table(
    *, classes: Sequence[str], performers: int, cameras: int, looks_per_clip: int, seeds_per_look: int, seed: int
) -> list[TableRow]:
    """floor classes x performers x cameras x looks (prompts) x seeds, choreographed; without classes, all 35.

    A performer is a body and a way to do each element, a camera a direction and a pitch; all are drawn from `seed`,
    and do not depend on how many others there are. Raises ValueError on an unknown class.
    """
    labels = [label_of(name) for name in classes] or sorted(GYM99_FLOOR)
    rows = []
    for label, performer, camera in itertools.product(labels, range(performers), range(cameras)):
        height_m = np.random.default_rng([seed, 1, performer]).uniform(*HEIGHT_RANGE_M)
        draw = np.random.default_rng([seed, 2, label, performer, camera])
        staging = Staging(
            label=label,
            height_m=round(float(height_m), 2),
            performance=performer,
            bearing_deg=float(draw.integers(360)),
            pitch_deg=float(draw.integers(int(PITCH_RANGE_DEG[0]), int(PITCH_RANGE_DEG[1]) + 1)),
        )
        clip = f"fx{label:02d}-p{performer:03d}-c{camera:03d}"
        for _ in range(looks_per_clip):
            prompt = _look(GYM99_FLOOR[label].name, draw)
            rows += [
                TableRow(clip=clip, prompt=prompt, seed=seed + number, staging=staging, performer=f"staged-{performer}")
                for number in range(seeds_per_look)
            ]
    return list(dict.fromkeys(rows))


def read_driving_clip(driving: DrivingIndex, clip_id: str) -> dict[str, Any]:
    """The record of one driving clip, reading no more of its shard than the row groups that hold it."""
    filesystem, path = storage.open_filesystem(driving.shard[clip_id])
    with filesystem.open_input_file(path) as source:
        table = pq.read_table(source, filters=pc.field("clip_id") == clip_id)
    record: dict[str, Any] = table.to_pylist()[0]
    return record


def _look(motion: str, rng: np.random.Generator) -> str:
    """A prompt for the motion, by someone and somewhere."""
    person = motions.performers("train", int(rng.integers(2**31)))[0]
    return motions.prompt_for(motion, person, str(rng.choice(list(motions.ARENAS))), int(rng.integers(2**31)))


def _row(path: Path, number: int, plain: dict[str, Any], driving: DrivingIndex) -> TableRow:
    clip, seed = plain["clip"], plain.get("seed")
    if clip not in driving.shard:
        raise ValueError(
            f"request table {path}, row {number}: unknown clip {clip!r}, the driving data has {len(driving.shard)}, "
            f"such as {', '.join(sorted(driving.shard)[:3])}"
        )
    if seed is None:
        seed = 0
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"request table {path}, row {number}: seed is {seed!r}, wanted a whole number from 0 on")
    return TableRow(clip=clip, prompt=plain.get("prompt") or driving.prompt[clip], seed=seed)
