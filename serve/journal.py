"""The journal: every accepted job on the storage URL, and who is at it. No other memory, so nothing else can lose one.

Path:    API -> open/ID.json -> claims -> videos/ID.mp4 -> ended/ID.json -> API
Units:   second

URL/open/ID.json          an accepted job, until it ends; ids begin with the time, so their order is that of arrival
URL/claims/ID.N.json      attempt N at it: who, and how far; rewritten as a sign of life, by its owner only
URL/videos/ID.mp4         the result
URL/ended/ID.json         how it ended: completed, failed or deleted; once, the first writer decides
URL/uploads/ID            the driving video, until the job ends
URL/clients/NAME/ID       whose it is, for lists and quotas
URL/keys/SHA256.json      Idempotency-Key -> job

Each file is written whole. Three steps are decided by creating a file that must not exist yet, which one of any number
of processes on any number of machines succeeds in: an attempt is claimed by ID.N.json, a video is published by ID.mp4,
a job ends by ended/ID.json. A crash between any two steps leaves a state from which the next attempt goes on.

A claim is over when its file has not changed for lease_s by the clock of whoever looks, so machines' clocks need not
agree. A process that stands still for longer than that and wakes up again may generate what another generates too; it
then finds the video there, and drops its own.
"""

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from finephys.data import storage
from finephys.generation.requests import sha256_of

