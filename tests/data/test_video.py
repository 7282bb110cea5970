"""Frames survive the codec; what is no video is refused with one line."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from finephys.data.video import decode_video, encode_video, write_gif


@pytest.fixture(scope="module")
def frames_THWC() -> NDArray[np.uint8]:
    """Twenty frames of a square that moves over a colour gradient."""
    rows, columns = np.mgrid[:64, :80]
    frames = np.stack([np.stack([rows * 3, columns * 3, np.full_like(rows, 90)], -1)] * 20).astype(np.uint8)
    for index, frame in enumerate(frames):
        frame[20:36, 2 * index : 2 * index + 16] = (220, 40, 40)
    return frames


def test_round_trip(frames_THWC: NDArray[np.uint8]) -> None:
    video = decode_video(encode_video(frames_THWC, fps=30, crf=8))
    assert video.fps == pytest.approx(30)
    assert video.frames_THWC.shape == frames_THWC.shape
    assert video.frames_THWC.dtype == np.uint8
    assert np.abs(video.frames_THWC.astype(int) - frames_THWC).mean() < 3


def test_same_frames_give_the_same_bytes(frames_THWC: NDArray[np.uint8]) -> None:
    # Many times, because memory is laid out differently each time: three in a hundred used to differ.
    assert len({encode_video(frames_THWC, fps=29.97) for _ in range(150)}) == 1


def test_chosen_frames_equal_the_slice_of_a_full_decode(frames_THWC: NDArray[np.uint8], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(frames_THWC, fps=25))
    whole = decode_video(path).frames_THWC
    indices = [17, 0, 5, 5, 19]
    np.testing.assert_array_equal(decode_video(path, indices).frames_THWC, whole[indices])


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.9])
def test_a_file_cut_short_is_refused(frames_THWC: NDArray[np.uint8], kept: float) -> None:
    video = encode_video(frames_THWC, fps=30)
    with pytest.raises(ValueError, match="video of") as caught:
        decode_video(video[: int(kept * len(video))])
    assert "\n" not in str(caught.value)


def test_what_is_no_video_is_refused(frames_THWC: NDArray[np.uint8], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a readable video"):
        decode_video(b"this is a text")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        decode_video(tmp_path / "nowhere.mp4")
    with pytest.raises(ValueError, match="frame 20 was asked for, it has 20"):
        decode_video(encode_video(frames_THWC, fps=30), [20])
    with pytest.raises(ValueError, match="even height and width"):
        encode_video(frames_THWC[:, :63], fps=30)
    with pytest.raises(ValueError, match="float64"):
        encode_video(frames_THWC / 255.0, fps=30)  # type: ignore[arg-type]


def test_gif_holds_every_frame(frames_THWC: NDArray[np.uint8], tmp_path: Path) -> None:
    write_gif(frames_THWC, 15, tmp_path / "clip.gif")
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.n_frames == len(frames_THWC)
