"""What one generated clip depends on, and the names and seeds that follow from it.

Path:    a request -> seed, folder name, hash
Units:   none

Seed = hash of (run seed, clip_id, sample), and so is the folder's name: a retry writes over its own files, and a clip
comes out the same whatever else is generated beside it.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ReferenceName = Literal["none", "first"]
OutputFormat = Literal["shards", "mp4"]

# Longer folder names than this are cut; the hash that is then added keeps them apart.
_LONGEST_NAME = 80


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One clip to generate.

    clip_id: of the driving clip.  sample: counts the samples drawn for one clip.  reference: which picture says how
    person and place look beside the prompt, the driving clip's first frame or none.  driving_sha256: of the driving
    video's bytes.  pipeline_sha256: of the pipeline folder (`pipeline_sha256` below).
    """

    clip_id: str
    sample: int
    prompt: str
    seed: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    pose_guidance_scale: float
    reference: ReferenceName
    driving_sha256: str
    pipeline_sha256: str

    @property
    def noise_seed(self) -> int:
        """What the random generator of this clip starts from, in 0 .. 2^63 - 1."""
        return noise_seed(self.seed, self.clip_id, self.sample)

    @property
    def folder_name(self) -> str:
        """A file name for this clip and sample on any system, the same on every run."""
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", self.clip_id).lstrip(".")
        if plain != self.clip_id or len(plain) > _LONGEST_NAME:
            plain = f"{plain[:_LONGEST_NAME]}-{sha256_of(self.clip_id.encode())[:8]}"
        return f"{plain}-{self.sample}"

    @property
    def sha256(self) -> str:
        """Hash of all that the generated clip depends on: the same hash, the same clip."""
        return sha256_of(json.dumps(asdict(self), sort_keys=True).encode())


def noise_seed(seed: int, clip_id: str, sample: int) -> int:
    """hash(run seed, clip_id, sample) as a seed for torch.Generator."""
    digest = hashlib.sha256(json.dumps([seed, clip_id, sample]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def pipeline_sha256(folder: Path) -> str:
    """Hash of every file of a pipeline folder, names and bytes, in sorted order."""
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def sha256_of(data: bytes) -> str:
    """The hash of bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
