"""How far two sets of videos lie apart, and how well a video fits its prompt: Fréchet distance and CLIP similarity.

Path:    features of generated and of real videos -> a number
Letters: N videos, C features, F frames
Units:   none

Networks are the user's own, in transformers' folder layout: VideoMAE for the Fréchet video distance, CLIP for the
similarity. Numbers of different networks, frame counts or sizes do not compare.
[1] Fréchet distance of Gaussians: Dowson and Landau 1982; FVD: Unterthiner et al., arXiv:1812.01717.
[2] CLIP similarity: Hessel et al., CLIPScore, EMNLP 2021, without its factor 2.5.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

Video = NDArray[np.uint8]


def frechet_distance(features_NC: NDArray[np.floating], other_NC: NDArray[np.floating]) -> float:
    """|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2)) of the Gaussians of two sets of features [1].

    Raises ValueError on fewer than two videos a side or different numbers of features.
    """
    for name, features in (("features", features_NC), ("other", other_NC)):
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"{name} have shape {features.shape}, wanted (N, C) with N at least 2")
    if features_NC.shape[1] != other_NC.shape[1]:
        raise ValueError(f"features have {features_NC.shape[1]} and {other_NC.shape[1]} channels, wanted as many")
    mean, other_mean = features_NC.mean(0), other_NC.mean(0)
    covariance, other_covariance = np.cov(features_NC, rowvar=False), np.cov(other_NC, rowvar=False)
    covariance, other_covariance = np.atleast_2d(covariance), np.atleast_2d(other_covariance)
    # The trace of the root is the sum of the roots of the eigenvalues of S S', which are those of R S R with S' = R R:
    # symmetric, so it also holds for few videos, where sqrtm of the product loses its way.
    root = _root(other_covariance)
    eigenvalues = scipy.linalg.eigvalsh(root @ covariance @ root)
    cross = float(np.sqrt(np.maximum(eigenvalues, 0)).sum())
    shift = float(np.square(mean - other_mean).sum())
    # Rounding can leave a little less than nothing between equal sets.
    return max(0.0, shift + float(np.trace(covariance) + np.trace(other_covariance)) - 2 * cross)


def video_features(folder: Path, videos: Sequence[Video]) -> NDArray[np.float64]:
    """(N, C): mean token of a user's VideoMAE in `folder` for each video (F, H, W, 3).

    Frames are spread evenly to the number that the network takes. Raises OSError where the folder holds no such model.
    """
    from transformers import VideoMAEImageProcessor, VideoMAEModel

    network = VideoMAEModel.from_pretrained(folder, use_safetensors=True).eval()
    processor = VideoMAEImageProcessor.from_pretrained(folder)
    features = []
    with torch.no_grad():
        for video in videos:
            index = np.linspace(0, len(video) - 1, network.config.num_frames).round().astype(int)
            pixels: Any = processor(list(video[index]), return_tensors="pt")["pixel_values"]
            features.append(network(pixels).last_hidden_state.mean(1)[0].double().numpy())
    return np.stack(features)


def clip_similarity(folder: Path, videos: Sequence[Video], prompts: Sequence[str]) -> NDArray[np.float64]:
    """(N,) in -1..1: cosine of each video's frames and its prompt, mean over frames, by a user's CLIP in `folder` [2].

    Raises OSError where the folder holds no such model.
    """
    from transformers import CLIPModel, CLIPProcessor

    network = CLIPModel.from_pretrained(folder, use_safetensors=True).eval()
    processor = CLIPProcessor.from_pretrained(folder)
    similarities = []
    with torch.no_grad():
        for video, prompt in zip(videos, prompts, strict=True):
            inputs: Any = processor(
                text=[prompt], images=list(video), return_tensors="pt", padding=True, truncation=True
            )
            outputs = network(**inputs)
            similarities.append(float((outputs.image_embeds @ outputs.text_embeds.T).mean()))
    return np.array(similarities)


def _root(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """The symmetric square root of a positive semidefinite matrix."""
    values, vectors = scipy.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
