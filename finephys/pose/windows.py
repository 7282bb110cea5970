"""Synthetic windows that teach lifting and physics: motions before random cameras, as a detector finds them.

Path:    (training only) tracks -> joints_cam_m, joints_px, confidence
Letters: T frames, J = 17 joints, N flights
Units:   metre, second, pixel (x right, y down, centre of the first pixel at 0.5)
Frames:  world, y up; camera, x right, y down, z forward: x_cam = rotation @ x_world + translation

The motions are those of finephys/pose/tracks.py. An episode is a window with prompts: other motions of the same
performer, seen by the same camera from other sides. A window depends on (index, seed) and the shipped clips alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from finephys.pose.corruption import corrupt_detections, recorded_errors
from finephys.pose.recombination import Limb, graft
from finephys.pose.tracks import FLOATS, Source, Split, Track, captured, choreographed, flights, track_at
from finephys.skeleton import MIRROR, NUM_JOINTS

# What windows show: flights of captured shapes, choreographed elements, and else captured motions.
FLIGHT_SHARE = 0.2
CHOREOGRAPHED_SHARE = 0.4
# Of training's motions, how many get parts of other motions: where mechanics is to hold, parts without legs,
# and only while the performer stands on them all the time; else of choreographed ones too.
# Flights are made of recombined shapes as they are.
_RECOMBINED_SHARES: dict[Source, float] = {"captured": 0.7, "choreographed": 0.0, "flight": 0.0}
_FREELY_RECOMBINED_SHARES: dict[Source, float] = {"captured": 0.85, "choreographed": 0.4, "flight": 0.0}
_GRAFTS: tuple[tuple[Limb, float], ...] = (("upper_body", 0.7), ("left_arm", 0.5), ("right_arm", 0.5))
_LEG_GRAFTS: tuple[tuple[Limb, float], ...] = (("left_leg", 0.4), ("right_leg", 0.4))
# How far below the lowest joint before another's upper body may reach.
_DEEPER_M = 0.05
# Cameras: they turn after the performer; they did, and the 2D joints were brought into the middle frame's view (what
# leaves the image is still seen); the others stand and have the whole path in the image.
MOVING_CAMERA_SHARE = 0.25
STABILISED_CAMERA_SHARE = 0.35
# Prompts of an episode, of this many frames at 30 fps: what the lifter completes a query with (lifting.py).
EPISODE_PROMPTS = 2
_PROMPT_FRAMES = 16
# How large performers are, besides their shapes: in training, and outside of it (the ends of this range).
_SIZES = (0.9, 1.1)
_OUTSIDE_SIZES = (0.75, 1.25)
# How far down a camera outside of training looks; training's look up to 40 degrees down.
_OUTSIDE_PITCH_DEGREES = (45.0, 60.0)

# Demo clips and the usual shapes of video: (height, width).
_IMAGE_SIZES = ((128, 128), (256, 256), (224, 224), (360, 640), (640, 360), (480, 854), (1080, 1920))
_DEMO_SIZE_SHARE = 0.5

FLOATS32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class _Camera:
    """rotation (T,3,3) and translation (T,3) world to camera, intrinsics (3,3), image (height, width)."""

    rotation: FLOATS
    translation: FLOATS
    intrinsics: FLOATS
    size: tuple[int, int]
    is_static: bool
    is_stabilised: bool


def sample_window(
    index: int,
    seed: int,
    *,
    split: Split = "train",
    num_frames: int = 32,
    fps: float = 30.0,
    is_corrupted: bool = True,
    num_prompts: int = 0,
    keeps_mechanics: bool = True,
    is_outside_training: bool = False,
) -> dict[str, Any]:
    """Window number `index` of the endless sequence `seed`.

    -> index, fps, is_static, is_stabilised, height, width, and
    joints_cam_m (T,17,3) metres, camera frame; joints_px (T,17,2) and confidence (T,17) as a detector finds them, or
    exact with confidence 1 if not is_corrupted; intrinsics (3,3); gravity (3,) unit, down, in the camera frame, the
    mean of the frames'; in_flight (T,) bool. float32.
    Motions of the train split are recombined (recombination.py): where keeps_mechanics so that contacts are contacts
    and momentum is what it was in flight, else without regard to either.
    With num_prompts C also prompt_joints_cam_m (C,16,17,3) and prompt_gravity (C,3), at 30 fps in the camera of the
    middle frame.  is_outside_training: bodies larger or smaller, and cameras steeper, than any that training sees.
    split "test": performers and motions that "train" never shows.
    Raises ValueError if no motion is long enough for the window.
    """
    # Test windows of one seed share no random numbers with train windows.
    rng = np.random.default_rng((seed, index, int(split == "test")))
    size = float(rng.uniform(*_SIZES))
    if is_outside_training:
        size = float(rng.choice(_OUTSIDE_SIZES))
    joints_m, in_flight, performer = _sample_motion(rng, split, num_frames, fps, size, keeps_mechanics)
    camera = _sample_camera(rng, joints_m, fps, is_outside_training)
    joints_cam_m = np.einsum("tab,tjb->tja", camera.rotation, joints_m) + camera.translation[:, None]
    focal_px, centre_px = camera.intrinsics[0, 0], camera.intrinsics[:2, 2]
    joints_px = focal_px * joints_cam_m[..., :2] / joints_cam_m[..., 2:] + centre_px
    confidence = np.ones((num_frames, NUM_JOINTS))
    if is_corrupted:
        size_12, is_cut_1 = np.array([camera.size], np.float64), np.array([not camera.is_stabilised])
        found_1, sure_1 = corrupt_detections(rng, joints_px[None], size_12, recorded_errors(), is_cut_1)
        joints_px, confidence = found_1[0], sure_1[0]
    down = -camera.rotation[:, :, 1].mean(0)
    prompts: dict[str, Any] = {}
    if num_prompts:
        # Their own random numbers: a window is the same with and without them.
        prompts = _sample_prompts(
            np.random.default_rng((seed, index, 2 + int(split == "test"))),
            [track for track in (*captured(split), *choreographed(split)) if track.performer == performer],
            camera,
            joints_m[:, 0].mean(0),
            size,
            num_prompts,
        )
    return {
        **prompts,
        "index": index,
        "joints_cam_m": joints_cam_m.astype(np.float32),
        "joints_px": joints_px.astype(np.float32),
        "confidence": confidence.astype(np.float32),
        "intrinsics": camera.intrinsics.astype(np.float32),
        "gravity": (down / np.linalg.norm(down)).astype(np.float32),
        "fps": float(fps),
        "in_flight": in_flight,
        "is_static": camera.is_static,
        "is_stabilised": camera.is_stabilised,
        "height": camera.size[0],
        "width": camera.size[1],
    }


def _sample_prompts(
    rng: np.random.Generator,
    tracks: list[Track],
    camera: _Camera,
    root_m: FLOATS,
    size: float,
    num_prompts: int,
) -> dict[str, Any]:
    """Pieces of the performer's tracks, turned about the vertical and moved to root_m (3,), seen by the camera."""
    middle = len(camera.rotation) // 2
    rotation, translation = camera.rotation[middle], camera.translation[middle]
    prompts = np.empty((num_prompts, _PROMPT_FRAMES, NUM_JOINTS, 3), np.float32)
    for prompt in prompts:
        track = tracks[rng.integers(len(tracks))]
        step = track.fps / 30.0 / np.sqrt(size)
        # A recording that is too short stays on its last pose.
        start = rng.uniform(0.0, max(0.0, len(track.joints_m) - 1 - step * (_PROMPT_FRAMES - 1)))
        position = np.minimum(start + step * np.arange(_PROMPT_FRAMES), len(track.joints_m) - 1)
        joints_m = size * track_at(track, position)[0]
        joints_m = joints_m @ Rotation.from_rotvec([0.0, rng.uniform(0, 2 * np.pi), 0.0]).as_matrix().T
        joints_m = joints_m + (root_m - joints_m[:, 0].mean(0)) * [1.0, 0.0, 1.0]
        seen_m = joints_m @ rotation.T + translation
        # Where it would run into the camera it starts farther away.
        seen_m[..., 2] += max(0.0, 1.0 - seen_m[..., 2].min())
        prompt[:] = seen_m
    down = np.tile(-rotation[:, 1], (num_prompts, 1)).astype(np.float32)
    return {"prompt_joints_cam_m": prompts, "prompt_gravity": down}


