"""A video from somebody we do not know: is it one, how long is it, and its frames.

Path:    upload -> Upload, frames (hop "decode")
Units:   second, pixel

FFmpeg finds out by itself what a file is, and some formats (playlists, concatenations, DASH) name further files and
addresses that it then opens. So only two containers are let in, told by their first bytes, and the demuxer is named
rather than guessed. Nothing is decoded before the header has been held against the limits.
"""

import io
from dataclasses import dataclass

import av

from finephys.data.video import Video, decode_span

_MAX_FPS = 240.0
MAX_SIDE_PX = 4096


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What the header of an uploaded video says. container: FFmpeg's name of its demuxer."""

    container: str
    duration_s: float
    fps: float
    height: int
    width: int


def probe_upload(video: bytes, *, max_duration_s: float) -> Upload:
    """Read the header. Raises ValueError on what is no mp4, mov or webm, or lies outside the limits."""
    container = _container(video)
    try:
        with av.open(io.BytesIO(video), mode="r", format=container) as opened:
            if not opened.streams.video:
                raise ValueError("the video holds no video stream")
            stream = opened.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            duration_s = float(opened.duration or 0) / av.time_base
            upload = Upload(
                container=container, duration_s=duration_s, fps=fps, height=stream.height, width=stream.width
            )
    except av.error.FFmpegError as error:
        raise ValueError(f"the video cannot be read ({error.strerror})") from error
    if not 0 < upload.duration_s <= max_duration_s:
        raise ValueError(f"the video lasts {upload.duration_s:.3g} s, wanted at most {max_duration_s:g} s")
    if not 1 <= upload.fps <= _MAX_FPS:
        raise ValueError(f"the video has {upload.fps:.3g} frames a second, wanted 1 to {_MAX_FPS:g}")
    if not (16 <= upload.height <= MAX_SIDE_PX and 16 <= upload.width <= MAX_SIDE_PX):
        raise ValueError(f"the video is {upload.width}x{upload.height}, wanted sides of 16 to {MAX_SIDE_PX}")
    return upload


def decode_upload(video: bytes, *, max_duration_s: float, seconds: float | None = None) -> Video:
    """Its first `seconds` (all of it where None), no higher than 512 pixels. Raises ValueError as probe_upload does."""
    upload = probe_upload(video, max_duration_s=max_duration_s)
    # A stream may end a frame or two before its container says so.
    end_s = max(min(upload.duration_s, seconds or upload.duration_s) - 1.5 / upload.fps, 1 / upload.fps)
    height = min(upload.height, 512)
    return decode_span(io.BytesIO(video), 0.0, end_s, name="the video", height=height, container=upload.container)


def _container(video: bytes) -> str:
    if video[4:8] == b"ftyp":
        return "mov"
    if video[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    raise ValueError("the video is neither mp4, mov nor webm")
