"""One rank of a training without Ray: python -m tests.training.ranks FOLDER.

Trains the tiny stage with each ZeRO stage on the same rows and leaves weights and findings in FOLDER.
torch.distributed's variables (RANK, WORLD_SIZE, ...) are in the environment.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from finephys.config import ZeroConfig
from finephys.telemetry import MetricsLog
from finephys.training.batches import held_batches, validation_batches
from finephys.training.checkpoint import latest_checkpoint, load_checkpoint, read_average
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
        config = tiny_config("none", str(folder / f"zero{zero_stage}"), STEPS, TinyConfig(noise=0.0))
        config = replace(
            config,
            num_workers=world_size,
            batch_size=4 // world_size,
            checkpoint_every=5,
            zero=ZeroConfig(stage=zero_stage),
        )
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


def _engine(config):
    torch.manual_seed(config.seed)
    engine = Engine(build(config.module, None), config)
    return engine, ExponentialMovingAverage(engine.live_values(), config.optimizer.ema_decay)


def _train(config, engine, average, rank, first_step):
    train(
        config,
        engine,
        average,
        held_batches(rows(), collate, config, rank, first_step),
        validation_batches(rows()[:4], collate, config),
        MetricsLog(config.output, first_step, is_writer=rank == 0),
        first_step=first_step,
        deadline_s=None,
        report=lambda metrics: None,
    )


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
