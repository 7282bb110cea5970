"""Frames out of long videos: exactly those asked for, whatever the codec's order, the frame rate or the first stamp."""

from pathlib import Path

import av
import numpy as np
import pytest

from finephys.data.video import decode_span, decode_video
from tests.data.numbered import number_of, write_numbered


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("numbered") / "long.mp4"
    write_numbered(path, 600)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pts is not None]
    # The test is about something: B-frames come out of order, and keyframes are rare.
    assert [packet.pts for packet in packets] != sorted(packet.pts for packet in packets)
    assert 5 < sum(packet.is_keyframe for packet in packets) < 60
    return path


def numbers(frames_THWC: np.ndarray) -> list[int]:
    return [number_of(frame) for frame in frames_THWC]


def test_chosen_frames_are_the_ones_asked_for(video: Path) -> None:
    indices = [599, 0, 47, 48, 49, 301, 301, 5]
    assert numbers(decode_video(video, indices).frames_THWC) == indices
    assert numbers(decode_video(video.read_bytes(), indices).frames_THWC) == indices
    with pytest.raises(ValueError, match="frame 600 was asked for, it has 600"):
        decode_video(video, [600])


@pytest.mark.parametrize("first", [0, 1, 46, 47, 48, 333, 580])
def test_a_span_begins_and_ends_at_its_frames(video: Path, first: int) -> None:
    span = decode_span(video, first / 30, (first + 20) / 30, name="video")
    assert span.fps == 30
    assert numbers(span.frames_THWC) == list(range(first, first + 20))


def test_a_span_from_an_open_file_scaled(video: Path) -> None:
    with video.open("rb") as file:
        for first in (400, 20):
            span = decode_span(file, first / 30 - 0.004, (first + 18) / 30, name="video", height=32)
            assert span.frames_THWC.shape == (18, 32, 32, 3)
            assert numbers(span.frames_THWC) == list(range(first, first + 18))


def test_variable_frame_rate_keeps_its_timing(tmp_path: Path) -> None:
    # From frame 60 on everything is ten frame times late: frame 59 stands still meanwhile.
    write_numbered(tmp_path / "vfr.mkv", 120, delays={60: 10})
    span = decode_span(tmp_path / "vfr.mkv", 50 / 30, 80 / 30, name="video")
    rate = span.fps
    expected_s = 50 / 30 + np.arange(len(span.frames_THWC)) / rate
    for time_s, number in zip(expected_s, numbers(span.frames_THWC), strict=True):
        shown_s = (number + (10 if number >= 60 else 0)) / 30
        others = [n / 30 if n < 60 else (n + 10) / 30 for n in range(120)]
        assert abs(shown_s - time_s) <= min(abs(other - time_s) for other in others) + 1e-3


def test_time_counts_from_the_first_frame(tmp_path: Path) -> None:
    write_numbered(tmp_path / "late.mkv", 100, start=37)
    assert numbers(decode_span(tmp_path / "late.mkv", 1.0, 1.5, name="video").frames_THWC) == list(range(30, 45))


def test_bad_spans_are_named(video: Path, tmp_path: Path) -> None:
    for start_s, end_s in ((2.0, 2.0), (3.0, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match=r"abc: span .* must begin at 0 or later"):
            decode_span(video, start_s, end_s, name="abc")
    with pytest.raises(ValueError, match=r"abc ends at 20\.000 s, before the span's end at 21\.000 s"):
        decode_span(video, 19.0, 21.0, name="abc")
    with pytest.raises(ValueError, match=r"abc"):
        decode_span(video, 30.0, 31.0, name="abc")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="abc is not a readable video"):
        decode_span(tmp_path / "text.mp4", 0.0, 1.0, name="abc")
