"""The training loop, one for every stage.

Path:    batches -> Engine -> metrics, checkpoints
Letters: none
Units:   seconds; samples as the stage's rows define them

Random choices have no state: the module's noise at step s on rank r comes from torch.manual_seed(f(seed, s, r)) and the
collate's from a generator of the same numbers. That is why an interrupted run equals an uninterrupted one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from finephys.config import TrainConfig
from finephys.hops import timed_hops
from finephys.telemetry import MetricsLog, TensorBoardLog
from finephys.training.batches import LabelledBatch, StreamPosition
from finephys.training.checkpoint import save_checkpoint
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.patience import patiently
from finephys.training.samples import write_samples
from finephys.training.schedule import learning_rate
from finephys.training.stages import Sampler
from finephys.training.zero import Engine

Metrics = dict[str, Any]

# What a step's time is made of; the hops inside the forward pass are told apart beside it.
PHASES = ("wait", "forward", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """step: optimizer steps done.  is_finished: whether these are all; otherwise the deadline came first."""

    step: int
    is_finished: bool


def train(
    config: TrainConfig,
    engine: Engine,
    average: ExponentialMovingAverage,
    batches: Iterator[LabelledBatch],
    validation: Sequence[LabelledBatch],
    log: MetricsLog,
    board: TensorBoardLog,
    *,
    first_step: int,
    deadline_s: float | None,
    report: Callable[[Metrics], None],
    sampler: Sampler | None = None,
) -> Outcome:
    """Train from `first_step` to config.steps or to `deadline_s` (time.time()), whichever comes first.

    Every rank calls this. report: called on every rank at each logging interval with the newest metrics.  sampler: what
    makes videos every config.sample_every steps.
    Raises FloatingPointError before the optimizer moves where a loss or a gradient is not finite.
    """
    pending: list[Metrics] = []
    patience_s = 60 * config.storage_patience_minutes
    if first_step == 0:
        _log_validation(config, engine, average, validation, log, board, step=0)
    engine.train(True)

    for step in range(first_step, config.steps):
        line, position = _optimizer_step(config, engine, average, batches, step)
        pending.append(line)
        num_done = step + 1

        validation_loss = None
        is_last = num_done == config.steps
        is_stopping = False
        if is_last or num_done % config.log_every == 0:
            newest = _flush(pending, config, engine, log)
            board.append(newest)
            report(newest)
            is_stopping = engine.any_rank(deadline_s is not None and time.time() >= deadline_s)
        if is_last or is_stopping or num_done % config.validate_every == 0:
            _flush(pending, config, engine, log)
            validation_loss = _log_validation(config, engine, average, validation, log, board, step=num_done)
            engine.train(True)
        if sampler is not None and config.sample_every and (is_last or num_done % config.sample_every == 0):
            write_samples(config, engine, average, sampler, validation[0], num_done)
            engine.train(True)
        if is_last or is_stopping or num_done % config.checkpoint_every == 0:
            _flush(pending, config, engine, log)
            started = time.perf_counter()
            for logged in (log, board):
                patiently(logged.publish, patience_s)
            save_checkpoint(engine, average, config, num_done, position, validation_loss)
            seconds = time.perf_counter() - started
            log.append([{"step": num_done, "split": "checkpoint", "seconds": seconds, "time_s": time.time()}])
        if is_stopping:
            return Outcome(step=num_done, is_finished=is_last)
    return Outcome(step=config.steps, is_finished=True)


def _optimizer_step(
    config: TrainConfig,
    engine: Engine,
    average: ExponentialMovingAverage,
    batches: Iterator[LabelledBatch],
    step: int,
) -> tuple[Metrics, StreamPosition | None]:
    """One optimizer step: its line of metrics, tensors still on the device, and where the stream goes on after it."""
    started = time.perf_counter()
    seconds = dict.fromkeys(PHASES, 0.0)
    lr = learning_rate(step, config.steps, config.optimizer)
    torch.manual_seed(_seed(config.seed, step, engine.rank))
    terms: dict[str, Tensor] = {}
    part_norms: dict[str, Tensor] = {}
    clip_ids: list[str] = []
    num_frames = 0

    for micro in range(config.accumulation):
        is_last_micro = micro + 1 == config.accumulation
        with _timed(seconds, "wait"):
            batch = next(batches)
        clip_ids += batch.clip_ids
        num_frames += batch.num_frames

        with _timed(seconds, "forward"), timed_hops() as by_hop:
            losses = engine.forward(batch.tensors)
            # One host sync: a weight that saw a NaN cannot be repaired, and DeepSpeed's clipping syncs anyway.
            if not torch.isfinite(losses["loss"]):
                raise FloatingPointError(_nonfinite("loss", losses["loss"].item(), step, engine.rank, clip_ids))
        for name, hop_s in by_hop.items():
            seconds[name] = seconds.get(name, 0.0) + hop_s
        with _timed(seconds, "backward"):
            engine.backward(losses["loss"])
        for name, value in losses.items():
            terms[name] = terms.get(name, torch.zeros((), device=value.device)) + value.detach().float()
        if is_last_micro and (step + 1) % config.log_every == 0:
            part_norms = engine.grad_norms_by_part()
        with _timed(seconds, "optimizer"):
            try:
                engine.step(lr)
            except FloatingPointError as error:
                raise FloatingPointError(_nonfinite("gradient", math.nan, step, engine.rank, clip_ids)) from error
            if is_last_micro:
                average.update(engine.live_values(), step + 1)

    line = {
        "step": step + 1,
        "split": "train",
        **{name: value / config.accumulation for name, value in terms.items()},
        "lr": lr,
        "grad_norm": engine.grad_norm(),
        **{f"grad_norm/{part}": norm for part, norm in part_norms.items()},
        "seconds": time.perf_counter() - started,
        **{f"seconds/{name}": value for name, value in seconds.items()},
        "frames_per_s": num_frames * config.num_workers,
        "time_s": time.time(),
        **_memory(engine),
    }
    return line, batch.position


@torch.no_grad()
def validate(
    config: TrainConfig, engine: Engine, average: ExponentialMovingAverage, batches: Sequence[LabelledBatch]
) -> dict[str, float]:
    """Mean loss terms of the averaged weights on fixed batches with fixed noise; {} without batches.

    Two validations of a run differ only by the weights: batch i always sees the noise of seed i.
    """
    totals: dict[str, Tensor] = {}
    engine.train(False)
    live = engine.live_values()
    with average.swapped_in(live), torch.random.fork_rng(devices=engine.cuda_devices):
        for index, batch in enumerate(batches):
            torch.manual_seed(index)
            for name, value in engine.forward(batch.tensors).items():
                totals[name] = totals.get(name, torch.zeros((), device=value.device)) + value.detach().float()
    return {name: float(value) / len(batches) for name, value in totals.items()}


def _log_validation(
    config: TrainConfig,
    engine: Engine,
    average: ExponentialMovingAverage,
    batches: Sequence[LabelledBatch],
    log: MetricsLog,
    board: TensorBoardLog,
    step: int,
) -> float | None:
    """Validate and log; returns the loss, None without batches."""
    started = time.perf_counter()
    losses = validate(config, engine, average, batches)
    if losses:
        line = {"step": step, "split": "validation", **losses, "seconds": time.perf_counter() - started}
        line["time_s"] = time.time()
        log.append([line])
        board.append(line)
    return losses.get("loss")


def _flush(pending: list[Metrics], config: TrainConfig, engine: Engine, log: MetricsLog) -> Metrics:
    """Bring the pending steps' scalars, means over the ranks, to the host, all in one go, and log them.

    Every rank calls this at the same steps. Returns the newest.
    """
    if not pending:
        return {}
    scalars = [value.to(engine.device) for line in pending for value in line.values() if isinstance(value, Tensor)]
    numbers = iter(engine.mean_over_ranks(torch.stack(scalars)).tolist())
    lines = []
    for line in pending:
        line = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in line.items()}
        line["data_wait_share"] = line["seconds/wait"] / line["seconds"]
        line["samples_per_s"] = config.global_batch / line["seconds"]
        line["frames_per_s"] /= line["seconds"]
        lines.append(line)
    log.append(lines)
    pending.clear()
    return lines[-1]


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time inside to seconds[name]; on a GPU that is the host's, which waits at the next sync."""
    started = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - started


def _memory(engine: Engine) -> Metrics:
    memory: Metrics = {"resident_mb": psutil.Process().memory_info().rss / 2**20}
    if engine.device.type == "cuda":
        memory["gpu_peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return memory


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _nonfinite(what: str, value: float, step: int, rank: int, clip_ids: Sequence[str]) -> str:
    return f"{what} is {value} at step {step + 1} on rank {rank}, clips {', '.join(clip_ids)}"
