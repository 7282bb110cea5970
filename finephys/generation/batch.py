"""Generate a whole data set on Ray: exactly once, whatever is killed when.

Path:    request table -> Ray Data actors (a pipeline each) -> parts/ID.parquet -> shards, manifest, failures, page
Units:   none

OUTPUT/plan.json       what the output is of: hashes of the table and of the settings; another plan is refused
OUTPUT/parts/          one file a clip that is done, until its shard is; its name is the clip's id
OUTPUT/attempts/       one file an attempt begun: a clip that takes its actor down too often is given up
OUTPUT/failed/         one file a clip that was given up, with the reason
OUTPUT/shard-*.parquet the result, a shard for so many rows of the table, in its order; or
OUTPUT/clips/*.mp4     each with an .npz of the same name: joints, camera and contacts as the clip record has them
OUTPUT/manifest.jsonl  one line a clip;  OUTPUT/failures.jsonl  one line a clip that failed

A clip's id, seed and bytes follow from its row, the settings and the pipeline's files. Files are published whole, so
what is there is done, and a clip that is made twice after a kill overwrites itself with the same bytes (on CPU).
"""

import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from tqdm import tqdm

from finephys.data import storage
from finephys.data.clips import CLIP_SCHEMA, FRAME_SHAPES, Clip, write_table
from finephys.generation.requests import GenerationRequest, OutputFormat, ReferenceName, sha256_of
from finephys.generation.staging import Staging, staged_clip
from finephys.generation.table import DrivingIndex, TableRow, read_driving_clip

PLAN_NAME, MANIFEST_NAME, FAILURES_NAME = "plan.json", "manifest.jsonl", "failures.jsonl"


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """What every clip of a batch shares. Those above the line decide the clips; the others only how they are made."""

    pipeline: str
    pipeline_sha256: str
    num_frames: int
    num_inference_steps: int
    guidance_scale: float
    pose_guidance_scale: float
    reference: ReferenceName
    # A clip in which fewer guidance joints than this are found again is made anew with the next seed; None: no gate.
    min_pck: float | None
    # Likewise one whose joints, found again, jump about the guidance by more than this share of the box; None: no gate.
    max_jump: float | None
    # Seeds that the gate may try for a clip.
    max_seeds: int
    format: OutputFormat
    clips_per_shard: int
    # ---
    min_actors: int
    max_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    threads: int
    # Times that a clip may take its actor down.
    max_attempts: int
    # Without a clip for so long the run is stopped.
    stall_minutes: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """One clip of the table. clip_id: of the result."""

    clip_id: str
    request: GenerationRequest
    row: TableRow


def plan_tasks(rows: Sequence[TableRow], settings: BatchSettings, driving_sha256: str) -> list[Task]:
    """The table's clips, in its order. driving_sha256: of what the driving data holds."""
    tasks = []
    for row in rows:
        request = GenerationRequest(
            clip_id=row.clip,
            sample=0,
            prompt=row.prompt,
            seed=row.seed,
            num_frames=settings.num_frames,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            pose_guidance_scale=settings.pose_guidance_scale,
            reference=settings.reference,
            driving_sha256=driving_sha256 if row.staging is None else sha256_of(_json(row).encode()),
            pipeline_sha256=settings.pipeline_sha256,
        )
        clip_id = f"{request.folder_name.removesuffix('-0')}-{request.sha256[:12]}"
        tasks.append(Task(clip_id=clip_id, request=request, row=row))
    return tasks


def claim_output(output: str, tasks: Sequence[Task], settings: BatchSettings) -> None:
    """Write OUTPUT/plan.json. Raises ValueError where the output belongs to another table, pipeline or settings."""
    names = ("min_pck", "max_jump", "max_seeds", "format", "clips_per_shard")
    shared = {name: getattr(settings, name) for name in names}
    plan = {
        "clips": len(tasks),
        "tasks_sha256": sha256_of("\n".join(task.clip_id for task in tasks).encode()),
        **shared,
    }
    url = storage.join(output, PLAN_NAME)
    if storage.exists(url):
        old = json.loads(storage.read_bytes(url))
        different = sorted(name for name in plan if plan[name] != old.get(name))
        if different:
            name = different[0]
            raise ValueError(
                f"output {output} is of another batch: its {name} is {old.get(name)!r}, this one's {plan[name]!r}; "
                "wanted another output"
            )
        return
    storage.write_bytes(url, json.dumps(plan, indent=2).encode())


