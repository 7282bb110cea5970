"""Two ranks of the tiny model on streamed feature rows, as a program: what test_faults.py does its worst to.

python -m tests.training.faulty_stage DATA INIT OUTPUT STEPS [CLIP_THAT_IS_NAN]
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from finephys.config import RowsConfig
from finephys.training.ray_trainer import run
from finephys.training.stages import Stage
from tests.training.tiny_stage import TinyConfig, build, tiny_config

# Long enough to be killed between two checkpoints.
BATCH_S = 0.15


def main(data: str, init: str, output: str, steps: str, nan_clip: str = "") -> None:
    """Train, and say so."""

    def collate(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """A random frame of each clip as the 4x4 thumbnail of three channels of its latent."""
        time.sleep(BATCH_S)
        thumbnails = []
        for row in rows:
            latent = row["latents"][rng.integers(len(row["latents"]))].astype(np.float32)
            thumbnails.append(latent[:3].reshape(3, 4, 2, 4, 2).mean((2, 4)).reshape(48))
            if row["clip_id"] == nan_clip:
                thumbnails[-1][7] = np.nan
        return {"thumbnails": torch.from_numpy(np.stack(thumbnails))}

    config = replace(
        tiny_config(data, output, int(steps)),
        init=init,
        num_workers=2,
        batch_size=2,
        log_every=1,
        max_failures=8,
        rows=RowsConfig(materialise=False, pose_source="truth", validation_clips=4),
    )
    outcome = run(config, Stage(rows="features", config=TinyConfig, build=build, collate=collate))
    print(f"outcome {outcome.step} {outcome.is_finished}")


if __name__ == "__main__":
    main(*sys.argv[1:])
