"""Video bytes to frames, and frames to video bytes or a GIF.

Path:    shard -> Clip.video -> frames (hop "decode"); and, at the end of the path, frames -> video file
Letters: T frames, H, W, C = 3 (RGB)
Units:   uint8 in 0..255; fps in frames a second

PyAV with one thread throughout: encoding gives the same bytes on every run, and Ray, not the codec, decides how many
clips are decoded at once.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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

    video: a file's bytes or its path.  Returns frames in the order asked for.
    Raises FileNotFoundError on a missing path; ValueError on bytes that are no video, on a file cut short and on an
    index outside the video.
    """
    name = f"video of {len(video)} bytes" if isinstance(video, bytes) else f"video {os.fspath(video)}"
    if not isinstance(video, bytes) and not os.path.isfile(video):
        raise FileNotFoundError(f"{name} does not exist")
    if frame_indices is not None and (len(frame_indices) == 0 or min(frame_indices) < 0):
        raise ValueError(f"frame_indices {list(frame_indices)} must be a non-empty list of numbers from 0 on")
    last_wanted = None if frame_indices is None else max(frame_indices)
    source = io.BytesIO(video) if isinstance(video, bytes) else os.fspath(video)
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(source, mode="r") as container:
            if not container.streams.video:
                raise ValueError(f"{name} holds no video stream")
            stream = container.streams.video[0]
            stream.thread_count = 1
            num_stated = stream.frames
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            for frame in container.decode(stream):
                frames.append(frame.to_ndarray(format="rgb24"))
                if last_wanted is not None and len(frames) > last_wanted:
                    break
    except av.error.FFmpegError as error:
        raise ValueError(f"{name} is not a readable video or is cut short ({error.strerror})") from error
    if not frames or fps <= 0:
        raise ValueError(f"{name} holds no frames or no frame rate")
    if last_wanted is not None and last_wanted >= len(frames):
        raise ValueError(f"{name}: frame {last_wanted} was asked for, it has {len(frames)}")
    if last_wanted is None and len(frames) < num_stated:
        raise ValueError(f"{name} is cut short: {len(frames)} frames decode, its header says {num_stated}")
    wanted = range(len(frames)) if frame_indices is None else frame_indices
    return Video(frames_THWC=np.stack([frames[index] for index in wanted]), fps=fps)


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