def generate_dataset(
    tasks: Sequence[Task], driving: DrivingIndex, settings: BatchSettings, output: str
) -> tuple[int, list[dict[str, str]]]:
    """Make what is not made yet; returns how many clips the output then holds, and its failures (clip_id, error).

    Raises RuntimeError where no clip was done for settings.stall_minutes.
    """
    chunks = [
        tasks[first : first + settings.clips_per_shard] for first in range(0, len(tasks), settings.clips_per_shard)
    ]
    shards = {os.path.basename(url) for url in storage.list_files(output, ".done")}
    open_chunks = [number for number in range(len(chunks)) if f"{_chunk_name(number)}.done" not in shards]
    parts = _names(storage.join(output, "parts"), ".parquet")
    failed = _names(storage.join(output, "failed"), ".json")
    pending = [task for number in open_chunks for task in chunks[number] if task.clip_id not in parts | failed]
    num_done = len(tasks) - len(pending)
    with tqdm(total=len(tasks), initial=num_done, desc="clips", unit="clip", smoothing=0.05) as progress:
        if pending:
            start_ray()
            for outcome in watched(_outcomes(pending, driving, settings, output), settings.stall_minutes, _complain):
                progress.update()
                if outcome["error"] is not None:
                    progress.write(f"finephys: clip {outcome['clip_id']}: {outcome['error']}", file=sys.stderr)
    for number in open_chunks:
        _publish_chunk(number, chunks[number], settings, output)
    failures = _write_lists(tasks, settings, output)
    return len(tasks) - len(failures), failures


