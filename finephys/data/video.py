"""Video bytes to frames, and frames to video bytes or a GIF.

Path:    shard -> Clip.video -> frames (hop "decode"); and, at the end of the path, frames -> video file
Letters: T frames, H, W, C = 3 (RGB)
Units:   uint8 in 0..255; fps in frames a second

PyAV with one thread throughout: encoding gives the same bytes on every run, and Ray, not the codec, decides how many
clips are decoded at once.
"""

import bisect
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# A GIF counts time in hundredths of a second, and browsers slow anything below two of them down to ten.
_MIN_GIF_DELAY_MS = 20

# Without `cpu-independent`, x264's macroblock tree sums in an order that depends on how memory happens to be aligned:
# one encoding in thirty then differs by a few bytes.  With it, the bytes are the same on every run and every CPU.
_X264_OPTIONS = {"preset": "slow", "x264-params": "cpu-independent=1"}


@dataclass(frozen=True, kw_only=True)
class Video:
    """Decoded frames. frames_THWC: uint8 RGB; fps: the stream's own average rate."""

    frames_THWC: NDArray[np.uint8]
    fps: float


def decode_video(video: bytes | str | os.PathLike[str], frame_indices: Sequence[int] | None = None) -> Video:
    """Decode a video, wholly or only the frames `frame_indices` (any order, repeats allowed, in 0..T-1).

    video: a file's bytes or its path.  Returns frames in the order asked for. Chosen frames cost a look at every packet
    and the decoding of no more than lies between each and the keyframe before it.
    Raises FileNotFoundError on a missing path; ValueError on bytes that are no video, on a file cut short and on an
    index outside the video.
    """
    name = f"video of {len(video)} bytes" if isinstance(video, bytes) else f"video {os.fspath(video)}"
    if not isinstance(video, bytes) and not os.path.isfile(video):
        raise FileNotFoundError(f"{name} does not exist")
    if frame_indices is not None and (len(frame_indices) == 0 or min(frame_indices) < 0):
        raise ValueError(f"frame_indices {list(frame_indices)} must be a non-empty list of numbers from 0 on")
    source = io.BytesIO(video) if isinstance(video, bytes) else os.fspath(video)
    with _opened(source, name) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 0)
        if frame_indices is not None:
            frames = _decode_chosen(container, stream, frame_indices, name)
        else:
            num_stated = stream.frames
            frames = [_to_rgb(frame) for frame in container.decode(stream)]
            if len(frames) < num_stated:
                raise ValueError(f"{name} is cut short: {len(frames)} frames decode, its header says {num_stated}")
        if not frames or fps <= 0:
            raise ValueError(f"{name} holds no frames or no frame rate")
    return Video(frames_THWC=np.stack(frames), fps=fps)


def decode_span(
    source: str | os.PathLike[str] | BinaryIO,
    start_s: float,
    end_s: float,
    *,
    name: str,
    height: int | None = None,
    container: str | None = None,
) -> Video:
    """The frames of [start_s, end_s), counted from the video's first frame, at its average rate.

    source: a path or a seekable binary file, of a video of any length; name: what errors call it.
    Exact: decoding starts at a keyframe before the span. The first frame is the first one at or after start_s, and of
    the others the one nearest to each 1 / fps after it by its own time stamp: variable frame rates keep their timing.
    height: of the frames returned, the width follows and is even; the video's own where None.
    container: FFmpeg's name of the format, for files of people we do not know (finephys/data/uploads.py); else guessed.
    Raises ValueError on a span that is empty or not wholly inside the video, and on what is no video.
    """
    if not 0 <= start_s < end_s:
        raise ValueError(f"{name}: span {start_s}..{end_s} s must begin at 0 or later and end after it begins")
    # How far before the span to start: containers with a poor index land late, and then an earlier start helps.
    for lead_s in (0.0, 10.0, start_s):
        with _opened(source, name, container) as (opened, stream):
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            if fps <= 0:
                raise ValueError(f"{name} has no frame rate")
            times_s, frames = _decode_around(opened, stream, max(start_s - lead_s, 0.0), start_s, end_s, fps, height)
        if frames and times_s[0] <= start_s + 0.5 / fps:
            break
    else:
        raise ValueError(f"{name}: nothing decodes at {start_s:.3f} s")
    num_frames = max(1, round((end_s - start_s) * fps))
    if times_s[-1] + 1.5 / fps < start_s + num_frames / fps:
        raise ValueError(f"{name} ends at {times_s[-1] + 1 / fps:.3f} s, before the span's end at {end_s:.3f} s")
    # A stamp may be a rounding error before the cut that it stands for.
    first_s = next((time_s for time_s in times_s if time_s >= start_s - 1e-3), start_s)
    wanted_s = first_s + np.arange(num_frames) / fps
    nearest = np.abs(np.asarray(times_s)[None] - wanted_s[:, None]).argmin(1)
    return Video(frames_THWC=np.stack([frames[index] for index in nearest]), fps=fps)


