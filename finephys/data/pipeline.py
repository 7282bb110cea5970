"""The Ray Data chains: from shards, or from nothing, to the rows that a training stage learns from.

Path:    shard -> decode -> pose2d -> pose3d -> vae -> rows;  index -> synthetic window
Letters: T frames, C channels, h w cells of a latent; 17 H36M joints
Units:   pixel, metre, second; uint8 RGB; latents normalised

Between hops a row is four plain Arrow columns: clip_id, error (null while all is well), scalars (JSON: numbers,
booleans, strings) and arrays (safetensors bytes). Clips differ in length, which Ray's tensor columns and batching take
badly; bytes pass through every batch, spill and network unchanged, and nothing is ever unpickled.

A bad clip is data: it leaves with its `error` set, skips the hops after it, and lands in the failures table.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import safetensors.numpy as safe
import torch

from finephys.config import RowsConfig
from finephys.data import storage
from finephys.data.clips import CLIP_SCHEMA, MAX_FRAMES, MIN_FRAMES, Clip, check_schema
from finephys.data.video import decode_video

if TYPE_CHECKING:
    from finephys.pose.camera_motion import CameraMotion

Row = dict[str, Any]

ROW_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("scalars", pa.string(), nullable=False),
        pa.field("arrays", pa.binary(), nullable=False),
    ]
)

# Clips in one call of a hop: 8 clips of 64 frames at 128x128 are 25 MB.
CLIPS_PER_BATCH = 8
# Decoded rows leave a task in blocks of this size, or of one clip where that is larger. Ray admits tasks by what their
# blocks may take of the object store: at its own 128 MB one task decoded at a time, however many cores were idle.
BLOCK_BYTES = 16 * 2**20
# Logical CPUs of a task that reads and decodes; two decoding at once fill two cores.
DECODE_CPUS = 0.5
# A frame in which no joint is as sure as this shows nobody.
SEEN_CONFIDENCE = 0.02
# Windows in one block: small enough that the first block of a stream comes soon.
WINDOWS_PER_BLOCK = 64


# --- the chains


def decoded_rows(index: "ClipIndex") -> ray.data.Dataset:
    """Rows of the stages vae and pose2d: clip_id, frames (T,H,W,3) uint8, joints_px (T,17,2), joints_confidence (T,17).

    The joints are float32 pixels, absent where the clip has no ground truth.
    """
    return (
        # 1. shard -> clips, 1:N
        _read_clips(index)
        # 2. clip -> decoded row, 1:1
        .map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    )


def feature_rows(index: "ClipIndex", init: str, config: RowsConfig) -> ray.data.Dataset:
    """Rows of the stages frames and joint; init: the pipeline folder whose parts the actors load.

    clip_id, prompt, fps, height, width, is_static, has_truth;  latents (T,C,h,w) float16;  joints_px (T,17,2) and
    confidence (T,17), detected, as the middle frame's camera would see them;  joints_dd (T,17,3), gravity (3,),
    intrinsics (3,3): camera frame of the middle frame, metres and pixels;  camera_rotation (T,3,3), camera_zoom (T,),
    is_camera_known: how the other frames' cameras differ from it (CameraMotion);
    truth_joints_cam_m (T,17,3), in_flight (T,): ground truth, zeros where has_truth is false, as joints_dd;
    truth_rotation, truth_zoom: the true camera_rotation and camera_zoom;  body_px (T,17,2): where the body is in the
    frames, true pixels where known, else detected ones.
    With config.pose_source "truth" ground truth stands in for what pose2d and pose3d would have found.
    """
    actors: dict[str, Any] = {
        "batch_size": CLIPS_PER_BATCH,
        "batch_format": "pyarrow",
        "compute": ray.data.ActorPoolStrategy(size=config.actors),
        "num_cpus": config.actor_cpus,
        "num_gpus": config.actor_gpus,
        "fn_constructor_args": (init,),
    }
    # 1. shard -> clips, 1:N
    clips = _read_clips(index)
    # 2. clip -> decoded row with its ground truth, 1:1
    rows = clips.map_batches(decode_with_truth, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    if config.pose_source == "detected":
        # 3. frames -> 2D joints, 1:1
        rows = rows.map_batches(EstimatePose2D, **actors)
        # 4. 2D joints -> S_dd, 1:1
        rows = rows.map_batches(LiftPose, **actors)
    else:
        # 3., 4. ground truth in their place, 1:1
        rows = rows.map_batches(use_truth, batch_size=CLIPS_PER_BATCH, batch_format="pyarrow", num_cpus=0.25)
    # 5. frames -> latents, 1:1
    return rows.map_batches(EncodeLatents, **actors)


def window_rows(
    sample_window: Callable[[int, int], Row], index_of: Callable[[int], int], num_windows: int, seed: int
) -> ray.data.Dataset:
    """Rows of the stages lifting and physics: of the stream `seed` the windows index_of(0), index_of(1), ..."""

    def sample(batch: dict[str, np.ndarray[Any, Any]]) -> pa.Table:
        _one_thread()
        indices = [index_of(int(position)) for position in batch["id"]]
        return to_table([{"clip_id": f"window-{index}", **sample_window(index, seed)} for index in indices])

    # 1. position, 1:1
    num_blocks = max(1, num_windows // WINDOWS_PER_BLOCK)
    # 2. position -> window, 1:1
    return ray.data.range(num_windows, override_num_blocks=num_blocks).map_batches(
        sample, batch_size=WINDOWS_PER_BLOCK, batch_format="numpy", num_cpus=0.5
    )


def estimated_shards(sources: Sequence[str], init: str, output: str, config: RowsConfig) -> ray.data.Dataset:
    """Rows source, num_clips, num_failures: each shard or video of `sources` became a shard in `output` (poses.py)."""
    from finephys.data.poses import EstimateShard

    device = "cuda" if config.actor_gpus else "cpu"
    # 1. source, 1:1
    return ray.data.from_items(
        [{"source": source} for source in sources], override_num_blocks=len(sources)
    ).map_batches(
        # 2. source -> decode, pose2d, pose3d -> shard, 1:1
        EstimateShard,
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=config.actors),
        num_cpus=config.actor_cpus,
        num_gpus=config.actor_gpus,
        fn_constructor_args=(init, output, device),
    )


# --- the hops


def decode(table: pa.Table) -> Iterator[pa.Table]:
    """Clip rows -> frames and 2D ground truth, a few clips at a time."""
    yield from _decoded(_decode_clip, table)


def decode_with_truth(table: pa.Table) -> Iterator[pa.Table]:
    """Clip rows -> frames, everything that feature rows keep of the record, and the ground truth there is."""
    yield from _decoded(_decode_clip_with_truth, table)


class EstimatePose2D:
    """Hop pose2d: adds joints_px and confidence."""

    def __init__(self, init: str) -> None:
        from finephys.pose.rtmpose import RTMPose

        _one_thread()
        self.estimator = RTMPose.from_pretrained(init, subfolder="pose_estimator", torch_dtype=torch.float32).eval()
        self.estimator.to(_granted_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table([_guarded(self._estimate, row) for row in to_rows(table)])

    def _estimate(self, row: Row) -> Row:
        pose = self.estimator.estimate(row["frames"])
        is_seen = pose.confidence.max(-1) >= SEEN_CONFIDENCE
        if not is_seen.all():
            raise ValueError(f"nobody is seen in frame {int(is_seen.argmin())} of {len(is_seen)}")
        return {**row, "joints_px": pose.joints_px, "confidence": pose.confidence}


class LiftPose:
    """Hop pose3d: takes the camera's motion out of joints_px, adds joints_dd, gravity and what the camera does, and
    is_static where the record has none."""

    def __init__(self, init: str) -> None:
        from finephys.pose.lifting import Lifter

        _one_thread()
        self.lifter = Lifter.from_pretrained(init, subfolder="lifter", torch_dtype=torch.float32).eval()
        self.lifter.to(_granted_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table([_guarded(self._lift, row) for row in to_rows(table)])

    def _lift(self, row: Row) -> Row:
        from finephys.pose.camera_estimation import estimate_camera_motion
        from finephys.pose.estimator import Pose2D

        pose = Pose2D(row["joints_px"], row["confidence"])
        camera = estimate_camera_motion(row["frames"], pose, row["intrinsics"], row["fps"])
        steady = camera.stabilise(pose, row["intrinsics"])
        lifted = self.lifter.lift(steady, row["intrinsics"], row["fps"])
        return {
            **row,
            "joints_px": steady.joints_px,
            "joints_dd": lifted.joints_cam_m,
            "gravity": camera.gravity(lifted.gravity_cam),
            "is_static": row["is_static"] if row["is_static"] is not None else camera.is_static,
            "body_px": row.get("truth_joints_px", pose.joints_px),
            **_camera_columns(camera),
        }


def use_truth(table: pa.Table) -> pa.Table:
    """In place of the hops pose2d and pose3d: the clip's ground truth, which it must have."""
    return to_table([_guarded(_with_truth_as_detection, row) for row in to_rows(table)])


