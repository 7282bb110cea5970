"""A stage of a few hundred weights with everything a real one has: noise, a running buffer, a counter, an export.

Run as a program it trains on tests' own clips: python -m tests.training.tiny_stage DATA OUTPUT STEPS.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from finephys.config import OptimizerConfig, RowsConfig, TrainConfig
from finephys.training.stages import Stage


@dataclass(frozen=True, kw_only=True)
class TinyConfig:
    width: int = 16
    noise: float = 0.01


class Tiny(nn.Module):
    """An autoencoder of 4x4 thumbnails."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Linear(48, config.width)
        self.decoder = nn.Linear(config.width, 48)
        self.register_buffer("running_mean", torch.zeros(48))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.long))

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = batch["thumbnails"]
        if self.training:
            self.running_mean.lerp_(x.detach().mean(0), 0.1)
            self.num_seen += 1
        noisy = x + self.config.noise * torch.randn_like(x)
        error = (self.decoder(torch.tanh(self.encoder(noisy))) - x).square()
        return {"loss": error.mean(), "worst": error.detach().max()}

    def export(self, folder: Path) -> None:
        (folder / "tiny").mkdir(parents=True, exist_ok=True)
        save_file(dict(self.state_dict()), folder / "tiny" / "model.safetensors")


def collate(rows: list[dict], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """A random frame of each clip as a 4x4 thumbnail."""
    thumbnails = []
    for row in rows:
        frame = row["frames"][rng.integers(len(row["frames"]))].astype(np.float32) / 255
        height, width, _ = frame.shape
        thumbnails.append(frame.reshape(4, height // 4, 4, width // 4, 3).mean((1, 3)).reshape(48))
    return {"thumbnails": torch.from_numpy(np.stack(thumbnails))}


def build(config: TinyConfig, init: Path | None) -> Tiny:
    return Tiny(config)


STAGE = Stage(rows="decoded", config=TinyConfig, build=build, collate=collate)


def tiny_config(data: str, output: str, steps: int, module: TinyConfig | None = None, **fields: object) -> TrainConfig:
    """Checkpoints every 10 steps, 4 clips a step."""
    return TrainConfig(
        stage="vae",
        data=data,
        output=output,
        steps=steps,
        batch_size=4,
        threads=1,
        log_every=5,
        checkpoint_every=10,
        validate_every=20,
        validation_batches=1,
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=5, ema_decay=0.9),
        rows=RowsConfig(validation_clips=4),
        module=module or TinyConfig(),
        **fields,
    )


if __name__ == "__main__":
    from finephys.training.ray_trainer import run

    data, output, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    outcome = run(tiny_config(data, output, steps), STAGE)
    print(f"outcome {outcome.step} {outcome.is_finished}")