def start_ray() -> None:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), or start a local Ray for this process alone."""
    if not ray.is_initialized():
        is_cluster = bool(os.environ.get("RAY_ADDRESS"))
        # Ray's workers otherwise give way to everything else on the machine, which a job that somebody waits for should
        # not. It must be said before Ray starts.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Ray Data wants CPUs for its own tasks beside the actors.
        local: dict[str, Any] = {"address": "local", "num_cpus": (os.cpu_count() or 1) + 2, "include_dashboard": False}
        ray.init(**({} if is_cluster else local), log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False


def _outcomes(
    pending: Sequence[Task], driving: DrivingIndex, settings: BatchSettings, output: str
) -> Iterator[dict[str, Any]]:
    """clip_id and error (None for a clip that is done) of each clip, in the order in which they are done."""
    items = [
        item_of(task, "" if task.row.staging is not None else driving.shard[task.request.clip_id]) for task in pending
    ]
    done = (
        # 1. request table -> blocks of one clip each, so that an actor that dies takes one clip with it
        ray.data.from_items(items, override_num_blocks=len(items))
        # 2. request -> parts/ID.parquet, 1:1
        .map_batches(
            GenerateClip,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=settings.min_actors, max_size=settings.max_actors),
            num_cpus=settings.cpus_per_actor,
            num_gpus=settings.gpus_per_actor,
            fn_constructor_args=(settings, output),
        )
    )
    for batch in done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def item_of(task: Task, shard: str) -> dict[str, str]:
    """What GenerateClip is sent; shard: where the driving clip is, empty where the motion is choreographed."""
    return {
        "clip_id": task.clip_id,
        "request": json.dumps(asdict(task.request)),
        "row": _json(task.row),
        "shard": shard,
    }


class GenerateClip:
    """One pipeline that makes one clip at a time and publishes it as parts/ID.parquet."""

    def __init__(self, settings: BatchSettings, output: str) -> None:
        import torch

        # One number of threads on every actor and every run: sums then come out the same to the bit.
        torch.set_num_threads(settings.threads)
        from finephys.diffusion.pipeline import FinePhysPipeline
        from finephys.memory import keep_freed_memory

        keep_freed_memory()
        self.settings = settings
        self.output = output
        self.pipeline = FinePhysPipeline.from_pretrained(settings.pipeline)
        self.pipeline.to("cuda" if settings.gpus_per_actor > 0 else "cpu")
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(self, table: pa.Table) -> pa.Table:
        outcomes = [self._generate(row) for row in table.to_pylist()]
        return pa.Table.from_pylist(outcomes, schema=pa.schema({"clip_id": pa.string(), "error": pa.string()}))

    def _generate(self, row: dict[str, Any]) -> dict[str, str | None]:
        clip_id = row["clip_id"]
        part = storage.join(self.output, "parts", f"{clip_id}.parquet")
        if storage.exists(part):
            # A retry of a call whose answer was lost.
            return {"clip_id": clip_id, "error": None}
        num_attempts = self._begin_attempt(clip_id)
        try:
            if num_attempts > self.settings.max_attempts:
                raise ValueError(f"its process died {num_attempts - 1} times")
            entry, record = self._attempt(clip_id, GenerationRequest(**json.loads(row["request"])), _driving_clip(row))
        except ValueError as error:
            failure = {"clip_id": clip_id, "error": str(error)}
            storage.write_bytes(storage.join(self.output, "failed", f"{clip_id}.json"), json.dumps(failure).encode())
            return {"clip_id": clip_id, "error": str(error)}
        staging = json.loads(row["row"])["staging"]
        storage.write_bytes(part, _part_bytes(record, entry if staging is None else {**entry, "staging": staging}))
        return {"clip_id": clip_id, "error": None}

    def _attempt(self, clip_id: str, request: GenerationRequest, clip: Clip) -> tuple[dict[str, Any], Clip]:
        from finephys.generation.record import found_again, generate_record

        for sample in range(self.settings.max_seeds):
            sampled = replace(request, sample=sample)
            record = generate_record(self.pipeline, clip, sampled, clip_id)
            entry: dict[str, Any] = {"clip_id": clip_id, "request": asdict(sampled), "request_sha256": sampled.sha256}
            if self.settings.min_pck is None and self.settings.max_jump is None:
                return entry, record
            found = found_again(self.pipeline, record.video, record.joints_px)
            refusal = self._refusal(found)
            if refusal is None:
                return {**entry, **found}, record
        raise ValueError(f"{refusal} in the last of {self.settings.max_seeds} seeds")

    def _refusal(self, found: dict[str, float]) -> str | None:
        """Why a clip in which this was found does not pass the gate."""
        pck, jump = found["pck_0.1_box"], found["jump_of_box"]
        if self.settings.min_pck is not None and pck < self.settings.min_pck:
            return f"PCK {pck:.3f} is below min_pck {self.settings.min_pck}"
        if self.settings.max_jump is not None and jump > self.settings.max_jump:
            return f"jump {jump:.3f} is above max_jump {self.settings.max_jump}"
        return None

    def _begin_attempt(self, clip_id: str) -> int:
        """Count an attempt before it starts: one that kills this process is then known."""
        folder = storage.join(self.output, "attempts", clip_id)
        number = len(storage.list_files(folder)) + 1
        storage.write_bytes(storage.join(folder, str(number)), b"")
        return number


def watched(
    outcomes: Iterator[dict[str, Any]], stall_minutes: float, complain: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    """The same outcomes; complain(minutes) at each quarter of stall_minutes without one, RuntimeError at its end."""
    ready: queue.Queue[dict[str, Any] | BaseException | None] = queue.Queue()

    def pump() -> None:
        try:
            for outcome in outcomes:
                ready.put(outcome)
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=pump, name="outcomes", daemon=True).start()
    since = time.monotonic()
    while True:
        try:
            outcome = ready.get(timeout=stall_minutes * 60 / 4)
        except queue.Empty:
            minutes = (time.monotonic() - since) / 60
            complain(minutes)
            if minutes >= stall_minutes:
                raise RuntimeError(f"no clip was done in {minutes:.3g} minutes; the same command continues") from None
            continue
        if outcome is None:
            return
        if isinstance(outcome, BaseException):
            raise outcome
        since = time.monotonic()
        yield outcome


def _complain(minutes: float) -> None:
    print(f"finephys: no clip was done in the last {minutes:.1f} minutes", file=sys.stderr)


# --- publishing


def _publish_chunk(number: int, tasks: Sequence[Task], settings: BatchSettings, output: str) -> None:
    """Join a chunk's parts into its shard (or its mp4 files and ground truth), mark it done, and drop the parts."""
    parts = [
        (task, storage.join(output, "parts", f"{task.clip_id}.parquet"))
        for task in tasks
        if not storage.exists(storage.join(output, "failed", f"{task.clip_id}.json"))
    ]
    tables = [pq.read_table(pa.BufferReader(storage.read_bytes(url))) for _, url in parts]
    name = _chunk_name(number)
    entries = []
    if settings.format == "mp4":
        for table in tables:
            (row,) = table.to_pylist()
            truth = io.BytesIO()
            record = Clip.from_row(row)
            np.savez(truth, **{name: value for name in FRAME_SHAPES if (value := getattr(record, name)) is not None})
            storage.write_bytes(storage.join(output, "clips", f"{record.clip_id}.npz"), truth.getvalue())
            storage.write_bytes(storage.join(output, "clips", f"{record.clip_id}.mp4"), record.video)
    elif tables:
        sink = pa.BufferOutputStream()
        records = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
        records = records.cast(CLIP_SCHEMA.remove_metadata()).replace_schema_metadata(CLIP_SCHEMA.metadata)
        write_table(records, sink)
        storage.write_bytes(storage.join(output, f"{name}.parquet"), sink.getvalue().to_pybytes())
    for table in tables:
        entry = json.loads((table.schema.metadata or {})[_ENTRY_KEY])
        where = f"clips/{entry['clip_id']}.mp4" if settings.format == "mp4" else f"{name}.parquet"
        entries.append({"file": where, **entry})
    # The mark comes last, and it alone says that the chunk is done.
    storage.write_bytes(storage.join(output, f"{name}.done"), "".join(json.dumps(e) + "\n" for e in entries).encode())
    for _, url in parts:
        storage.delete_file(url)


