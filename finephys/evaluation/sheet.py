"""The sheet: what every hop made of one clip, side by side.

Path:    all hops of one clip -> one picture (rows are hops, columns are times), or one animation (hops side by side)
Letters: T frames at the clip's own rate, F frames that were generated (a subset of T), J = 17 joints, C, h, w
Units:   pixels of the source video, metres in the camera frame
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from finephys.evaluation import drawing
from finephys.skeleton import NUM_JOINTS

_INK_RGB = (33, 37, 41)
_FAINT_RGB = (134, 142, 150)
_GAP_PX = 6
_MARGIN_PX = 22
_LABEL_WIDTH_PX = 178
# matplotlib's wheel brings DejaVu Sans, so that a sheet looks the same on every machine.
_FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

# (the hop's name, its title, what it shows), in the order of the path.
_ROWS = (
    ("decode", "Source video", "what the camera saw"),
    ("pose2d", "2D pose", "detected, fading with doubt"),
    ("pose3d", "S_dd", "data-driven: lifted to 3D"),
    ("physics", "S_pp", "Euler-Lagrange; grey: S_dd"),
    ("fuse", "Fused 3D", ""),
    ("project", "Projected 2D", "the fused pose in the image"),
    ("heatmaps", "Heatmaps", "what guides the denoising"),
    ("vae", "Generated video", ""),
)


@dataclass(frozen=True, kw_only=True)
class Hops:
    """What the hops made of one clip.

    title, prompt: shown at the top.  fps: of the source.
    frames_THWC uint8; joints_px (T,17,2) with confidence (T,17), detected; joints_dd, joints_pp, fused (T,17,3) metres,
    absolute camera frame; gravity_cam (3,) points down; frame_index (F,): which frames of T were generated;
    guidance_px (F,17,2): the fused pose projected, in pixels of the source; heatmaps_FCHW; generated_FHWC uint8.
    truth_cam_m (T,17,3): ground truth where it is known.  has_reference: the generator saw the source's first frame.
    """

    title: str
    prompt: str
    fps: float
    frames_THWC: NDArray[np.uint8]
    joints_px: NDArray[np.floating]
    confidence: NDArray[np.floating]
    joints_dd: NDArray[np.floating]
    joints_pp: NDArray[np.floating]
    fused: NDArray[np.floating]
    gravity_cam: NDArray[np.floating]
    frame_index: NDArray[np.integer]
    guidance_px: NDArray[np.floating]
    heatmaps_FCHW: NDArray[np.floating]
    generated_FHWC: NDArray[np.uint8]
    truth_cam_m: NDArray[np.floating] | None = None
    has_reference: bool = False

    def __post_init__(self) -> None:
        num_frames, num_generated = len(self.frames_THWC), len(self.frame_index)
        wanted = {
            "joints_px": (num_frames, NUM_JOINTS, 2),
            "confidence": (num_frames, NUM_JOINTS),
            "joints_dd": (num_frames, NUM_JOINTS, 3),
            "joints_pp": (num_frames, NUM_JOINTS, 3),
            "fused": (num_frames, NUM_JOINTS, 3),
            "gravity_cam": (3,),
            "guidance_px": (num_generated, NUM_JOINTS, 2),
        }
        for name, shape in wanted.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{self.title}: {name} has shape {getattr(self, name).shape}, wanted {shape}")
        for name in ("heatmaps_FCHW", "generated_FHWC"):
            if len(getattr(self, name)) != num_generated:
                raise ValueError(f"{self.title}: {name} has {len(getattr(self, name))} frames, wanted {num_generated}")
        if num_generated == 0 or self.frame_index.min() < 0 or self.frame_index.max() >= num_frames:
            raise ValueError(f"{self.title}: frame_index {self.frame_index.tolist()} must lie in 0..{num_frames - 1}")


def draw_sheet(hops: Hops, *, num_columns: int = 8, tile_height_px: int = 160) -> NDArray[np.uint8]:
    """The sheet of one clip, uint8 RGB: a row per hop, num_columns columns evenly spread over the generated frames."""
    size = _tile_size(hops, tile_height_px)
    columns = np.unique(np.linspace(0, len(hops.frame_index) - 1, num_columns).round().astype(int))
    header_px = 112
    height = header_px + len(_ROWS) * (size[0] + _GAP_PX) + _MARGIN_PX
    width = 2 * _MARGIN_PX + _LABEL_WIDTH_PX + len(columns) * (size[1] + _GAP_PX) - _GAP_PX
    page = Image.new("RGB", (width, height), drawing.PAPER_RGB)
    ink = ImageDraw.Draw(page)
    _write_header(ink, hops, width)
    view = drawing.view_of(np.concatenate([hops.fused, hops.joints_pp]), hops.gravity_cam)
    for column, step in enumerate(columns):
        left = _MARGIN_PX + _LABEL_WIDTH_PX + column * (size[1] + _GAP_PX)
        seconds = f"{hops.frame_index[step] / hops.fps:.2f} s"
        ink.text((left + size[1] / 2, header_px - 8), seconds, _FAINT_RGB, _font(13), anchor="ms")
        for row, tile in enumerate(_tiles(hops, int(step), view, size)):
            top = header_px + row * (size[0] + _GAP_PX)
            page.paste(Image.fromarray(tile), (left, top))
            ink.rectangle((left, top, left + size[1] - 1, top + size[0] - 1), outline=drawing.GRID_RGB)
    for row, (hop, title, remark) in enumerate(_rows(hops)):
        middle = header_px + row * (size[0] + _GAP_PX) + size[0] / 2
        ink.text((_MARGIN_PX, middle - 16), hop, _FAINT_RGB, _font(13), anchor="ls")
        ink.text((_MARGIN_PX, middle + 6), title, _INK_RGB, _font(18, bold=True), anchor="ls")
        ink.text((_MARGIN_PX, middle + 26), remark, _FAINT_RGB, _font(11), anchor="ls")
    return np.asarray(page)


def animate_sheet(hops: Hops, *, tile_height_px: int = 160) -> NDArray[np.uint8]:
    """The same tiles as an animation, uint8 RGB (F, H, W, 3) with even sides: two rows of four hops."""
    size = _tile_size(hops, tile_height_px)
    num_across, caption_px = len(_ROWS) // 2, 22
    height = 2 * (size[0] + caption_px) + _GAP_PX
    width = num_across * (size[1] + _GAP_PX) - _GAP_PX
    view = drawing.view_of(np.concatenate([hops.fused, hops.joints_pp]), hops.gravity_cam)
    frames = []
    for step in range(len(hops.frame_index)):
        page = Image.new("RGB", (width + width % 2, height + height % 2), drawing.PAPER_RGB)
        ink = ImageDraw.Draw(page)
        for place, tile in enumerate(_tiles(hops, step, view, size)):
            left = (place % num_across) * (size[1] + _GAP_PX)
            top = (place // num_across) * (size[0] + caption_px + _GAP_PX)
            ink.text((left + size[1] / 2, top + 16), _ROWS[place][1], _INK_RGB, _font(13, bold=True), anchor="ms")
            page.paste(Image.fromarray(tile), (left, top + caption_px))
        frames.append(np.asarray(page))
    return np.stack(frames)


def _tiles(hops: Hops, step: int, view: drawing.View3D, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """One tile for each of _ROWS at generated frame `step`."""
    frame = int(hops.frame_index[step])
    source = hops.frames_THWC[frame]
    centre_m = hops.fused[frame, 0]
    truth_m = None
    if hops.truth_cam_m is not None:
        # From one camera the distance is a guess; what is compared is the motion, so the constant offset goes.
        offset_m = np.median(hops.fused[:, 0] - hops.truth_cam_m[:, 0], axis=0)
        truth_m = hops.truth_cam_m[frame] + offset_m
    return [
        drawing.fit(source, size),
        drawing.draw_skeleton_2d(source, hops.joints_px[frame], size, confidence=hops.confidence[frame]),
        drawing.draw_skeleton_3d(hops.joints_dd[frame], view, size, centre_cam_m=centre_m),
        drawing.draw_skeleton_3d(
            hops.joints_pp[frame], view, size, centre_cam_m=centre_m, ghost_cam_m=hops.joints_dd[frame]
        ),
        drawing.draw_skeleton_3d(hops.fused[frame], view, size, centre_cam_m=centre_m, ghost_cam_m=truth_m),
        drawing.draw_skeleton_2d(source, hops.guidance_px[step], size, dim=0.75),
        drawing.draw_heatmaps(hops.heatmaps_FCHW[step], size),
        drawing.fit(hops.generated_FHWC[step], size),
    ]


def _rows(hops: Hops) -> list[tuple[str, str, str]]:
    fused_remark = "S_dd and S_pp" if hops.truth_cam_m is None else "S_dd and S_pp; grey: truth"
    remarks = {"fuse": fused_remark, "vae": "text, guidance, first frame" if hops.has_reference else "text, guidance"}
    return [(hop, title, remarks.get(hop, remark)) for hop, title, remark in _ROWS]


def _write_header(ink: ImageDraw.ImageDraw, hops: Hops, width: int) -> None:
    ink.text((_MARGIN_PX, 36), hops.title, _INK_RGB, _font(22, bold=True), anchor="ls")
    legend = width - _MARGIN_PX
    for name, colour in (("left", drawing.LEFT_RGB), ("right", drawing.RIGHT_RGB)):
        ink.text((legend, 36), name, _INK_RGB, _font(14), anchor="rs")
        legend -= int(ink.textlength(name, _font(14))) + 8
        ink.rounded_rectangle((legend - 22, 28, legend, 34), 3, colour)
        legend -= 38
    prompt = f"“{hops.prompt}”" if hops.prompt else ""
    while prompt and ink.textlength(prompt, _font(15)) > width - 2 * _MARGIN_PX:
        prompt = prompt.rstrip("…”")[:-1].rstrip() + "…”"
    ink.text((_MARGIN_PX, 64), prompt, _FAINT_RGB, _font(15), anchor="ls")


def _tile_size(hops: Hops, tile_height_px: int) -> tuple[int, int]:
    """(height, width): the source video's shape, but never so wide that a sheet becomes unreadable."""
    height, width = hops.frames_THWC.shape[1:3]
    return tile_height_px, round(tile_height_px * min(width / height, 16 / 9))


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONTS / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"), size)
