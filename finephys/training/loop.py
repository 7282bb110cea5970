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
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finephys.config import TrainConfig
from finephys.telemetry import MetricsLog
from finephys.training.batches import LabelledBatch
from finephys.training.checkpoint import save_checkpoint
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.schedule import learning_rate
from finephys.training.zero import Engine

Metrics = dict[str, Any]


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
    *,
    first_step: int,
    deadline_s: float | None,
    report: Callable[[Metrics], None],
) -> Outcome:
    """Train from `first_step` to config.steps or to `deadline_s` (time.time()), whichever comes first.

    Every rank calls this. report: called on every rank at each logging interval with the newest metrics.
    Raises FloatingPointError before the optimizer moves where a loss or a gradient is not finite.
    """
    pending: list[Metrics] = []
    if first_step == 0:
        _log_validation(config, engine, average, validation, log, step=0)
    engine.train(True)

    for step in range(first_step, config.steps):
        started = time.perf_counter()
        wait_s = 0.0
        lr = learning_rate(step, config.steps, config.optimizer)
        torch.manual_seed(_seed(config.seed, step, engine.rank))
        terms: dict[str, Tensor] = {}
        clip_ids: list[str] = []

        for _ in range(config.accumulation):
            waiting = time.perf_counter()
            batch = next(batches)
            wait_s += time.perf_counter() - waiting
            clip_ids += batch.clip_ids

            losses = engine.forward(batch.tensors)
            # One host sync a step: a weight that saw a NaN cannot be repaired, and DeepSpeed's clipping syncs anyway.
            if not torch.isfinite(losses["loss"]):
                raise FloatingPointError(_nonfinite("loss", losses["loss"].item(), step, engine.rank, clip_ids))
            engine.backward(losses["loss"])
            for name, value in losses.items():
                terms[name] = terms.get(name, torch.zeros((), device=value.device)) + value.detach().float()
            try:
                engine.step(lr)
            except FloatingPointError as error:
                raise FloatingPointError(_nonfinite("gradient", math.nan, step, engine.rank, clip_ids)) from error

        average.update(engine.live_values(), step + 1)
        num_done = step + 1
        pending.append(
            {
                "step": num_done,
                "split": "train",
                **{name: value / config.accumulation for name, value in terms.items()},
                "lr": lr,
                "grad_norm": engine.grad_norm(),
                "seconds": time.perf_counter() - started,
                "data_wait_share": wait_s,
            }
        )

        is_last = num_done == config.steps
        is_stopping = False
        if is_last or num_done % config.log_every == 0:
            newest = _flush(pending, config, log)
            report(newest)
            is_stopping = engine.any_rank(deadline_s is not None and time.time() >= deadline_s)
        if is_last or is_stopping or num_done % config.validate_every == 0:
            _flush(pending, config, log)
            _log_validation(config, engine, average, validation, log, step=num_done)
            engine.train(True)
        if is_last or is_stopping or num_done % config.checkpoint_every == 0:
            _flush(pending, config, log)
            log.publish()
            save_checkpoint(engine, average, config, num_done)
        if is_stopping:
            return Outcome(step=num_done, is_finished=is_last)
    return Outcome(step=config.steps, is_finished=True)


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
    with average.swapped_in(live), torch.random.fork_rng(devices=_cuda_devices(engine)):
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
    step: int,
) -> None:
    started = time.perf_counter()
    losses = validate(config, engine, average, batches)
    if losses:
        log.append([{"step": step, "split": "validation", **losses, "seconds": time.perf_counter() - started}])


def _flush(pending: list[Metrics], config: TrainConfig, log: MetricsLog) -> Metrics:
    """Bring the pending steps' scalars to the host, all in one go, and log them. Returns the newest."""
    if not pending:
        return {}
    scalars = [value for line in pending for value in line.values() if isinstance(value, Tensor)]
    device = next((value.device for value in scalars), torch.device("cpu"))
    numbers = iter(torch.stack([value.to(device) for value in scalars]).tolist() if scalars else [])
    lines = []
    for line in pending:
        line = {name: next(numbers) if isinstance(value, Tensor) else value for name, value in line.items()}
        line["data_wait_share"] = line["data_wait_share"] / line["seconds"]
        line["samples_per_s"] = config.global_batch / line["seconds"]
        lines.append(line)
    log.append(lines)
    pending.clear()
    return lines[-1]


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1)[0])


def _nonfinite(what: str, value: float, step: int, rank: int, clip_ids: Sequence[str]) -> str:
    return f"{what} is {value} at step {step + 1} on rank {rank}, clips {', '.join(clip_ids)}"


def _cuda_devices(engine: Engine) -> list[int]:
    return [torch.cuda.current_device()] if engine.device.type == "cuda" else []
