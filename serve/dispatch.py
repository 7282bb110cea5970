"""Who does which job next: looks into the journal and hands out batches, remembering nothing that matters.

Path:    Journal.waiting -> batches of compatible jobs -> send (a worker's `run`)
Units:   second

Every process that serves the API has one. Two of them may hand out the same job: the workers' claims decide.
"""

import asyncio
import contextlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serve.journal import Job, Journal
from serve.metrics import Metrics
from serve.settings import Settings

log = logging.getLogger("finephys.serve")

# What a worker is sent: job id, number of the attempt.
Batch = list[tuple[str, int]]
# After a batch came back with an error, and after workers could not be reached.
_PAUSE_S = 0.5
# Between two looks into the journal, however often something is new: a look reads names of all open jobs.
_REST_S = 0.05
# Whoever asks for a job is told to ask again so soon at the earliest and at the latest: each look takes time from the
# workers where they share the cores.
_SOON_S, _LATE_S = 1.0, 30.0


class Dispatcher:
    """send(batch) returns when a worker has done a batch; it raises where the worker died. send([]) starts a worker."""

    def __init__(
        self, settings: Settings, journal: Journal, metrics: Metrics, send: Callable[[Batch], Awaitable[Any]]
    ) -> None:
        self.settings = settings
        self.journal = journal
        self.metrics = metrics
        self.send = send
        self.is_ready = False
        self._poke = asyncio.Event()
        self._out: dict[asyncio.Task[None], Batch] = {}
        # What the last look found, less what was handed out since, and when that was.
        self._free: list[Job] = []
        self._looked_at = -math.inf
        # How long a worker took for the last batch.
        self._batch_s = 2 * _SOON_S

    def poke(self) -> None:
        """There may be something new."""
        self._poke.set()

    def next_look_s(self, job_id: str) -> float:
        """Seconds until whoever asked for this open job had better ask again.

        Half of what it still has to wait, if all goes on as it did, so that its end is seen late by as much at most;
        _SOON_S where it was handed out. A batch that had to wait until its worker was started counts as a long one.
        """
        per_turn = self.settings.max_workers * self.settings.batch_limit
        # What was handed out already goes first.
        turns = (1 + place / per_turn for place, job in enumerate(self._free) if job.id == job_id)
        return min(_LATE_S, max(_SOON_S, next(turns, 0.0) * self._batch_s / 2))

    async def run(self) -> None:
        """Hand out work for ever."""
        starting = asyncio.create_task(self._warm_up())
        try:
            while True:
                self._poke.clear()
                try:
                    await self._hand_out()
                except OSError:
                    log.exception("the journal cannot be read")
                    await asyncio.sleep(_PAUSE_S)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._poke.wait(), self.settings.poll_seconds)
        finally:
            # Workers go on with what they have; whoever comes next finds the results.
            for task in (starting, *self._out):
                task.cancel()

    async def _warm_up(self) -> None:
        """Start a worker, so that this service knows that it can work before anybody asks."""
        while not self.is_ready:
            try:
                await self.send([])
                self.is_ready = True
            except Exception:
                log.exception("no worker could be started")
                await asyncio.sleep(10 * _PAUSE_S)
        self.metrics.set("ready", 1)

    async def _hand_out(self) -> None:
        age_s = time.monotonic() - self._looked_at
        # One more for each worker than it can do at a time, so that none waits for this process.
        room = 2 * self.settings.max_workers - len(self._out)
        if age_s >= self.settings.poll_seconds or (room > 0 and not self._free):
            await asyncio.sleep(_REST_S - age_s)
            await self._look()
        num_shared = -(-len(self._free) // self.settings.max_workers)
        limit = min(self.settings.batch_limit, max(1, num_shared))
        for batch in batches(self._free, limit)[: max(0, room)]:
            task = asyncio.create_task(self._send(batch))
            self._out[task] = batch
            task.add_done_callback(self._came_back)
        given = self._given()
        self._free = [job for job in self._free if job.id not in given]
        self.metrics.set("batches_out", len(self._out))

    async def _look(self) -> None:
        jobs, free = await asyncio.to_thread(self.journal.waiting)
        self._looked_at = time.monotonic()
        self.metrics.set("queue_jobs", len(jobs))
        self.metrics.set("oldest_job_seconds", time.time() - jobs[0].created_at if jobs else 0.0)
        given = self._given()
        self._free = [job for job in free if job.id not in given]

    def _given(self) -> set[str]:
        return {job_id for batch in self._out.values() for job_id, _ in batch}

    async def _send(self, batch: Batch) -> None:
        started_s, num_before = time.monotonic(), len(self._out) - 1
        try:
            await self.send(batch)
            # It waited first where its worker had something in hand.
            num_turns = 1 + num_before // self.settings.max_workers
            self._batch_s = (time.monotonic() - started_s) / num_turns
        except Exception as error:
            log.warning("a worker was lost with %d jobs: %s", len(batch), str(error).splitlines()[:1])
            await asyncio.sleep(_PAUSE_S)

    def _came_back(self, task: asyncio.Task[None]) -> None:
        del self._out[task]
        self.poke()


def batches(jobs: Sequence[Job], max_batch: int) -> list[Batch]:
    """Jobs in the order in which they are to be done, compatible ones together.

    Clients take turns: whoever asks for a thousand clips does not keep out whoever asks for one.
    """
    num_before: Counter[str] = Counter()
    turns = []
    for job in jobs:
        turns.append((num_before[job.client], job.id, job))
        num_before[job.client] += 1
    found: list[Batch] = []
    open_batch: dict[str, Batch] = {}
    for _, job_id, job in sorted(turns, key=lambda turn: turn[:2]):
        kind = json.dumps({**job.order, "prompt": "", "seed": 0}, sort_keys=True)
        batch = open_batch.get(kind)
        if batch is None or len(batch) >= max_batch:
            batch = open_batch[kind] = []
            found.append(batch)
        batch.append((job_id, job.attempt + 1))
    return found