@contextmanager
def _opened(source: Any, name: str, format: str | None = None) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, decoded with one thread; a codec's errors in one line."""
    if hasattr(source, "seek"):
        source.seek(0)
    try:
        with av.open(source if hasattr(source, "read") else os.fspath(source), mode="r", format=format) as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no video stream")
            stream = container.streams.video[0]
            stream.thread_count = 1
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(f"{name} is not a readable video or is cut short ({error.strerror})") from error


def _decode_chosen(container: Any, stream: Any, frame_indices: Sequence[int], name: str) -> list[NDArray[np.uint8]]:
    """The frames of these indices, seeking to the last keyframe before each where that saves decoding."""
    packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None]
    packets.sort()
    if max(frame_indices) >= len(packets):
        raise ValueError(f"{name}: frame {max(frame_indices)} was asked for, it has {len(packets)}")
    stamps = [stamp for stamp, _ in packets]
    keys = [stamp for stamp, is_key in packets if is_key]
    found: dict[int, NDArray[np.uint8]] = {}
    decoding: Iterator[Any] = iter(())
    position = None
    for stamp in sorted({stamps[index] for index in frame_indices}):
        key = keys[max(bisect.bisect_right(keys, stamp) - 1, 0)]
        if position is None or key > position:
            container.seek(key, stream=stream, backward=True)
            decoding = container.decode(stream)
        for frame in decoding:
            position = frame.pts
            if position >= stamp:
                break
        if position != stamp:
            raise ValueError(f"{name}: frame {stamps.index(stamp)} does not decode")
        found[stamp] = _to_rgb(frame)
    return [found[stamps[index]] for index in frame_indices]


def _decode_around(
    container: Any, stream: Any, seek_s: float, start_s: float, end_s: float, fps: float, height: int | None
) -> tuple[list[float], list[NDArray[np.uint8]]]:
    """Times and frames from one frame before start_s to one after end_s, having sought to seek_s."""
    origin = stream.start_time or 0
    container.seek(origin + int(seek_s / stream.time_base), stream=stream, backward=True)
    size = {}
    if height is not None and stream.height != height:
        width = 2 * max(1, round(stream.width * height / stream.height / 2))
        size = {"width": width, "height": height, "interpolation": "AREA"}
    times_s, frames = [], []
    for frame in container.decode(stream):
        if frame.pts is None:
            continue
        time_s = float((frame.pts - origin) * stream.time_base)
        if time_s < start_s - 1 / fps:
            continue
        if time_s > end_s + 1 / fps:
            break
        times_s.append(time_s)
        frames.append(_to_rgb(frame, **size))
    return times_s, frames


def _to_rgb(frame: Any, **size: Any) -> NDArray[np.uint8]:
    """A decoded frame as uint8 (H, W, 3), in one thread: swscale's own wait for each other where cores are busy, and
    16 clips then take 2.5 s to convert instead of 0.1 s."""
    rgb: NDArray[np.uint8] = frame.reformat(format="rgb24", threads=1, **size).to_ndarray()
    return rgb


def encode_video(frames_THWC: NDArray[np.uint8], fps: float, crf: int = 18) -> bytes:
    """Encode uint8 RGB frames as an H.264 yuv420p mp4; the same frames give the same bytes.

    crf: x264's quality, 0 (nearly lossless) .. 51.  Raises ValueError on other arrays, odd sizes or a bad rate.
    """
    _check_frames(frames_THWC, fps)
    num_frames, height, width, _ = frames_THWC.shape
    if height % 2 or width % 2:
        raise ValueError(f"frames are {height}x{width}; H.264 with yuv420p wants an even height and width")
    if not 0 <= crf <= 51:
        raise ValueError(f"crf is {crf}, wanted 0..51")
    file = io.BytesIO()
    with av.open(file, mode="w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf), **_X264_OPTIONS}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(frames_THWC[index], format="rgb24")
            # Several threads round chroma differently from run to run (seen at widths that are no multiple of 128).
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))
    return file.getvalue()


def write_gif(frames_THWC: NDArray[np.uint8], fps: float, path: str | os.PathLike[str]) -> None:
    """Write uint8 RGB frames as an endlessly looping GIF; above 50 fps it plays at 50."""
    _check_frames(frames_THWC, fps)
    images = [Image.fromarray(frame) for frame in frames_THWC]
    delay_ms = max(_MIN_GIF_DELAY_MS, round(1000 / fps))
    images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=delay_ms, loop=0)


def _check_frames(frames_THWC: NDArray[np.uint8], fps: float) -> None:
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or not len(frames_THWC):
        raise ValueError(f"frames are {frames_THWC.dtype} {frames_THWC.shape}, wanted uint8 (T, H, W, 3) with T >= 1")
    if not fps > 0:
        raise ValueError(f"fps is {fps}, wanted a positive number")
