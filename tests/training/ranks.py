"""One rank of a training without Ray: python -m tests.training.ranks FOLDER [OTHER].

Trains the tiny stage with each ZeRO stage on the same rows and leaves weights and findings in FOLDER. OTHER: what
another number of ranks left; its checkpoints of half-way are continued.
torch.distributed's variables (RANK, WORLD_SIZE, ...) are in the environment.
"""

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from finephys.config import ZeroConfig
from finephys.telemetry import MetricsLog, TensorBoardLog
from finephys.training.batches import held_batches, validation_batches
from finephys.training.checkpoint import is_resharding, latest_checkpoint, load_checkpoint, read_average
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.loop import train
from finephys.training.zero import Engine
from tests.training.tiny_stage import TinyConfig, build, collate, tiny_config

STEPS = 10


def rows() -> list[dict]:
    rng = np.random.default_rng(0)
    # One frame each: the collate's choice of a frame must not depend on the rank.
    return [{"clip_id": f"clip-{i}", "frames": rng.integers(0, 255, (1, 8, 8, 3), np.uint8)} for i in range(16)]


def main(folder: Path) -> None:
    world_size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    for zero_stage in (0, 1, 2, 3):
        config = _config(folder / f"zero{zero_stage}", world_size, zero_stage)
        engine, average = _engine(config)
        _train(config, engine, average, rank, first_step=0)
        checkpoint = latest_checkpoint(config)
        assert checkpoint is not None
        if rank == 0:
            save_file(read_average(checkpoint), folder / f"zero{zero_stage}.safetensors")

        # Restored in another engine: exactly what was saved.
        restored_engine, restored = _engine(config)
        load_checkpoint(checkpoint, restored_engine, restored)
        for name, value in engine.live_values().items():
            if rank > 0 and name == "running_mean":
                # Each rank's running statistics are its own; rank 0's are kept and ship.
                continue
            assert torch.equal(value, restored_engine.live_values()[name]), (zero_stage, name)
            assert torch.equal(average.values[name], restored.values[name]), name

    _refuses_nan(folder, rank, world_size)
    _autocasts(folder, rank, world_size)
    for other in sys.argv[2:]:
        _continues(folder, Path(other), rank, world_size)


def _continues(folder: Path, other: Path, rank: int, world_size: int) -> None:
    """From the checkpoint in the middle that another number of ranks wrote to the end."""
    for zero_stage in (0, 1, 2, 3):
        output = folder / f"continued{zero_stage}"
        shutil.copytree(other / f"zero{zero_stage}", output)
        config = _config(output, world_size, zero_stage)
        shutil.rmtree(output / "checkpoints" / f"step-{STEPS:08d}")
        checkpoint = latest_checkpoint(config)
        assert checkpoint is not None
        assert checkpoint.step == STEPS // 2
        assert checkpoint.record["world_size"] != world_size
        engine, average = _engine(config, is_resharding=is_resharding(checkpoint, world_size))
        load_checkpoint(checkpoint, engine, average)
        _train(config, engine, average, rank, first_step=checkpoint.step)
        if rank == 0:
            save_file(read_average(latest_checkpoint(config)), folder / f"continued{zero_stage}.safetensors")


def _config(output: Path, world_size: int, zero_stage: int):
    config = tiny_config("none", str(output), STEPS, TinyConfig(noise=0.0))
    return replace(
        config,
        num_workers=world_size,
        batch_size=4 // world_size,
        checkpoint_every=STEPS // 2,
        zero=ZeroConfig(stage=zero_stage),
    )


def _engine(config, is_resharding=False):
    torch.manual_seed(config.seed)
    engine = Engine(build(config.module, None), config, is_resharding=is_resharding)
    return engine, ExponentialMovingAverage(engine.live_values(), config.optimizer.ema_decay)


def _train(config, engine, average, rank, first_step):
    train(
        config,
        engine,
        average,
        held_batches(rows(), collate, config, rank, first_step),
        validation_batches(rows()[:4], collate, config),
        MetricsLog(config.output, first_step, is_writer=rank == 0),
        TensorBoardLog(config.output, first_step, is_writer=rank == 0),
        first_step=first_step,
        deadline_s=None,
        report=lambda metrics: None,
    )


def _autocasts(folder: Path, rank: int, world_size: int) -> None:
    """What bfloat16_autocast computes in, what it keeps, and whether it learns."""
    config = _config(folder / "autocast", world_size, zero_stage=1)
    config = replace(config, zero=ZeroConfig(stage=1, precision="bfloat16_autocast"))
    engine, average = _engine(config)
    computed = set()
    engine.module.encoder.register_forward_hook(lambda module, inputs, output: computed.add(str(output.dtype)))
    _train(config, engine, average, rank, first_step=0)
    kept = {str(value.dtype) for value in engine.live_values().values()}
    state = {str(value.dtype) for one in engine.optimizer.state.values() for value in one.values() if value.ndim}
    found = {"computed": sorted(computed), "kept": sorted(kept), "state": sorted(state)}
    (folder / f"autocast-rank{rank}.json").write_text(json.dumps(found))


def _refuses_nan(folder: Path, rank: int, world_size: int) -> None:
    """A loss that is not finite stops every rank before its weights move."""
    config = replace(tiny_config("none", str(folder / "nan"), STEPS), num_workers=world_size, batch_size=2)
    engine, average = _engine(config)
    before = {name: value.clone() for name, value in engine.live_values().items() if "running" not in name}
    batches = held_batches(rows(), collate, config, rank, 0)

    def poisoned():
        for batch in batches:
            batch.tensors["thumbnails"][0, 0] = float("nan")
            yield batch

    try:
        train(
            config,
            engine,
            average,
            poisoned(),
            [],
            MetricsLog(config.output, 0, is_writer=rank == 0),
            TensorBoardLog(config.output, 0, is_writer=rank == 0),
            first_step=0,
            deadline_s=None,
            report=lambda metrics: None,
        )
    except FloatingPointError as error:
        unmoved = all(torch.equal(value, engine.live_values()[name]) for name, value in before.items())
        found = {"message": str(error), "unmoved": unmoved}
        (folder / f"nan-rank{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
