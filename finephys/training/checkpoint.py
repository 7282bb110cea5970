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
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finephys.config import TrainConfig, as_json, config_hash, differences
from finephys.data import storage
from finephys.training.ema import ExponentialMovingAverage
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
        if not storage.exists(record_url):
            continue
        try:
            record = json.loads(storage.read_bytes(record_url))
            found.append(Checkpoint(url=folder, step=int(record["step"]), record=record))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"checkpoint record {record_url} cannot be read: {error}") from error
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest_checkpoint(config: TrainConfig) -> Checkpoint | None:
    """The newest checkpoint in config.output, None if there is none.

    Raises ValueError where it is of another configuration or another number of ranks.
    """
    checkpoints = list_checkpoints(config.output)
    if not checkpoints:
        return None
    newest = checkpoints[-1]
    if newest.record["config_hash"] != config_hash(config):
        changed = differences(as_json(config), newest.record["config"]) or ["the code's defaults"]
        shown = ", ".join(changed[:3]) + (" and more" if len(changed) > 3 else "")
        raise ValueError(
            f"output {config.output} holds a checkpoint of another configuration ({shown}); "
            "wanted the same one, or another --output"
        )
    return newest


def save_checkpoint(engine: Engine, average: ExponentialMovingAverage, config: TrainConfig, step: int) -> str:
    """Write a checkpoint after `step` optimizer steps; every rank calls this. Returns its URL.

    Afterwards only the newest config.keep_checkpoints remain.
    """
    url = storage.join(checkpoints_url(config.output), f"step-{step:08d}")
    if engine.rank == 0:
        # What an earlier attempt at this step left half-written.
        storage.delete_folder(url)
    engine.barrier()
    if storage.is_local(url):
        _write_share(engine, average, storage.local_path(url))
    else:
        with tempfile.TemporaryDirectory(prefix="finephys-checkpoint-") as scratch:
            _write_share(engine, average, Path(scratch))
            storage.upload_folder(Path(scratch), url)
    engine.barrier()
    if engine.rank == 0:
        record = {
            "step": step,
            "samples_seen": step * config.global_batch,
            "world_size": engine.world_size,
            "zero_stage": config.zero.stage,
            "shapes": engine.full_shapes(),
            "config": as_json(config),
            "config_hash": config_hash(config),
            "finephys_version": metadata.version("finephys"),
            "torch_version": torch.__version__,
        }
        storage.write_bytes(storage.join(url, RECORD), json.dumps(record, indent=1).encode())
        _delete_old(config)
    # No rank goes on before the checkpoint counts: one that looked for the newest would find the one before.
    engine.barrier()
    return url


def load_checkpoint(checkpoint: Checkpoint, engine: Engine, average: ExponentialMovingAverage) -> None:
    """Restore weights, optimizer state and moving average; every rank calls this."""
    with tempfile.TemporaryDirectory(prefix="finephys-checkpoint-") as scratch:
        if storage.is_local(checkpoint.url):
            folder = storage.local_path(checkpoint.url)
        else:
            folder = Path(scratch)
            storage.download_folder(checkpoint.url, folder)
        engine.load(folder / "engine")
        saved = load_file(folder / _average_name(checkpoint.record, engine.rank))
    for name, value in average.values.items():
        value.copy_(saved[name])


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
    for old in complete[: -config.keep_checkpoints]:
        # The record goes first: what is being deleted must not look complete.
        storage.delete_file(storage.join(old.url, RECORD))
        storage.delete_folder(old.url)