def _write_lists(tasks: Sequence[Task], settings: BatchSettings, output: str) -> list[dict[str, str]]:
    """manifest.jsonl and failures.jsonl, in the table's order; returns the failures."""
    lines = [storage.read_bytes(url).decode() for url in storage.list_files(output, ".done")]
    storage.write_bytes(storage.join(output, MANIFEST_NAME), "".join(lines).encode())
    failed = _names(storage.join(output, "failed"), ".json")
    failures: list[dict[str, str]] = [
        json.loads(storage.read_bytes(storage.join(output, "failed", f"{task.clip_id}.json")))
        for task in tasks
        if task.clip_id in failed
    ]
    text = "".join(json.dumps(failure) + "\n" for failure in failures)
    storage.write_bytes(storage.join(output, FAILURES_NAME), text.encode())
    storage.delete_folder(storage.join(output, "attempts"))
    return failures


_ENTRY_KEY = b"finephys.generated"


def _part_bytes(record: Clip, entry: dict[str, Any]) -> bytes:
    table = pa.Table.from_pylist([record.to_row()], schema=CLIP_SCHEMA)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _ENTRY_KEY: json.dumps(entry).encode()})
    sink = pa.BufferOutputStream()
    write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _json(row: TableRow) -> str:
    return json.dumps(asdict(row), sort_keys=True)


def _driving_clip(row: dict[str, Any]) -> Clip:
    """The motion that an item asks for: read from its shard, or choreographed."""
    request, asked = json.loads(row["request"]), json.loads(row["row"])
    if asked["staging"] is None:
        only = DrivingIndex(shard={request["clip_id"]: row["shard"]}, split={}, label_name={}, prompt={})
        return Clip.from_row(read_driving_clip(only, request["clip_id"]))
    # Bodies and elements that no training saw do not come of this: it is all one split.
    return staged_clip(
        Staging(**asked["staging"]), clip_id=request["clip_id"], split="train", prompt=request["prompt"],
        performer=asked["performer"], side=_STAGED_SIDE,
    )  # fmt: skip


# Pixels of the picture that a choreographed element is staged for; the pipeline scales it to its own.
_STAGED_SIDE = 256


def _chunk_name(number: int) -> str:
    return f"shard-{number:05d}"


def _names(folder: str, suffix: str) -> set[str]:
    return {Path(url).name.removesuffix(suffix) for url in storage.list_files(folder, suffix)}
