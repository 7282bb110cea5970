"""A pipeline of real parts small enough to generate a clip in a fraction of a second, and clips to drive it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finephys.benchmarks.tiny import IMAGE_SIDE, write_tiny_pipeline
from finephys.data.clips import Clip, write_shard
from finephys.data.video import encode_video
from tests.diffusion.conftest import INTRINSICS, standing

NUM_CLIPS = 7
NUM_FRAMES = 20


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved pipeline folder; its UNet is untrained, so its videos are noise that follows from the seed."""
    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    write_tiny_pipeline(folder)
    return folder


def driving_clip(number: int) -> Clip:
    """A clip with ground truth, of someone who stands and sways."""
    joints_m = standing(NUM_FRAMES, number)
    projected = joints_m @ INTRINSICS.T
    frames = np.random.default_rng(number).integers(0, 256, (NUM_FRAMES, IMAGE_SIDE, IMAGE_SIDE, 3), np.uint8)
    return Clip(
        clip_id=f"sway-{number}",
        split="train",
        subset="other",
        label=-1,
        label_name="walk" if number % 2 else "run",
        prompt=f"A gymnast sways, number {number}.",
        video=encode_video(frames, 30.0, 30),
        fps=30.0,
        num_frames=NUM_FRAMES,
        height=IMAGE_SIDE,
        width=IMAGE_SIDE,
        joints_px=(projected[..., :2] / projected[..., 2:]).astype(np.float32),
        joints_confidence=np.ones((NUM_FRAMES, 17), np.float32),
        joints_cam_m=joints_m,
        intrinsics=np.repeat(INTRINSICS[None], NUM_FRAMES, axis=0),
        rotation=np.repeat(np.diag([1, -1, -1]).astype(np.float32)[None], NUM_FRAMES, axis=0),
        translation=np.zeros((NUM_FRAMES, 3), np.float32),
        is_static=True,
        in_flight=np.zeros(NUM_FRAMES, bool),
        feet_in_contact=np.ones((NUM_FRAMES, 2), bool),
    )


@pytest.fixture(scope="session")
def driving_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of NUM_CLIPS sound clips and one, sway-broken, whose video does not decode."""
    folder = tmp_path_factory.mktemp("driving")
    clips = [driving_clip(number) for number in range(NUM_CLIPS)]
    broken = replace(driving_clip(NUM_CLIPS), clip_id="sway-broken", video=b"no video", split="test")
    write_shard(clips[:3], folder / "train-00000.parquet")
    write_shard([*clips[3:], broken], folder / "train-00001.parquet")
    return folder
