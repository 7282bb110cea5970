"""Clips of coloured noise with a true gymnast's columns: small, quick, and each unlike the others."""

from pathlib import Path

import numpy as np

from finephys.data.clips import Clip, write_shard
from finephys.data.video import encode_video


def make_clip(index: int, split: str, num_frames: int = 8, side: int = 32) -> Clip:
    rng = np.random.default_rng((index, len(split)))
    colours = rng.integers(0, 255, (1, 4, 4, 3), dtype=np.uint8).repeat(num_frames, 0)
    frames = colours.repeat(side // 4, 1).repeat(side // 4, 2)
    joints_cam_m = rng.normal(0, 0.5, (num_frames, 17, 3)).astype(np.float32) + np.array([0, 0, 4], np.float32)
    intrinsics = np.array([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]], np.float32)
    pixels = joints_cam_m @ intrinsics.T
    return Clip(
        clip_id=f"{split}-{index:03d}",
        split=split,
        subset="other",
        label=-1,
        label_name="noise",
        prompt="a person is made of noise",
        video=encode_video(frames, 30.0),
        fps=30.0,
        num_frames=num_frames,
        height=side,
        width=side,
        performer=split,
        joints_px=pixels[..., :2] / pixels[..., 2:],
        joints_confidence=np.ones((num_frames, 17), np.float32),
        joints_cam_m=joints_cam_m,
        intrinsics=np.tile(intrinsics, (num_frames, 1, 1)),
        rotation=np.tile(np.diag([1.0, -1.0, -1.0]).astype(np.float32), (num_frames, 1, 1)),
        translation=np.tile(np.array([0, 1, 4], np.float32), (num_frames, 1)),
        is_static=True,
        in_flight=np.zeros(num_frames, np.bool_),
        feet_in_contact=np.ones((num_frames, 2), np.bool_),
    )


def write_clips(folder: Path, num_train: int = 12, num_test: int = 4, corrupt: tuple[int, ...] = ()) -> None:
    """train-*.parquet in two shards and test-00.parquet; the videos of the training clips `corrupt` are cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    train = []
    for index in range(num_train):
        clip = make_clip(index, "train")
        if index in corrupt:
            clip = Clip(**{**vars(clip), "video": clip.video[: len(clip.video) // 2]})
        train.append(clip)
    write_shard(train[: num_train // 2], folder / "train-00.parquet")
    write_shard(train[num_train // 2 :], folder / "train-01.parquet")
    write_shard([make_clip(index, "test") for index in range(num_test)], folder / "test-00.parquet")
