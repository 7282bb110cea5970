"""A posed gymnast, an arena and a camera -> frames, 2D joints and who hides which joint.

Path:    (before the path) PosedMesh -> video and its ground truth
Letters: T frames, J = 17 joints, V vertices, H, W
Units:   pixel (x right, y down, first pixel's centre at 0.5), metre
Frames:  world, y up; camera, x right, y down, z forward: x_cam = rotation @ x_world + translation

Triangles are filled by OpenCV's software rasteriser, twice as fine as the frame; floor, mat and wall are worked out
per pixel; a shadow is the mesh pressed flat onto the floor and blurred. 2.6 ms a pass for 27,000 triangles.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from finephys.gymnast.body import Performer, PosedMesh, rest_body, shared_mesh
from finephys.gymnast.motions import ARENAS, HAIRS, LEOTARDS, SKINS
from finephys.skeleton import JOINT_NAMES

FLOATS = NDArray[np.float64]

MIN_DISTANCE_M = 1.6  # nearer, perspective distorts a body beyond what gymnastics footage shows
_MIN_CAMERA_HEIGHT_M = 0.15
_MIN_MARGIN_PX = 1.5
# Share of the frame that the body's longer side should fill: mean of what it does when small and as a rule.
_WANTED_SPAN = 0.55
_SUPERSAMPLING = 2
_NEAR_M, _FAR_M = 0.5, 60.0

# Towards the light, world; and the share of light that comes from everywhere.
_LIGHT = np.array([0.35, 0.85, 0.39])
_AMBIENT = 0.55
_MAT_HALF_SIDE_M = 2.2
_MAT_LINE_M = 0.12
_WALL_BEHIND_M = 3.0

# The vertices that these bones move most wear the leotard.
_LEOTARD_BONES = ("root", "pelvis", "spine", "clavicle", "shoulder", "upperarm", "lowerarm")
_EYE_COLOUR = (0.12, 0.09, 0.08)

# How far behind the visible surface a joint may lie and still count as visible: the half-thickness of the body there.
_JOINT_DEPTH_M = {"root": 0.2, "spine": 0.2, "thorax": 0.2, "right_hip": 0.17, "left_hip": 0.17, "head": 0.14}
_LIMB_DEPTH_M = 0.12


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera that stands still. intrinsics (3,3) pixels, rotation (3,3), translation (3,) metres."""

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


def fit_camera(mesh: PosedMesh, image_size: int, rng: np.random.Generator, *, num_tries: int = 24) -> Camera:
    """A camera at a random bearing that keeps the whole body in the frame all the time, as large as it goes.

    Bearings from which the body would look small, because it travels across the view, are drawn again; of `num_tries`
    unlucky ones the best is taken.
    """
    points_m = mesh.vertices_m[:, shared_mesh().support].astype(np.float64)
    few_points_m = np.concatenate([points_m[::3, ::12], points_m[-1:, ::12]]).reshape(-1, 3)
    best: tuple[float, Camera] | None = None
    for _ in range(num_tries):
        camera = _aimed_camera(few_points_m, image_size, rng)
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
    return best[1]


def _aimed_camera(points_m: FLOATS, image_size: int, rng: np.random.Generator) -> Camera:
    """Look at the points (N,3) from a random side and step back until all are inside."""
    azimuth, pitch = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(-5, 20))
    focal_px = 0.5 * image_size / np.tan(0.5 * np.radians(rng.uniform(20, 45)))
    fill, drift = rng.uniform(0.78, 0.9), rng.uniform(-0.03, 0.03, 2)
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
        translation[:2] += (drift * image_size / focal_px - (low + high) / 2) * seen_m[:, 2].mean()
        depth_m = seen_m[:, 2].mean() * (high - low).max() * focal_px / (fill * image_size)
        translation[2] += max(depth_m - seen_m[:, 2].mean(), MIN_DISTANCE_M + 0.05 - seen_m[:, 2].min())
    return Camera(intrinsics=intrinsics, rotation=rotation, translation=translation)


