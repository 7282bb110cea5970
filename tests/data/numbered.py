"""Videos whose frames say their own number, as a grid of black and white squares that any codec keeps."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SIDE, SQUARE, NUM_BITS = 64, 16, 16


def numbered_frame(number: int) -> NDArray[np.uint8]:
    bits = np.array([number >> bit & 1 for bit in range(NUM_BITS)], np.uint8).reshape(4, 4) * 255
    return np.repeat(np.kron(bits, np.ones((SQUARE, SQUARE), np.uint8))[..., None], 3, -1)


def number_of(frame: NDArray[np.uint8]) -> int:
    """Whatever size the frame has been scaled to."""
    step = frame.shape[0] / 4
    centres = ((np.arange(4) + 0.5) * step).astype(int)
    bits = frame[np.ix_(centres, centres)].mean(-1).reshape(-1) > 127
    return int((bits << np.arange(NUM_BITS)).sum())


def write_numbered(
    path: Path, num_frames: int, fps: int = 30, *, keyframe_every: int = 48, delays: dict[int, int] | None = None,
    start: int = 0,
) -> None:  # fmt: skip
    """An H.264 video with B-frames; delays: frame -> how many frame times it and all later ones come late (variable
    frame rate); start: frame times before the first frame."""
    late = start
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"crf": "20", "bf": "3", "g": str(keyframe_every), "preset": "veryfast"}
        for number in range(num_frames):
            late += (delays or {}).get(number, 0)
            frame = av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")
            frame.pts, frame.time_base = number + late, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