def _sample_motion(
    rng: np.random.Generator, split: Split, num_frames: int, fps: float, size: float, keeps_mechanics: bool
) -> tuple[FLOATS, NDArray[np.bool_], int]:
    """Joints (T,17,3) in the world, in_flight (T,) and the performer's number: a piece of a random track, resized by
    `size` (a body of this factor takes its square root times as long, Froude), recombined or not, mirrored or not."""
    wanted_s = (num_frames - 1) / fps
    sources = (flights(split), choreographed(split), captured(split))
    shares = np.array([FLIGHT_SHARE, CHOREOGRAPHED_SHARE, 1.0 - FLIGHT_SHARE - CHOREOGRAPHED_SHARE])
    long_enough = [[track for track in source if track.duration_s * np.sqrt(size) > wanted_s] for source in sources]
    shares *= [bool(source) for source in long_enough]
    if not shares.any():
        raise ValueError(f"no motion is as long as the window's {num_frames} frames at {fps} fps")
    tracks = long_enough[rng.choice(len(sources), p=shares / shares.sum())]
    track, joints_m, in_flight = _piece(rng, tracks, num_frames, fps, size)
    if split == "train":
        joints_m = _recombined(rng, track, tracks, joints_m, in_flight, fps, size, keeps_mechanics)
    if rng.random() < 0.5:
        joints_m = joints_m[:, MIRROR] * np.array([1.0, 1.0, -1.0])
    return joints_m, in_flight, track.performer


