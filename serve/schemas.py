"""What clients send and get: the OpenAI-style video API, with our own fields beside.

Path:    POST /v1/videos -> VideoRequest -> Order -> journal -> Video
Units:   second, pixel, metre, degree
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from finephys.data.gym99 import GYM99_FLOOR
from finephys.generation.order import Order
from finephys.generation.staging import FPS, MAX_FRAMES, Staging, label_of, label_of_prompt
from finephys.gymnast.motions import prompt_for
from serve.journal import Job
from serve.settings import MODEL_NAME, Model, Settings

Finite = Field(allow_inf_nan=False)


def _number_in_text(value: Any) -> Any:
    """Forms and OpenAI's clients send numbers as text. True is no number here."""
    if isinstance(value, bool):
        raise ValueError("wanted a number")
    if isinstance(value, str):
        if not re.fullmatch(r"-?\d{1,20}(\.\d{1,20})?", value):
            raise ValueError("wanted a number")
        return float(value) if "." in value else int(value)
    return value


Whole = Annotated[int, BeforeValidator(_number_in_text)]
Number = Annotated[float, BeforeValidator(_number_in_text), Finite]


_EXAMPLES: list[JsonValue] = [
    {"prompt": "A gymnast in a red leotard does a switch leap, in a blue hall."},
    {"class": "split jump", "motion": 1, "body_height_m": 1.5, "camera_bearing_deg": 45, "num_inference_steps": 6},
]


class VideoRequest(BaseModel):
    """A clip to generate. What is not named here is refused."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, json_schema_extra={"examples": _EXAMPLES})

    model: str = Field(MODEL_NAME, max_length=100, description=f"Only {MODEL_NAME}.")
    prompt: str = Field(
        "", description="How she looks and what she does. Blank: the sentence of `class`. Without `class` and driving "
        "video it also chooses the element.",
    )  # fmt: skip
    seconds: Number | None = Field(
        None, ge=0.5, le=3600,
        description="At most so long; an element takes the time it takes (1 to 2.1 s), of a driving video it is the "
        "beginning.",
    )  # fmt: skip
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT; the model's own where missing.")
    element: str | None = Field(
        None, alias="class", max_length=100, description="Name or gym99 id (6 to 40) of a floor element."
    )
    motion: Whole = Field(0, ge=0, le=2**31 - 1, description="Which performance of the element: side, height, timing.")
    body_height_m: Number = Field(1.55, ge=1.35, le=1.7, description="The gymnast's height.")
    camera_bearing_deg: Number = Field(90.0, ge=0, le=360, description="0 looks along her run-up, 90 across it.")
    camera_pitch_deg: Number = Field(8.0, ge=-5, le=20, description="How far the camera looks down.")
    seed: Whole = Field(0, ge=0, le=2**63 - 1, description="Of the noise: the same request gives the same clip.")
    num_frames: Whole = Field(16, ge=2, description="Frames of the clip.")
    num_inference_steps: Whole = Field(20, ge=1, description="Denoising steps.")
    guidance_scale: Number = Field(2.0, ge=0, le=20, description="Strength of the prompt; 1 turns it off.")
    pose_guidance_scale: Number = Field(1.0, ge=0, le=20, description="Strength of the pose beyond training.")
    reference: Literal["none", "first"] = Field(
        "none", description="first: the driving video's first picture says how person and place look."
    )

    @model_validator(mode="after")
    def _known_model(self) -> "VideoRequest":
        if self.model != MODEL_NAME:
            raise ValueError(f"model is {self.model!r}, wanted {MODEL_NAME!r}")
        return self


class SkeletonRequest(BaseModel):
    """What the page draws before there is a video."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    element: str = Field(alias="class", max_length=100)
    motion: int = Field(0, ge=0, le=2**31 - 1)
    body_height_m: float = Field(1.55, ge=1.35, le=1.7, allow_inf_nan=False)
    camera_bearing_deg: float = Field(90.0, ge=0, le=360, allow_inf_nan=False)
    camera_pitch_deg: float = Field(8.0, ge=-5, le=20, allow_inf_nan=False)


class VideoError(BaseModel):
    code: str
    message: str