def _look_along(azimuth: float, pitch: float) -> FLOATS:
    """World-to-camera rotation of a level camera that looks along `azimuth` and down by `pitch`, radians."""
    forward = np.array([np.cos(azimuth) * np.cos(pitch), -np.sin(pitch), np.sin(azimuth) * np.cos(pitch)])
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward])


class Renderer:
    """Draws one performer in one arena through one camera."""

    def __init__(self, performer: Performer, arena: str, camera: Camera, image_size: int, mat_centre_m: FLOATS) -> None:
        """mat_centre_m (2,): x and z of the mat's middle."""
        self.camera, self.image_size = camera, image_size
        self.faces = shared_mesh().faces
        self.colours = vertex_colours(performer)
        self.background = _background(camera, arena, image_size, mat_centre_m)
        # OpenCV's rasteriser has y up and looks along -z, and takes a field of view about the image's centre.
        self._world_to_eye = np.eye(4, dtype=np.float32)
        flip = np.diag([1.0, -1.0, -1.0])
        self._world_to_eye[:3, :3] = flip @ camera.rotation
        self._world_to_eye[:3, 3] = flip @ camera.translation
        self._fov_y = 2 * np.arctan(0.5 * image_size / camera.intrinsics[1, 1])

    def draw(
        self, vertices_m: NDArray[np.float32], normals: NDArray[np.float32]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """One frame (H,W,3) uint8, and the depth of the body's surface (sH,sW) in metres, far where none is."""
        light = (_LIGHT / np.linalg.norm(_LIGHT)).astype(np.float32)
        # Half-Lambert: soft, and no side of the body is black.
        brightness = _AMBIENT + (1 - _AMBIENT) * (0.5 + 0.5 * (normals @ light)) ** 2 * 1.25
        shaded = np.clip(self.colours * brightness[:, None], 0, 1).astype(np.float32)
        body, depth_m = self._rasterise(vertices_m, shaded)
        cover = (depth_m < 0.99 * _FAR_M).astype(np.float32)
        body, cover = (
            cv2.resize(layer, (self.image_size,) * 2, interpolation=cv2.INTER_AREA) for layer in (body, cover)
        )
        frame = self.background * (1 - self._shadow(vertices_m)[..., None]) * (1 - cover[..., None]) + body
        return (np.clip(frame, 0, 1) * 255 + 0.5).astype(np.uint8), depth_m

    def _rasterise(
        self, vertices_m: NDArray[np.float32], colours: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        side = self.image_size * _SUPERSAMPLING
        image, depth_m = np.zeros((side, side, 3), np.float32), np.full((side, side), _FAR_M, np.float32)
        settings = cv2.TriangleRasterizeSettings()
        settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
        settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
        cv2.triangleRasterize(
            np.ascontiguousarray(vertices_m), self.faces, colours, image, depth_m, self._world_to_eye, self._fov_y,
            _NEAR_M, _FAR_M, settings,
        )  # fmt: skip
        return image, depth_m

    def _shadow(self, vertices_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """Share of light that the floor loses (H,W): the mesh flattened onto it, blurred the more the higher it is."""
        flat_m = vertices_m.copy()
        height_m = float(vertices_m[:, 1].min())
        flat_m[:, [0, 2]] -= 0.25 * vertices_m[:, 1:2] * (_LIGHT[[0, 2]] / _LIGHT[1]).astype(np.float32)
        flat_m[:, 1] = 0.0
        mask, _ = self._rasterise(flat_m, np.ones_like(flat_m))
        small = cv2.resize(mask[..., 0], (self.image_size,) * 2, interpolation=cv2.INTER_AREA)
        blurred: NDArray[np.float32] = cv2.GaussianBlur(small, (0, 0), 1.5 + 4 * height_m) * 0.4
        return blurred


def joint_visibility(joints_m: FLOATS, depth_m: NDArray[np.float32], renderer: Renderer) -> NDArray[np.float32]:
    """1 for joints (17,3) that the camera sees, 0 for those behind another part of the body. depth_m from draw()."""
    seen_m = to_camera(joints_m, renderer.camera)
    cells = np.floor(to_pixels(joints_m, renderer.camera) * _SUPERSAMPLING).astype(int)
    column, row = np.clip(cells, 0, len(depth_m) - 1).T
    tolerance_m = np.array([_JOINT_DEPTH_M.get(name, _LIMB_DEPTH_M) for name in JOINT_NAMES])
    visible: NDArray[np.float32] = (seen_m[:, 2] < depth_m[row, column] + tolerance_m).astype(np.float32)
    return visible


def vertex_colours(performer: Performer) -> NDArray[np.float32]:
    """Paint the body (V,3) sRGB: a long-sleeved leotard, skin, hair, dark eyes."""
    mesh, rest = shared_mesh(), rest_body(performer.shape)
    bone = np.array(mesh.bone_names)[mesh.bone]
    # By the share that torso and arms have in moving a vertex, which varies smoothly: the border is a clean line.
    worn = np.array([name.startswith(_LEOTARD_BONES) for name in mesh.bone_names])
    in_leotard = (mesh.bone_weights @ worn) > 0.5
    on_head = np.isin(bone, ("head", "neck03"))
    # The hairline falls from the forehead, past the ears, to the nape.
    eyes_m = rest.joints_m[JOINT_NAMES.index("head")]
    forward_m, up_m = (rest.vertices_m - eyes_m)[:, 0], (rest.vertices_m - eyes_m)[:, 1]
    colours = np.empty((len(bone), 3), np.float32)
    colours[:] = SKINS[performer.skin]
    colours[in_leotard] = LEOTARDS[performer.leotard]
    colours[on_head & (up_m > 0.05 + 0.9 * forward_m)] = HAIRS[performer.hair]
    colours[np.char.startswith(bone, "eye")] = _EYE_COLOUR
    return colours


def _background(camera: Camera, arena_name: str, image_size: int, mat_centre_m: FLOATS) -> NDArray[np.float32]:
    """Floor, mat with a white line, and wall (H,W,3), 4x4 rays a pixel."""
    arena, rays_a_side = ARENAS[arena_name], 4 * image_size
    steps = (np.arange(rays_a_side) + 0.5) / 4
    x, y = np.meshgrid(steps, steps)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(camera.intrinsics).T @ camera.rotation
    eye_m = camera.position_m
    # The wall stands square to the view, behind the mat.
    level = camera.rotation[2] * np.array([1.0, 0.0, 1.0])
    level /= np.linalg.norm(level)
    to_mat_m = np.array([mat_centre_m[0], 0, mat_centre_m[1]]) - eye_m
    wall_m = float(to_mat_m @ level) + _MAT_HALF_SIDE_M + _WALL_BEHIND_M
    with np.errstate(divide="ignore"):
        to_floor = np.where(rays[..., 1] < -1e-6, -eye_m[1] / rays[..., 1], np.inf)
    to_wall = wall_m / (rays @ level)
    is_wall = to_wall < to_floor
    hit_m = eye_m + rays * np.minimum(to_floor, to_wall)[..., None]
    off_m = np.abs(hit_m[..., [0, 2]] - mat_centre_m).max(-1)
    colour = np.empty((*x.shape, 3), np.float32)
    colour[:] = arena.floor
    colour[off_m < _MAT_HALF_SIDE_M] = arena.mat
    colour[(off_m < _MAT_HALF_SIDE_M) & (off_m > _MAT_HALF_SIDE_M - _MAT_LINE_M)] = 0.92
    # The wall is a little brighter towards the ceiling.
    brightness = 0.92 + 0.03 * np.clip(hit_m[..., 1:2], 0, 4)
    colour = np.where(is_wall[..., None], np.array(arena.wall) * brightness, colour).astype(np.float32)
    small: NDArray[np.float32] = cv2.resize(np.clip(colour, 0, 1), (image_size,) * 2, interpolation=cv2.INTER_AREA)
    return small
