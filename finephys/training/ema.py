"""Exponential moving average of a module's trainable weights and floating buffers: what validates and what ships.

Path:    loop (after each optimizer step) -> checkpoint, validation, export
Letters: none
Units:   none

The average is float32 whatever the weights are, and covers what this rank holds: under ZeRO-3 its shard of each weight.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class ExponentialMovingAverage:
    """values: name -> float32 average."""

    def __init__(self, live: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().float().clone() for name, value in live.items()}

    @torch.no_grad()
    def update(self, live: Mapping[str, Tensor], step: int) -> None:
        """Move towards the live weights after optimizer step `step` (1, 2, ...).

        Warm-up: decay min(d, step/(step+9)), so that an average of 100 steps is not the initialisation
        (the rule of tf.train.ExponentialMovingAverage, (1+n)/(10+n)).
        """
        decay = min(self.decay, step / (step + 9))
        averages = list(self.values.values())
        torch._foreach_lerp_(averages, [live[name].detach().float() for name in self.values], 1 - decay)

    @contextmanager
    def swapped_in(self, live: Mapping[str, Tensor]) -> Iterator[None]:
        """Within the block the live tensors hold the average; after it their own values again."""
        with torch.no_grad():
            kept = {name: value.detach().clone() for name, value in live.items()}
            for name, value in live.items():
                value.copy_(self.values[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in live.items():
                    value.copy_(kept[name])
