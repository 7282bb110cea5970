"""What the whole training stack costs over the bare module, and what it holds in memory.

Path:    shards -> Ray Data -> Ray Train -> loop -> DeepSpeed, and beside it the same module in ten lines of PyTorch
Letters: P parameters, N = 2 ranks
Units:   ratios, MiB

streamed_share_of_bare, held_share_of_bare   samples a second of the demo's joint stage through the whole stack, by the
    wall clock from the end of its warm-up to its last step, over those of a bare loop (the same module, batches in
    memory, torch's AdamW and clipping, no moving average, no checks). Streamed: clips are decoded and encoded by Ray
    Data while the steps run. Held: every rank holds the rows, as the demo recipe does. The bare loop is timed before
    and after. A rank computes on one thread in all of them, so that the stream has a core of its own, as it has where
    the ranks are GPUs; ground truth stands in for the detected poses.
streamed_data_wait_share, held_data_wait_share   share of the steps' time that the loop waited for its next batch.
checkpoint_share        time to write a checkpoint over that plus the steps that the recipe puts between two.
zero1_over_zero0, ...   model states of a rank under a ZeRO stage, measured, over those without ZeRO;
zero1_over_formula, ... the same measured bytes over those of training/estimate.py.
resident_growth_mb      growth of rank 0's resident memory over 2,000 steps of a small module through the whole stack.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor, nn

from finephys.benchmarks.zero_memory import measured_and_formula
from finephys.config import RowsConfig, TrainConfig
from finephys.data import pipeline
from finephys.data.index import index_clips
from finephys.data.rows import collect_rows
from finephys.evaluation.figures import Figure
from finephys.recipes import demo
from finephys.telemetry import read_metrics
from finephys.training import ray_trainer
from finephys.training.batches import LabelledBatch, held_batches
from finephys.training.stages import Batch, Row, Stage, find_stage

# Clips of the throughput runs, and their steps; the first ones warm up.
NUM_CLIPS, NUM_STEPS, NUM_WARMUP = 28, 28, 8
# The first two checkpoints and validations (at 500 and 1000) bring what stays from then on.
LEAK_STEPS, LEAK_WARMUP = 2000, 1200


def measure() -> list[Figure]:
    """The figures, in about seven minutes on two cores."""
    with tempfile.TemporaryDirectory(prefix="finephys-benchmark-") as scratch:
        figures = [*_throughput(Path(scratch)), *_resident_growth(Path(scratch))]
        ray.shutdown()
    return figures + _memory_by_stage()


def _memory_by_stage() -> list[Figure]:
    found = measured_and_formula()
    without_zero, _ = found[0]
    return [
        *(Figure(name=f"zero{stage}_over_zero0", value=found[stage][0] / without_zero) for stage in (1, 2, 3)),
        *(
            Figure(name=f"zero{stage}_over_formula", value=measured / formula, at_most=1.1)
            for stage, (measured, formula) in found.items()
        ),
    ]


# --- throughput


def _throughput(scratch: Path) -> list[Figure]:
    stage = find_stage("joint")
    recipe = demo("joint")
    rows_config = replace(recipe.rows, train_clips=NUM_CLIPS, validation_clips=1, pose_source="truth")
    config = replace(
        recipe,
        steps=NUM_STEPS,
        threads=1,
        checkpoint_every=NUM_STEPS,
        validation_batches=0,
        sample_every=None,
        rows=rows_config,
    )
    ray_trainer.start_ray(config)
    index = index_clips(config.data, "train").evenly(NUM_CLIPS)
    assert config.init is not None
    tables = pipeline.feature_rows(index, config.init, rows_config)
    rows, failures = collect_rows(tables.iter_batches(batch_size=None, batch_format="pyarrow"))
    assert not failures
    batches = list(islice(held_batches(rows, stage.collate, config, 0, 0), NUM_STEPS))

    before = _bare_samples_per_s(config, stage, batches)
    rates, waits = {}, {}
    for name, is_held in (("streamed", False), ("held", True)):
        run_config = replace(config, output=str(scratch / name), rows=replace(rows_config, materialise=is_held))
        ray_trainer.run(run_config, stage)
        lines = _training_lines(run_config)
        measured = lines[NUM_WARMUP:]
        seconds = measured[-1]["time_s"] - lines[NUM_WARMUP - 1]["time_s"]
        rates[name] = config.global_batch * len(measured) / seconds
        waited = sum(line["data_wait_share"] * line["seconds"] for line in measured)
        waits[name] = waited / sum(line["seconds"] for line in measured)
        (checkpoint,) = [line for line in read_metrics(run_config.output) if line["split"] == "checkpoint"]
        checkpoint_s = checkpoint["seconds"]
        step_s = statistics.median(line["seconds"] for line in measured)
    after = _bare_samples_per_s(config, stage, batches)
    bare = statistics.mean([before, after])
    print(
        f"bare {before:.3f} and {after:.3f}, streamed {rates['streamed']:.3f}, held {rates['held']:.3f}",
        file=sys.stderr,
    )
    return [
        *(Figure(name=f"{name}_share_of_bare", value=rate / bare, at_least=0.9) for name, rate in rates.items()),
        *(Figure(name=f"{name}_data_wait_share", value=wait, at_most=0.05) for name, wait in waits.items()),
        Figure(
            name="checkpoint_share",
            value=checkpoint_s / (checkpoint_s + recipe.checkpoint_every * step_s),
            at_most=0.05,
        ),
    ]


def _bare_samples_per_s(config: TrainConfig, stage: Stage, batches: Sequence[LabelledBatch]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    module = ray_trainer.build_module(config, stage).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=config.optimizer.lr)
    started = time.perf_counter()
    for step, batch in enumerate(batches):
        if step == NUM_WARMUP:
            started = time.perf_counter()
        module(batch.tensors)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return config.global_batch * (len(batches) - NUM_WARMUP) / (time.perf_counter() - started)


def _training_lines(config: TrainConfig) -> list[dict[str, Any]]:
    return [line for line in read_metrics(config.output) if line["split"] == "train"]


# --- growth


@dataclass(frozen=True, kw_only=True)
class ThumbnailConfig:
    """An autoencoder of thumbnails: a step of a few milliseconds, so that thousands fit into a benchmark."""

    side: int = 8
    width: int = 64


class Thumbnail(nn.Module):
    """Two linear layers."""

    def __init__(self, config: ThumbnailConfig) -> None:
        super().__init__()
        size = 3 * config.side**2
        self.layers = nn.Sequential(nn.Linear(size, config.width), nn.GELU(), nn.Linear(config.width, size))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """loss: squared error of pixels in 0..1."""
        return {"loss": (self.layers(batch["pixels"]) - batch["pixels"]).square().mean()}

    def export(self, folder: Path) -> None:
        """Nothing is worth keeping."""


def build_thumbnail(config: ThumbnailConfig, init: Path | None) -> Thumbnail:
    """A fresh module; there is none to start from."""
    assert init is None
    return Thumbnail(config)


def collate_thumbnails(rows: list[Row], rng: np.random.Generator) -> Batch:
    """A random frame of each clip, by its every 16th pixel."""
    frames = [row["frames"][rng.integers(len(row["frames"])), ::16, ::16] for row in rows]
    pixels = np.stack(frames).reshape(len(rows), -1).astype(np.float32) / 255
    return {"pixels": torch.from_numpy(pixels)}


def _resident_growth(scratch: Path) -> list[Figure]:
    stage = Stage(rows="decoded", config=ThumbnailConfig, build=build_thumbnail, collate=collate_thumbnails)
    config = TrainConfig(
        stage="vae",
        output=str(scratch / "leak"),
        steps=LEAK_WARMUP + LEAK_STEPS,
        threads=1,
        checkpoint_every=500,
        validate_every=500,
        rows=RowsConfig(train_clips=32, validation_clips=8),
        module=ThumbnailConfig(),
    )
    ray_trainer.run(config, stage)
    resident = [line["resident_mb"] for line in _training_lines(config)]
    settled, last = resident[LEAK_WARMUP : LEAK_WARMUP + 100], resident[-100:]
    return [Figure(name="resident_growth_mb", value=statistics.median(last) - statistics.median(settled), at_most=1.0)]
