"""How the camera turns and zooms, from the background of the video.

Path:    frames, Pose2D -> CameraMotion (camera_motion.py)
Solves:  min over turns and zooms of  sum_pairs rho(I_b(p') - I_a(p)) + priors,   p' = K_b R_b R_a^T K_a^-1 p     [1]
Letters: T frames, N pairs of frames, M points, J = 17 joints, H W pixels
Units:   pixel (x right, y down, centre of the first pixel at 0.5), radian unless a name says degree, grey level
Frames:  camera of the middle frame, the clip's reference: x_t = rotation[t] @ x_middle. The camera does not travel.

Grey levels at points with contrast, away from the gymnast, are compared directly (no features: 128 px of floor, mat and
wall have a handful of edges), between frames up to 16 apart so that small errors do not add up, all frames at once by
Gauss-Newton, coarse to fine. What edges leave open (a level line says little about panning) priors close: tripods do
not roll, operators turn smoothly, and a body of that size in the image cannot be pushed harder sideways than
BODY_MPS2, so that what jumps is the camera.
[1] Irani and Anandan, About Direct Methods, 1999; Brown and Lowe, IJCV 74(1), 2007 (bundle adjustment of a camera that
    turns). Weights are Geman and McClure's.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d
from scipy.spatial.transform import Rotation

from finephys.physics.body import Body, center_of_mass, points_of
from finephys.pose.camera_motion import CameraMotion
from finephys.pose.estimator import Pose2D
from finephys.skeleton import BONES, JOINT_NAMES

FLOATS = NDArray[np.float64]
# What is computed of every point: a pixel is told to 1e-5.
FLOATS32 = NDArray[np.float32]

# Larger images are reduced to this side, longer clips are left alone: the normal equations are dense in time.
MAX_SIDE_PX = 192
MAX_FRAMES = 600
# A motion that is less sure than this is no motion.
MAX_SPREAD_DEG = 2.0
# Surer than this of the camera's pitch, the axis of panning says where down is. Of 22 held-out cameras that move, the 8
# that are were off by 0.02 to 0.65 degrees; between this and 1 degree one was off by 9.
MAX_PITCH_SPREAD_DEG = 0.7
# A camera is still where standing still explains the background this well beside its best motion, or where that motion
# would be smaller than what it takes to see it (shares of the focal length).
STILL_COST_RATIO = 1.5
STILL_TURN = np.radians(0.3)

_NUM_LEVELS = 3
_NEAR, _FAR = (1, 2), (1, 2, 4, 8, 16)
_NUM_ITERATIONS = 6
# Of 44 held-out cameras that move, 250 points were no better than 150, and 100 worse.
_POINTS_PER_FRAME = 150
# Grey levels per pixel: below this, and below this share of the frame's strongest edges, lie noise and soft shadows.
_LEAST_CONTRAST = 2.0
_SHADOW_SHARE = 0.25
_BLUR_PX = 0.8
# Grey levels: beyond this a point shows something else.
_OUTLIER = 15.0
# Level, frames apart, from where on a difference counts little (much while the edges do not lie on each other yet),
# and how precise the next stage needs it, in pixels.
_STAGES = (
    (2, _NEAR, 4 * _OUTLIER, 0.4),
    (1, _NEAR, 4 * _OUTLIER, 0.4),
    (0, _NEAR, 2 * _OUTLIER, 0.2),
    (0, _FAR, 2 * _OUTLIER, 0.2),
    (0, _FAR, _OUTLIER, 0.02),
)
# Of one point. Errors along an edge are the same error (compression moves it as a whole): independent ones would be 2.
# Goes with the root of _POINTS_PER_FRAME: it was 40 with 250 of them.
_NOISE = 31.0
# Deviations of the priors, turns in radians a frame at 30 frames a second: changes of turn and of log zoom, roll,
# pitch of the reference; of the body, its sideways acceleration and how far its centre is off in the image.
_TURN_CHANGE = np.radians(0.07)
_ZOOM_CHANGE = 0.001
_ROLL = np.radians(0.05)
_PITCH, _PITCH_MEAN = 0.1, 0.1
_TURN, _ZOOM = 0.5, 0.3
BODY_MPS2 = 3.0
_CENTER_PX = 1.0
_BONES_M, _FORESHORTENING = 3.69, 0.8

# Half the width of what is masked about each bone, over the length of all bones in the image; hands, feet and hair
# reach beyond the last joints.
_MASK_SHARE = 0.042
_LEAST_CONFIDENCE = 0.3
_ENDS = (("elbow", "wrist", 0.7), ("knee", "ankle", 0.35))
_TRUNK = tuple(
    JOINT_NAMES.index(name) for name in ("right_hip", "left_hip", "right_shoulder", "left_shoulder", "spine", "thorax")
)


def estimate_camera_motion(
    frames_THWC: NDArray[np.uint8], pose: Pose2D, intrinsics: NDArray[np.floating], fps: float
) -> CameraMotion:
    """The camera's motion in a clip. frames uint8 RGB; pose: where the gymnast is, in pixels of the frames;
    intrinsics (3,3) of the middle frame.

    Unknown (is_known False) where the background shows too little, or the clip is longer than MAX_FRAMES.
    Raises ValueError where pose and frames differ in length.
    """
    num_frames = len(frames_THWC)
    if len(pose.joints_px) != num_frames:
        raise ValueError(f"pose has {len(pose.joints_px)} frames, the video {num_frames}")
    if num_frames < 3 or num_frames > MAX_FRAMES:
        return CameraMotion.still(num_frames, is_known=False)
    problem = _Problem(frames_THWC, pose, np.asarray(intrinsics, np.float64), fps)
    still = problem.start()
    state = still
    for level, strides, outlier, precision_px in _STAGES:
        state = problem.solve(state, level, strides, outlier, precision_px)
    spread_deg, pitch_spread_deg = problem.spreads_deg(state)
    if not np.isfinite(spread_deg).all() or spread_deg.max() > MAX_SPREAD_DEG:
        return CameraMotion.still(num_frames, is_known=False)
    cost, cost_still = problem.cost(state), problem.cost(still)
    turn = np.linalg.norm(Rotation.from_matrix(state.rotation).as_rotvec(), axis=-1).max()
    if cost_still <= STILL_COST_RATIO * cost or max(turn, np.abs(state.log_zoom).max()) < STILL_TURN:
        return CameraMotion.still(num_frames)
    down = np.array([0.0, np.cos(state.pitch), np.sin(state.pitch)])
    return CameraMotion(
        rotation=state.rotation.astype(np.float32),
        zoom=np.exp(state.log_zoom).astype(np.float32),
        spread_deg=spread_deg.astype(np.float32),
        is_known=True,
        is_static=False,
        gravity_cam=down.astype(np.float32) if pitch_spread_deg < MAX_PITCH_SPREAD_DEG else None,
    )


# --- the least-squares problem


@dataclass(frozen=True)
class _State:
    """rotation (T,3,3), log_zoom (T,); pitch: how far down the middle frame's camera looks."""

    rotation: FLOATS
    log_zoom: FLOATS
    pitch: float