Status = Literal["queued", "in_progress", "completed", "failed", "deleted"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as a client sees it.

    order: finephys.generation.order.Order as a dict.  shown: what the client asked for, in the API's terms.
    progress: percent.  attempt: the last one begun, 0 before the first.  error: why it failed.
    """

    id: str
    client: str
    order: dict[str, Any]
    shown: dict[str, Any]
    created_at: float
    idempotency_sha256: str | None
    status: Status = "queued"
    progress: int = 0
    attempt: int = 0
    ended_at: float | None = None
    error: dict[str, str] | None = None
    seconds_by_hop: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """Attempt number `attempt` at a job, ours."""

    job_id: str
    attempt: int
    owner: str


class Journal:
    """The journal at a storage URL. Objects in different processes share nothing but the files."""

    def __init__(self, url: str, lease_s: float) -> None:
        self.url = url
        self.lease_s = lease_s
        # Claim file -> its content when it last changed, and when that was, by our clock.
        self._seen: dict[str, tuple[bytes, float]] = {}
        # Jobs as they were accepted, which never changes.
        self._accepted: dict[str, dict[str, Any]] = {}

    # --- the client's side

    def submit(
        self,
        client: str,
        order: dict[str, Any],
        shown: dict[str, Any],
        *,
        upload: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> tuple[Job, bool]:
        """Accept a job; once this returns it is as lasting as the storage. (job, whether it is a new one).

        Raises ValueError where the key was used for another request.
        """
        job_id = _fresh_id()
        key_sha256 = None
        if idempotency_key is not None:
            key_sha256 = sha256_of(json.dumps([client, idempotency_key]).encode())
            request_sha256 = sha256_of(json.dumps([order, shown], sort_keys=True).encode())
            taken = self._take_key(key_sha256, job_id, request_sha256)
            if taken["request_sha256"] != request_sha256:
                raise ValueError("Idempotency-Key was used for another request")
            job_id = taken["id"]
            known = self.get(job_id)
            if known is not None:
                return known, False
        job = Job(
            id=job_id,
            client=client,
            order=order,
            shown=shown,
            created_at=time.time(),
            idempotency_sha256=key_sha256,
        )
        if upload is not None:
            storage.write_bytes(self._at("uploads", job_id), upload)
        storage.write_bytes(self._at("clients", quote(client, safe=""), job_id), b"")
        # From here on it is accepted. Of two requests with one key at a time, the first one's time of arrival stays.
        is_new = storage.create_bytes(self._open(job_id), _to_json(job))
        return job if is_new else self.get(job_id) or job, is_new

    def get(self, job_id: str) -> Job | None:
        """The job as it stands, None where there is none or it was deleted."""
        if not is_job_id(job_id):
            return None
        ended = self._read(self._ended(job_id))
        if ended is not None:
            return None if ended["status"] == "deleted" else Job(**ended)
        accepted = self._read(self._open(job_id))
        if accepted is None:
            # It may have ended between the two looks.
            ended = self._read(self._ended(job_id))
            return None if ended is None or ended["status"] == "deleted" else Job(**ended)
        attempt = self._attempts().get(job_id, 0)
        claim = (self._read(self._claim(job_id, attempt)) if attempt else None) or {}
        status = "queued" if attempt == 0 or claim.get("released") else "in_progress"
        progress = claim.get("progress", 0) if status == "in_progress" else 0
        return Job(**{**accepted, "status": status, "progress": progress, "attempt": attempt})

    def ids_of(self, client: str) -> list[str]:
        """Ids of all jobs of a client, the oldest first."""
        return _names(storage.list_files(self._at("clients", quote(client, safe=""))))

    def open_ids(self) -> list[str]:
        """Ids of all jobs that have not ended, the oldest first."""
        return _names(storage.list_files(self._at("open"), ".json"))

    def video(self, job_id: str) -> bytes:
        """The result. Raises FileNotFoundError."""
        return storage.read_bytes(self._video(job_id))

    def upload(self, job_id: str) -> bytes:
        """The driving video. Raises FileNotFoundError."""
        return storage.read_bytes(self._at("uploads", job_id))

    def delete(self, job_id: str) -> bool:
        """Forget a job and its video, whether it has ended or not; whoever is at it finds out and stops."""
        job = self.get(job_id)
        if job is None:
            return False
        # The stone stays: an attempt under way that ends later must not bring the job back.
        stone = {"id": job_id, "status": "deleted"}
        storage.write_bytes(self._ended(job_id), json.dumps(stone).encode())
        _delete(self._video(job_id))
        if job.idempotency_sha256 is not None:
            _delete(self._at("keys", f"{job.idempotency_sha256}.json"))
        _delete(self._at("clients", quote(job.client, safe=""), job_id))
        self._tidy(job_id)
        return True

    # --- the worker's side

    def waiting(self) -> tuple[list[Job], list[Job]]:
        """Jobs that have not ended, and those of them that nobody is at; the oldest first, each with its attempt."""
        attempts = self._attempts()
        seen: dict[str, tuple[bytes, float]] = {}
        accepted: dict[str, dict[str, Any]] = {}
        jobs, free = [], []
        for job_id in self.open_ids():
            plain = self._accepted.get(job_id) or self._read(self._open(job_id))
            if plain is None:
                continue
            accepted[job_id] = plain
            attempt = attempts.get(job_id, 0)
            jobs.append(Job(**{**plain, "attempt": attempt}))
            if attempt == 0:
                free.append(jobs[-1])
                continue
            url = self._claim(job_id, attempt)
            content, since = seen[url] = self._look(url)
            is_released = bool(content and json.loads(content).get("released"))
            if is_released or time.monotonic() - since >= self.lease_s:
                free.append(jobs[-1])
        self._seen, self._accepted = seen, accepted
        return jobs, free

    def claim(self, job_id: str, attempt: int, owner: str) -> Claim | None:
        """Begin attempt number `attempt`, one above the last; None where another process was quicker."""
        content = json.dumps({"owner": owner, "progress": 0, "beat": 0}).encode()
        if not storage.create_bytes(self._claim(job_id, attempt), content):
            return None
        if storage.exists(self._ended(job_id)):
            # It ended between the look and the claim, or an earlier attempt stopped half way through ending it.
            self._tidy(job_id)
            return None
        return Claim(job_id, attempt, owner)

    def beat(self, claim: Claim, progress: int, beat: int) -> bool:
        """Show a sign of life (beat: any number that changes); False where the job is no longer ours to do."""
        ended = storage.exists(self._ended(claim.job_id))
        if ended or storage.exists(self._claim(claim.job_id, claim.attempt + 1)):
            return False
        content = {"owner": claim.owner, "progress": progress, "beat": beat}
        storage.write_bytes(self._claim(claim.job_id, claim.attempt), json.dumps(content).encode())
        return True

    def release(self, claim: Claim) -> None:
        """Give a job back, to be tried again at once."""
        content = {"owner": claim.owner, "released": True}
        storage.write_bytes(self._claim(claim.job_id, claim.attempt), json.dumps(content).encode())

    def has_video(self, job_id: str) -> bool:
        """Whether an attempt published its video; one that died before it ended the job leaves that to the next."""
        return storage.exists(self._video(job_id))

    def complete(
        self, claim: Claim, video: bytes | None, *, shown: dict[str, Any], seconds_by_hop: dict[str, float]
    ) -> bool:
        """Publish a video (None: the one that is there) and end the job; whether it was this that ended it."""
        if video is not None:
            storage.create_bytes(self._video(claim.job_id), video)
        return self._end(claim, status="completed", progress=100, shown=shown, seconds_by_hop=seconds_by_hop)

    def fail(self, claim: Claim, code: str, message: str) -> bool:
        """End a job that cannot be done; whether it was this that ended it."""
        return self._end(claim, status="failed", error={"code": code, "message": message})

    def _end(self, claim: Claim, **outcome: Any) -> bool:
        accepted = self._read(self._open(claim.job_id))
        is_first = False
        if accepted is not None:
            record = Job(**{**accepted, **outcome, "attempt": claim.attempt, "ended_at": time.time()})
            is_first = storage.create_bytes(self._ended(claim.job_id), _to_json(record))
        if not is_first:
            ended = self._read(self._ended(claim.job_id))
            if ended is None or ended["status"] == "deleted":
                _delete(self._video(claim.job_id))
        self._tidy(claim.job_id)
        return is_first

    def _tidy(self, job_id: str) -> None:
        """Drop what only an open job needs; its open file last, so that an interrupted tidying is taken up again."""
        for attempt in range(self._attempts().get(job_id, 0), 0, -1):
            _delete(self._claim(job_id, attempt))
        _delete(self._at("uploads", job_id))
        _delete(self._open(job_id))

    # --- files

    def _take_key(self, key_sha256: str, job_id: str, request_sha256: str) -> dict[str, Any]:
        """What the key stands for: this job, unless it stands for another already."""
        url = self._at("keys", f"{key_sha256}.json")
        entry = {"id": job_id, "request_sha256": request_sha256}
        if storage.create_bytes(url, json.dumps(entry).encode()):
            return entry
        return self._read(url) or entry

    def _attempts(self) -> dict[str, int]:
        """Number of the last attempt by job."""
        last: dict[str, int] = {}
        for name in _names(storage.list_files(self._at("claims"), ".json")):
            job_id, _, attempt = name.rpartition(".")
            last[job_id] = max(last.get(job_id, 0), int(attempt))
        return last

    def _look(self, url: str) -> tuple[bytes, float]:
        """A claim's content and since when it has been that, as far as we saw."""
        content = _read_bytes(url) or b""
        known = self._seen.get(url)
        return known if known is not None and known[0] == content else (content, time.monotonic())

    def _read(self, url: str) -> dict[str, Any] | None:
        content = _read_bytes(url)
        return None if content is None else json.loads(content)

    def _at(self, *names: str) -> str:
        return storage.join(self.url, *names)

    def _open(self, job_id: str) -> str:
        return self._at("open", f"{job_id}.json")

    def _ended(self, job_id: str) -> str:
        return self._at("ended", f"{job_id}.json")

    def _video(self, job_id: str) -> str:
        return self._at("videos", f"{job_id}.mp4")

    def _claim(self, job_id: str, attempt: int) -> str:
        return self._at("claims", f"{job_id}.{attempt:03d}.json")


def is_job_id(text: str) -> bool:
    """Whether this can be the id of a job: nothing else may become part of a file's name."""
    head, _, tail = text.partition("_")
    return head == "video" and len(tail) == _ID_DIGITS and set(tail) <= set("0123456789abcdef")


# Milliseconds since 1970 until the year 10889, then 64 random bits that nobody can guess.
_ID_DIGITS = 12 + 16


def _fresh_id() -> str:
    return f"video_{time.time_ns() // 10**6:012x}{secrets.token_hex(8)}"


def _names(urls: Sequence[str]) -> list[str]:
    return [url.rsplit("/", 1)[-1].removesuffix(".json") for url in urls]


def _to_json(job: Job) -> bytes:
    return json.dumps(job.__dict__).encode()


def _read_bytes(url: str) -> bytes | None:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        return None


def _delete(url: str) -> None:
    try:
        storage.delete_file(url)
    except FileNotFoundError:
        return
