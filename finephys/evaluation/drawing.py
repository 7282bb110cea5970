"""Skeletons and heatmaps as small pictures.

Path:    any hop -> one tile of a sheet
Letters: J = 17 joints (finephys/skeleton.py), C heatmap channels
Units:   tile pixels; skeletons in 3D in metres
Colours: right limbs orange, left limbs blue, trunk grey, in every tile
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from finephys.skeleton import BONES, JOINT_NAMES, NUM_JOINTS

RIGHT_RGB = (232, 89, 12)
LEFT_RGB = (28, 126, 214)
TRUNK_RGB = (73, 80, 87)
GHOST_RGB = (206, 212, 218)
GRID_RGB = (222, 226, 230)
SHADOW_RGB = (205, 209, 214)
PAPER_RGB = (255, 255, 255)

# Lines are drawn on a tile this many times larger and averaged down.
_OVERSAMPLING = 3
# OpenCV's drawing functions take fixed-point coordinates with this many fractional bits.
_SHIFT = 4
_GRID_STEP_M = 0.5
# How far the floor goes on to either side, beyond the tile, and before and behind the gymnast.
_GRID_REACH_M = 8.0
_GRID_DEPTH_M = 1.5
# An ankle joint's height above the sole.
_SOLE_BELOW_ANKLE_M = 0.08

Colour = tuple[int, int, int]
Image = NDArray[np.uint8]
ToTile = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class View3D:
    """An orthographic view in which gravity points down the picture.

    axes (3, 3): rows right, down, away of the viewer in the camera frame. floor_m: the floor's coordinate along
    gravity. elevation_rad: how far the viewer looks down on the floor. top_m, height_m: the picture's upper edge along
    gravity, and how many metres the picture is high.
    """

    axes: NDArray[np.float64]
    floor_m: float
    elevation_rad: float
    top_m: float
    height_m: float


def view_of(
    joints_cam_m: NDArray[np.floating],
    gravity_cam: NDArray[np.floating],
    *,
    azimuth_deg: float = 30.0,
    elevation_deg: float = 12.0,
) -> View3D:
    """One view for a whole clip: joints (T, 17, 3) in the camera frame, gravity (3,) pointing down.

    The viewer stands azimuth_deg to the side of the camera, so that depth shows. The picture's height holds the whole
    clip, from the floor under the lowest joint to the highest joint.
    """
    down = np.asarray(gravity_cam, np.float64)
    down = down / max(float(np.linalg.norm(down)), 1e-9)
    # The camera's own right, made horizontal; where the camera looks along its x axis, its forward does as well.
    right = np.array([1.0, 0.0, 0.0]) - down[0] * down
    if np.linalg.norm(right) < 0.2:
        right = np.array([0.0, 0.0, 1.0]) - down[2] * down
    right /= np.linalg.norm(right)
    away = np.cross(right, down)
    turn = np.deg2rad(azimuth_deg)
    axes = np.stack(
        [np.cos(turn) * right + np.sin(turn) * away, down, np.cos(turn) * away - np.sin(turn) * right],
    )
    heights_m = joints_cam_m.astype(np.float64) @ down
    # Percentiles, so that one wild frame does not shrink all the others.
    floor_m = float(np.percentile(heights_m.max(-1), 95)) + _SOLE_BELOW_ANKLE_M
    top_m = float(np.percentile(heights_m.min(-1), 5))
    height_m = float(np.clip(1.12 * (floor_m - top_m) + 0.25, 1.8, 5.0))
    return View3D(
        axes=axes,
        floor_m=floor_m,
        elevation_rad=float(np.deg2rad(elevation_deg)),
        top_m=floor_m + 0.12 * height_m - height_m,
        height_m=height_m,
    )


def draw_skeleton_3d(
    joints_cam_m: NDArray[np.floating],
    view: View3D,
    size: tuple[int, int],
    *,
    centre_cam_m: NDArray[np.floating],
    ghost_cam_m: NDArray[np.floating] | None = None,
) -> Image:
    """A skeleton (17, 3) over the floor, seen in `view`, on a tile of size (height, width).

    centre_cam_m (3,): what the picture follows sideways; upwards it stands still, so that a jump is seen as one.
    ghost_cam_m: another skeleton, drawn in pale grey behind, to compare with.
    """
    height, width = (_OVERSAMPLING * side for side in size)
    image = np.full((height, width, 3), PAPER_RGB, np.uint8)
    scale = height / view.height_m
    centre_m = view.axes @ np.asarray(centre_cam_m, np.float64)

    def to_tile(points_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Viewer's coordinates (..., 3) to tile pixels (..., 2); what is farther away on the floor lies higher."""
        across = width / 2 + scale * (points_m[..., 0] - centre_m[0])
        tilt_m = (points_m[..., 2] - centre_m[2]) * np.sin(view.elevation_rad)
        down = scale * (points_m[..., 1] - view.top_m - tilt_m)
        return np.stack([across, down], -1)

    _draw_floor(image, view, centre_m, to_tile)
    points_m = np.asarray(joints_cam_m, np.float64) @ view.axes.T
    on_floor_m = points_m.copy()
    on_floor_m[:, 1] = view.floor_m
    # As thick as a thin limb, yet no thicker on the tile where a low motion fills it.
    line = float(np.clip(0.06 * scale, 2.0, 0.026 * height))
    _draw_bones(image, to_tile(on_floor_m), line, colours=[SHADOW_RGB] * len(BONES))
    if ghost_cam_m is not None:
        ghost_m = np.asarray(ghost_cam_m, np.float64) @ view.axes.T
        _draw_bones(image, to_tile(ghost_m), 0.7 * line, colours=[GHOST_RGB] * len(BONES))
        _draw_head(image, to_tile(ghost_m), 0.09 * scale, GHOST_RGB)
    _draw_body(image, to_tile(points_m), line, depth=points_m[:, 2], head_radius=0.1 * scale)
    return _shrink(image, size)


