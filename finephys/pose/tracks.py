"""The motions that teach lifting and physics: captured, choreographed, and flights made of captured shapes.

Path:    (training only) motion capture, choreographed clips -> Track, joints in the world
Letters: K frames of a track, J = 17 joints, N flights, T frames of a flight
Units:   metre, second
Frames:  world, y up

Captured motions are put on random performers. Choreographed ones are those of the shipped clips, on their performers.
Flights change shape as something captured does, in training with limbs of other recordings, while the centre of mass
falls at g and the body turns so that its angular momentum stays what it was at take-off. Speeds vary only with size
(Froude): a body b times as large moves in time sqrt(b) times as long, so that gravity holds.

A process computes the motions once, in seconds, and keeps them.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation
from torch import Tensor

from finephys.gymnast.body import Performer, performer_contacts, performer_joints, rest_body
from finephys.gymnast.mocap import Motion, load_capture
from finephys.gymnast.motions import MOTIONS, random_shape
from finephys.physics.body import (
    STANDARD_GRAVITY,
    Body,
    angular_momentum,
    center_of_mass,
    inertia,
    joints_of,
    points_of,
)
from finephys.pose.recombination import LIMBS, graft
from finephys.skeleton import NUM_JOINTS

FLOATS = NDArray[np.float64]
Split = Literal["train", "test"]
Source = Literal["captured", "choreographed", "flight"]

CLIPS = Path(__file__).parents[1] / "assets" / "clips"

NUM_PERFORMERS = 24
NUM_FLIGHTS = {"train": 768, "test": 64}
# How often a part of the body in a flight of training moves as in another recording.
_GRAFTED_SHARE = 0.4
# Longer than a gymnast stays up, so that a window of 32 frames at 30 a second fits into one flight.
FLIGHT_S = 1.2

_MOTION_FPS = 60.0
_FLIGHT_FPS = 120.0


@dataclass(frozen=True, kw_only=True)
class Track:
    """joints_m (K,17,3) in the world and in_flight (K,) at fps frames a second; performer: who, of those of the
    split; source: what it is made of."""

    joints_m: NDArray[np.float32]
    in_flight: NDArray[np.bool_]
    fps: float
    performer: int
    source: Source

    @property
    def duration_s(self) -> float:
        return (len(self.joints_m) - 1) / self.fps


def track_at(track: Track, position: NDArray[np.floating]) -> tuple[FLOATS, NDArray[np.bool_]]:
    """A track at fractional frames, by cubics with central differences as tangents: exact for parabolas."""
    frame = np.clip(np.floor(position).astype(int), 1, len(track.joints_m) - 3)
    u = (position - frame)[:, None, None]
    before, at, after, later = (track.joints_m[frame + offset].astype(np.float64) for offset in (-1, 0, 1, 2))
    slope, next_slope = 0.5 * (after - before), 0.5 * (later - at)
    cubic = at + u * (slope + u * (3 * (after - at) - 2 * slope - next_slope))
    joints_m: FLOATS = cubic + u**3 * (2 * (at - after) + slope + next_slope)
    return joints_m, track.in_flight[np.rint(position).astype(int)]


@functools.lru_cache(maxsize=2)
def captured(split: Split) -> tuple[Track, ...]:
    """Every motion of the split on every performer of the split."""
    tracks = []
    for name in motion_names(split):
        capture = load_capture(name)
        captured = capture.motion(0, capture.num_frames(_MOTION_FPS), fps=_MOTION_FPS)
        for number, performer in enumerate(window_performers(split)):
            size = rest_body(performer.shape).size
            motion = Motion(
                root_m=size * captured.root_m,
                rotations=captured.rotations,
                fps=captured.fps / np.sqrt(size),
                leaves_floor=captured.leaves_floor,
            )
            in_flight, _ = performer_contacts(motion, performer)
            joints_m = performer_joints(motion, performer).astype(np.float32)
            tracks.append(
                Track(joints_m=joints_m, in_flight=in_flight, fps=motion.fps, performer=number, source="captured")
            )
    return tuple(tracks)


def motion_names(split: Split) -> tuple[str, ...]:
    """Recordings of the split: "test" has the motions that the demo data holds out, "train" all others."""
    return tuple(
        capture
        for motion in MOTIONS.values()
        if (motion.num_train == 0) == (split == "test")
        for capture in motion.captures
    )


def window_performers(split: Split) -> list[Performer]:
    """Random bodies; the two splits share none."""
    rng = np.random.default_rng((2, int(split == "test")))
    return [
        Performer(name=f"window-{split}-{number}", shape=random_shape(rng), leotard="", skin="", hair="")
        for number in range(NUM_PERFORMERS)
    ]


@functools.lru_cache(maxsize=2)
def choreographed(split: Split) -> tuple[Track, ...]:
    """The floor elements of the shipped clips of the split, with their performers."""
    columns = ["clip_id", "subset", "fps", "joints_cam_m", "rotation", "translation", "in_flight", "num_frames"]
    tracks = []
    for shard in sorted(CLIPS.glob(f"{split}-*.parquet")):
        for row in pq.read_table(shard, columns=columns).to_pylist():
            if row["subset"] == "other":
                continue
            shape = (row["num_frames"], -1, 3)
            seen_m, rotation = (np.reshape(row[name], shape) for name in ("joints_cam_m", "rotation"))
            place_m = seen_m - np.reshape(row["translation"], shape)
            # fx12-p07-c123: the performer is the middle of the name.
            performer = NUM_PERFORMERS + int(row["clip_id"].split("-")[1].removeprefix("p"))
            tracks.append(
                Track(
                    joints_m=np.einsum("tba,tjb->tja", rotation, place_m).astype(np.float32),
                    in_flight=np.array(row["in_flight"], bool),
                    fps=float(row["fps"]),
                    performer=performer,
                    source="choreographed",
                )
            )
    return tuple(tracks)


@functools.lru_cache(maxsize=2)
def flights(split: Split) -> tuple[Track, ...]:
    """Ballistic flights with the shape sequences of the split's motions."""
    rng = np.random.default_rng((1, int(split == "test")))
    tracks, num_flights = captured(split), NUM_FLIGHTS[split]
    num_frames = round(FLIGHT_S * _FLIGHT_FPS) + 1
    shapes_m = np.empty((num_flights, num_frames, NUM_JOINTS, 3))
    performer_of = []
    for flight in range(num_flights):
        track = tracks[rng.integers(len(tracks))]
        performer_of.append(track.performer)
        shape_m = _shape_in_flight(rng, track, num_frames)
        donors = [other for other in tracks if other.performer == track.performer]
        for limb in LIMBS if split == "train" else ():
            if rng.random() < _GRAFTED_SHARE:
                donor_m = _shape_in_flight(rng, donors[rng.integers(len(donors))], num_frames)
                shape_m = graft(rng, limb, shape_m, donor_m, _FLIGHT_FPS)
        # The captured root's path would show in the angular momentum; only the shape is wanted, and twice smooth.
        shapes_m[flight] = gaussian_filter1d(shape_m - shape_m[:, :1], 2.0, axis=0)

    body = Body.from_anthropometry(50.0, 1.6)
    x = points_of(torch.from_numpy(shapes_m))
    x = x - center_of_mass(body, x)[..., None, :]
    tilt = Rotation.from_rotvec(rng.uniform(-np.pi, np.pi, num_flights)[:, None] * np.array([0.0, 0.0, 1.0]))
    # Somersaults (about z, to the right) more than cartwheels more than twists.
    spin = rng.normal(size=(num_flights, 3)) * np.array([0.7, 0.4, 1.0])
    spin *= rng.uniform(0.0, 10.0, (num_flights, 1)) / np.linalg.norm(spin, axis=1, keepdims=True)
    turning = _turn_freely(body, x, torch.from_numpy(tilt.as_matrix()), torch.from_numpy(spin))
    x = torch.einsum("ntab,ntjb->ntja", turning, x)

    time_s = torch.arange(num_frames, dtype=torch.float64)[:, None] / _FLIGHT_FPS
    # Going up at the start and down at the end of most flights.
    takeoff = np.stack(
        [rng.normal(0.0, 1.5, num_flights), rng.uniform(3.0, 8.0, num_flights), np.zeros(num_flights)], -1
    )
    gravity = torch.tensor([0.0, -STANDARD_GRAVITY, 0.0], dtype=torch.float64)
    center = torch.from_numpy(takeoff)[:, None] * time_s + 0.5 * gravity * time_s**2
    joints_m = joints_of(x + center[:, :, None]).numpy().astype(np.float32)
    in_flight = np.ones(num_frames, bool)
    return tuple(
        Track(joints_m=flight, in_flight=in_flight, fps=_FLIGHT_FPS, performer=number, source="flight")
        for flight, number in zip(joints_m, performer_of)
    )