class Video(BaseModel):
    """A job, in OpenAI's terms and ours. progress is 0 until a worker is at it, 100 when the video is there."""

    model_config = ConfigDict(populate_by_name=True)

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    error: VideoError | None = None
    prompt: str
    seconds: str
    size: str
    remixed_from_video_id: str | None = None
    element: str | None = Field(None, alias="class")
    seed: int
    num_frames: int
    num_inference_steps: int
    seconds_by_hop: dict[str, float] = {}


class VideoList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(BaseModel):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class ErrorText(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorText


def order_of(
    request: VideoRequest, settings: Settings, model: Model, *, upload_sha256: str | None, upload_s: float | None
) -> Order:
    """The order that a request means. Raises ValueError, naming the field, on what this model or service cannot do."""
    if len(request.prompt) > settings.max_prompt_chars:
        raise ValueError(f"prompt has {len(request.prompt)} characters, wanted at most {settings.max_prompt_chars}")
    if request.num_frames > model.max_frames:
        raise ValueError(f"num_frames is {request.num_frames}, wanted 2 to {model.max_frames}")
    if request.num_inference_steps > settings.max_steps:
        raise ValueError(f"num_inference_steps is {request.num_inference_steps}, wanted 1 to {settings.max_steps}")
    height, width = _size(request.size, settings, model)
    prompt, staging = " ".join(request.prompt.split()), None
    if upload_sha256 is None:
        label = _label(request, prompt)
        staging = Staging(
            label=label,
            height_m=request.body_height_m,
            performance=request.motion,
            bearing_deg=request.camera_bearing_deg,
            pitch_deg=request.camera_pitch_deg,
            max_seconds=min(request.seconds or math.inf, MAX_FRAMES / FPS),
        )
        if round(staging.max_seconds * FPS) < request.num_frames:
            raise ValueError(
                f"seconds is {request.seconds}, wanted at least {request.num_frames / FPS:.2f} for num_frames"
            )
        prompt = prompt or prompt_for(GYM99_FLOOR[label].name)
    elif request.element is not None:
        raise ValueError("class and input_reference are both given, wanted one of them")
    elif not model.takes_video:
        raise ValueError("input_reference is given, and this model takes no driving video")
    elif not prompt:
        raise ValueError("prompt is blank, wanted a sentence beside input_reference")
    return Order(
        prompt=prompt,
        seed=request.seed,
        height=height,
        width=width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        pose_guidance_scale=request.pose_guidance_scale,
        staging=staging,
        upload_sha256=upload_sha256,
        max_seconds=None if upload_s is None else min(request.seconds or math.inf, upload_s),
        reference=request.reference,
    )


def video_of(job: Job) -> Video:
    """A job as its client sees it."""
    is_done = job.status == "completed"
    assert job.status != "deleted"
    return Video(
        id=job.id,
        status=job.status,
        progress=100 if is_done else min(job.progress, 99),
        created_at=int(job.created_at),
        completed_at=None if job.ended_at is None or not is_done else int(job.ended_at),
        error=None if job.error is None else VideoError(**job.error),
        seconds_by_hop=job.seconds_by_hop,
        **job.shown,
    )


def shown_of(order: Order, seconds: float) -> dict[str, Any]:
    """What of an order its client is shown."""
    return {
        "model": MODEL_NAME,
        "prompt": order.prompt,
        "seconds": f"{seconds:.3g}",
        "size": f"{order.width}x{order.height}",
        "class": None if order.staging is None else GYM99_FLOOR[order.staging.label].name,
        "seed": order.seed,
        "num_frames": order.num_frames,
        "num_inference_steps": order.num_inference_steps,
    }


def _label(request: VideoRequest, prompt: str) -> int:
    if request.element is not None:
        return label_of(request.element)
    label = label_of_prompt(prompt)
    if label is None:
        raise ValueError("prompt names no floor element and class is missing, wanted one of them")
    return label


def _size(size: str | None, settings: Settings, model: Model) -> tuple[int, int]:
    """(height, width)."""
    if size is None:
        return model.default_size
    parts = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size, flags=re.ASCII)
    multiple = model.multiple_px
    if parts:
        width, height = int(parts[1]), int(parts[2])
        if all(multiple <= side <= settings.max_side_px and side % multiple == 0 for side in (width, height)):
            return height, width
    default = f"{model.default_size[1]}x{model.default_size[0]}"
    wanted = f"multiples of {multiple} up to {settings.max_side_px}, such as {default}"
    raise ValueError(f"size is {size!r}, wanted WIDTHxHEIGHT of {wanted}")
