"""The HTTP API: OpenAI-style videos, a page for people, health and metrics.

Path:    HTTP -> door -> journal -> HTTP

POST /v1/videos               JSON, or a form with a driving video as input_reference; Idempotency-Key is honoured
GET /v1/videos  /v1/videos/ID  /v1/videos/ID/content      DELETE /v1/videos/ID       GET /v1/models
GET /                         the page;  /v1/elements and /v1/skeleton are what it asks for
GET /healthz  /readyz  /metrics  /docs  /openapi.json

No path, URL or pickle of a request is ever opened: uploads are bytes, ids are checked before they name a file.
"""

import asyncio
import base64
import functools
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from finephys.data.gym99 import GYM99_FLOOR
from finephys.data.storage import is_local
from finephys.data.uploads import probe_upload
from finephys.generation.requests import sha256_of
from finephys.generation.staging import Staging, label_of, stage
from finephys.gymnast.motions import ARENAS, HAIRS, LEOTARDS, SKINS
from finephys.skeleton import BONES, JOINT_NAMES
from serve.dispatch import Dispatcher
from serve.door import MAX_PLAIN_BYTES, Door, Refusal, form_of, read_body
from serve.journal import Job, Journal
from serve.metrics import MeasuredRequests, Metrics
from serve.schemas import (
    Error,
    SkeletonRequest,
    Video,
    VideoDeleted,
    VideoList,
    VideoRequest,
    order_of,
    shown_of,
    video_of,
)
from serve.settings import MODEL_NAME, Model, Settings, Tokens

PAGE = Path(__file__).with_name("page.html")

_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": Error, "description": text}
    for code, text in {
        401: "No token", 403: "Unknown token", 404: "No such video", 409: "Not finished, or failed",
        413: "Too large", 422: "Impossible", 429: "Too many; Retry-After says when to come back",
    }.items()
}  # fmt: skip
_bearer = HTTPBearer(auto_error=False, description="A client's token.")


