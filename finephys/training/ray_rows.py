"""The rows of a run from Ray Data: held ones made once by the driver, streams read by each rank for itself.

Path:    ClipIndex -> rows -> batches.py
Letters: none
Units:   none

A rank has a stream of its own rather than a share of a common one (Ray Data's streaming_split): what it reads then
depends on nobody's speed, a restart reads on from where the checkpoint was, and no rank waits for another at the end of
an epoch, which clips that fail would make them reach at different steps.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from tqdm import tqdm

from finephys.config import TrainConfig
from finephys.data import pipeline, storage
from finephys.data.index import ClipIndex, RowGroup
from finephys.data.rows import Row, to_rows
from finephys.training.batches import StreamPosition, window_index
from finephys.training.stages import Stage

# Row groups in one execution of a stream's chain: its actors load their weights anew for each.
GROUPS_A_PASS = 256
# Between two looks of a stream's scheduler at its tasks.
SCHEDULER_PAUSE_S = 0.05


def seconds_between_looks() -> float:
    """How often a bar on stderr moves; in a log file it is a line every half minute."""
    return 1.0 if sys.stderr.isatty() else 30.0


def clip_rows(config: TrainConfig, stage: Stage, index: ClipIndex, num_streams: int = 1) -> ray.data.Dataset:
    """The rows of the clips `index`, in its order; num_streams: such chains that share the run's actors."""
    if stage.rows == "features":
        assert config.init is not None
        rows_config = replace(config.rows, actors=max(1, config.rows.actors // num_streams))
        return pipeline.feature_rows(index, config.init, rows_config)
    return pipeline.decoded_rows(index)


def held_rows(config: TrainConfig, stage: Stage, index: ClipIndex, name: str) -> tuple[ray.data.Dataset, list[Row]]:
    """The rows of all clips of `index`, made, and the failures among them.

    They lie on the driver's node: of what an actor made nothing could be made again once its node and it are gone.
    Raises ValueError where every clip failed.
    """
    started = time.perf_counter()
    blocks, table = [], []
    clip_ids = index.clip_ids
    with tqdm(total=len(clip_ids), desc=f"{name} rows", unit="clip", mininterval=seconds_between_looks()) as bar:
        for block in clip_rows(config, stage, index).iter_batches(batch_size=None, batch_format="pyarrow"):
            table += block.select(["clip_id", "error"]).to_pylist()
            blocks.append(ray.put(block))
            bar.update(len(block))
    rows = ray.data.from_arrow_refs(blocks)
    assert sorted(row["clip_id"] for row in table) == list(clip_ids), "a clip was lost or doubled on its way"
    failed = [row for row in table if row["error"] is not None]
    print(
        f"finephys: {name} rows: {len(clip_ids)} clips = {len(clip_ids) - len(failed)} + {len(failed)} failed, "
        f"{rows.size_bytes() / 1e6:.0f} MB, {time.perf_counter() - started:.0f} s",
        file=sys.stderr,
    )
    if len(failed) == len(clip_ids):
        raise ValueError(f"every clip of split {index.split} failed, the first with: {failed[0]['error']}")
    return rows, failed


def validation_windows(config: TrainConfig, stage: Stage) -> ray.data.Dataset:
    """The windows that every validation uses."""
    assert stage.sample_validation_window is not None
    num_windows = config.validation_batches * config.batch_size
    return pipeline.window_rows(stage.sample_validation_window, int, num_windows, config.seed)


def held_windows(config: TrainConfig, stage: Stage, num_windows: int) -> ray.data.Dataset:
    """The first windows of the stream, which every rank holds."""
    assert stage.sample_window is not None
    return pipeline.window_rows(stage.sample_window, int, num_windows, config.seed)


def window_stream(config: TrainConfig, stage: Stage, rank: int, first_step: int) -> Iterator[tuple[Row, None]]:
    """This rank's windows from `first_step` to the end of the run."""
    assert stage.sample_window is not None
    num_left = (config.steps - first_step) * config.accumulation * config.batch_size

    def index_of(position: int) -> int:
        return window_index(position, config, rank, first_step)

    for row in _iterated(pipeline.window_rows(stage.sample_window, index_of, num_left, config.seed), config):
        yield row, None


def clip_stream(
    config: TrainConfig, stage: Stage, index: ClipIndex, rank: int, position: StreamPosition
) -> Iterator[tuple[Row, StreamPosition]]:
    """This rank's sound rows from `position` on, without end, each with the position after it.

    The others go into OUTPUT/failures-stream-rankR.jsonl, once each. Raises ValueError where an epoch has no sound row.
    """
    url = storage.join(config.output, f"failures-stream-rank{rank}.jsonl")
    failures = {row["clip_id"]: row for row in read_failures(url)}
    num_whole, num_since_sound = 0, 0
    groups = position.groups()
    while True:
        begun = list(islice(groups, GROUPS_A_PASS))
        chosen = [(_group(index, config.seed, number), num_read) for number, num_read in begun]
        wanted = [replace(group, clip_ids=group.clip_ids[num_read:]) for group, num_read in chosen]
        of_pass = replace(index, groups=tuple(group for group in wanted if group.clip_ids))
        rows = iter(_iterated(clip_rows(config, stage, of_pass, config.num_workers), config))
        for group, num_read in chosen:
            for clip in range(num_read, len(group.clip_ids)):
                row = next(rows)
                assert row["clip_id"] == group.clip_ids[clip], "the stream lost its order"
                is_last = clip + 1 == len(group.clip_ids)
                after = position.after(num_whole + is_last, 0 if is_last else clip + 1)
                if "error" not in row:
                    num_since_sound = 0
                    yield row, after
                    continue
                num_since_sound += 1
                if row["clip_id"] not in failures:
                    failures[row["clip_id"]] = row
                    write_failures(url, list(failures.values()))
                if num_since_sound > len(index.clip_ids):
                    raise ValueError(f"every clip of split {index.split} failed, the last with: {row['error']}")
            num_whole += 1


def _group(index: ClipIndex, seed: int, number: int) -> RowGroup:
    """The number-th row group of the endless sequence of epochs, its clips in the order of that epoch."""
    epoch, place = divmod(number, len(index.groups))
    group: RowGroup = index.groups[np.random.default_rng((seed, epoch)).permutation(len(index.groups))[place]]
    order = np.random.default_rng((seed, epoch, place)).permutation(len(group.clip_ids))
    return replace(group, clip_ids=tuple(group.clip_ids[clip] for clip in order))


class _UnhurriedScheduler(ExecutionCallback):
    """While a finished block waits for room Ray Data 2.60 looks for it without a pause: two thirds of a core."""

    def on_execution_step(self, executor: object) -> None:
        time.sleep(SCHEDULER_PAUSE_S)


def _iterated(rows: ray.data.Dataset, config: TrainConfig) -> Iterator[Row]:
    """The rows in their order, made while they are read, by an actor that leaves this process to its steps."""
    options = rows.context.execution_options
    options.preserve_order = True
    rows.context.enable_progress_bars = False
    rows.context.custom_execution_callback_classes = [_UnhurriedScheduler]
    # Without a bound a stream fills the store, which the other ranks' streams share, and takes the ranks' cores for it.
    options.resource_limits = options.resource_limits.copy(object_store_memory=config.rows.ahead_mb * 2**20)
    (stream,) = rows.streaming_split(1, equal=False)
    for table in stream.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from to_rows(table)


def read_failures(url: str) -> list[Row]:
    """The lines of a failures table; none where there is no such file."""
    if not storage.exists(url):
        return []
    return [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]


def write_failures(url: str, failures: list[Row]) -> None:
    """A failures table: clip_id and error of each clip that was left out; no file where there are none."""
    if failures:
        lines = [json.dumps({"clip_id": row["clip_id"], "error": row["error"]}) for row in failures]
        storage.write_bytes(url, "".join(f"{line}\n" for line in lines).encode())
        print(f"finephys: {len(failures)} clips failed, see {url}", file=sys.stderr)
