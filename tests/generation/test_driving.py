"""Which clips drive, and that what is asked for and not there is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import Clip, write_shard
from finephys.data.video import encode_video
from finephys.generation.driving import choose_clips, clip_of_video, clips_by_id, read_clips

VIDEO = encode_video(np.zeros((4, 16, 16, 3), np.uint8), 25.0)
JUMP = Clip(
    clip_id="jump-0",
    split="test",
    subset="other",
    label=-1,
    label_name="jump",
    prompt="A gymnast jumps.",
    video=VIDEO,
    fps=25.0,
    num_frames=4,
    height=16,
    width=16,
)
CLIPS = [JUMP, replace(JUMP, clip_id="jump-1"), replace(JUMP, clip_id="kick-0", label_name="kick")]
CLIPS += [replace(JUMP, clip_id="roll-0", label_name="roll", split="train")]


def _ids(clips: list[Clip]) -> list[str]:
    return [clip.clip_id for clip in clips]


def test_one_of_each_motion_in_turn() -> None:
    assert _ids(choose_clips(CLIPS, "test", 1, label_name=None, data="d")) == ["kick-0"]
    assert _ids(choose_clips(CLIPS, "test", 2, label_name=None, data="d")) == ["jump-0", "kick-0"]
    assert _ids(choose_clips(CLIPS, "test", 9, label_name=None, data="d")) == ["jump-0", "kick-0", "jump-1"]
    assert _ids(choose_clips(CLIPS, "test", 9, label_name="jump", data="d")) == ["jump-0", "jump-1"]


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="d has no test clip of class 'roll' to drive it, only of jump, kick"):
        choose_clips(CLIPS, "test", 1, label_name="roll", data="d")
    with pytest.raises(ValueError, match="d has no clip of split 'val'"):
        choose_clips(CLIPS, "val", 1, label_name=None, data="d")
    with pytest.raises(ValueError, match="unknown clip 'nobody': d has 4 clips, such as jump-0"):
        clips_by_id(CLIPS, ["jump-0", "nobody"], "d")


def test_clips_come_in_the_order_asked_for(tmp_path: Path) -> None:
    write_shard(CLIPS[2:], tmp_path / "a.parquet")
    write_shard(CLIPS[:2], tmp_path / "b.parquet")
    assert _ids(clips_by_id(read_clips(str(tmp_path)), ["jump-1", "kick-0"], "d")) == ["jump-1", "kick-0"]


def test_a_users_video_becomes_a_clip(tmp_path: Path) -> None:
    path = tmp_path / "my jump.mp4"
    path.write_bytes(VIDEO)
    clip = clip_of_video(path, "A gymnast jumps.")
    assert (clip.num_frames, clip.height, clip.width, clip.fps) == (4, 16, 16, 25.0)
    assert clip.clip_id.startswith("my jump-")
    assert clip.joints_cam_m is None
    path.write_bytes(VIDEO[:400])
    with pytest.raises(ValueError, match=r"my jump\.mp4"):
        clip_of_video(path, "")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        clip_of_video(tmp_path / "none.mp4", "")