def _recombined(
    rng: np.random.Generator,
    track: Track,
    tracks: Sequence[Track],
    joints_m: FLOATS,
    in_flight: NDArray[np.bool_],
    fps: float,
    size: float,
    keeps_mechanics: bool,
) -> FLOATS:
    """joints_m (T,17,3), a piece of the track, with parts of others of the tracks, or as it was."""
    shares = _RECOMBINED_SHARES if keeps_mechanics else _FREELY_RECOMBINED_SHARES
    is_left_alone = keeps_mechanics and in_flight.any()
    if rng.random() >= shares[track.source] or is_left_alone:
        return joints_m
    donors = [donor for donor in tracks if donor.performer == track.performer]
    for limb, share in _GRAFTS if keeps_mechanics else (*_GRAFTS, *_LEG_GRAFTS):
        if rng.random() < share:
            _, donor_m, _ = _piece(rng, donors, len(joints_m), fps, size)
            grafted_m = graft(rng, limb, joints_m, donor_m, fps)
            if not keeps_mechanics or grafted_m[..., 1].min() > joints_m[..., 1].min() - _DEEPER_M:
                joints_m = grafted_m
    return joints_m


def _piece(
    rng: np.random.Generator, tracks: Sequence[Track], num_frames: int, fps: float, size: float
) -> tuple[Track, FLOATS, NDArray[np.bool_]]:
    """A random one of the tracks, and joints (T,17,3) and in_flight (T,) of a random piece of it."""
    # Longer recordings show more; short ones are not to be forgotten.
    weight = np.array([0.5 + track.duration_s for track in tracks])
    track = tracks[rng.choice(len(tracks), p=weight / weight.sum())]
    step = track.fps / fps / np.sqrt(size)
    start = rng.uniform(0.0, len(track.joints_m) - 1 - step * (num_frames - 1))
    joints_m, in_flight = track_at(track, start + step * np.arange(num_frames))
    return track, size * joints_m, in_flight