def create_api(
    settings: Settings, model: Model, tokens: Tokens, journal: Journal, metrics: Metrics, dispatcher: Dispatcher
) -> FastAPI:
    """The application; it runs the dispatcher as long as it lives."""
    door = Door(settings, tokens, journal, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        dispatching = asyncio.create_task(dispatcher.run())
        yield
        dispatching.cancel()

    api = FastAPI(
        title="FinePhys", version="1", lifespan=lifespan,
        description="Fine-grained human action video, physics-guided. The API of OpenAI's videos, with fields of ours.",
    )  # fmt: skip

    async def client_of(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> str:
        return door.client_of(credentials)

    api.add_middleware(MeasuredRequests, metrics=metrics)
    _add_error_forms(api, metrics)
    _add_videos(api, settings, model, journal, metrics, dispatcher, door, Depends(client_of))
    _add_page(api, model, Depends(client_of))
    _add_health(api, journal, metrics, dispatcher)
    return api


def _add_videos(
    api: FastAPI,
    settings: Settings,
    model: Model,
    journal: Journal,
    metrics: Metrics,
    dispatcher: Dispatcher,
    door: Door,
    client_of: Any,
) -> None:
    def found(video_id: str, client: str) -> Job:
        job = journal.get(video_id)
        # Whether another client has such a job is nobody's business.
        if job is None or job.client != client:
            raise Refusal(404, "not_found", f"there is no video {video_id!r}")
        return job

    def accept(client: str, fields: dict[str, Any], upload: bytes | None, key: str | None) -> tuple[Video, bool]:
        request = VideoRequest.model_validate(fields)
        probed = None
        if upload is not None:
            probed = probe_upload(upload, max_duration_s=settings.max_upload_seconds)
        order = order_of(
            request,
            settings,
            model,
            upload_sha256=None if upload is None else sha256_of(upload),
            upload_s=None if probed is None else probed.duration_s,
        )
        bound_s = order.max_seconds if order.staging is None else order.staging.max_seconds
        assert bound_s is not None
        door.check_queue(client)
        plain = {**order.__dict__, "staging": None if order.staging is None else order.staging.__dict__}
        job, is_new = journal.submit(client, plain, shown_of(order, bound_s), upload=upload, idempotency_key=key)
        return video_of(job), is_new

    @api.post(
        "/v1/videos", response_model=Video, responses=_only(401, 403, 413, 422, 429), openapi_extra=_request_body()
    )
    async def create_video(request: Request, client: str = client_of) -> Any:
        """Order a clip. Answers at once; the job is then in the journal and survives any crash."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_form = kind in ("multipart/form-data", "application/x-www-form-urlencoded")
        body = await read_body(request, MAX_PLAIN_BYTES + (settings.max_upload_bytes if is_form else 0))
        fields, upload = await form_of(request, body) if is_form else (_json_object(body), None)
        key = request.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= 255:
            raise Refusal(422, "invalid", "Idempotency-Key must have 1 to 255 characters")
        try:
            video, is_new = await asyncio.to_thread(accept, client, fields, upload, key)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            param = ".".join(str(part) for part in first["loc"]) or None
            raise Refusal(422, "invalid", f"{param or 'request'}: {first['msg']}", param=param) from error
        except ValueError as error:
            raise Refusal(422, "invalid", str(error)) from error
        if is_new:
            metrics.count("jobs_accepted_total")
            dispatcher.poke()
        return _video_response(video, dispatcher.next_look_s(video.id))

    @api.get("/v1/videos", responses=_only(401, 403, 422, 429))
    def list_videos(
        after: Annotated[str | None, Query(max_length=100)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        client: str = client_of,
    ) -> VideoList:
        """Your videos, the newest first; `after`: the id that the last page ended with."""
        ids = journal.ids_of(client)
        if after is not None:
            ids = [one for one in ids if (one > after if order == "asc" else one < after)]
        if order == "desc":
            ids = ids[::-1]
        jobs = [job for job in map(journal.get, ids[:limit]) if job is not None]
        return VideoList(
            data=[video_of(job) for job in jobs],
            first_id=jobs[0].id if jobs else None,
            last_id=jobs[-1].id if jobs else None,
            has_more=len(ids) > limit,
        )

    @api.get("/v1/videos/{video_id}", response_model=Video, responses=_only(401, 403, 404, 422, 429))
    async def get_video(video_id: str, client: str = client_of) -> Any:
        """How a video is getting on."""
        # The most frequent call by far. Three small files of this machine are read in less time than a thread takes to
        # be woken where workers have the cores; a bucket takes its time.
        job = found(video_id, client) if is_local(journal.url) else await asyncio.to_thread(found, video_id, client)
        return _video_response(video_of(job), dispatcher.next_look_s(job.id))

    @api.get(
        "/v1/videos/{video_id}/content",
        response_class=Response,
        responses={200: {"content": {"video/mp4": {}}}, **_only(401, 403, 404, 409, 422, 429)},
    )
    def get_content(video_id: str, variant: Literal["video"] = "video", client: str = client_of) -> Response:
        """The mp4 of a completed video."""
        job = found(video_id, client)
        if job.status != "completed":
            raise Refusal(409, "not_completed", f"video {video_id} is {job.status}")
        try:
            video = journal.video(video_id)
        except FileNotFoundError as error:
            raise Refusal(404, "not_found", f"there is no video {video_id!r}") from error
        headers = {"Content-Disposition": f'inline; filename="{video_id}.mp4"', "Cache-Control": "private"}
        return Response(video, media_type="video/mp4", headers=headers)

    @api.delete("/v1/videos/{video_id}", responses=_only(401, 403, 404, 422, 429))
    def delete_video(video_id: str, client: str = client_of) -> VideoDeleted:
        """Forget a video, or stop its generation."""
        found(video_id, client)
        journal.delete(video_id)
        return VideoDeleted(id=video_id)


def _add_page(api: FastAPI, model: Model, client_of: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_csp_hash(page, 'script')}'; style-src '{_csp_hash(page, 'style')}'; "
        "connect-src 'self'; media-src blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    )

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> HTMLResponse:
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(page, headers=headers)

    @api.get("/v1/models", responses=_only(401, 403, 429))
    async def list_models(client: str = client_of) -> dict[str, Any]:
        """The one model, with the hash of its weights."""
        one = {"id": MODEL_NAME, "object": "model", "created": model.created, "owned_by": "you", "sha256": model.sha256}
        return {"object": "list", "data": [one]}

    @api.get("/v1/elements")
    async def list_elements() -> dict[str, Any]:
        """What can be asked for: the 35 floor elements, and the looks that the model learned."""
        return {
            "data": [
                {"class": known.label, "name": known.name, "subset": known.subset, "sentence": known.phrasings[0]}
                for known in GYM99_FLOOR.values()
            ],
            "looks": {"skin": list(SKINS), "hair": list(HAIRS), "leotard": list(LEOTARDS), "hall": list(ARENAS)},
        }

    @api.get("/v1/skeleton", responses=_only(401, 403, 422, 429))
    def get_skeleton(request: Annotated[SkeletonRequest, Query()], client: str = client_of) -> Response:
        """The joints of an element in a picture whose sides are 1, frame by frame: what will guide the video."""
        try:
            return Response(_skeleton(request.model_dump_json()), media_type="application/json")
        except ValueError as error:
            raise Refusal(422, "invalid", str(error), param="class") from error


def _add_health(api: FastAPI, journal: Journal, metrics: Metrics, dispatcher: Dispatcher) -> None:
    @api.get("/healthz")
    async def healthz() -> dict[str, str]:
        """This process answers."""
        return {"status": "ok"}

    @api.get("/readyz", responses={503: {"description": "Not yet"}})
    async def readyz() -> JSONResponse:
        """A worker has loaded the weights and done a denoising step, and the journal can be read."""
        try:
            await asyncio.to_thread(journal.open_ids)
        except OSError:
            return JSONResponse({"status": "the journal cannot be read"}, 503)
        if not dispatcher.is_ready:
            return JSONResponse({"status": "no worker has started yet"}, 503)
        return JSONResponse({"status": "ok"})

    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def get_metrics() -> Response:
        """This process's metrics in Prometheus' format."""
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4")


def _add_error_forms(api: FastAPI, metrics: Metrics) -> None:
    def error(status: int, message: str, param: str | None, code: str | None, headers: Any = None) -> JSONResponse:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        text = {"message": message, "type": kind, "param": param, "code": code}
        return JSONResponse({"error": text}, status, headers=headers)

    @api.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        metrics.count("refused_total", reason=refusal.reason)
        return error(refusal.status_code, str(refusal.detail), refusal.param, refusal.reason, refusal.headers)

    @api.exception_handler(StarletteHTTPException)
    async def not_here(_: Request, problem: StarletteHTTPException) -> JSONResponse:
        return error(problem.status_code, str(problem.detail), None, None, problem.headers)

    @api.exception_handler(RequestValidationError)
    async def invalid(_: Request, problem: RequestValidationError) -> JSONResponse:
        first = problem.errors()[0]
        param = str(first["loc"][-1])
        metrics.count("refused_total", reason="invalid")
        return error(422, f"{param}: {first['msg']}", param, "invalid")


# --- bodies


def _only(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: _ERRORS[code] for code in codes}


def _request_body() -> dict[str, Any]:
    plain = VideoRequest.model_json_schema()
    upload = {"type": "string", "format": "binary", "description": "A driving video: mp4, mov or webm."}
    form = {**plain, "properties": {**plain["properties"], "input_reference": upload}}
    content = {"application/json": {"schema": plain}, "multipart/form-data": {"schema": form}}
    idempotency = {
        "name": "Idempotency-Key", "in": "header", "required": False,
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        "description": "The same key and request again give the same job.",
    }  # fmt: skip
    return {"requestBody": {"required": True, "content": content}, "parameters": [idempotency]}


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(body)
        # Half a character in a text is JSON, and can neither be stored nor be sent back.
        json.dumps(plain, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refusal(422, "invalid", "the body is not JSON") from error
    if not isinstance(plain, dict):
        raise Refusal(422, "invalid", "the body is not a JSON object")
    return plain


def _video_response(video: Video, next_look_s: float) -> JSONResponse:
    is_open = video.status in ("queued", "in_progress")
    # OpenAI's clients wait so long between two looks.
    headers = {"openai-poll-after-ms": f"{1000 * next_look_s:.0f}"} if is_open else {}
    return JSONResponse(video.model_dump(mode="json", by_alias=True), headers=headers)


@functools.lru_cache(maxsize=512)
def _skeleton(request_json: str) -> bytes:
    request = SkeletonRequest.model_validate_json(request_json, by_name=True)
    staging = Staging(
        label=label_of(request.element),
        height_m=request.body_height_m,
        performance=request.motion,
        bearing_deg=request.camera_bearing_deg,
        pitch_deg=request.camera_pitch_deg,
    )
    side = 256
    staged = stage(staging, side, side)
    joints = (staged.joints_px / side).round(4).tolist()
    sides = [name.split("_")[0] if name.startswith(("left_", "right_")) else "" for name in JOINT_NAMES]
    content = {"fps": staged.fps, "joints": joints, "bones": [list(bone) for bone in BONES], "sides": sides}
    return json.dumps(content).encode()


def _csp_hash(page: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
