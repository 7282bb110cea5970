"""Which floor element a video shows: a small classifier of the joints that a detector finds, learned on real renders.

Path:    Pose2D of a clip's frames -> label
Letters: N clips, F = 16 frames, J = 17 joints, C channels
Units:   pixels in; joints are then told relative to the body's size

Pose alone, so that it judges the movement and not the looks: colour and hall say nothing of the element. Generated and
real clips go through the same detector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finephys.skeleton import MIRROR, NUM_JOINTS

NUM_FRAMES = 16
_NUM_CHANNELS = 2 * NUM_JOINTS + 2
_WIDTH = 96
_EPOCHS = 150
_BATCH = 64
# Deviation of the noise on what it learns from, in body sizes: about that of the shipped detector.
_NOISE = 0.03


@dataclass(frozen=True)
class ElementClassifier:
    """labels: what class k of the network is.  A clip's features are what its last layer sees."""

    network: nn.Sequential
    labels: tuple[int, ...]

    @torch.no_grad()
    def features(self, clips_px: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
        """(N, C) of clips of joints (F, J, 2)."""
        features: Tensor = self.network[:-1](_inputs(clips_px))
        found: NDArray[np.float64] = features.double().numpy()
        return found

    @torch.no_grad()
    def classify(self, clips_px: Sequence[NDArray[np.floating]]) -> NDArray[np.int64]:
        """The label (N,) of each clip of joints (F, J, 2)."""
        found: NDArray[np.int64] = np.asarray(self.labels)[self.network(_inputs(clips_px)).argmax(-1).numpy()]
        return found


def sample_frames(joints_px: NDArray[np.floating]) -> NDArray[np.floating]:
    """Joints (T, J, 2) at the 16 frames that generation shows of a clip."""
    index = np.linspace(0, len(joints_px) - 1, NUM_FRAMES).round().astype(int)
    sampled: NDArray[np.floating] = joints_px[index]
    return sampled


def train_classifier(
    clips_px: Sequence[NDArray[np.floating]], labels: Sequence[int], seed: int = 0
) -> ElementClassifier:
    """Learn on clips of joints (F, J, 2) pixels; the same clips and seed give the same network.

    Raises ValueError on fewer than two different labels.
    """
    known = tuple(sorted(set(labels)))
    if len(known) < 2:
        raise ValueError(f"labels are all {known}, wanted at least two different ones")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(len(known))
        inputs, targets = _inputs(clips_px), torch.tensor([known.index(label) for label in labels])
        mirrored = _inputs([_mirrored(clip) for clip in clips_px])
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
        num_steps = _EPOCHS * -(-len(inputs) // _BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
        network.train()
        for _ in range(num_steps):
            picked = torch.randint(len(inputs), (min(_BATCH, len(inputs)),))
            is_mirrored = (torch.rand(len(picked)) < 0.5)[:, None, None]
            shown = torch.where(is_mirrored, mirrored[picked], inputs[picked])
            loss = nn.functional.cross_entropy(
                network(shown + _NOISE * torch.randn_like(shown)), targets[picked], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
    return ElementClassifier(network, known)


def _network(num_classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width_in = _NUM_CHANNELS
    for dilation in (1, 2, 4):
        layers += [
            nn.Conv1d(width_in, _WIDTH, 3, padding=dilation, dilation=dilation),
            nn.BatchNorm1d(_WIDTH),
            nn.GELU(),
            nn.Dropout(0.2),
        ]
        width_in = _WIDTH
    # Four parts of the clip: a take-off is no landing.
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.Linear(4 * _WIDTH, num_classes))


def _inputs(clips_px: Sequence[NDArray[np.floating]]) -> Tensor:
    """(N, 36, F): the joints about the root, and the root's way from where it starts, in body sizes."""
    return torch.stack([torch.from_numpy(_normalised(np.asarray(clip, np.float64))).float() for clip in clips_px])


def _normalised(joints_px: NDArray[np.float64]) -> NDArray[np.float64]:
    if joints_px.shape != (NUM_FRAMES, NUM_JOINTS, 2) or not np.isfinite(joints_px).all():
        raise ValueError(f"joints have shape {joints_px.shape}, wanted finite ({NUM_FRAMES}, {NUM_JOINTS}, 2)")
    size_px = max(float(np.median(np.ptp(joints_px, axis=1).max(-1))), 1.0)
    root_px = joints_px[:, :1]
    about_root = (joints_px - root_px) / size_px
    way = (root_px[:, 0] - root_px[0, 0]) / size_px
    return np.concatenate([about_root.reshape(NUM_FRAMES, -1), way], axis=1).T


def _mirrored(joints_px: NDArray[np.floating]) -> NDArray[np.floating]:
    mirrored: NDArray[np.floating] = joints_px[:, MIRROR] * np.array([-1.0, 1.0])
    return mirrored