def _sample_camera(
    rng: np.random.Generator, joints_m: FLOATS, fps: float, is_outside_training: bool = False
) -> _Camera:
    """A camera that stands or turns after the performer, who fills 45 to 80 % of the image."""
    kind = rng.random()
    is_static, is_stabilised = kind >= MOVING_CAMERA_SHARE, 0 <= kind - MOVING_CAMERA_SHARE < STABILISED_CAMERA_SHARE
    height, width = _IMAGE_SIZES[0 if rng.random() < _DEMO_SIZE_SHARE else rng.integers(len(_IMAGE_SIZES))]
    focal_px = 0.5 * max(height, width) / np.tan(np.radians(rng.uniform(20.0, 45.0)) / 2)
    intrinsics = np.array([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
    pitch = np.radians(rng.uniform(-5.0, 20.0) if rng.random() < 0.8 else rng.uniform(-20.0, 40.0))
    if is_outside_training:
        pitch = np.radians(rng.uniform(*_OUTSIDE_PITCH_DEGREES))
    rotation = _camera_rotation(rng.uniform(0.0, 2 * np.pi), pitch, np.radians(rng.normal(0.0, 1.5)))

    looked_at_m = joints_m[:, 0].mean(0)
    turned_m = (joints_m - looked_at_m) @ rotation.T
    lowest, highest = turned_m.min(1), turned_m.max(1)
    if is_static and not is_stabilised:
        # The whole path is in the image; a camera that turns need not care.
        middle_m = 0.5 * (lowest[:, :2].min(0) + highest[:, :2].max(0))
        looked_at_m = looked_at_m + middle_m @ rotation[:2]
        path_half_m = 0.5 * (highest[:, :2].max(0) - lowest[:, :2].min(0))
    else:
        path_half_m = np.zeros(2)
    body_half_m = 0.5 * (highest - lowest)[:, :2].max(0)
    view_half = np.array([width, height]) / (2 * focal_px)
    nearest_m = lowest[:, 2].min()
    distance_m = max(
        (body_half_m / (rng.uniform(0.45, 0.8) * view_half)).max(),
        (path_half_m / (0.95 * view_half)).max() - nearest_m,
        1.6 - nearest_m,
    )
    slack_m = np.maximum(0.95 * view_half * (distance_m + nearest_m) - np.maximum(path_half_m, body_half_m), 0.0)
    offset_m = np.append(0.7 * slack_m * rng.uniform(-1.0, 1.0, 2), distance_m)
    place_m = looked_at_m - offset_m @ rotation
    if is_static:
        rotations = np.repeat(rotation[None], len(joints_m), 0)
    else:
        rotations = _follow(rng, joints_m[:, 0] - place_m, rotation, fps)
    return _Camera(
        rotation=rotations,
        translation=-rotations @ place_m,
        intrinsics=intrinsics,
        size=(height, width),
        is_static=bool(is_static),
        is_stabilised=bool(is_stabilised),
    )


def _camera_rotation(azimuth: float, pitch: float, roll: float) -> FLOATS:
    """World to camera (3,3), radians: which way it looks, how far down, how far tilted."""
    forward = np.array([np.cos(pitch) * np.cos(azimuth), -np.sin(pitch), np.cos(pitch) * np.sin(azimuth)])
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    level = np.stack([right, np.cross(forward, right), forward])
    tilt = np.array([[np.cos(roll), -np.sin(roll), 0.0], [np.sin(roll), np.cos(roll), 0.0], [0.0, 0.0, 1.0]])
    rotation: FLOATS = tilt @ level
    return rotation


def _follow(rng: np.random.Generator, path_m: FLOATS, rotation: FLOATS, fps: float) -> FLOATS:
    """Rotations (T,3,3) of a camera that pans and tilts after path_m (T,3), seen from its place, and drifts."""
    path_m = gaussian_filter1d(path_m, 0.15 * fps, axis=0, mode="nearest")
    seen_m = path_m @ rotation.T
    time_s = np.arange(len(path_m)) / fps
    phase, rate = rng.uniform(0, 2 * np.pi, 2), rng.uniform(1.0, 4.0, 2)
    drift = np.radians(rng.uniform(0.5, 3.0, 2)) * np.sin(phase + rate * time_s[:, None])
    share = rng.uniform(0.4, 1.0)
    pan = share * np.arctan2(seen_m[:, 0], seen_m[:, 2]) + drift[:, 0]
    tilt = share * np.arctan2(seen_m[:, 1], np.hypot(seen_m[:, 0], seen_m[:, 2])) + drift[:, 1]
    turns = Rotation.from_euler("yx", np.stack([-pan, tilt], -1)).as_matrix()
    followed: FLOATS = turns @ rotation
    return followed


def detected(rows: Sequence[Mapping[str, Any]], rng: np.random.Generator) -> tuple[FLOATS32, FLOATS32]:
    """Clean windows of one length as a detector finds them now: joints_px (B,T,17,2), confidence (B,T,17)."""
    joints_m = np.stack([row["joints_cam_m"] for row in rows]).astype(np.float64)
    intrinsics = np.stack([row["intrinsics"] for row in rows]).astype(np.float64)
    focal_px, centre_px = intrinsics[:, None, None, 0, :1], intrinsics[:, None, None, :2, 2]
    joints_px = focal_px * joints_m[..., :2] / joints_m[..., 2:] + centre_px
    size_B2 = np.array([[row["height"], row["width"]] for row in rows], np.float64)
    is_cut_B = np.array([not row["is_stabilised"] for row in rows])
    return corrupt_detections(rng, joints_px, size_B2, recorded_errors(), is_cut_B)
