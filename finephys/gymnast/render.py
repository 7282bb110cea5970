"""A posed gymnast, an arena and a camera -> pictures, and who hides which joint.

Path:    (before the path) PosedMesh, Camera -> pictures
Letters: T frames, J = 17 joints, V vertices, H, W
Units:   pixel (x right, y down, first pixel's centre at 0.5), metre
Frames:  world, y up; camera, x right, y down, z forward: x_cam = rotation @ x_world + translation

Triangles are filled by OpenCV's software rasteriser, twice as fine as the frame; floor, mat and wall are worked out
per pixel; a shadow is the mesh pressed flat onto the floor and blurred. 2.6 ms a pass for 27,000 triangles.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from finephys.gymnast.body import Performer, rest_body, shared_mesh
from finephys.gymnast.cameras import Camera, is_static, to_camera, to_pixels
from finephys.gymnast.motions import ARENAS, CAPS, HAIRS, LEOTARDS, SKINS, Arena
from finephys.skeleton import JOINT_NAMES

FLOATS = NDArray[np.float64]

_SUPERSAMPLING = 2
_NEAR_M, _FAR_M = 0.5, 60.0

# Towards the light, world; and the share of light that comes from everywhere.
_LIGHT = np.array([0.35, 0.85, 0.39])
_AMBIENT = 0.55
_MAT_HALF_SIDE_M = 2.2
_MAT_LINE_M = 0.12
_WALL_BEHIND_M = 3.0
_FAR_WALL_M = 1e3
# Rays a pixel, both ways: a still background is drawn once, a moving one for each frame.
_STILL_RAYS, _MOVING_RAYS = 4, 2

# The vertices that these bones move most wear the leotard.
_LEOTARD_BONES = ("root", "pelvis", "spine", "clavicle", "shoulder", "upperarm", "lowerarm")
_SLEEVE_BONES = ("upperarm", "lowerarm")
_TRUNK_BONES = ("spine", "root")
_BELT_HALF_M = 0.045
_EYE_COLOUR = (0.12, 0.09, 0.08)

# How far behind the visible surface a joint may lie and still count as visible: the half-thickness of the body there.
_JOINT_DEPTH_M = {"root": 0.2, "spine": 0.2, "thorax": 0.2, "right_hip": 0.17, "left_hip": 0.17, "head": 0.14}
_LIMB_DEPTH_M = 0.12


class Renderer:
    """Draws one performer in one arena, through a camera that may be another one in each frame."""

    def __init__(
        self, performer: Performer, arena: str, cameras: Sequence[Camera], image_size: int, mat_m: FLOATS
    ) -> None:
        """mat_m (2,): x and z of the mat's middle."""
        self.cameras, self.image_size = cameras, image_size
        self.faces = shared_mesh().faces
        self.colours = vertex_colours(performer)
        self._arena, self._mat_m = ARENAS[arena], mat_m
        # The wall stands square to the view of the first frame, behind the mat.
        level = cameras[0].rotation[2] * np.array([1.0, 0.0, 1.0])
        self._level = level / np.linalg.norm(level)
        self._background: tuple[Camera, NDArray[np.float32]] | None = None

    def background(self, camera: Camera) -> NDArray[np.float32]:
        """The empty hall (H,W,3); the last camera's is remembered."""
        if self._background is None or self._background[0] is not camera:
            num_rays = _STILL_RAYS if is_static(self.cameras) else _MOVING_RAYS
            hall = _background(camera, self._arena, self.image_size, self._mat_m, self._level, num_rays)
            self._background = (camera, hall)
        return self._background[1]

    def draw(
        self, vertices_m: NDArray[np.float32], normals: NDArray[np.float32], camera: Camera
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One moment (H,W,3) in 0..1, and the depth of the body's surface (sH,sW) in metres, far where none is."""
        light = (_LIGHT / np.linalg.norm(_LIGHT)).astype(np.float32)
        # Half-Lambert: soft, and no side of the body is black.
        brightness = _AMBIENT + (1 - _AMBIENT) * (0.5 + 0.5 * (normals @ light)) ** 2 * 1.25
        shaded = np.clip(self.colours * brightness[:, None], 0, 1).astype(np.float32)
        body, depth_m = self._rasterise(vertices_m, shaded, camera)
        cover = (depth_m < 0.99 * _FAR_M).astype(np.float32)
        body, cover = (
            cv2.resize(layer, (self.image_size,) * 2, interpolation=cv2.INTER_AREA) for layer in (body, cover)
        )
        lit = self.background(camera) * (1 - self._shadow(vertices_m, camera)[..., None])
        return lit * (1 - cover[..., None]) + body, depth_m

    def _rasterise(
        self, vertices_m: NDArray[np.float32], colours: NDArray[np.float32], camera: Camera
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        side = self.image_size * _SUPERSAMPLING
        image, depth_m = np.zeros((side, side, 3), np.float32), np.full((side, side), _FAR_M, np.float32)
        # OpenCV's rasteriser has y up and looks along -z, and takes a field of view about the image's centre.
        world_to_eye, flip = np.eye(4, dtype=np.float32), np.diag([1.0, -1.0, -1.0])
        world_to_eye[:3, :3] = flip @ camera.rotation
        world_to_eye[:3, 3] = flip @ camera.translation
        fov_y = 2 * np.arctan(0.5 * self.image_size / camera.intrinsics[1, 1])
        settings = cv2.TriangleRasterizeSettings()
        settings.setShadingType(cv2.RASTERIZE_SHADING_SHADED)
        settings.setCullingMode(cv2.RASTERIZE_CULLING_NONE)
        cv2.triangleRasterize(
            np.ascontiguousarray(vertices_m), self.faces, colours, image, depth_m, world_to_eye, fov_y,
            _NEAR_M, _FAR_M, settings,
        )  # fmt: skip
        return image, depth_m

    def _shadow(self, vertices_m: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
        """Share of light that the floor loses (H,W): the mesh flattened onto it, blurred the more the higher it is."""
        flat_m = vertices_m.copy()
        height_m = float(vertices_m[:, 1].min())
        flat_m[:, [0, 2]] -= 0.25 * vertices_m[:, 1:2] * (_LIGHT[[0, 2]] / _LIGHT[1]).astype(np.float32)
        flat_m[:, 1] = 0.0
        mask, _ = self._rasterise(flat_m, np.ones_like(flat_m), camera)
        small = cv2.resize(mask[..., 0], (self.image_size,) * 2, interpolation=cv2.INTER_AREA)
        blurred: NDArray[np.float32] = cv2.GaussianBlur(small, (0, 0), 1.5 + 4 * height_m) * 0.4
        return blurred


def joint_visibility(joints_m: FLOATS, depth_m: NDArray[np.float32], camera: Camera) -> NDArray[np.float32]:
    """1 for joints (17,3) that the camera sees, 0 for those behind another part of the body. depth_m from draw()."""
    seen_m = to_camera(joints_m, camera)
    cells = np.floor(to_pixels(joints_m, camera) * _SUPERSAMPLING).astype(int)
    column, row = np.clip(cells, 0, len(depth_m) - 1).T
    tolerance_m = np.array([_JOINT_DEPTH_M.get(name, _LIMB_DEPTH_M) for name in JOINT_NAMES])
    visible: NDArray[np.float32] = (seen_m[:, 2] < depth_m[row, column] + tolerance_m).astype(np.float32)
    return visible


def vertex_colours(performer: Performer) -> NDArray[np.float32]:
    """Paint the body (V,3) sRGB: a long-sleeved leotard with or without a trim, skin, hair or cap, dark eyes."""
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
    trim = LEOTARDS["black" if performer.leotard == "white" else "white"]
    if performer.trim == "sleeves":
        on_arms = np.array([name.startswith(_SLEEVE_BONES) for name in mesh.bone_names])
        colours[in_leotard & ((mesh.bone_weights @ on_arms) > 0.5)] = trim
    elif performer.trim == "belt":
        waist_m = rest.joints_m[JOINT_NAMES.index("spine"), 1]
        above_waist_m = rest.vertices_m[:, 1] - waist_m
        is_trunk = np.char.startswith(bone, _TRUNK_BONES[0]) | np.char.startswith(bone, _TRUNK_BONES[1])
        colours[in_leotard & is_trunk & (np.abs(above_waist_m) < _BELT_HALF_M)] = trim
    head_colour = HAIRS[performer.hair] if performer.cap is None else CAPS[performer.cap]
    colours[on_head & (up_m > 0.05 + 0.9 * forward_m)] = head_colour
    colours[np.char.startswith(bone, "eye")] = _EYE_COLOUR
    return colours


def _background(
    camera: Camera, arena: Arena, image_size: int, mat_m: FLOATS, level: FLOATS, num_rays: int
) -> NDArray[np.float32]:
    """Floor, mat with a white line, and wall (H,W,3), num_rays x num_rays rays a pixel.

    level (3,): the horizontal direction that the wall is square to.
    """
    steps = (np.arange(num_rays * image_size) + 0.5) / num_rays
    x, y = np.meshgrid(steps, steps)
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(camera.intrinsics).T @ camera.rotation
    eye_m = camera.position_m
    wall_m = float((np.array([mat_m[0], 0, mat_m[1]]) - eye_m) @ level) + _MAT_HALF_SIDE_M + _WALL_BEHIND_M
    with np.errstate(divide="ignore"):
        to_floor = np.where(rays[..., 1] < -1e-6, -eye_m[1] / rays[..., 1], np.inf)
    ahead = rays @ level
    # A camera that turns far may look along the wall: there is none in that direction.
    to_wall = np.where(ahead > 1e-3, wall_m / np.maximum(ahead, 1e-3), _FAR_WALL_M)
    is_wall = to_wall < to_floor
    hit_m = eye_m + rays * np.minimum(to_floor, to_wall)[..., None]
    off_m = np.abs(hit_m[..., [0, 2]] - mat_m).max(-1)
    colour = np.empty((*x.shape, 3), np.float32)
    colour[:] = arena.floor
    colour[off_m < _MAT_HALF_SIDE_M] = arena.mat
    colour[(off_m < _MAT_HALF_SIDE_M) & (off_m > _MAT_HALF_SIDE_M - _MAT_LINE_M)] = 0.92
    # The wall is a little brighter towards the ceiling.
    brightness = 0.92 + 0.03 * np.clip(hit_m[..., 1:2], 0, 4)
    colour = np.where(is_wall[..., None], np.array(arena.wall) * brightness, colour).astype(np.float32)
    small: NDArray[np.float32] = cv2.resize(np.clip(colour, 0, 1), (image_size,) * 2, interpolation=cv2.INTER_AREA)
    return small
