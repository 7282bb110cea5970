"""What keeps a request out: no token or a wrong one, too many requests, too many jobs, too many bytes.

Path:    request -> client's name, body; or 401, 403, 413, 429
Units:   second, byte
"""

import threading
import time
from typing import Any

from fastapi import HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials

from serve.journal import Journal
from serve.metrics import Metrics
from serve.settings import ANYBODY, Settings, Tokens

# A request without a video has a prompt and a few numbers.
MAX_PLAIN_BYTES = 64 * 2**10
_QUEUE_RETRY_S = 10
# Counts of the queue are at most so old, and grow with what this process adds.
_COUNT_AGE_S = 0.5


class Refusal(HTTPException):
    """An answer other than yes, in OpenAI's form. reason: for the metrics."""

    def __init__(
        self, status: int, reason: str, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.reason = reason
        self.param = param


class Door:
    """The door of the process that answers, of which there is one (serve/app.py): rates are counted here."""

    def __init__(self, settings: Settings, tokens: Tokens, journal: Journal, metrics: Metrics) -> None:
        self.settings = settings
        self.tokens = tokens
        self.journal = journal
        self.metrics = metrics
        self._lock = threading.Lock()
        # Client -> requests that it may still make now, and when that was counted.
        self._allowance: dict[str, tuple[float, float]] = {}
        self._counts: tuple[float, int, dict[str, int]] = (-1e9, 0, {})

    def client_of(self, credentials: HTTPAuthorizationCredentials | None) -> str:
        """Who asks. Raises Refusal 401 without a token, 403 with an unknown one, 429 above the rate."""
        client: str | None = ANYBODY
        if len(self.tokens):
            if credentials is None or not credentials.credentials:
                raise Refusal(
                    401, "no_token", "a token is wanted: Authorization: Bearer ...",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
            client = self.tokens.client_of(credentials.credentials)
        if client is None:
            raise Refusal(403, "wrong_token", "the token is unknown")
        wait_s = self._take_allowance(client)
        if wait_s > 0:
            raise Refusal(
                429, "rate", f"more than {self.settings.max_requests_per_minute} requests a minute",
                headers={"Retry-After": str(int(wait_s) + 1)},
            )  # fmt: skip
        return client

    def check_queue(self, client: str) -> None:
        """Make room for one job of this client. Raises Refusal 429 where the queue or the client's share is full."""
        with self._lock:
            at, num_open, num_own = self._counts
            if time.monotonic() - at > _COUNT_AGE_S:
                open_ids = set(self.journal.open_ids())
                at, num_open, num_own = time.monotonic(), len(open_ids), {}
            if client not in num_own:
                # Only what is open can count: the newest of the client's jobs.
                own = self.journal.ids_of(client)[-2 * self.settings.max_queue :]
                num_own[client] = len(set(own) & set(self.journal.open_ids()))
            headers = {"Retry-After": str(_QUEUE_RETRY_S)}
            if num_open >= self.settings.max_queue:
                raise Refusal(429, "queue", f"{num_open} jobs wait, more are not accepted now", headers=headers)
            if num_own[client] >= self.settings.max_queue_per_client:
                raise Refusal(
                    429, "client_queue", f"{num_own[client]} of your jobs wait, more are not accepted now",
                    headers=headers,
                )  # fmt: skip
            num_own[client] += 1
            self._counts = (at, num_open + 1, num_own)

    def _take_allowance(self, client: str) -> float:
        """Seconds to wait; 0 where a request is allowed, which is then counted (token bucket, one minute deep)."""
        rate, now = self.settings.max_requests_per_minute / 60, time.monotonic()
        with self._lock:
            left, at = self._allowance.get(client, (60 * rate, now))
            left = min(60 * rate, left + rate * (now - at))
            if left < 1:
                self._allowance[client] = (left, now)
                return (1 - left) / rate
            self._allowance[client] = (left - 1, now)
            return 0.0


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The body. Raises Refusal 413 as soon as it is longer than that, whatever its header says."""
    stated = request.headers.get("content-length", "0")
    too_long = Refusal(413, "too_large", f"the request is longer than {max_bytes} bytes")
    if not stated.isdecimal() or int(stated) > max_bytes:
        raise too_long
    parts, length = [], 0
    async for part in request.stream():
        length += len(part)
        if length > max_bytes:
            raise too_long
        parts.append(part)
    return b"".join(parts)


async def form_of(request: Request, body: bytes) -> tuple[dict[str, Any], bytes | None]:
    """The fields of a multipart body, and the uploaded file called input_reference. Raises Refusal 422."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    fields: dict[str, Any] = {}
    upload: bytes | None = None
    try:
        form = await Request(request.scope, receive).form(max_files=1, max_fields=40, max_part_size=MAX_PLAIN_BYTES)
    except HTTPException as error:
        raise Refusal(422, "form", f"the form cannot be read: {error.detail}") from error
    try:
        for name, value in form.multi_items():
            if name in fields or (name == "input_reference" and upload is not None):
                raise Refusal(422, "form", f"{name} is given twice", param=name)
            if not isinstance(value, str) and name == "input_reference":
                upload = await value.read()
            elif isinstance(value, str) and name != "input_reference":
                fields[name] = value
            else:
                wanted = "an uploaded file" if isinstance(value, str) else "a text"
                raise Refusal(422, "form", f"{name} is not {wanted}", param=name)
    finally:
        await form.close()
    return fields, upload
