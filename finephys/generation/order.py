"""One clip that somebody ordered.

Path:    a service's request -> Order -> finephys/generation/ordered.py
Units:   pixel, second
"""

from dataclasses import dataclass, replace
from typing import Any

from finephys.generation.requests import ReferenceName
from finephys.generation.staging import Staging


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to generate.

    staging: the element that drives; None where an uploaded video drives, whose hash is upload_sha256 and of which the
    first max_seconds count.  reference: "first" shows the uploaded video's first picture to the model.
    """

    prompt: str
    seed: int
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    pose_guidance_scale: float
    staging: Staging | None = None
    upload_sha256: str | None = None
    max_seconds: float | None = None
    reference: ReferenceName = "none"

    def __post_init__(self) -> None:
        if (self.staging is None) == (self.upload_sha256 is None):
            raise ValueError("staging and upload_sha256 are both given or both missing, wanted one of them")
        if self.reference == "first" and self.upload_sha256 is None:
            raise ValueError("reference is 'first' without a driving video, wanted 'none'")

    def goes_with(self, other: "Order") -> bool:
        """Whether both can be generated in one batch."""
        return replace(self, prompt="", seed=0) == replace(other, prompt="", seed=0)


def order_from_json(plain: dict[str, Any]) -> Order:
    """What dataclasses.asdict made of an order, back. Raises TypeError or ValueError on anything else."""
    staging = plain["staging"]
    return Order(**{**plain, "staging": None if staging is None else Staging(**staging)})
