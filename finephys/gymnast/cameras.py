"""Where the camera stands and looks in each frame: still, panning after the gymnast, or zooming as well.

Path:    (before the path) PosedMesh -> a Camera for each frame
Letters: T frames, N points, J = 17 joints
Units:   pixel (x right, y down, first pixel's centre at 0.5), metre, radian
Frames:  world, y up; camera, x right, y down, z forward: x_cam = rotation @ x_world + translation

A panning camera stands in one place of the hall, as a broadcaster's does, and follows the gymnast late and smoothly; a
zooming one changes its focal length meanwhile. The whole body is in every frame. Cameras of the test split stand at
bearings that no camera of the training split has.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from finephys.data.clips import Split
from finephys.gymnast.body import PosedMesh, shared_mesh

FLOATS = NDArray[np.float64]

MIN_DISTANCE_M = 1.6  # nearer, perspective distorts a body beyond what gymnastics footage shows
_MIN_CAMERA_HEIGHT_M = 0.15
_MIN_MARGIN_PX = 1.5
# Share of the frame that the body's longer side should fill: mean of what it does when small and as a rule.
_WANTED_SPAN = 0.55
_LEAST_SPAN = 0.45

# Of a hundred clips: how many a panning camera films, and how many of those a zooming one.
_PAN_SHARE, _ZOOM_SHARE = 0.4, 0.4
# Bearings repeat every 45 degrees: training has the first 34 of them, test the last 9, and 1 on either side nobody.
_SECTOR_DEG, _TRAIN_DEG, _TEST_DEG = 45.0, (1.0, 35.0), (36.0, 45.0)
# How smoothly and how late a camera follows, sideways and up, in frames at 30 a second: an operator's hand.
_PAN_SMOOTH, _TILT_SMOOTH, _PAN_LATE = 5.0, 8.0, 2


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera at one moment. intrinsics (3,3) pixels, rotation (3,3), translation (3,) metres."""

    intrinsics: FLOATS
    rotation: FLOATS
    translation: FLOATS

    @property
    def position_m(self) -> FLOATS:
        """Where it stands in the world (3,)."""
        position: FLOATS = -self.rotation.T @ self.translation
        return position


def to_camera(points_m: NDArray[np.floating], camera: Camera) -> FLOATS:
    """World points (...,3) in the camera's frame."""
    seen: FLOATS = points_m @ camera.rotation.T + camera.translation
    return seen


def to_pixels(points_m: NDArray[np.floating], camera: Camera) -> FLOATS:
    """World points (...,3) -> pixels (...,2)."""
    homogeneous = to_camera(points_m, camera) @ camera.intrinsics.T
    pixels: FLOATS = homogeneous[..., :2] / homogeneous[..., 2:]
    return pixels


def choose_cameras(mesh: PosedMesh, image_size: int, split: Split, rng: np.random.Generator) -> list[Camera]:
    """The camera of each frame; one and the same object where it stands still.

    Who travels too far to look large enough to a still camera gets a panning one, as on television.
    """
    if rng.random() >= _PAN_SHARE:
        camera, span = fit_camera(mesh, image_size, split, rng)
        if span >= _LEAST_SPAN:
            return [camera] * len(mesh.vertices_m)
    return pan_cameras(mesh, image_size, split, rng, zooms=bool(rng.random() < _ZOOM_SHARE))


def pan_cameras(
    mesh: PosedMesh, image_size: int, split: Split, rng: np.random.Generator, *, zooms: bool
) -> list[Camera]:
    """A camera 4 to 9 m away that turns with the gymnast; its focal length just keeps all of her in every frame."""
    points_m = mesh.vertices_m[:, shared_mesh().support].astype(np.float64)
    middles_m = (points_m.min(1) + points_m.max(1)) / 2
    late_m = np.concatenate([middles_m[:1]] * _PAN_LATE + [middles_m[:-_PAN_LATE]])
    targets_m = gaussian_filter1d(late_m, _PAN_SMOOTH, axis=0, mode="nearest")
    targets_m[:, 1] = gaussian_filter1d(late_m[:, 1], _TILT_SMOOTH, mode="nearest")
    azimuth, distance_m, height_m = random_bearing(split, rng), rng.uniform(4, 9), rng.uniform(0.6, 2.6)
    away = np.array([np.cos(azimuth), 0.0, np.sin(azimuth)])
    # Behind her nearest point, so that nobody runs past the camera.
    nearest_m = ((points_m.reshape(-1, 3) - targets_m.mean(0)) @ -away).max()
    position_m = targets_m.mean(0) * [1, 0, 1] - away * max(distance_m, nearest_m + 2 * MIN_DISTANCE_M)
    position_m[1] = height_m
    rotations, reach = [], 0.0
    for target_m, seen_m in zip(targets_m, points_m, strict=True):
        forward = target_m - position_m
        yaw, pitch = np.arctan2(forward[2], forward[0]), np.arctan2(-forward[1], np.hypot(forward[0], forward[2]))
        rotations.append(_look_along(float(yaw), float(pitch)))
        rays = (seen_m - position_m) @ rotations[-1].T
        reach = max(reach, float(np.abs(rays[:, :2] / rays[:, 2:]).max()))
    focal_px = rng.uniform(0.86, 0.97) * 0.5 * image_size / reach
    zoom = np.ones(len(rotations))
    if zooms:
        # In or out, never closer than what keeps her in the frame.
        zoom = rng.uniform(0.7, 0.85) + (1 - rng.uniform(0.7, 0.85)) * _smoothstep(np.linspace(0, 1, len(rotations)))
        zoom = zoom[:: rng.choice([-1, 1])] / zoom.max()
    centre_px = image_size / 2
    return [
        Camera(
            intrinsics=np.array([[focal_px * z, 0, centre_px], [0, focal_px * z, centre_px], [0, 0, 1.0]]),
            rotation=rotation,
            translation=-rotation @ position_m,
        )
        for rotation, z in zip(rotations, zoom, strict=True)
    ]


