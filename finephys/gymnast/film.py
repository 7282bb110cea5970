"""Film a motion: pictures with motion blur, and the ground truth of each.

Path:    (before the path) Motion, Performer, arena -> Film
Letters: T frames, J = 17 joints, H W pixels
Units:   pixel, metre, second
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finephys.data.clips import Split
from finephys.gymnast.body import Performer, performer_mesh
from finephys.gymnast.cameras import choose_cameras, is_static, to_camera, to_pixels
from finephys.gymnast.mocap import Motion
from finephys.gymnast.render import Renderer, joint_visibility

# Moments that one picture averages, and how long its shutter is open; a third of the clips has sharp pictures.
_MOMENTS = (1, 3, 3)
_SHUTTER_S = (1 / 250, 1 / 60)


@dataclass(frozen=True, kw_only=True)
class Film:
    """frames (T,H,W,3) uint8;  joints_px (T,17,2), visible (T,17), joints_cam_m (T,17,3), intrinsics (T,3,3), rotation
    (T,3,3), translation (T,3): float32, at the middle of each exposure;  is_static: the camera neither turns nor zooms.
    """

    frames: NDArray[np.uint8]
    joints_px: NDArray[np.float32]
    visible: NDArray[np.float32]
    joints_cam_m: NDArray[np.float32]
    intrinsics: NDArray[np.float32]
    rotation: NDArray[np.float32]
    translation: NDArray[np.float32]
    is_static: bool


def film(
    motion: Motion, performer: Performer, arena: str, image_size: int, split: Split, rng: np.random.Generator
) -> Film:
    """Film a performer with cameras of a split. Everything random is drawn from rng."""
    joints_m, mesh = performer_mesh(motion, performer)
    cameras = choose_cameras(mesh, image_size, split, rng)
    renderer = Renderer(performer, arena, cameras, image_size, motion.root_m[:, [0, 2]].mean(0))
    num_moments = _MOMENTS[int(rng.integers(len(_MOMENTS)))]
    open_frames = rng.uniform(*_SHUTTER_S) * motion.fps
    frames, visible = [], []
    for index, camera in enumerate(cameras):
        picture = np.zeros((image_size, image_size, 3), np.float32)
        for moment in (np.arange(num_moments) + 0.5) / num_moments - 0.5:
            vertices_m, normals = (
                _between(values, index + moment * open_frames) for values in (mesh.vertices_m, mesh.normals)
            )
            drawn, depth_m = renderer.draw(vertices_m, normals, camera)
            picture += drawn / num_moments
            if moment == 0:
                visible.append(joint_visibility(joints_m[index], depth_m, camera))
        frames.append((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    return Film(
        frames=np.stack(frames),
        joints_px=_each(to_pixels(joints, camera) for joints, camera in zip(joints_m, cameras, strict=True)),
        visible=np.stack(visible),
        joints_cam_m=_each(to_camera(joints, camera) for joints, camera in zip(joints_m, cameras, strict=True)),
        intrinsics=_each(camera.intrinsics for camera in cameras),
        rotation=_each(camera.rotation for camera in cameras),
        translation=_each(camera.translation for camera in cameras),
        is_static=is_static(cameras),
    )


def _between(values: NDArray[np.float32], frame: float) -> NDArray[np.float32]:
    """Values (T,...) at a time between two frames, on the straight line between them: half a frame is 17 ms."""
    low = min(max(int(np.floor(frame)), 0), len(values) - 1)
    share = np.float32(min(max(frame - low, 0.0), 1.0))
    high = min(low + 1, len(values) - 1)
    between: NDArray[np.float32] = values[low] if share == 0 else (1 - share) * values[low] + share * values[high]
    return between


def _each(values: Iterable[NDArray[np.float64]]) -> NDArray[np.float32]:
    return np.stack(list(values)).astype(np.float32)