def draw_skeleton_2d(
    image: Image,
    joints_px: NDArray[np.floating],
    size: tuple[int, int],
    *,
    confidence: NDArray[np.floating] | None = None,
    dim: float = 0.45,
) -> Image:
    """A skeleton (17, 2), in pixels of `image` (H, W, 3), over it, on a tile of size (height, width).

    confidence (17,): a bone fades with the less sure of its two joints.  dim: how far the image is whitened.
    """
    height, width = (_OVERSAMPLING * side for side in size)
    paper = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    paper = np.round(paper * (1 - dim) + 255 * dim).astype(np.uint8)
    points = np.asarray(joints_px, np.float64) * [width / image.shape[1], height / image.shape[0]]
    sure = np.ones(NUM_JOINTS) if confidence is None else np.clip(np.asarray(confidence, np.float64), 0, 1)
    box_diagonal = float(np.linalg.norm(np.ptp(points, axis=0)))
    line = float(np.clip(0.035 * box_diagonal, 0.008 * height, 0.022 * height))
    _draw_body(paper, points, line, depth=None, head_radius=0.0, sure=sure)
    return _shrink(paper, size)


def draw_heatmaps(maps_CHW: NDArray[np.floating], size: tuple[int, int]) -> Image:
    """Guidance maps as one colour picture: the 17 joint maps bright, limb maps faint, on black, left and right apart.

    maps_CHW: joint maps first, then (where there are as many) one map per bone; further channels are not drawn.
    """
    num_channels, height, width = maps_CHW.shape
    shown = [(channel, _joint_colour(channel), 1.0) for channel in range(min(num_channels, NUM_JOINTS))]
    if num_channels >= NUM_JOINTS + len(BONES):
        shown += [(NUM_JOINTS + bone, _joint_colour(child), 0.45) for bone, (_, child) in enumerate(BONES)]
    light = np.zeros((height, width, 3), np.float64)
    for channel, colour, brightness in shown:
        # The brightest map wins at each pixel: a sum would turn every crossing of limbs white.
        light = np.maximum(light, brightness * _unit(maps_CHW[channel])[..., None] * _on_black(colour))
    picture = np.round(255 * light).astype(np.uint8)
    return np.asarray(cv2.resize(picture, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.uint8)


def fit(image: Image, size: tuple[int, int]) -> Image:
    """The image at (height, width), averaged when it shrinks."""
    shrinks = image.shape[0] > size[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=method), np.uint8)


