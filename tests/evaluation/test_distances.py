"""Fréchet distance against closed forms and scipy's own matrix root; networks that a user brings really load."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    VideoMAEConfig,
    VideoMAEImageProcessor,
    VideoMAEModel,
)

from finephys.diffusion.text import DEMO_SENTENCES, TextConfig, build_tokenizer
from finephys.evaluation.distances import clip_similarity, frechet_distance, video_features


def whitened(rng, count, channels):
    """Features of exactly zero mean and unit covariance."""
    features = rng.normal(size=(count, channels))
    features -= features.mean(0)
    return features @ np.linalg.inv(np.linalg.cholesky(np.cov(features, rowvar=False))).T


def test_closed_forms():
    rng = np.random.default_rng(0)
    features = whitened(rng, 200, 3)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + np.array([1, 2, 2])) == pytest.approx(9)
    # Scaled by 3: tr(1 + 9 - 2 * 3) a channel.
    assert frechet_distance(features, 3 * features) == pytest.approx(3 * 4)


def test_general_covariances_as_scipy_has_them():
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    s, t = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_fewer_videos_than_channels_is_still_a_number():
    rng = np.random.default_rng(2)
    one, other = rng.normal(size=(4, 50)), rng.normal(size=(6, 50))
    assert frechet_distance(one, other) == pytest.approx(frechet_distance(other, one))
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("one", "other"), [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))])
def test_what_has_no_distance_is_refused(one, other):
    with pytest.raises(ValueError, match="wanted"):
        frechet_distance(np.zeros(one), np.zeros(other))


VIDEOS = [np.random.default_rng(index).integers(0, 256, (6, 32, 32, 3), np.uint8) for index in range(2)]


def test_a_videomae_folder(tmp_path):
    torch.manual_seed(0)
    config = VideoMAEConfig(
        image_size=32, patch_size=16, num_frames=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    VideoMAEModel(config).save_pretrained(tmp_path)
    VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    features = video_features(tmp_path, VIDEOS)
    assert features.shape == (2, 16)
    assert not np.allclose(features[0], features[1])


def test_a_clip_folder(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(TextConfig(max_length=16), DEMO_SENTENCES)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(text_config=small | text, vision_config=small | {"image_size": 32, "patch_size": 16})
    CLIPModel(config).save_pretrained(tmp_path)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(tmp_path)
    similarity = clip_similarity(tmp_path, VIDEOS, ["A gymnast jumps.", "A red leotard."])
    assert similarity.shape == (2,)
    assert (np.abs(similarity) <= 1).all()


def test_weights_that_would_need_unpickling_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(VideoMAEConfig().to_dict()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(OSError, match="safetensors"):
        video_features(tmp_path, VIDEOS)
