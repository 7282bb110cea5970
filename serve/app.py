"""The service on Ray Serve: one process answers HTTP and hands out work, others generate.

Path:    `serve run serve.app:app journal=URL` or `serve deploy serve/config.yaml` -> Ingress, Worker replicas
Units:   second

Workers scale from min_workers to max_workers with the batches that are handed out. One that is told to stop finishes
its batch first. What is killed loses nothing: the journal (serve/journal.py) has it, and the next one goes on.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serve.dispatch import Batch
from serve.settings import Settings

_ROOT = Path(__file__).parents[1]
# What a worker yields to the process that answers, on a machine where they share the cores.
_NICENESS = 19
# A line for each call costs the process that answers more than the call; /metrics counts them.
_LOGGING = LoggingConfig(enable_access_log=False)


def app(settings: Settings) -> Application:
    """The application; its arguments are the Settings (serve/settings.py)."""
    # Relative ones are the project's: in which folder Ray's processes run is nobody's business.
    pipeline = str(_ROOT / settings.pipeline)
    journal = settings.journal if "://" in settings.journal else str(_ROOT / settings.journal)
    plain = settings.model_copy(update={"pipeline": pipeline, "journal": journal}).model_dump()
    workers = Generator.options(
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_workers,
            max_replicas=settings.max_workers,
            initial_replicas=max(1, settings.min_workers),
            target_ongoing_requests=1,
            upscale_delay_s=1,
            downscale_delay_s=settings.idle_seconds,
            downscale_to_zero_delay_s=settings.idle_seconds,
        ),
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={
            "num_cpus": settings.cpus_per_worker,
            "num_gpus": settings.gpus_per_worker,
            # The thread that generates then has the process's own heap, which keeps what is freed (keep_freed_memory);
            # a thread's heap gives its last 64 MB back whatever one says.
            "runtime_env": {"env_vars": {"MALLOC_ARENA_MAX": "1"}},
        },
    ).bind(plain)
    return Ingress.bind(plain, workers)


# A second batch waits in the replica: Serve's router is not told that one is free, and looks again after up to 0.5 s.
@serve.deployment(
    name="Worker",
    max_ongoing_requests=2,
    health_check_period_s=5,
    health_check_timeout_s=30,
    logging_config=_LOGGING,
)
class Generator:
    """One pipeline in a process of its own."""

    def __init__(self, plain: dict[str, Any]) -> None:
        # One thread for all batches: each would otherwise keep memory of its own (keep_freed_memory).
        self._thread, self._is_stopping = ThreadPoolExecutor(1, "generation"), False
        settings = Settings(**plain)
        # Nothing may be looked up on a model hub: the pipeline folder is all there is.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        if settings.device == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
            os.nice(_NICENESS)
        # torch and diffusers: seconds that the process that answers need not wait for.
        from finephys.memory import keep_freed_memory
        from serve.journal import Journal
        from serve.metrics import Metrics
        from serve.settings import Model
        from serve.worker import Worker

        journal = Journal(settings.journal, settings.lease_seconds)
        owner = f"{serve.get_replica_context().replica_id.unique_id} {os.uname().nodename} {os.getpid()}"
        model = Model.read(Path(settings.pipeline))
        keep_freed_memory()
        self.worker = Worker(settings, model, journal, Metrics(on_ray=True), owner)

    async def run(self, batch: Batch) -> int:
        """Do a batch; an empty one is answered by whoever has loaded its weights. Beside this, health is answered."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)

    def _run(self, batch: Batch) -> int:
        # A batch that waited behind the last one is left to whoever comes next: nobody claimed its jobs yet.
        return 0 if self._is_stopping else self.worker.run(batch)

    async def __del__(self) -> None:
        """Serve waits for this before it ends a replica: what is in hand is finished, whether anybody waits or not."""
        self._is_stopping = True
        await asyncio.to_thread(self._thread.shutdown)


@serve.deployment(
    name="Ingress",
    num_replicas=1,
    max_ongoing_requests=200,
    ray_actor_options={"num_cpus": 0.1},
    logging_config=_LOGGING,
)
@serve.ingress()
class Ingress:
    """Answers HTTP, and hands out work."""

    def __init__(self, plain: dict[str, Any], workers: DeploymentHandle) -> None:
        from serve.api import create_api
        from serve.dispatch import Dispatcher
        from serve.journal import Journal
        from serve.metrics import Metrics
        from serve.settings import Model, Tokens, refuse_open_address

        settings, tokens = Settings(**plain), Tokens.from_environment()
        refuse_open_address(settings, tokens, _http_host())
        journal, metrics = Journal(settings.journal, settings.lease_seconds), Metrics(on_ray=True)

        async def send(batch: Batch) -> None:
            await workers.run.remote(batch)

        dispatcher = Dispatcher(settings, journal, metrics, send)
        model = Model.read(Path(settings.pipeline))
        self.api = create_api(settings, model, tokens, journal, metrics, dispatcher)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Serve asks for this once the constructor is done."""
        return self.api


def _http_host() -> str:
    """The address that Serve's proxies listen on."""
    from ray.serve.context import _get_global_client

    client = _get_global_client()
    assert client is not None
    return str(client.http_config.host)
