"""The learning rate of each step.

Path:    OptimizerConfig, step -> loop
Letters: none
Units:   steps
"""

import math

from finephys.config import OptimizerConfig


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of step `step` (0 .. num_steps-1): linear warm-up, then half a cosine down to final_lr_share."""
    # A short run keeps its warm-up short too.
    warmup = min(config.warmup_steps, max(1, num_steps // 5))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