@dataclass(frozen=True)
class _Level:
    """One resolution. image (T,H,W,3) float32: grey level and its gradient; is_body (T,H,W);
    points: of each frame (M,2) integer pixels with contrast; focal (2,), centre (2,) pixels."""

    image: NDArray[np.float32]
    is_body: NDArray[np.bool_]
    points: list[NDArray[np.int64]]
    focal: FLOATS
    centre: FLOATS


class _Problem:
    """All residuals of one clip. Unknowns of a frame: turn (3) on the left of its rotation, change of log zoom; then
    the pitch of the middle frame, for all."""

    def __init__(self, frames_THWC: NDArray[np.uint8], pose: Pose2D, intrinsics: FLOATS, fps: float) -> None:
        self.num_frames = len(frames_THWC)
        self.levels = _levels(frames_THWC, pose, intrinsics)
        self.second = np.diff(np.eye(self.num_frames), n=2, axis=0)
        # Priors are of frames at 30 a second.
        self.slower = (30.0 / fps) ** 2
        self.body = _body_prior(pose, intrinsics, fps, self.second)

    def start(self) -> _State:
        return _State(np.repeat(np.eye(3)[None], self.num_frames, 0), np.zeros(self.num_frames), _PITCH_MEAN)

    def pairs(self, strides: tuple[int, ...]) -> NDArray[np.int64]:
        """(N,2) frames to compare; of every other pair the later one is compared with the earlier."""
        both = [(t, t + stride) for stride in strides for t in range(self.num_frames - stride)]
        return np.array([pair if pair[0] % 2 else pair[::-1] for pair in both])

    def cost(self, state: _State) -> float:
        """Mean robust residual of frames far apart."""
        residual, _, _ = _residuals(self.levels[0], self.pairs(_FAR), state)
        return float(_robust_cost(residual).mean()) if len(residual) else np.inf

    def solve(self, state: _State, level: int, strides: tuple[int, ...], outlier: float, precision_px: float) -> _State:
        """Gauss-Newton steps from `state`, until one moves nothing by more than precision_px of the finest level."""
        pairs = self.pairs(strides)
        for _ in range(_NUM_ITERATIONS):
            normal, gradient = self._equations(state, level, pairs, outlier)
            free = self._free()
            step = np.zeros(len(gradient))
            step[free] = -np.linalg.solve(normal[np.ix_(free, free)], gradient[free])
            each = step[:-1].reshape(-1, 4).clip(-0.3, 0.3)
            state = _State(
                Rotation.from_rotvec(each[:, :3]).as_matrix() @ state.rotation,
                state.log_zoom + each[:, 3],
                state.pitch + float(np.clip(step[-1], -0.2, 0.2)),
            )
            if np.abs(each).max() * self.levels[0].focal.max() < precision_px:
                break
        return state

    def spreads_deg(self, state: _State) -> tuple[FLOATS, float]:
        """Expected errors, (T,) of the turns and of the pitch: the inverse of the normal matrix is their covariance."""
        normal, _ = self._equations(state, 0, self.pairs(_FAR), _OUTLIER)
        free = self._free()
        variance = np.zeros(len(normal))
        variance[free] = np.diag(np.linalg.inv(normal[np.ix_(free, free)]))
        turns = np.sqrt(variance[:-1].reshape(-1, 4)[:, :3].sum(-1))
        return np.asarray(np.degrees(turns)), float(np.degrees(np.sqrt(variance[-1])))

    def _free(self) -> NDArray[np.int64]:
        """All unknowns but the middle frame's."""
        middle = 4 * (self.num_frames // 2)
        return np.delete(np.arange(4 * self.num_frames + 1), slice(middle, middle + 4))

    def _equations(self, state: _State, level: int, pairs: NDArray[np.int64], outlier: float) -> tuple[FLOATS, FLOATS]:
        """Normal matrix (4T+1, 4T+1) and gradient."""
        count = self.num_frames
        normal, gradient = np.zeros((4 * count + 1,) * 2), np.zeros(4 * count + 1)
        blocks = normal[:-1, :-1].reshape(count, 4, count, 4)
        slopes = gradient[:-1].reshape(count, 4)
        _add_image(blocks, slopes, self.levels[level], pairs, state, outlier)

        # Smooth turns and zooms, none of them endless.
        values = np.concatenate([Rotation.from_matrix(state.rotation).as_rotvec(), state.log_zoom[:, None]], 1)
        smooth = self.second.T @ self.second
        for k, (change, size) in enumerate([(_TURN_CHANGE, _TURN)] * 3 + [(_ZOOM_CHANGE, _ZOOM)]):
            prior = smooth / (change * self.slower) ** 2 + np.eye(count) / size**2
            blocks[:, k, :, k] += prior
            slopes[:, k] += prior @ values[:, k]

        # A tripod: the image's horizontal axis stays level, whatever the pitch of the middle frame.
        up = np.array([0.0, -np.cos(state.pitch), -np.sin(state.pitch)])
        up_by_pitch = np.array([0.0, np.sin(state.pitch), -np.cos(state.pitch)])
        roll = state.rotation[:, 0] @ up
        by_turn = np.cross(state.rotation @ up, [1.0, 0.0, 0.0])
        by_all = np.zeros((count, 4 * count + 1))
        by_all[np.arange(count)[:, None], 4 * np.arange(count)[:, None] + np.arange(3)] = by_turn
        by_all[:, -1] = state.rotation[:, 0] @ up_by_pitch
        normal += by_all.T @ by_all / _ROLL**2
        gradient += by_all.T @ roll / _ROLL**2
        normal[-1, -1] += 1 / _PITCH**2
        gradient[-1] += (state.pitch - _PITCH_MEAN) / _PITCH**2

        if self.body is not None:
            bearing, by_frame = self.body.bearing(state)
            blocks += by_frame[:, :, None, None] * self.body.precision[:, None, :, None] * by_frame
            slopes += by_frame * (self.body.precision @ bearing)[:, None]
        return normal, gradient


# --- the background


def _levels(frames_THWC: NDArray[np.uint8], pose: Pose2D, intrinsics: FLOATS) -> list[_Level]:
    """Finest first."""
    height, width = frames_THWC.shape[1:3]
    reduction = min(1.0, MAX_SIDE_PX / max(height, width))
    levels = []
    for number in range(_NUM_LEVELS):
        size = tuple(max(8, round(side * reduction / 2**number)) for side in (height, width))
        scale = np.array([size[1] / width, size[0] / height])
        grey = np.stack(
            [
                cv2.GaussianBlur(_resized(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size), (0, 0), _BLUR_PX)
                for frame in frames_THWC
            ]
        )
        down, right = np.gradient(grey, axis=(1, 2))
        is_body = body_mask(pose, size, scale)
        levels.append(
            _Level(
                image=np.stack([grey, right, down], -1),
                is_body=is_body,
                points=_points(np.hypot(right, down), is_body),
                focal=intrinsics[[0, 1], [0, 1]] * scale,
                centre=intrinsics[:2, 2] * scale,
            )
        )
    return levels


def _resized(grey: NDArray[np.uint8], size: tuple[int, ...]) -> NDArray[np.float32]:
    return np.asarray(cv2.resize(grey.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA))


def body_mask(pose: Pose2D, size: tuple[int, ...], scale: FLOATS) -> NDArray[np.bool_]:
    """(T,H,W): where the gymnast is. pose in pixels that `scale` (2,) turns into pixels of `size` (H,W)."""
    joints_px = pose.joints_px.astype(np.float64) * scale
    is_seen = (pose.confidence >= _LEAST_CONFIDENCE) & np.isfinite(joints_px).all(-1)
    place = {name: number for number, name in enumerate(JOINT_NAMES)}
    lines = [(*bone, 0.0) for bone in BONES] + [(place["neck"], place["head"], 0.8)]
    for side in ("right", "left"):
        lines += [(place[f"{side}_{start}"], place[f"{side}_{end}"], beyond) for start, end, beyond in _ENDS]
    length_T = np.zeros(len(joints_px))
    for start, end in BONES:
        step = np.linalg.norm(joints_px[:, start] - joints_px[:, end], axis=-1)
        length_T += np.where(is_seen[:, start] & is_seen[:, end], step, 0.0)
    # A body that is tucked, or seen from its end, is as thick as it was before.
    length_T = maximum_filter1d(length_T, 2 * (len(length_T) // 4) + 1)
    mask = np.zeros((len(joints_px), *size), np.uint8)
    for frame, px, seen, length in zip(mask, np.nan_to_num(joints_px).clip(-1e4, 1e4), is_seen, length_T, strict=True):
        radius = max(2, round(_MASK_SHARE * length))
        for start, end, beyond in lines:
            if seen[start] and seen[end]:
                tip = px[end] + beyond * (px[end] - px[start])
                cv2.line(frame, _pixel(px[start]), _pixel(tip), 1, 2 * radius)
        for joint in np.flatnonzero(seen):
            cv2.circle(frame, _pixel(px[joint]), radius + 1, 1, -1)
        trunk = [joint for joint in _TRUNK if seen[joint]]
        if len(trunk) > 2:
            hull = cv2.convexHull(px[trunk].astype(np.int32))
            cv2.fillConvexPoly(frame, hull, 1)
            cv2.polylines(frame, [hull], True, 1, 2 * radius)
    return mask > 0


def _pixel(px: FLOATS) -> tuple[int, int]:
    return int(np.floor(px[0])), int(np.floor(px[1]))


def _points(contrast_THW: NDArray[np.float32], is_body: NDArray[np.bool_]) -> list[NDArray[np.int64]]:
    """Of each frame up to _POINTS_PER_FRAME pixels (M,2) as (x, y), always the same of the same clip."""
    rng = np.random.default_rng(0)
    inside = np.zeros(contrast_THW.shape[1:], bool)
    inside[3:-3, 3:-3] = True
    found = []
    for contrast, body in zip(contrast_THW, is_body, strict=True):
        has_contrast = inside & ~body & (contrast > _LEAST_CONTRAST)
        if has_contrast.any():
            has_contrast &= contrast > _SHADOW_SHARE * np.quantile(contrast[has_contrast], 0.95)
        points = np.argwhere(has_contrast)[:, ::-1]
        if len(points) > _POINTS_PER_FRAME:
            points = points[rng.choice(len(points), _POINTS_PER_FRAME, replace=False)]
        found.append(points)
    return found


def _residuals(level: _Level, pairs: NDArray[np.int64], state: _State) -> tuple[FLOATS32, FLOATS32, NDArray[np.int64]]:
    """Of all points of all pairs: differences of grey level (M,), their derivatives (M,8) by the unknowns of the
    pair's first frame, then its second's; and the number of their pair (M,), ascending."""
    points = [level.points[first] for first in pairs[:, 0]]
    pair = np.repeat(np.arange(len(pairs)), [len(some) for some in points])
    from_px = np.concatenate(points).T if points else np.zeros((2, 0), np.int64)
    first, second = pairs[pair].T
    relative = np.einsum("nij,nkj->nik", state.rotation[pairs[:, 1]], state.rotation[pairs[:, 0]])
    turn = relative.astype(np.float32).reshape(-1, 9).T[:, pair]
    zoom = np.exp(state.log_zoom).astype(np.float32)
    (fx, fy), (cx, cy) = level.focal.astype(np.float32), level.centre.astype(np.float32)
    seen_px = from_px.astype(np.float32) + 0.5
    ray = np.stack([(seen_px[0] - cx) / (fx * zoom[first]), (seen_px[1] - cy) / (fy * zoom[first])])
    x, y, z = (turn[3 * row] * ray[0] + turn[3 * row + 1] * ray[1] + turn[3 * row + 2] for row in range(3))
    u, v = x / z, y / z
    to_px = np.stack([fx * zoom[second] * u + cx - 0.5, fy * zoom[second] * v + cy - 0.5])

    height, width = level.image.shape[1:3]
    is_inside = (z > 0.1) & (to_px >= 1).all(0) & (to_px[0] < width - 2) & (to_px[1] < height - 2)
    nearest = np.where(is_inside, to_px, 1).round().astype(np.int64)
    kept = np.flatnonzero(is_inside & ~level.is_body[second, nearest[1], nearest[0]])
    pair, first, second, turn, ray = pair[kept], first[kept], second[kept], turn[:, kept], ray[:, kept]
    x, y, z, u, v, zoomed = x[kept], y[kept], z[kept], u[kept], v[kept], zoom[second]
    there = _sample(level.image, second, to_px[:, kept])
    here = level.image[first, from_px[1, kept], from_px[0, kept]].T

    # The mean of both gradients, as in efficient second-order minimisation (Malis, 2004).
    by_u = 0.5 * (there[1] + here[1]) * fx * zoomed
    by_v = 0.5 * (there[2] + here[2]) * fy * zoomed
    by_x, by_y, by_z = by_u / z, by_v / z, -(by_u * u + by_v * v) / z
    by_ray = [turn[k] * by_x + turn[3 + k] * by_y + turn[6 + k] * by_z for k in range(3)]
    derivative = np.stack(
        [
            by_ray[1] - ray[1] * by_ray[2],
            ray[0] * by_ray[2] - by_ray[0],
            ray[1] * by_ray[0] - ray[0] * by_ray[1],
            -(by_ray[0] * ray[0] + by_ray[1] * ray[1]),
            y * by_z - z * by_y,
            z * by_x - x * by_z,
            x * by_y - y * by_x,
            by_u * u + by_v * v,
        ],
        -1,
    )
    return there[0] - here[0], derivative, pair


def _sample(image: NDArray[np.float32], frame: NDArray[np.int64], px: FLOATS32) -> FLOATS32:
    """(3,M): bilinear values of image (T,H,W,3) at px (2,M), which lie inside."""
    _, height, width, channels = image.shape
    corner = np.floor(px).astype(np.int64)
    along = (px - corner.astype(np.float32))[:, :, None]
    flat = image.reshape(-1, channels)
    start = (frame * height + corner[1]) * width + corner[0]
    upper = flat[start] * (1 - along[0]) + flat[start + 1] * along[0]
    lower = flat[start + width] * (1 - along[0]) + flat[start + width + 1] * along[0]
    return np.asarray((upper * (1 - along[1]) + lower * along[1]).T)


def _robust_cost(residual: FLOATS32) -> FLOATS32:
    """Geman and McClure's."""
    square = residual**2
    return 0.5 * square / (1 + square / _OUTLIER**2)


def _add_image(
    blocks: FLOATS, slopes: FLOATS, level: _Level, pairs: NDArray[np.int64], state: _State, outlier: float
) -> None:
    """Add the image's part to the normal matrix, seen as (T,4,T,4), and to the gradient, seen as (T,4)."""
    residual, derivative, pair = _residuals(level, pairs, state)
    weighted = derivative * ((1 + (residual / outlier) ** 2) ** -2 / _NOISE**2)[:, None]
    ends = np.searchsorted(pair, np.arange(len(pairs) + 1))
    for (first, second), start, end in zip(pairs, ends[:-1], ends[1:], strict=True):
        if start == end:
            continue
        curvature = weighted[start:end].T @ derivative[start:end]
        slope = weighted[start:end].T @ residual[start:end]
        blocks[first, :, first] += curvature[:4, :4]
        blocks[first, :, second] += curvature[:4, 4:]
        blocks[second, :, first] += curvature[4:, :4]
        blocks[second, :, second] += curvature[4:, 4:]
        slopes[first] += slope[:4]
        slopes[second] += slope[4:]


# --- the gymnast's inertia


@dataclass(frozen=True)
class _BodyPrior:
    """The bearing of the body's centre, as the middle frame's camera would see it, is a smooth curve and a small error.

    ray (T,3): to the centre, at the middle frame's zoom.  precision (T,T): of the bearing, with that curve left out.
    """

    ray: FLOATS
    precision: FLOATS

    def bearing(self, state: _State) -> tuple[FLOATS, FLOATS]:
        """(T,) and its derivatives (T,4) by each frame's unknowns."""
        ray = self.ray * np.stack([np.exp(-state.log_zoom)] * 2 + [np.ones(len(self.ray))], -1)
        turned = np.einsum("tba,tb->ta", state.rotation, ray)
        bearing = turned[:, 0] / turned[:, 2]
        by_turned = np.stack([1 / turned[:, 2], np.zeros(len(ray)), -bearing / turned[:, 2]], -1)
        by_ray = np.einsum("tab,tb->ta", state.rotation, by_turned)
        by_zoom = -(by_ray[:, :2] * ray[:, :2]).sum(-1, keepdims=True)
        return bearing, np.concatenate([-np.cross(ray, by_ray), by_zoom], -1)


def _body_prior(pose: Pose2D, intrinsics: FLOATS, fps: float, second: FLOATS) -> _BodyPrior | None:
    """None where a joint is never seen."""
    num_frames = len(pose.joints_px)
    is_seen = (pose.confidence >= _LEAST_CONFIDENCE) & np.isfinite(pose.joints_px).all(-1)
    if not is_seen.any(0).all():
        return None
    joints_px = pose.joints_px.astype(np.float64).copy()
    for joint, seen in enumerate(is_seen.T):
        known = np.flatnonzero(seen)
        for axis in range(2):
            joints_px[:, joint, axis] = np.interp(np.arange(num_frames), known, joints_px[known, joint, axis])
    flat = torch.from_numpy(np.pad(joints_px, ((0, 0), (0, 0), (0, 1))))
    body = Body.from_anthropometry(mass_kg=50.0, height_m=1.6)
    centre_px = np.asarray(center_of_mass(body, points_of(flat)))[:, :2]
    focal = intrinsics[[0, 1], [0, 1]]
    ray = np.concatenate([(centre_px - intrinsics[:2, 2]) / focal, np.ones((num_frames, 1))], -1)

    lengths = sum(np.linalg.norm(joints_px[:, start] - joints_px[:, end], axis=-1) for start, end in BONES)
    size = float(np.median(lengths)) / float(focal[0])
    if size <= 0:
        return None
    change = BODY_MPS2 / fps**2 * size / (_BONES_M * _FORESHORTENING)
    error = _CENTER_PX / float(focal[0])
    curve = np.linalg.inv(np.eye(num_frames) + (error / change) ** 2 * second.T @ second)
    return _BodyPrior(ray, (np.eye(num_frames) - curve) / error**2)