def random_bearing(split: Split, rng: np.random.Generator) -> float:
    """Along which direction of the world a camera of this split looks, radians."""
    low, high = _TEST_DEG if split == "test" else _TRAIN_DEG
    sector = int(rng.integers(round(360 / _SECTOR_DEG)))
    return float(np.radians(sector * _SECTOR_DEG + rng.uniform(low, high)))


def is_static(cameras: Sequence[Camera]) -> bool:
    """Whether the camera neither turns nor zooms."""
    return all(camera is cameras[0] for camera in cameras)


def _smoothstep(t: FLOATS) -> FLOATS:
    return t * t * (3 - 2 * t)


def fit_camera(
    mesh: PosedMesh, image_size: int, split: Split, rng: np.random.Generator, *, num_tries: int = 24
) -> tuple[Camera, float]:
    """A still camera at a random bearing that keeps the whole body in the frame all the time, as large as it goes; and
    the share of the frame that the body's longer side fills.

    Bearings from which the body would look small, because it travels across the view, are drawn again; of `num_tries`
    unlucky ones the best is taken.
    """
    points_m = mesh.vertices_m[:, shared_mesh().support].astype(np.float64)
    few_points_m = np.concatenate([points_m[::3, ::12], points_m[-1:, ::12]]).reshape(-1, 3)
    best: tuple[float, Camera] | None = None
    for _ in range(num_tries):
        camera = _aimed_camera(few_points_m, image_size, random_bearing(split, rng), rng)
        pixels = to_pixels(points_m, camera)
        margin_px = min(pixels.min(), image_size - pixels.max())
        if margin_px < _MIN_MARGIN_PX or camera.position_m[1] < _MIN_CAMERA_HEIGHT_M:
            continue
        spans = np.ptp(pixels, axis=1).max(-1) / image_size
        span = float(np.quantile(spans, 0.1) + np.median(spans)) / 2
        if best is None or span > best[0]:
            best = (span, camera)
        if span >= _WANTED_SPAN:
            break
    if best is None:
        raise ValueError(f"no camera out of {num_tries} sees the whole body from {MIN_DISTANCE_M} m or farther")
    return best[1], best[0]


def aim_camera(
    points_m: FLOATS,
    image_size: int,
    azimuth: float,
    *,
    pitch: float,
    field_of_view: float,
    fill: float,
    drift: tuple[float, float] = (0.0, 0.0),
) -> Camera:
    """Look at the points (N,3) along a bearing, down by `pitch` (radians both), and step back until all are inside.

    field_of_view: of the picture's side, radians;  fill: share of the side that the points' longer extent takes;
    drift: how far off its middle their centre lies, in shares of the side.
    """
    focal_px = 0.5 * image_size / np.tan(0.5 * field_of_view)
    rotation = _look_along(azimuth, pitch)
    centre_px = image_size / 2
    intrinsics = np.array([[focal_px, 0, centre_px], [0, focal_px, centre_px], [0, 0, 1.0]])
    turned_m = points_m @ rotation.T
    translation = -turned_m.mean(0) + np.array([0, 0, 6.0])
    for _ in range(12):
        seen_m = turned_m + translation
        rays = seen_m[:, :2] / seen_m[:, 2:]
        low, high = rays.min(0), rays.max(0)
        # Sideways until the extent is centred (plus a little drift), backward until it fills the wanted share.
        aside = np.asarray(drift) * image_size / focal_px - (low + high) / 2
        translation[:2] += aside * seen_m[:, 2].mean()
        depth_m = seen_m[:, 2].mean() * (high - low).max() * focal_px / (fill * image_size)
        translation[2] += max(depth_m - seen_m[:, 2].mean(), MIN_DISTANCE_M + 0.05 - seen_m[:, 2].min())
    return Camera(intrinsics=intrinsics, rotation=rotation, translation=translation)


def _aimed_camera(points_m: FLOATS, image_size: int, azimuth: float, rng: np.random.Generator) -> Camera:
    """A camera along a bearing, everything else about it random."""
    pitch = np.radians(rng.uniform(-5, 20))
    field_of_view = np.radians(rng.uniform(20, 45))
    fill, drift = rng.uniform(0.78, 0.9), rng.uniform(-0.03, 0.03, 2)
    return aim_camera(
        points_m,
        image_size,
        azimuth,
        pitch=float(pitch),
        field_of_view=float(field_of_view),
        fill=float(fill),
        drift=(float(drift[0]), float(drift[1])),
    )


def _look_along(azimuth: float, pitch: float) -> FLOATS:
    """World-to-camera rotation of a level camera that looks along `azimuth` and down by `pitch`, radians."""
    forward = np.array([np.cos(azimuth) * np.cos(pitch), -np.sin(pitch), np.sin(azimuth) * np.cos(pitch)])
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])
