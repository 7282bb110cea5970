"""A small real service: a tiny pipeline, a journal in a folder, a worker in this process, HTTP on a free port."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import uvicorn

from finephys.data.video import encode_video
from serve.api import create_api
from serve.dispatch import Batch, Dispatcher
from serve.journal import Journal
from serve.metrics import Metrics
from serve.settings import Model, Settings, Tokens
from serve.worker import Worker
from tests.generation.conftest import tiny_pipeline

__all__ = ["tiny_pipeline"]

TOKENS = {"ada": "ada's token of 2026", "bob": "bob's token of 2026"}
# The quickest clip.
QUICK = {"class": "10", "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 1}


class Service:
    """One service of this process. `is_paused` holds its worker back."""

    def __init__(self, settings: Settings, tokens: Tokens) -> None:
        self.settings = settings
        self.model = Model.read(Path(settings.pipeline))
        self.journal = Journal(settings.journal, settings.lease_seconds)
        self.metrics = Metrics(on_ray=False)
        self.is_paused = False
        self.worker: Worker | None = None
        self._lock = threading.Lock()
        self.dispatcher = Dispatcher(settings, self.journal, self.metrics, self._send)
        self.api = create_api(settings, self.model, tokens, self.journal, self.metrics, self.dispatcher)

    async def _send(self, batch: Batch) -> None:
        while self.is_paused:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self.run, batch)

    def run(self, batch: Batch) -> None:
        """What a replica does with a batch."""
        # A worker does one batch at a time, as a replica does.
        with self._lock:
            if self.worker is None:
                self.worker = Worker(self.settings, self.model, self.journal, self.metrics, "the test's")
            self.worker.run(batch)


@contextmanager
def served(service: Service) -> Iterator[str]:
    """Its base URL, while it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(service.api, host="127.0.0.1", port=port, log_level="warning", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def settings(tiny_pipeline: Path, tmp_path: Path) -> Settings:
    return Settings(
        pipeline=str(tiny_pipeline), journal=str(tmp_path / "journal"), max_workers=1, poll_seconds=0.1,
        lease_seconds=5, max_queue_per_client=8, max_queue=12, max_upload_bytes=2**20, max_upload_seconds=3,
        max_side_px=128,
    )  # fmt: skip


@pytest.fixture
def service(settings: Settings) -> Service:
    """Two clients, and a worker that starts with the first job."""
    torch.set_num_threads(1)
    return Service(settings, Tokens(TOKENS))


@pytest.fixture(scope="session")
def driving_video() -> bytes:
    """One second of noise."""
    frames = np.random.default_rng(0).integers(0, 256, (15, 64, 64, 3), np.uint8)
    return encode_video(frames, 15.0, 35)
