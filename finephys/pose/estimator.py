"""What a 2D pose estimator is.

Path:    frames -> Pose2D
Letters: T frames, 17 H36M joints (finephys/skeleton.py)
Units:   pixel (x right, y down, centre of the first pixel at 0.5)
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pose2D:
    """joints_px (T, 17, 2) float32 pixels of the clip; confidence (T, 17) float32 in [0, 1]."""

    joints_px: NDArray[np.float32]
    confidence: NDArray[np.float32]


class PoseEstimator(Protocol):
    def estimate(self, frames_THWC: NDArray[np.uint8]) -> Pose2D:
        """The gymnast's joints in each frame of one clip, frames_THWC uint8 RGB."""
        ...
