"""What HTTP, journal and Ray cost beside the bare pipeline, and what is lost when replicas are killed.

Path:    orders -> bare processes | service | batch job -> figures
Units:   ratios, milliseconds

The bare pipeline is `generate_orders` (motion, denoising, mp4) in two processes of one thread each, which on two cores
is faster than one process of two threads. Since a host's speed drifts, what is compared stands between two runs of what
it is compared with, and is set beside their mean.

http_share_of_bare        clips a second of the service while both its workers are at work, over the bare pipeline's
second_worker_speedup     of it, over the service with one worker, which is bound to one core
status_p95_ms             GET /v1/videos/ID, asked for each job when its last answer said, as OpenAI's clients do
batch_share_of_bare       clips a second of `jobs/generate.py dataset` with two actors while it runs, over the bare
                          pipeline's; what it takes to start is a figure of its own
jobs_lost_of_1000         of 1,000 jobs for a tiny model that were all accepted, while workers were killed
"""

import csv
import heapq
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from finephys.benchmarks.service import ROOT, WORKER, Client, LocalService, running
from finephys.benchmarks.tiny import IMAGE_SIDE, write_tiny_pipeline
from finephys.evaluation.figures import Figure
from finephys.generation.order import Order
from finephys.generation.staging import Staging
from finephys.generation.table import index_driving

ASSETS = Path(__file__).parent.parent / "assets"
# Six steps, which README says lose nothing: what is not denoising weighs more than with twenty.
STEPS, SIDE = 6, 128
CLIPS_PER_WORKER = 10
NUM_WORKERS = 2
BATCH_CLIPS = 24
NUM_JOBS, JOBS_PER_CLIENT = 1000, 200
JOBS_BETWEEN_KILLS = 100
MOST_STATUS_CALLS_PER_SECOND = 20.0
_SPAWN = multiprocessing.get_context("spawn")


def measure() -> list[Figure]:
    """All figures, in about a quarter of an hour on two cores."""
    with tempfile.TemporaryDirectory(prefix="finephys-benchmark-") as scratch:
        folder = Path(scratch)
        one = [served_rate(_made(folder / "one"), num_workers=1)[0]]
        bare = [bare_rate()]
        two, latencies_ms = served_rate(_made(folder / "two"), num_workers=NUM_WORKERS)
        bare.append(bare_rate())
        one.append(served_rate(_made(folder / "one again"), num_workers=1)[0])
        batch, batch_start_s = batch_rate(_made(folder / "batch"))
        bare.append(bare_rate())
        killing = killed_figures(_made(folder / "killed"))
    return [
        Figure(name="bare_clips_per_second", value=sum(bare) / len(bare)),
        Figure(name="bare_slowest_over_fastest", value=min(bare) / max(bare)),
        Figure(name="http_share_of_bare", value=two / (sum(bare[:2]) / 2), at_least=0.9),
        Figure(name="second_worker_speedup", value=two / (sum(one) / 2), at_least=1.7),
        Figure(name="status_p95_ms", value=float(np.percentile(latencies_ms, 95)), at_most=50.0),
        Figure(name="batch_share_of_bare", value=batch / (sum(bare[1:]) / 2), at_least=0.95),
        Figure(name="batch_seconds_to_start", value=batch_start_s),
        *killing,
    ]


# --- the bare pipeline


