"""The names of the hops, and how long each takes: profiler ranges, and seconds for whoever listens.

Path:    every hop
Units:   second

    with timed_hops() as seconds:
        pipeline(...)
    seconds["unet"]

On a GPU the seconds are those of the host, which runs ahead of the device: the profiler's ranges tell the device's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

HOPS = ("decode", "pose2d", "pose3d", "physics", "fuse", "heatmaps", "guidance", "unet", "vae", "encode")

_listening: ContextVar[dict[str, float] | None] = ContextVar("listening", default=None)


@contextmanager
def hop(name: str) -> Iterator[None]:
    """Mark what runs inside as the hop `name`, one of HOPS."""
    assert name in HOPS
    seconds = _listening.get()
    with torch.profiler.record_function(name):
        started = time.perf_counter()
        try:
            yield
        finally:
            if seconds is not None:
                seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def timed_hops() -> Iterator[dict[str, float]]:
    """Seconds by hop of what runs inside, in this thread; a hop that runs several times is summed."""
    seconds: dict[str, float] = {}
    token = _listening.set(seconds)
    try:
        yield seconds
    finally:
        _listening.reset(token)
