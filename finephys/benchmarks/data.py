"""How fast and how lean the data path is, beside the same work without Ray.

Path:    shards -> decode -> rows in the object store
Units:   ratios

ray_data_over_bare_loop   clips a second of the chain `decoded_rows`, up to rows in the object store, over those of
                          two bare processes that call the same hop on the same shards, half each, and drop the
                          rows. All run on the same two cores, at the same priority; Ray is told of two CPUs and
                          runs as many tasks as it sees fit. Both are timed after a first round that starts processes
                          and fills caches, and take turns.
memory_10x_over_1x        peak memory (proportional set sizes of Ray's processes, the object store included) while ten
                          times as many shards stream to a consumer, over that of once.
chosen_frames_speedup     time to decode all of a long video over that to decode 16 consecutive frames from its middle.
"""

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from finephys.data import pipeline
from finephys.data.clips import CLIP_SCHEMA, CLIPS_PER_ROW_GROUP, read_shard
from finephys.data.decoding import decode
from finephys.data.index import ClipIndex, index_clips
from finephys.data.video import decode_video, encode_video
from finephys.evaluation.figures import Figure
from finephys.memory import keep_freed_memory

CLIPS = Path(__file__).parents[1] / "assets" / "clips"
NUM_PROCESSES = 2
# Clips in a shard, a row group; shards whose memory is compared at once and ten times; shards of a timed round: 2,560
# clips, so that starting the chain, half a second, counts as it does in a short epoch.
CLIPS_PER_SHARD, NUM_SHARDS, NUM_TIMED_SHARDS = CLIPS_PER_ROW_GROUP, 4, 80
NUM_ROUNDS = 3
OBJECT_STORE_BYTES = 250 * 2**20


def measure() -> list[Figure]:
    """The figures, in three to four minutes on two cores."""
    with tempfile.TemporaryDirectory(prefix="finephys-benchmark-") as scratch, _on_cores(NUM_PROCESSES):
        small, timed, large = (Path(scratch) / name for name in ("small", "timed", "large"))
        _write_shards(small, NUM_SHARDS)
        _write_shards(timed, NUM_TIMED_SHARDS)
        _write_shards(large, 10 * NUM_SHARDS)
        speedup = _chosen_frames_speedup()
        ratio = _throughput_ratio(timed)
        growth = _memory_growth(small, large)
    return [
        Figure(name="ray_data_over_bare_loop", value=ratio, at_least=0.85),
        Figure(name="memory_10x_over_1x", value=growth, at_most=1.1),
        Figure(name="chosen_frames_speedup", value=speedup, at_least=3.0),
    ]


def _write_shards(folder: Path, num_shards: int) -> None:
    """Shards of the shipped training clips, with ids of their own; the clips repeat."""
    folder.mkdir()
    clips = [clip.to_row() for path in sorted(CLIPS.glob("train-*.parquet")) for clip in read_shard(path)]
    for shard in range(num_shards):
        rows = []
        for index in range(CLIPS_PER_SHARD):
            row = clips[(shard * CLIPS_PER_SHARD + index) % len(clips)]
            rows.append({**row, "split": "train", "clip_id": f"s{shard:04d}-{index:02d}-{row['clip_id']}"})
        table = pa.Table.from_pylist(rows, schema=CLIP_SCHEMA)
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=CLIPS_PER_SHARD, compression="zstd")


def _throughput_ratio(folder: Path) -> float:
    index = index_clips(str(folder), "train")
    context = multiprocessing.get_context("spawn")
    shards = [str(shard) for shard in sorted(folder.iterdir())]
    halves = [shards[start::NUM_PROCESSES] for start in range(NUM_PROCESSES)]
    ratios = []
    with ProcessPoolExecutor(NUM_PROCESSES, context) as pool, _local_ray():
        # The first round of each warms up.
        for round_ in range(NUM_ROUNDS + 1):
            started = time.perf_counter()
            num_bare = sum(pool.map(_decode_shards, halves))
            bare_s = time.perf_counter() - started
            started = time.perf_counter()
            num_ray = _stream(index)
            ray_s = time.perf_counter() - started
            assert num_bare == num_ray == len(index.clip_ids)
            if round_ > 0:
                ratios.append(bare_s / ray_s)
    return statistics.median(ratios)


def _decode_shards(shards: list[str]) -> int:
    # As the chain's tasks do.
    keep_freed_memory()
    num_clips = 0
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                num_clips += sum(len(rows) for rows in decode(file.read_row_group(group)))
    return num_clips


def _stream(index: ClipIndex) -> int:
    """Run the chain into the object store; blocks are dropped as a trainer drops what it has used."""
    return sum(bundle.num_rows() or 0 for bundle in pipeline.decoded_rows(index).iter_internal_ref_bundles())


def _memory_growth(small: Path, large: Path) -> float:
    peaks = []
    for folder in (small, large):
        index = index_clips(str(folder), "train")
        # A Ray of its own for each: what one left in memory must not count for the other.
        with _local_ray():
            _stream(index_clips(str(small), "train"))
            with _peak_memory() as peak:
                _stream(index)
        peaks.append(peak[0])
    return peaks[1] / peaks[0]


@contextmanager
def _local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=NUM_PROCESSES,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        # Ray's workers otherwise give way to everything else on the machine, which two bare processes do not.
        _system_config={"worker_niceness": 0},
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _on_cores(num_cores: int) -> Iterator[None]:
    """What this process does and starts runs on so many of its cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:num_cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """The peak, in bytes, of the proportional set sizes of this process and all below it, ten looks a second."""
    peak, is_over = [0.0], threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            peak[0] = max(peak[0], total)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_over.set()
        watcher.join()


def _chosen_frames_speedup() -> float:
    clips = [clip for path in sorted(CLIPS.glob("train-*.parquet")) for clip in read_shard(path)][:24]
    frames_THWC = np.concatenate([decode_video(clip.video).frames_THWC for clip in clips])
    video = encode_video(frames_THWC, 30.0)
    middle = len(frames_THWC) // 2
    speedups = []
    for _ in range(NUM_ROUNDS):
        started = time.perf_counter()
        decode_video(video)
        whole_s = time.perf_counter() - started
        started = time.perf_counter()
        decode_video(video, range(middle, middle + 16))
        speedups.append(whole_s / (time.perf_counter() - started))
    return statistics.median(speedups)
