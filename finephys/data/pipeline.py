"""The Ray Data chains: from shards, or from nothing, to the rows that a training stage learns from.

Path:    shard -> decode -> pose2d, pose3d, vae -> rows;  index -> synthetic window
Letters: T frames, C channels, h w cells of a latent; 17 H36M joints
Units:   pixel, metre, second; uint8 RGB; latents normalised

What passes between hops: data/rows.py.  The hops: data/decoding.py, data/features.py, data/poses.py.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from finephys.config import RowsConfig
from finephys.data.decoding import BLOCK_BYTES, decode, decode_with_truth
from finephys.data.index import ClipIndex, read_group
from finephys.data.rows import Row, to_table
from finephys.memory import keep_freed_memory

# Feature rows leave a task in blocks of this size, some four clips: a stream's first rows come soon.
FEATURE_BLOCK_BYTES = 2 * 2**20
# Logical CPUs of a task that reads and decodes; two decoding at once fill two cores. An actor that takes as many
# (RowsConfig.actor_cpus) reads and decodes itself.
DECODE_CPUS = 0.5
# Row groups that one such task decodes, one after the other, where FEWEST_TASKS are left: a core waits some 0.15 s
# between two tasks.
GROUPS_PER_TASK, FEWEST_TASKS = 4, 16
# Windows in one block: small enough that the first block of a stream comes soon.
WINDOWS_PER_BLOCK = 64


def decoded_rows(index: ClipIndex) -> ray.data.Dataset:
    """Rows of the stages vae and pose2d: clip_id, frames (T,H,W,3) uint8, joints_px (T,17,2), joints_confidence (T,17).

    The joints are float32 pixels, absent where the clip has no ground truth.
    """
    return (
        # 1. shard -> clips, 1:N
        _read_clips(index, BLOCK_BYTES, max(1, min(GROUPS_PER_TASK, len(index.groups) // FEWEST_TASKS)))
        # 2. clip -> decoded row, 1:1
        .map_batches(decode, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    )


def feature_rows(index: ClipIndex, init: str, config: RowsConfig) -> ray.data.Dataset:
    """Rows of the stages frames and joint; init: the pipeline folder whose parts an actor loads.

    clip_id, prompt, fps, height, width, is_static, has_truth;  latents (T,C,h,w) float16;  joints_px (T,17,2) and
    confidence (T,17), detected, as the middle frame's camera would see them;  joints_dd (T,17,3), gravity (3,),
    intrinsics (3,3): camera frame of the middle frame, metres and pixels;  camera_rotation (T,3,3), camera_zoom (T,),
    is_camera_known: how the other frames' cameras differ from it (CameraMotion);
    truth_joints_cam_m (T,17,3), in_flight (T,): ground truth, zeros where has_truth is false, as joints_dd;
    truth_rotation, truth_zoom: the true camera_rotation and camera_zoom;  body_px (T,17,2): where the body is in the
    frames, true pixels where known, else detected ones.
    With config.pose_source "truth" ground truth stands in for what pose2d and pose3d would have found.
    """
    # torch, which what only decodes can do without.
    from finephys.data.features import MakeFeatures

    # 1. shard -> clips, 1:N
    clips = _read_clips(index, FEATURE_BLOCK_BYTES, groups_per_task=1)
    # 2. clip -> decoded row with its ground truth, 1:1
    rows = clips.map_batches(decode_with_truth, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)
    # 3. frames -> 2D joints -> S_dd, and latents, 1:1
    return rows.map_batches(
        MakeFeatures,
        # Where Ray runs all three as one task a batch would be that many row groups. On a GPU it insists on a number,
        # and the actor is a task of its own.
        batch_size=1 if config.actor_gpus else None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=config.actors),
        num_cpus=config.actor_cpus,
        num_gpus=config.actor_gpus,
        fn_constructor_args=(init, config.pose_source, "cuda" if config.actor_gpus else "cpu"),
    )


def window_rows(
    sample_window: Callable[[int, int], Row], index_of: Callable[[int], int], num_windows: int, seed: int
) -> ray.data.Dataset:
    """Rows of the stages lifting and physics: of the stream `seed` the windows index_of(0), index_of(1), ..."""

    def sample(batch: dict[str, np.ndarray[Any, Any]]) -> pa.Table:
        import torch

        # Ray counts CPUs, not threads.
        torch.set_num_threads(1)
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


def _read_clips(index: ClipIndex, block_bytes: int, groups_per_task: int) -> ray.data.Dataset:
    """The clip records of an index, as CLIP_SCHEMA has them; rows of the whole chain leave its tasks in blocks of
    block_bytes. 1:N

    Ray runs the hop that decodes within the same task, which holds one row group at a time: records are not copied in
    between, and memory holds some row groups, however many shards there are.
    """
    groups = index.groups

    def read_groups(places: pa.Table) -> Iterator[pa.Table]:
        keep_freed_memory()
        for place in places["place"].to_pylist():
            yield read_group(groups[place])

    num_tasks = -(-len(groups) // groups_per_task)
    places = ray.data.from_items([{"place": place} for place in range(len(groups))], override_num_blocks=num_tasks)
    places.context.target_max_block_size = block_bytes
    return places.map_batches(read_groups, batch_size=None, batch_format="pyarrow", num_cpus=DECODE_CPUS)
