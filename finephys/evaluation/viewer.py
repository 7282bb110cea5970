"""A page that plays a clip, its 2D skeleton and its turning 3D skeleton together, from one file and without a server.

Path:    video, Pose2D, Pose3D -> one .html file
Letters: T frames, J = 17 joints
Units:   pixel, metre

The video's bytes and the joints are in the file itself; the script asks for nothing over the network.
"""

import base64
import json
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray

from finephys.evaluation.pages import replace
from finephys.pose.estimator import Pose2D
from finephys.pose.lifting import Pose3D
from finephys.skeleton import BONES, JOINT_NAMES

_TEMPLATE = Path(__file__).parent.parent / "assets" / "viewer.html"


def write_viewer(
    path: Path,
    *,
    title: str,
    video: bytes,
    fps: float,
    size: tuple[int, int],
    pose: Pose2D,
    lifted: Pose3D,
    truth_cam_m: NDArray[np.float32] | None = None,
) -> None:
    """Write one self-contained page. video: an mp4 file's bytes, of frames of size (height, width).

    Raises ValueError where the poses differ in length.
    """
    if len(pose.joints_px) != len(lifted.joints_cam_m):
        raise ValueError(f"pose has {len(pose.joints_px)} frames, the lifted one {len(lifted.joints_cam_m)}")
    content = {
        "fps": fps,
        "height": size[0],
        "width": size[1],
        "bones": BONES,
        "sides": ["right" if name.startswith("right") else name.partition("_")[0] for name in JOINT_NAMES],
        "joints_px": _plain(pose.joints_px, 1),
        "confidence": _plain(pose.confidence, 2),
        "lifted": _plain(lifted.joints_cam_m - lifted.joints_cam_m[:, :1], 3),
        "truth": None if truth_cam_m is None else _plain(truth_cam_m - truth_cam_m[:, :1], 3),
        "gravity": _plain(lifted.gravity_cam, 4),
    }
    # "<" may not appear inside a script element: JSON lets it be written as an escape.
    page = (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(_TEMPLATE.read_text(encoding="utf-8"))
        .render(
            title=title, video=base64.b64encode(video).decode(), content=json.dumps(content).replace("<", "\\u003c")
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, page)


def _plain(values: NDArray[np.floating], digits: int) -> list[object]:
    """Nested lists; what is not finite becomes 0, as JSON has no word for it."""
    plain: list[object] = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0).round(digits).tolist()
    return plain
