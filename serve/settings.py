"""What a service is started with, what its model can do, and whose tokens it knows.

Path:    `serve run serve.app:app KEY=VALUE`, serve/config.yaml, environment -> Settings, Model, Tokens
Units:   second, pixel, byte

Settings come as arguments of the application; secrets from the environment or a file only:
FINEPHYS_SERVE_TOKENS        "name:token" pairs, separated by commas or line breaks
FINEPHYS_SERVE_TOKENS_FILE   a file of such lines; # begins a comment
"""

import hashlib
import hmac
import ipaddress
import json
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from finephys.generation.requests import pipeline_sha256

TOKENS_VARIABLE, TOKENS_FILE_VARIABLE = "FINEPHYS_SERVE_TOKENS", "FINEPHYS_SERVE_TOKENS_FILE"
# Who asks where no tokens are wanted.
ANYBODY = "anybody"
MODEL_NAME = "finephys"


class Settings(BaseModel):
    """One service. Unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Folder of a trained pipeline, on every node.
    pipeline: str = "finephys/assets/pipeline"
    # Folder or URL of the journal; all of the service's memory.
    journal: str = "outputs/serve"
    device: Literal["cpu", "cuda"] = "cpu"
    # CPU threads of a worker.
    threads: int = Field(1, ge=1)

    # Workers: none while nobody asks, then one for each batch that waits.
    min_workers: int = Field(0, ge=0)
    max_workers: int = Field(2, ge=1)
    # Nine tenths leave room on a machine for the process that answers.
    cpus_per_worker: float = Field(0.9, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    # Seconds without work until a worker is stopped, and that one that is told to stop has for the batch in hand.
    idle_seconds: float = Field(60.0, gt=0)
    drain_seconds: float = Field(600.0, gt=0)
    # Jobs of one motion and one set of settings that are generated together. None: one on a CPU, where a clip in a
    # batch of four takes 1.37 times as long as alone (`jobs/benchmark.py generate`); four on a GPU.
    max_batch: int | None = Field(None, ge=1)
    # A worker that gives no sign of life for so long has lost its jobs to the next.
    lease_seconds: float = Field(15.0, gt=0)
    # Attempts at a job, each of which took its worker down or broke.
    max_attempts: int = Field(3, ge=1)
    # How often the journal is looked at for work that this process was not told of.
    poll_seconds: float = Field(0.5, gt=0)

    # Limits at the door.
    max_queue: int = Field(1000, ge=1)
    max_queue_per_client: int = Field(200, ge=1)
    # Counted by the process that answers, of which serve/app.py starts one; a restart begins to count anew.
    max_requests_per_minute: int = Field(6000, ge=1)
    max_prompt_chars: int = Field(1000, ge=1)
    max_steps: int = Field(50, ge=1)
    max_side_px: int = Field(512, ge=16)
    max_upload_bytes: int = Field(32 * 2**20, ge=1)
    max_upload_seconds: float = Field(20.0, gt=0)
    # Serve anybody, without tokens, on an address that others can reach.
    open_to_anybody: bool = False

    @property
    def batch_limit(self) -> int:
        """max_batch, decided."""
        return self.max_batch or (1 if self.device == "cpu" else 4)


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the pipeline in a folder can do, read from its configurations without its weights.

    multiple_px: of which sides must be multiples.  default_size: (height, width).  takes_video: it has the parts that a
    driving video needs.  created: when the folder was written, seconds since 1970.
    """

    sha256: str
    multiple_px: int
    default_size: tuple[int, int]
    max_frames: int
    takes_video: bool
    created: int

    @classmethod
    def read(cls, folder: Path) -> "Model":
        """Raises FileNotFoundError where there is no pipeline."""
        index = json.loads((folder / "model_index.json").read_text())
        vae = json.loads((folder / "vae" / "config.json").read_text())
        unet = json.loads((folder / "unet" / "config.json").read_text())
        # As finephys/diffusion/vae.py: pixels are unshuffled into channels first, then halved between scales.
        cell_px = math.isqrt(vae["in_channels"] // 3) * 2 ** (len(vae["block_out_channels"]) - 1)
        side_px = unet["sample_size"] * cell_px
        return cls(
            sha256=pipeline_sha256(folder),
            multiple_px=cell_px * 2 ** (len(unet["block_out_channels"]) - 1),
            default_size=(side_px, side_px),
            max_frames=unet["motion_max_seq_length"],
            takes_video=all((index.get(name) or [None])[0] for name in ("phys_net", "lifter", "pose_estimator")),
            created=int((folder / "model_index.json").stat().st_mtime),
        )


class Tokens:
    """Whose token is which. Only hashes are kept."""

    def __init__(self, token_of_client: dict[str, str]) -> None:
        self._sha256 = {client: _digest(token) for client, token in token_of_client.items()}

    @classmethod
    def from_environment(cls) -> "Tokens":
        """Raises ValueError on a line that is not name:token, FileNotFoundError on a file that is not there."""
        lines = re.split(r"[,\n]", os.environ.get(TOKENS_VARIABLE, ""))
        if path := os.environ.get(TOKENS_FILE_VARIABLE):
            lines += Path(path).read_text().splitlines()
        token_of_client = {}
        for number, line in enumerate((line.partition("#")[0].strip() for line in lines), start=1):
            if not line:
                continue
            client, _, token = (part.strip() for part in line.partition(":"))
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", client) or len(token) < 16 or client == ANYBODY:
                # The line itself is a secret.
                raise ValueError(f"token number {number} is not name:token with a token of at least 16 characters")
            token_of_client[client] = token
        return cls(token_of_client)

    def __len__(self) -> int:
        return len(self._sha256)

    def client_of(self, token: str) -> str | None:
        """Whose token it is; every known one is compared, in constant time, whichever it is."""
        found = None
        digest = _digest(token)
        for client, known in self._sha256.items():
            if hmac.compare_digest(digest, known):
                found = client
        return found


def refuse_open_address(settings: Settings, tokens: Tokens, host: str) -> None:
    """Raise ValueError where anybody could reach a service that asks nobody for a token, unless the settings say so."""
    if len(tokens) or settings.open_to_anybody or _is_loopback(host):
        return
    raise ValueError(
        f"the service would listen on {host} and knows no tokens: set {TOKENS_VARIABLE} or {TOKENS_FILE_VARIABLE}, "
        "listen on 127.0.0.1, or say open_to_anybody=true"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
