"""When whoever asked for a job is told to ask again."""

import asyncio
import time

import pytest

from serve import dispatch
from serve.dispatch import Batch, Dispatcher
from serve.journal import Journal
from serve.metrics import Metrics
from serve.settings import Settings

TURN_S = 0.4


def test_a_client_looks_again_after_half_of_what_is_left(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers that take TURN_S for a job of their queue, which holds one more than they have in hand."""
    monkeypatch.setattr(dispatch, "_SOON_S", 0.01)
    settings = settings.model_copy(update={"max_workers": 2})
    journal = Journal(settings.journal, lease_s=60)

    async def watch() -> tuple[list[float], list[float], float, list[str]]:
        workers, done = asyncio.Semaphore(2), asyncio.Queue[str]()
        sent: list[str] = []

        async def send(batch: Batch) -> None:
            sent.extend(job_id for job_id, _ in batch)
            async with workers:
                await asyncio.sleep(TURN_S if batch else 0)
                for job_id, attempt in batch:
                    claim = journal.claim(job_id, attempt, "test")
                    assert claim is not None
                    journal.complete(claim, b"mp4", shown={}, seconds_by_hop={})
                    await done.put(job_id)

        dispatcher = Dispatcher(settings, journal, Metrics(on_ray=False), send)
        ids = [journal.submit("ada", {"prompt": "", "seed": seed}, {})[0].id for seed in range(12)]
        running = asyncio.create_task(dispatcher.run())
        # The first two took a turn, the two behind them two.
        ended = [await done.get() for _ in range(4)]
        while len(sent) < 8:
            await asyncio.sleep(0.01)
        asked_s = time.monotonic()
        # Jobs of the same moment are done in the order of their names, not as they were submitted.
        sent_told_s = [dispatcher.next_look_s(job_id) for job_id in ids if job_id in sent]
        told_s = [dispatcher.next_look_s(job_id) for job_id in ids if job_id not in sent]
        ended += [await done.get() for _ in range(8)]
        left_s = time.monotonic() - asked_s
        running.cancel()
        return sent_told_s, told_s, left_s, ended

    sent_told_s, told_s, left_s, ended = asyncio.run(watch())
    assert len(set(ended)) == 12
    # Four have ended, four are handed out, the others are seen to wait for one turn and more.
    assert set(sent_told_s) == {0.01}
    assert min(told_s) > 0.3 * TURN_S
    assert 0.2 * left_s < max(told_s) < 0.7 * left_s
