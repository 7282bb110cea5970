"""What a rank holds under each ZeRO stage, measured, beside the formula of training/estimate.py.

Path:    linear layers -> Engine on two ranks -> resident memory after a backward pass
Letters: P parameters
Units:   bytes

Processes of their own for each stage: what one leaves behind in an allocator must not count for another. The baseline
is taken after a tiny engine has run, so that libraries and communicators are in it.
"""

import ctypes
import gc
import multiprocessing
import os
import socket
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, cast

import psutil
import torch
from torch import Tensor, nn

from finephys.config import TrainConfig, ZeroConfig
from finephys.memory import return_freed_memory
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.estimate import model_state_bytes
from finephys.training.zero import Engine

WIDTH, DEPTH = 2048, 8
NUM_PARAMETERS = DEPTH * WIDTH**2
NUM_RANKS = 2
NUM_STEPS = 3


def measured_and_formula() -> dict[int, tuple[float, float]]:
    """Stage -> (bytes of model states that rank 0 was measured to hold, bytes by the formula)."""
    return {stage: (_measure(stage), _formula(stage)) for stage in (0, 1, 2, 3)}


def _formula(stage: int) -> float:
    return model_state_bytes(NUM_PARAMETERS, NUM_PARAMETERS, _config(stage), stage)


def _config(stage: int) -> TrainConfig:
    return TrainConfig(num_workers=NUM_RANKS, batch_size=1, zero=ZeroConfig(stage=cast(Any, stage)))


def _measure(stage: int) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    ranks = [context.Process(target=_rank, args=(rank, port, stage, sender)) for rank in range(NUM_RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0, f"a rank of ZeRO {stage} failed"
    return float(receiver.recv())


class _Layers(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(width, width, bias=False) for _ in range(depth)])

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": self.layers(batch["x"]).square().mean()}


def _rank(rank: int, port: int, stage: int, sender: Connection) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(NUM_RANKS),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
    }
    torch.set_num_threads(1)
    # A layer of 16 MB that stays now and then is a tenth of what ZeRO 3 holds.
    return_freed_memory()
    _, small = _after_backward(_config(stage), 8, 1)
    kept, large = _after_backward(_config(stage), WIDTH, DEPTH)
    if rank == 0:
        sender.send(large - small)
    kept.barrier()


def _after_backward(config: TrainConfig, width: int, depth: int) -> tuple[Engine, float]:
    """Resident bytes when the last step's gradients are there and the optimizer has its state."""
    engine = Engine(_Layers(width, depth), config)
    average = ExponentialMovingAverage(engine.live_values(), 0.99)
    resident = 0.0
    for step in range(NUM_STEPS):
        loss = engine.forward({"x": torch.ones(1, width)})["loss"]
        engine.backward(loss)
        del loss
        gc.collect()
        # What was freed goes back to the system, or it would count.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        resident = psutil.Process().memory_info().rss
        engine.step(1e-4)
        average.update(engine.live_values(), step + 1)
    return engine, resident