class EncodeLatents:
    """Hop vae: replaces the frames by their latents."""

    def __init__(self, init: str) -> None:
        from diffusers import AutoencoderKL

        _one_thread()
        self.vae = AutoencoderKL.from_pretrained(init, subfolder="vae", torch_dtype=torch.float32).eval()
        self.vae.to(_granted_device())

    def __call__(self, table: pa.Table) -> pa.Table:
        return to_table([_guarded(self._encode, row) for row in to_rows(table)])

    def _encode(self, row: Row) -> Row:
        from finephys.diffusion.vae import encode_latents

        latents = encode_latents(self.vae, row["frames"]).cpu().numpy().astype(np.float16)
        kept = {name: value for name, value in row.items() if name not in ("frames", "truth_joints_px")}
        return {**kept, "latents": latents}


# --- what is in the shards


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Clips of one row group of a shard, in the order in which they are wanted."""

    shard: str
    number: int
    clip_ids: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClipIndex:
    """The clips of one split: the row groups that hold them, in the order in which they are read."""

    groups: tuple[RowGroup, ...]
    split: str

    @property
    def shards(self) -> tuple[str, ...]:
        """The shards that hold clips of these."""
        return tuple(dict.fromkeys(group.shard for group in self.groups))

    @property
    def clip_ids(self) -> tuple[str, ...]:
        """The ids of all clips, sorted."""
        return tuple(sorted(clip_id for group in self.groups for clip_id in group.clip_ids))

    def evenly(self, num_clips: int) -> "ClipIndex":
        """At most `num_clips` of these, spread evenly over the ids."""
        clip_ids = self.clip_ids
        if num_clips >= len(clip_ids):
            return self
        positions = np.linspace(0, len(clip_ids) - 1, num_clips).round().astype(int)
        picked = {clip_ids[position] for position in positions}
        groups = [
            replace(group, clip_ids=tuple(clip_id for clip_id in group.clip_ids if clip_id in picked))
            for group in self.groups
        ]
        return replace(self, groups=tuple(group for group in groups if group.clip_ids))


def index_clips(url: str, split: str) -> ClipIndex:
    """Look through the shards at `url` for clips of `split`: reads two narrow columns, starts nothing.

    Raises FileNotFoundError without a folder or shards; ValueError, naming the shard, on one that is no readable
    Parquet file or of an unknown schema, on a clip_id that occurs twice, and where the split is empty.
    """
    groups, splits_seen = [], set()
    for shard in storage.list_shards(url):
        filesystem, path = storage.open_filesystem(shard)
        try:
            with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
                check_schema(file.schema_arrow, shard)
                table = file.read(columns=["clip_id", "split"])
                sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        except pa.ArrowException as error:
            raise ValueError(f"shard {shard} cannot be read: {str(error).splitlines()[0]}") from error
        splits_seen |= set(table["split"].to_pylist())
        start = 0
        for number, size in enumerate(sizes):
            rows = table.slice(start, size)
            found = rows.filter(pc.equal(rows["split"], split))["clip_id"].to_pylist()
            if found:
                groups.append(RowGroup(shard=shard, number=number, clip_ids=tuple(found)))
            start += size
    if not groups:
        raise ValueError(
            f"data {url} has no clip in split {split!r}, it has {', '.join(sorted(splits_seen)) or 'none'}"
        )
    index = ClipIndex(groups=tuple(groups), split=split)
    for one, next_one in pairwise(index.clip_ids):
        if one == next_one:
            raise ValueError(f"data {url} has clip_id {one} twice in split {split!r}")
    return index


def _read_clips(index: ClipIndex) -> ray.data.Dataset:
    """The clip records of an index, as CLIP_SCHEMA has them. 1:N

    A row group is a task, and Ray runs the hop that decodes within the same task: records are not copied in between,
    and memory holds some row groups at a time, however many shards there are.
    """
    groups = index.groups

    def read_groups(places: pa.Table) -> Iterator[pa.Table]:
        for place in places["place"].to_pylist():
            group = groups[place]
            filesystem, path = storage.open_filesystem(group.shard)
            with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
                clips = file.read_row_group(group.number, columns=CLIP_SCHEMA.names)
            yield clips.take(pc.index_in(pa.array(group.clip_ids), value_set=clips["clip_id"].combine_chunks()))

    places = ray.data.from_items([{"place": place} for place in range(len(groups))], override_num_blocks=len(groups))
    places.context.target_max_block_size = BLOCK_BYTES
    return places.map_batches(read_groups, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)


# --- rows and tables


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Rows of numpy arrays and plain scalars as a table of ROW_SCHEMA. A row needs a clip_id."""
    columns: dict[str, list[Any]] = {name: [] for name in ROW_SCHEMA.names}
    for row in rows:
        arrays = {name: np.ascontiguousarray(value) for name, value in row.items() if isinstance(value, np.ndarray)}
        others = {name: _plain(value) for name, value in row.items() if name not in arrays}
        columns["clip_id"].append(others.pop("clip_id"))
        columns["error"].append(others.pop("error", None))
        columns["scalars"].append(json.dumps(others))
        columns["arrays"].append(safe.save(arrays))
    return pa.table(columns, schema=ROW_SCHEMA)


