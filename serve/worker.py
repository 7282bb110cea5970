"""One pipeline that takes jobs from the journal, a batch of compatible ones at a time.

Path:    Journal.waiting -> claim -> FinePhysPipeline -> Journal.complete
Units:   second

Nothing here knows of Ray: serve/app.py puts a worker into each replica.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from finephys.command_line import is_user_error
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.generation.order import Order, order_from_json
from finephys.generation.ordered import generate_orders
from finephys.generation.staging import Staging
from finephys.hops import timed_hops
from serve.journal import Claim, Job, Journal
from serve.metrics import Metrics
from serve.settings import Model, Settings

log = logging.getLogger("finephys.serve")


class JobsLostError(Exception):
    """All jobs of a batch were deleted, or taken over by another worker, while it was generated."""


class Worker:
    """Loads the weights and warms up when it is made; `run` does one batch and returns."""

    def __init__(self, settings: Settings, model: Model, journal: Journal, metrics: Metrics, owner: str) -> None:
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.journal = journal
        self.metrics = metrics
        self.owner = owner
        self.pipeline = FinePhysPipeline.from_pretrained(settings.pipeline)
        self.pipeline.to(settings.device)
        self.pipeline.set_progress_bar_config(disable=True)
        # One denoising step through every hop from the joints to the mp4: from here on the worker can do its work.
        warm_up = Order(
            prompt="", seed=0, staging=Staging(label=10), height=model.default_size[0], width=model.default_size[1],
            num_frames=2, num_inference_steps=1, guidance_scale=1.0, pose_guidance_scale=1.0,
        )  # fmt: skip
        generate_orders(self.pipeline, [warm_up], None, 0, lambda _: None)

    def run(self, jobs: Sequence[tuple[str, int]]) -> int:
        """Claim (job id, number of the attempt) and do those that nobody else was quicker with; how many ended."""
        claims = []
        for job_id, attempt in jobs:
            claim = self.journal.claim(job_id, attempt, self.owner)
            accepted = None if claim is None else self.journal.get(job_id)
            if claim is None or accepted is None:
                continue
            if attempt > self.settings.max_attempts:
                self._fail(claim, accepted, "worker_died", f"its worker died {attempt - 1} times")
            elif self.journal.has_video(job_id):
                # An attempt before this one published it and died before it said so.
                self._complete(claim, accepted, None, {}, None)
            else:
                claims.append((claim, accepted))
        if claims:
            self._generate(claims)
        return len(claims)

    def _generate(self, claims: list[tuple[Claim, Job]]) -> None:
        orders = [order_from_json(job.order) for _, job in claims]
        try:
            with self._alive([claim for claim, _ in claims], orders[0].num_inference_steps) as alive:
                upload = None if orders[0].upload_sha256 is None else self.journal.upload(claims[0][0].job_id)
                with timed_hops() as seconds:
                    videos, lasts_s = generate_orders(
                        self.pipeline, orders, upload, self.settings.max_upload_seconds, alive.step
                    )
                for (claim, job), video in zip(claims, videos, strict=True):
                    self._complete(claim, job, video, seconds, lasts_s)
            for name, spent_s in seconds.items():
                self.metrics.observe("hop_seconds", spent_s, hop=name)
            self.metrics.observe("batch_size", len(claims))
        except JobsLostError:
            log.info("batch of %d dropped: its jobs were deleted or taken over", len(claims))
        except Exception as error:
            self._give_up(claims, error)

    def _give_up(self, claims: list[tuple[Claim, Job]], error: Exception) -> None:
        """A refusal ends the jobs; anything else is tried again, as often as the settings say."""
        if is_user_error(error):
            for claim, job in claims:
                self._fail(claim, job, "generation_refused", str(error))
            return
        log.exception("generation failed")
        for claim, job in claims:
            if claim.attempt >= self.settings.max_attempts:
                self._fail(claim, job, "internal_error", f"generation failed {claim.attempt} times")
            else:
                self.journal.release(claim)
                self.metrics.count("retries_total")

    def _complete(
        self, claim: Claim, job: Job, video: bytes | None, seconds: dict[str, float], lasts_s: float | None
    ) -> None:
        shown = job.shown if lasts_s is None else {**job.shown, "seconds": f"{lasts_s:.3g}"}
        by_hop = {name: round(value, 4) for name, value in seconds.items()}
        if self.journal.complete(claim, video, shown=shown, seconds_by_hop=by_hop):
            self.metrics.count("clips_total")
            self.metrics.observe("job_seconds", time.time() - job.created_at)

    def _fail(self, claim: Claim, job: Job, code: str, message: str) -> None:
        log.warning("job %s failed: %s", claim.job_id, message)
        if self.journal.fail(claim, code, message):
            self.metrics.count("failures_total", code=code)
            self.metrics.observe("job_seconds", time.time() - job.created_at)

    @contextmanager
    def _alive(self, claims: Sequence[Claim], num_steps: int) -> Iterator["_Alive"]:
        alive = _Alive(self.journal, claims, num_steps)
        alive.thread.start()
        try:
            yield alive
        finally:
            alive.is_over.set()
            alive.thread.join()


class _Alive:
    """Signs of life for the claims of a batch, four a lease, from a thread beside the generation."""

    def __init__(self, journal: Journal, claims: Sequence[Claim], num_steps: int) -> None:
        self.journal = journal
        self.claims = list(claims)
        self.num_steps = num_steps
        self.num_done = 0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._beat, name="signs of life", daemon=True)

    def step(self, num_done: int) -> None:
        """Called after each denoising step; raises JobsLostError where nobody waits for the result any more."""
        self.num_done = num_done
        if not self.claims:
            raise JobsLostError

    def _beat(self) -> None:
        beat = 0
        while not self.is_over.wait(self.journal.lease_s / 4):
            beat += 1
            # The rest of the path, decoding and encoding, is the last percents.
            progress = min(99, round(95 * self.num_done / self.num_steps))
            try:
                self.claims = [claim for claim in self.claims if self.journal.beat(claim, progress, beat)]
            except OSError:
                # Storage that is away for a moment costs the claim only if it stays away for a lease.
                log.exception("no sign of life could be given")
