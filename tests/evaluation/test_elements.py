"""The element classifier tells movements apart that differ in time only, whatever the size and place of the body."""

import numpy as np
import pytest

from finephys.evaluation.elements import NUM_FRAMES, sample_frames, train_classifier


def clip(rng: np.random.Generator, label: int) -> np.ndarray:
    """(16,17,2): one of three movements of the same skeleton: up, down, or turning over."""
    skeleton = np.stack([np.linspace(-10, 10, 17), np.linspace(-40, 40, 17)], -1)
    time = np.linspace(0, 1, NUM_FRAMES)[:, None]
    angle = 2 * np.pi * time[..., 0] * (label == 2)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    way = np.concatenate([np.zeros_like(time), 60 * time * (-1) ** label * (label < 2)], -1)
    joints = skeleton @ turn.swapaxes(-1, -2) + way[:, None]
    return joints * rng.uniform(0.5, 2) + rng.uniform(0, 100, 2) + rng.normal(0, 1, joints.shape)


def test_learns_movements_and_repeats_itself():
    rng = np.random.default_rng(0)
    labels = [index % 3 + 6 for index in range(48)]
    learned = [clip(rng, label - 6) for label in labels]
    first, second = (train_classifier(learned, labels) for _ in range(2))
    unseen = [clip(rng, label - 6) for label in labels]
    assert (first.classify(unseen) == labels).mean() > 0.95
    np.testing.assert_array_equal(first.features(unseen), second.features(unseen))


def test_frames_are_spread_over_the_whole_clip():
    index = sample_frames(np.arange(61.0)[:, None, None])[:, 0, 0]
    assert index.tolist() == list(range(0, 61, 4))


def test_one_label_is_nothing_to_learn():
    with pytest.raises(ValueError, match="at least two"):
        train_classifier([np.zeros((NUM_FRAMES, 17, 2))], [6])