def bare_rate(num_processes: int = NUM_WORKERS) -> float:
    """Clips a second of the pipeline alone, a process for each core, CLIPS_PER_WORKER each."""
    start, times = _SPAWN.Barrier(num_processes), _SPAWN.Queue()
    processes = [_SPAWN.Process(target=_bare, args=(start, times), daemon=True) for _ in range(num_processes)]
    for process in processes:
        process.start()
    ran = [times.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    took_s: float = max(end for _, end in ran) - min(begin for begin, _ in ran)
    return num_processes * CLIPS_PER_WORKER / took_s


def _bare(start: Any, times: Any) -> None:
    import torch

    torch.set_num_threads(1)
    from finephys.diffusion.pipeline import FinePhysPipeline
    from finephys.generation.ordered import generate_orders
    from finephys.memory import keep_freed_memory

    # As the service's and the batch job's processes do.
    keep_freed_memory()
    pipeline = FinePhysPipeline.from_pretrained(ASSETS / "pipeline")
    pipeline.set_progress_bar_config(disable=True)

    def make(seed: int) -> None:
        order = Order(
            prompt="A gymnast leaps.", seed=seed, staging=Staging(label=10), height=SIDE, width=SIDE, num_frames=16,
            num_inference_steps=STEPS, guidance_scale=1.0, pose_guidance_scale=1.0,
        )  # fmt: skip
        generate_orders(pipeline, [order], None, 0, lambda _: None)

    make(0)
    start.wait()
    begin = time.monotonic()
    for seed in range(CLIPS_PER_WORKER):
        make(seed)
    # CLOCK_MONOTONIC is the machine's, not the process's.
    times.put((begin, time.monotonic()))


# --- the service


def served_rate(folder: Path, num_workers: int) -> tuple[float, list[float]]:
    """Clips a second through HTTP with so many workers, all of them warm, and what status calls took meanwhile (ms)."""
    settings = {
        "pipeline": str(ASSETS / "pipeline"), "journal": str(folder / "journal"),
        "min_workers": num_workers, "max_workers": num_workers,
    }  # fmt: skip
    request = {
        "prompt": "A gymnast leaps.", "class": "10", "num_inference_steps": STEPS, "guidance_scale": 1,
        "size": f"{SIDE}x{SIDE}",
    }  # fmt: skip
    with running(LocalService(folder, settings, {"bench": "token of the benchmark"})) as service:
        client = Client(service, "bench")
        _wait_for_workers(service, num_workers)
        _finish(client, [_post(client, {**request, "seed": 1000 + n}) for n in range(2 * num_workers)])
        videos = folder / "journal" / "videos"
        num_before = len(list(videos.glob("*.mp4")))
        ids = [_post(client, {**request, "seed": seed}) for seed in range(num_workers * CLIPS_PER_WORKER)]
        with status_calls(service, "bench", ids) as latencies_ms:
            done_s = _times(videos, "*.mp4", lambda num_done: num_done == num_before + len(ids))
        return _rate(done_s[num_before:], num_workers), latencies_ms


@contextmanager
def status_calls(service: LocalService, name: str, ids: Sequence[str]) -> Iterator[list[float]]:
    """Ask for each of these jobs as OpenAI's clients do, from a thread; the list grows by what each answer took, in ms.

    They look at a job again when its last answer said, and no more when it has ended.
    """
    latencies_ms: list[float] = []
    is_over = threading.Event()

    def ask() -> None:
        client = Client(service, name)
        due = [(0.0, video_id) for video_id in ids]
        while due and not is_over.wait(max(1 / MOST_STATUS_CALLS_PER_SECOND, due[0][0] - time.monotonic())):
            _, video_id = heapq.heappop(due)
            started = time.perf_counter()
            status, _ = client.call("GET", f"/v1/videos/{video_id}")
            latencies_ms.append(1000 * (time.perf_counter() - started))
            assert status == 200
            if client.poll_after_s is not None:
                heapq.heappush(due, (time.monotonic() + client.poll_after_s, video_id))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield latencies_ms
    finally:
        is_over.set()
        thread.join(30)


def _post(client: Client, request: dict[str, Any]) -> str:
    status, video = client.call("POST", "/v1/videos", request)
    if status != 200:
        raise RuntimeError(f"POST /v1/videos: {status} {video}")
    return str(video["id"])


def _finish(client: Client, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Ask for the jobs in turn until each has ended; as they then are."""
    ended = []
    for video_id in ids:
        while True:
            status, video = client.call("GET", f"/v1/videos/{video_id}")
            if status == 200 and video["status"] in ("completed", "failed"):
                ended.append(video)
                break
            time.sleep(0.05)
    return ended


def _wait_for_workers(service: LocalService, num_workers: int) -> None:
    end = time.monotonic() + 120
    while len(service.processes(WORKER)) < num_workers:
        if time.monotonic() > end:
            raise TimeoutError(f"{num_workers} workers did not start:\n{service.log()[-3000:]}")
        time.sleep(0.2)


# --- batches


def batch_rate(folder: Path, num_actors: int = NUM_WORKERS) -> tuple[float, float]:
    """Clips a second of the batch job once all actors are at work, and the seconds until its first clip."""
    table, output = folder / "table.csv", folder / "output"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "seed"])
        writer.writerows([clip, 0] for clip in sorted(index_driving(str(ASSETS / "clips")).shard)[:BATCH_CLIPS])
    command = [
        sys.executable, "jobs/generate.py", "dataset", "--requests", str(table), "--output", str(output),
        "--num-inference-steps", str(STEPS), "--guidance-scale", "1", "--min-actors", str(num_actors),
        "--max-actors", str(num_actors),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment.pop("RAY_ADDRESS", None)
    started = time.monotonic()
    job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # They are joined into a shard only after the last.
    done_s = _times(output / "parts", "*.parquet", lambda _: job.poll() is not None)
    if job.returncode != 0:
        assert job.stderr is not None
        raise RuntimeError(f"{' '.join(command)}: {job.stderr.read().decode()[-3000:]}")
    return _rate(done_s, num_actors), done_s[0] - started


def _times(folder: Path, pattern: str, is_over: Callable[[int], bool]) -> list[float]:
    """When the n-th file was there (time.monotonic), until is_over(number of files).

    Raises TimeoutError after ten minutes.
    """
    times_s: list[float] = []
    end = time.monotonic() + 600
    while not is_over(len(times_s)):
        if time.monotonic() > end:
            raise TimeoutError(f"{len(times_s)} files {pattern} in {folder} after ten minutes")
        times_s += [time.monotonic()] * (len(list(folder.glob(pattern))) - len(times_s))
        time.sleep(0.02)
    return times_s


def _rate(done_s: Sequence[float], num_workers: int) -> float:
    """Clips a second while all workers are at work: the slope of the middle, of the times when each clip was there."""
    first, last = 2 * num_workers, len(done_s) - num_workers + 1
    return float(np.polyfit(done_s[first:last], np.arange(first, last), 1)[0])


# --- kills


def killed_figures(folder: Path) -> list[Figure]:
    """1,000 jobs of a tiny model from five clients; a worker is killed whenever 100 more are done."""
    write_tiny_pipeline(folder / "pipeline")
    settings = {
        "pipeline": str(folder / "pipeline"), "journal": str(folder / "journal"), "min_workers": NUM_WORKERS,
        "max_workers": NUM_WORKERS, "lease_seconds": 4, "max_queue": NUM_JOBS, "max_queue_per_client": JOBS_PER_CLIENT,
    }  # fmt: skip
    request = {"class": "10", "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 1}
    tokens = {f"client-{number}": f"token of client {number}" for number in range(NUM_JOBS // JOBS_PER_CLIENT)}
    with running(LocalService(folder, {**settings}, tokens)) as service:
        _wait_for_workers(service, NUM_WORKERS)
        started = time.monotonic()
        clients = [Client(service, name) for name in tokens]
        with _kills(service, folder / "journal" / "videos") as num_kills:
            ids = [
                _post(clients[number % len(clients)], {**request, "seed": number, "size": f"{IMAGE_SIDE}x{IMAGE_SIDE}"})
                for number in range(NUM_JOBS)
            ]
            accepted_s = time.monotonic() - started
            with status_calls(service, "client-0", ids[:: len(clients)]) as latencies_ms:
                ended = [_finish(clients[number % len(clients)], [video_id])[0] for number, video_id in enumerate(ids)]
        took_s = time.monotonic() - started
    num_completed = len({video["id"] for video in ended if video["status"] == "completed"})
    records = [json.loads(path.read_text()) for path in (folder / "journal" / "ended").glob("*.json")]
    num_videos = len(list((folder / "journal" / "videos").glob("*.mp4")))
    return [
        Figure(name="jobs_lost_of_1000", value=NUM_JOBS - min(num_completed, num_videos), at_most=0),
        Figure(name="jobs_tried_again", value=sum(record["attempt"] > 1 for record in records)),
        Figure(name="workers_killed", value=num_kills[0]),
        Figure(name="seconds_to_accept_1000", value=accepted_s),
        Figure(name="seconds_to_finish_1000", value=took_s),
        Figure(name="status_p95_ms_with_1000_jobs", value=float(np.percentile(latencies_ms, 95)), at_most=50.0),
    ]


@contextmanager
def _kills(service: LocalService, videos: Path) -> Iterator[list[int]]:
    """Kill one worker for every JOBS_BETWEEN_KILLS videos, from a thread; how many, so far."""
    num_kills = [0]
    is_over = threading.Event()

    def kill() -> None:
        while not is_over.wait(0.2):
            workers = service.processes(WORKER)
            if workers and len(list(videos.glob("*.mp4"))) >= (num_kills[0] + 1) * JOBS_BETWEEN_KILLS:
                workers[num_kills[0] % len(workers)].kill()
                num_kills[0] += 1

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield num_kills
    finally:
        is_over.set()
        thread.join()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