def to_rows(table: pa.Table) -> list[Row]:
    """What to_table packed; arrays are the rows' own and writable."""
    rows = []
    for packed in table.to_pylist():
        arrays = {name: value.copy() for name, value in safe.load(packed["arrays"]).items()}
        row = {"clip_id": packed["clip_id"], **json.loads(packed["scalars"]), **arrays}
        if packed["error"] is not None:
            row["error"] = packed["error"]
        rows.append(row)
    return rows


def collect_rows(batches: Iterator[pa.Table]) -> tuple[list[Row], list[Row]]:
    """All rows of some tables, sorted by clip_id: (the sound ones, the failures as clip_id and error)."""
    rows = [row for table in batches for row in to_rows(table)]
    rows.sort(key=lambda row: str(row["clip_id"]))
    return [row for row in rows if "error" not in row], [row for row in rows if "error" in row]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _guarded(hop: Callable[[Row], Row], row: Row) -> Row:
    """Apply a hop to one row; what is wrong with the clip becomes its `error`, and a row with one passes by."""
    if row.get("error") is not None:
        return {"clip_id": row["clip_id"], "error": row["error"]}
    try:
        return hop(row)
    except ValueError as error:
        return {"clip_id": row["clip_id"], "error": f"{hop.__name__.strip('_')}: {error}"}