def _shape_in_flight(rng: np.random.Generator, track: Track, num_frames: int) -> FLOATS:
    """(T,17,3) metres: a piece of the track, somewhat faster or slower."""
    step = min(rng.uniform(0.8, 1.3), 0.99 * track.duration_s / FLIGHT_S) * track.fps / _FLIGHT_FPS
    start = rng.uniform(0.0, len(track.joints_m) - 1 - step * (num_frames - 1))
    shape_m, _ = track_at(track, start + step * np.arange(num_frames))
    return shape_m


def _turn_freely(body: Body, x: Tensor, first: Tensor, spin: Tensor) -> Tensor:
    """Orientations (N,T,3,3) in which a changing shape x (N,T,16,3) keeps its angular momentum.

    first (N,3,3): the orientation at take-off; spin (N,3): the whole body's angular velocity then, in rad/s.
    Solves L = Q (I w + h) for w, the body's own angular velocity, with the shape's inertia I and momentum h, by the
    midpoint rule.
    """
    dt_s = 1.0 / _FLIGHT_FPS
    middle = 0.5 * (x[:, 1:] + x[:, :-1])
    inertia_m = inertia(body, middle)
    shape_momentum = angular_momentum(body, middle, (x[:, 1:] - x[:, :-1]) / dt_s)
    momentum = (first @ inertia_m[:, 0] @ first.transpose(1, 2) @ spin[..., None])[..., 0]
    orientation, orientations = first, [first]
    for frame in range(middle.shape[1]):
        half_way = orientation
        for _ in range(3):
            own = (half_way.transpose(1, 2) @ momentum[..., None])[..., 0] - shape_momentum[:, frame]
            angular_velocity = torch.linalg.solve(inertia_m[:, frame], own)
            half_way = orientation @ torch.linalg.matrix_exp(0.5 * dt_s * _cross_matrix(angular_velocity))
        orientation = orientation @ torch.linalg.matrix_exp(dt_s * _cross_matrix(angular_velocity))
        orientations.append(orientation)
    return torch.stack(orientations, 1)


def _cross_matrix(w: Tensor) -> Tensor:
    """(N,3,3) such that _cross_matrix(w) @ x = w cross x."""
    zero = torch.zeros_like(w[:, 0])
    x, y, z = w.unbind(-1)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