def _unit(map_HW: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.clip(np.nan_to_num(map_HW.astype(np.float64)), 0, 1)


def _on_black(colour: Colour) -> NDArray[np.float64]:
    # Darker inks would not be seen on black.
    bright = {TRUNK_RGB: (233, 236, 239), LEFT_RGB: (77, 171, 247), RIGHT_RGB: (255, 146, 43)}
    return np.array(bright[colour]) / 255.0


def _joint_colour(joint: int) -> Colour:
    name = JOINT_NAMES[joint]
    if name.startswith("right"):
        return RIGHT_RGB
    return LEFT_RGB if name.startswith("left") else TRUNK_RGB


def _draw_floor(image: Image, view: View3D, centre_m: NDArray[np.float64], to_tile: ToTile) -> None:
    """Lines every half metre that stay where they are while the picture follows the gymnast."""
    across_m, _, away_m = centre_m
    for line_m in _grid_lines_m(across_m, _GRID_REACH_M):
        ends_m = [[line_m, view.floor_m, away_m + side * _GRID_DEPTH_M] for side in (-1, 1)]
        near, far = to_tile(np.array(ends_m))
        _line(image, near, far, GRID_RGB, 1.0)
    for line_m in _grid_lines_m(away_m, _GRID_DEPTH_M):
        ends_m = [[across_m + side * _GRID_REACH_M, view.floor_m, line_m] for side in (-1, 1)]
        left, right = to_tile(np.array(ends_m))
        _line(image, left, right, GRID_RGB, 1.0)


def _grid_lines_m(centre_m: float, reach_m: float) -> NDArray[np.float64]:
    """The multiples of _GRID_STEP_M within reach of the centre."""
    first, last = np.ceil((centre_m - reach_m) / _GRID_STEP_M), np.floor((centre_m + reach_m) / _GRID_STEP_M)
    return np.asarray(np.arange(first, last + 1) * _GRID_STEP_M, np.float64)


def _draw_body(
    image: Image,
    points: NDArray[np.float64],
    line: float,
    *,
    depth: NDArray[np.float64] | None,
    head_radius: float,
    sure: NDArray[np.float64] | None = None,
) -> None:
    """Bones from far to near, each with a rim of paper so that a near limb stands off from what it crosses."""
    order = list(range(len(BONES)))
    if depth is not None:
        order.sort(key=lambda bone: -(depth[BONES[bone][0]] + depth[BONES[bone][1]]))
    head_drawn = False
    for rank, bone in enumerate(order):
        parent, child = BONES[bone]
        colour = _joint_colour(child)
        if depth is not None:
            # Limbs fade a little with depth: nearest full, farthest two thirds.
            colour = _blend(colour, PAPER_RGB, 0.35 * (1 - rank / max(len(order) - 1, 1)))
        if sure is not None:
            colour = _blend(colour, PAPER_RGB, 0.75 * (1 - min(sure[parent], sure[child])))
        if depth is not None:
            # Not over the joints, or every limb would look cut off.
            bone_vector = points[child] - points[parent]
            _line(image, points[parent] + 0.2 * bone_vector, points[child] - 0.2 * bone_vector, PAPER_RGB, 1.6 * line)
        _line(image, points[parent], points[child], colour, line)
        if JOINT_NAMES[child] == "head" and head_radius > 0:
            _draw_head(image, points, head_radius, colour)
            head_drawn = True
    assert head_drawn or head_radius == 0
    if depth is None:
        for joint in range(NUM_JOINTS):
            _disc(image, points[joint], 0.85 * line, PAPER_RGB)
            _disc(image, points[joint], 0.6 * line, _joint_colour(joint))


def _draw_head(image: Image, points: NDArray[np.float64], radius: float, colour: Colour) -> None:
    _disc(image, points[JOINT_NAMES.index("head")], radius, colour)


def _draw_bones(image: Image, points: NDArray[np.float64], line: float, *, colours: Sequence[Colour]) -> None:
    for (parent, child), colour in zip(BONES, colours, strict=True):
        _line(image, points[parent], points[child], colour, line)


def _line(image: Image, start: NDArray[np.float64], end: NDArray[np.float64], colour: Colour, width: float) -> None:
    if not (_is_drawable(start) and _is_drawable(end)):
        return
    cv2.line(image, _fixed(start), _fixed(end), colour, max(1, round(width)), cv2.LINE_AA, _SHIFT)


def _disc(image: Image, centre: NDArray[np.float64], radius: float, colour: Colour) -> None:
    if not _is_drawable(centre):
        return
    cv2.circle(image, _fixed(centre), max(1, round(radius * 2**_SHIFT)), colour, -1, cv2.LINE_AA, _SHIFT)


def _is_drawable(point: NDArray[np.float64]) -> bool:
    # Beyond this a point lies far outside any tile, and OpenCV's fixed-point coordinates overflow.
    return bool(np.all(np.isfinite(point)) and np.all(np.abs(point) < 1e6))


def _fixed(point: NDArray[np.float64]) -> tuple[int, int]:
    # A pixel's centre is at 0.5 in our coordinates and at 0 in OpenCV's.
    return round((point[0] - 0.5) * 2**_SHIFT), round((point[1] - 0.5) * 2**_SHIFT)


def _blend(colour: Colour, other: Colour, share: float) -> Colour:
    mixed = [round(a * (1 - share) + b * share) for a, b in zip(colour, other, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _shrink(image: Image, size: tuple[int, int]) -> Image:
    return np.asarray(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)
