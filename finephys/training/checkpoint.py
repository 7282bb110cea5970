"""Checkpoints of a training run on any storage URL.

Path:    loop -> OUTPUT/checkpoints/step-00000250/ -> loop of the next start; -> training/export.py
Letters: none
Units:   optimizer steps

A checkpoint folder holds
  engine/                    DeepSpeed's files: weights and optimizer state, one set a rank
  average-rank0.safetensors  the moving average (one file a rank under ZeRO-3, whose ranks hold shards)
  checkpoint.json            step, data position, configuration with its hash, world size, shapes; written last
and exists only once checkpoint.json does: a kill at any moment leaves the previous checkpoint the newest. Buffers that
follow the data (running statistics) are each rank's own, and rank 0's are kept. There is no state of random generators
to keep: every random choice is seeded by (seed, step, rank), see loop.py.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finephys import __version__
from finephys.config import TrainConfig, as_json, config_hash, differences
from finephys.data import storage
from finephys.training.batches import StreamPosition, shared_anew, start_positions
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.patience import patiently
from finephys.training.zero import Engine

RECORD = "checkpoint.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """url: its folder.  step: optimizer steps done.  record: what checkpoint.json says."""

    url: str
    step: int
    record: dict[str, Any]


def checkpoints_url(output: str) -> str:
    """Where the checkpoints of a run lie."""
    return storage.join(output, "checkpoints")


def list_checkpoints(output: str) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first. Raises ValueError on a record that cannot be read."""
    found = []
    for folder in storage.list_folders(checkpoints_url(output)):
        record_url = storage.join(folder, RECORD)
        try:
            raw = storage.read_bytes(record_url)
        except FileNotFoundError:
            # Not complete yet, or deleted by the run since its folder was seen.
            continue
        try:
            record = json.loads(raw)
            found.append(Checkpoint(url=folder, step=int(record["step"]), record=record))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint record {record_url} cannot be read: {error}") from error
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """The newest checkpoint in config.output, None if there is none.

    Raises ValueError where it is of another configuration. Another number of ranks with the same global batch is none.
    """
    checkpoints = list_checkpoints(config.output)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    changed = differences(as_json(config), newest.record["config"])
    if changed:
        shown = ", ".join(changed[:3]) + (" and more" if len(changed) > 3 else "")
        raise ValueError(
            f"output {config.output} holds a checkpoint of another configuration ({shown}); "
            "wanted the same one, or another --output"
        )
    return newest


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss; None where none was validated."""
    validated = [one for one in checkpoints if one.record.get("validation_loss") is not None]
    return min(validated, key=lambda one: float(one.record["validation_loss"]), default=None)


def stream_positions(checkpoint: Checkpoint | None, num_ranks: int) -> list[StreamPosition]:
    """Where each of num_ranks ranks reads on after `checkpoint`; None: from the start."""
    saved = [] if checkpoint is None else checkpoint.record.get("stream", [])
    if not saved:
        return start_positions(num_ranks)
    positions = [
        StreamPosition(left=tuple((group, read) for group, read in one["left"]), next=one["next"], stride=one["stride"])
        for one in saved
    ]
    return shared_anew(positions, num_ranks)


def save_checkpoint(
    engine: Engine,
    average: ExponentialMovingAverage,
    config: TrainConfig,
    step: int,
    position: StreamPosition | None = None,
    validation_loss: float | None = None,
) -> str:
    """Write a checkpoint after `step` optimizer steps; every rank calls this. Returns its URL.

    position: where this rank's stream goes on, where it has one.  validation_loss: of just these weights, if known.
    Afterwards only the newest config.keep_checkpoints remain, and the one with the lowest validation loss.
    """
    url = storage.join(checkpoints_url(config.output), f"step-{step:08d}")
    patience_s = 60 * config.storage_patience_minutes
    if engine.rank == 0:
        # What an earlier attempt at this step left half-written.
        patiently(lambda: storage.delete_folder(url), patience_s)
    engine.barrier()
    if storage.is_local(url):
        patiently(lambda: _write_share(engine, average, storage.local_path(url)), patience_s)
    else:
        with tempfile.TemporaryDirectory(prefix="finephys-checkpoint-") as scratch:
            _write_share(engine, average, Path(scratch))
            patiently(lambda: storage.upload_folder(Path(scratch), url), patience_s)
    positions = engine.gathered(None if position is None else asdict(position))
    if engine.rank == 0:
        record = {
            "step": step,
            "validation_loss": validation_loss,
            "samples_seen": step * config.global_batch,
            "stream": [one for one in positions if one is not None],
            "world_size": engine.world_size,
            "zero_stage": config.zero.stage,
            "shapes": engine.full_shapes(),
            "config": as_json(config),
            "config_hash": config_hash(config),
            "finephys_version": __version__,
            "torch_version": torch.__version__,
        }
        encoded = json.dumps(record, indent=1).encode()
        patiently(lambda: storage.write_bytes(storage.join(url, RECORD), encoded), patience_s)
        patiently(lambda: _delete_old(config), patience_s)
    # No rank goes on before the checkpoint counts: one that looked for the newest would find the one before.
    engine.barrier()
    return url


def load_checkpoint(checkpoint: Checkpoint, engine: Engine, average: ExponentialMovingAverage) -> None:
    """Restore weights, optimizer state and moving average; every rank calls this, whatever number wrote it.

    On another number of ranks `engine` must have been built for it (is_resharding).
    """
    with tempfile.TemporaryDirectory(prefix="finephys-checkpoint-") as scratch:
        folder = Path(scratch)
        if storage.is_local(checkpoint.url):
            folder = storage.local_path(checkpoint.url)
        else:
            storage.download_folder(checkpoint.url, folder)
        if not is_resharding(checkpoint, engine.world_size):
            engine.load(folder / "engine")
            saved = load_file(folder / _average_name(checkpoint.record, engine.rank))
        else:
            engine.load_resharded(folder / "engine", Path(scratch) / "universal")
            saved = {name: engine.share(value, name) for name, value in read_average(checkpoint).items()}
    for name, value in average.values.items():
        value.copy_(saved[name])


def is_resharding(checkpoint: Checkpoint | None, num_ranks: int) -> bool:
    """Whether num_ranks ranks must share out anew what the ranks of `checkpoint` held; without ZeRO all hold all."""
    if checkpoint is None or checkpoint.record["zero_stage"] == 0:
        return False
    return bool(checkpoint.record["world_size"] != num_ranks)


def read_average(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The whole moving average in float32 by name, and integer buffers: consolidated from however many ranks."""
    record = checkpoint.record
    num_files = record["world_size"] if record["zero_stage"] == 3 else 1
    shares = []
    with tempfile.TemporaryDirectory(prefix="finephys-checkpoint-") as scratch:
        for rank in range(num_files):
            name = _average_name(record, rank)
            local = Path(scratch) / name
            local.write_bytes(storage.read_bytes(storage.join(checkpoint.url, name)))
            shares.append(load_file(local))
    whole = {}
    for name, first in shares[0].items():
        shape = record["shapes"].get(name, list(first.shape))
        if list(first.shape) == shape:
            whole[name] = first
            continue
        # A ZeRO-3 shard is flat, and the last one padded.
        flat = torch.cat([share[name] for share in shares])
        whole[name] = flat[: torch.Size(shape).numel()].reshape(shape)
    return whole


def _write_share(engine: Engine, average: ExponentialMovingAverage, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(folder / "engine")
    is_sharded = engine.config.zero.stage == 3
    if engine.rank == 0 or is_sharded:
        state = {name: value.cpu().contiguous() for name, value in average.values.items()}
        integers = {name: value.cpu().contiguous() for name, value in engine.integer_buffers().items()}
        save_file({**state, **integers}, folder / f"average-rank{engine.rank}.safetensors")


def _average_name(record: dict[str, Any], rank: int) -> str:
    return f"average-rank{rank if record['zero_stage'] == 3 else 0}.safetensors"


def _delete_old(config: TrainConfig) -> None:
    complete = list_checkpoints(config.output)
    best = best_checkpoint(complete)
    for old in complete[: -config.keep_checkpoints]:
        if old == best:
            continue
        # The record goes first: what is being deleted must not look complete.
        storage.delete_file(storage.join(old.url, RECORD))
        storage.delete_folder(old.url)