def _decoded(hop: Callable[[Row], Row], table: pa.Table) -> Iterator[pa.Table]:
    """The rows of some clips, BLOCK_BYTES of them at a time."""
    _one_thread()
    rows: list[Row] = []
    num_bytes = 0
    for position in range(len(table)):
        (clip,) = table.slice(position, 1).to_pylist()
        rows.append(_guarded(hop, clip))
        num_bytes += sum(value.nbytes for value in rows[-1].values() if isinstance(value, np.ndarray))
        if num_bytes > BLOCK_BYTES:
            yield to_table(rows)
            rows, num_bytes = [], 0
    if rows:
        yield to_table(rows)


def _decode_clip(record: Row) -> Row:
    clip = Clip.from_row(record)
    row: Row = {"clip_id": clip.clip_id, "frames": _decoded_frames(clip)}
    if clip.joints_px is not None:
        row["joints_px"] = clip.joints_px
    if clip.joints_confidence is not None:
        row["joints_confidence"] = clip.joints_confidence
    return row


def _decode_clip_with_truth(record: Row) -> Row:
    from finephys.data.steady import steadied, true_camera_motion
    from finephys.pose.camera import nominal_intrinsics
    from finephys.pose.camera_motion import CameraMotion

    clip = Clip.from_row(record)
    if not MIN_FRAMES <= clip.num_frames <= MAX_FRAMES:
        raise ValueError(f"clip has {clip.num_frames} frames, wanted {MIN_FRAMES} to {MAX_FRAMES}")
    frames = _decoded_frames(clip)
    has_truth = clip.joints_cam_m is not None and clip.in_flight is not None
    row: Row = {
        "clip_id": clip.clip_id,
        "prompt": clip.prompt,
        "frames": frames,
        "fps": clip.fps,
        "height": clip.height,
        "width": clip.width,
        "is_static": clip.is_static,
        "has_truth": has_truth,
        "truth_joints_cam_m": np.zeros((clip.num_frames, 17, 3), np.float32),
        "in_flight": np.zeros(clip.num_frames, np.bool_),
    }
    if clip.intrinsics is not None:
        row["intrinsics"] = clip.intrinsics[clip.num_frames // 2]
    else:
        row["intrinsics"] = np.asarray(nominal_intrinsics(clip.height, clip.width), np.float32)
    true_camera = true_camera_motion(clip) or CameraMotion.still(clip.num_frames)
    row["truth_rotation"], row["truth_zoom"] = true_camera.rotation, true_camera.zoom
    if has_truth:
        row["truth_joints_cam_m"] = steadied(clip).joints_cam_m
        row["in_flight"] = clip.in_flight
    if clip.joints_px is not None:
        row["truth_joints_px"] = clip.joints_px
    if clip.rotation is not None:
        # World y is up: gravity points along -y, seen by the camera of the middle frame.
        row["gravity"] = clip.rotation[clip.num_frames // 2] @ np.array([0, -1, 0], np.float32)
    return row


def _camera_columns(camera: "CameraMotion") -> Row:
    return {"camera_rotation": camera.rotation, "camera_zoom": camera.zoom, "is_camera_known": camera.is_known}


def _decoded_frames(clip: Clip) -> np.ndarray[Any, np.dtype[np.uint8]]:
    frames = decode_video(clip.video).frames_THWC
    wanted = (clip.num_frames, clip.height, clip.width, 3)
    if frames.shape != wanted:
        raise ValueError(f"video decodes to shape {frames.shape}, the record says {wanted}")
    return frames


def _with_truth_as_detection(row: Row) -> Row:
    from finephys.pose.camera_motion import CameraMotion
    from finephys.pose.estimator import Pose2D

    missing = [name for name in ("truth_joints_px", "gravity") if name not in row]
    if missing or not row["has_truth"]:
        raise ValueError(f"pose_source is truth and the clip has no {missing[0] if missing else 'joints_cam_m'}")
    everywhere = np.ones((len(row["frames"]), 17), np.float32)
    camera = CameraMotion(row["truth_rotation"], row["truth_zoom"], np.zeros(len(everywhere), np.float32), True, False)
    return {
        **row,
        "joints_px": camera.stabilise(Pose2D(row["truth_joints_px"], everywhere), row["intrinsics"]).joints_px,
        "confidence": everywhere,
        "joints_dd": row["truth_joints_cam_m"],
        "is_static": bool(row["is_static"]),
        "body_px": row["truth_joints_px"],
        **_camera_columns(camera),
    }


def _granted_device() -> str:
    """The GPU of which Ray gave this actor a share (RowsConfig.actor_gpus), or else the CPU."""
    return "cuda" if ray.get_gpu_ids() else "cpu"


def _one_thread() -> None:
    """Ray counts CPUs, not threads: a hop that spread over all cores would starve the trainer."""
    torch.set_num_threads(1)
