"""On Ray Serve, with real processes: whoever is killed, no accepted job is lost and none is generated twice."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from finephys.benchmarks.service import CONTROLLER, WORKER, Client, LocalService
from finephys.benchmarks.tiny import write_tiny_pipeline
from serve.metrics import exposed_names

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TOKENS = {"ada": "ada's token of 2026"}
REQUEST = {"class": "10", "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 1}
SLOW = {**REQUEST, "num_frames": 8, "num_inference_steps": 30}
IDLE_SECONDS = 3.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    folder = tmp_path_factory.mktemp("service")
    write_tiny_pipeline(folder / "pipeline")
    settings = {
        "pipeline": str(folder / "pipeline"), "journal": str(folder / "journal"), "min_workers": 0, "max_workers": 2,
        "idle_seconds": IDLE_SECONDS, "lease_seconds": 3, "max_queue_per_client": 1000,
    }  # fmt: skip
    service = LocalService(folder, settings, TOKENS)
    service.start()
    service.wait_until_ready()
    yield service
    service.stop()


@pytest.fixture
def client(service: LocalService) -> Client:
    return Client(service, "ada")


def _post(client: Client, request: dict[str, Any]) -> str:
    status, video = client.call("POST", "/v1/videos", request)
    assert status == 200, video
    return str(video["id"])


def _until(condition: Callable[[], Any], what: str, timeout_s: float = 200) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"no {what} in {timeout_s} s"
        time.sleep(0.1)


def _ended(service: LocalService) -> dict[str, dict[str, Any]]:
    folder = service.folder / "journal" / "ended"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def _videos(service: LocalService) -> dict[str, int]:
    """Id -> when it was published."""
    return {path.stem: path.stat().st_mtime_ns for path in (service.folder / "journal" / "videos").glob("*.mp4")}


def _all_end(service: LocalService, ids: list[str]) -> None:
    _until(lambda: set(ids) <= set(_ended(service)), "end of all jobs")
    assert {_ended(service)[one]["status"] for one in ids} == {"completed"}
    assert set(ids) <= set(_videos(service))


def test_from_none_to_several_workers_and_back(service: LocalService, client: Client) -> None:
    _until(lambda: not service.processes(WORKER), "scaling to zero")
    # None is there: a job is accepted all the same, and brings one up.
    ids = [_post(client, {**SLOW, "motion": motion}) for motion in range(6)]
    most = 0

    def are_done() -> bool:
        nonlocal most
        most = max(most, len(service.processes(WORKER)))
        return set(ids) <= set(_ended(service))

    _until(are_done, "end of all jobs")
    assert most == 2
    assert all(job["attempt"] == 1 for job in _ended(service).values())
    _until(lambda: not service.processes(WORKER), "scaling to zero again")


def test_killed_workers_and_a_killed_controller_lose_nothing(service: LocalService, client: Client) -> None:
    ids = [_post(client, {**REQUEST, "seed": seed}) for seed in range(40)]
    slow = [_post(client, {**SLOW, "motion": motion}) for motion in range(2)]
    _until(lambda: service.processes(WORKER), "worker")
    service.processes(WORKER)[0].kill()
    _until(lambda: len(_videos(service)) > 10, "video")
    _until(lambda: service.processes(WORKER), "another worker")
    service.processes(CONTROLLER)[0].kill()
    more = [_post(client, {**REQUEST, "seed": seed, "motion": 1}) for seed in range(5)]
    _all_end(service, [*ids, *slow, *more])
    # HTTP was there all the time or is again, and the controller too.
    _until(lambda: service.processes(CONTROLLER), "controller")
    assert client.call("GET", f"/v1/videos/{more[0]}")[1]["status"] == "completed"


def test_a_killed_head_loses_nothing(service: LocalService, client: Client) -> None:
    keyed = {**client.headers, "Idempotency-Key": "after the crash"}
    client.headers = keyed
    first = _post(client, {**SLOW, "seed": 7})
    client.headers = {name: value for name, value in keyed.items() if name != "Idempotency-Key"}
    ids = [_post(client, {**REQUEST, "seed": seed, "motion": 2}) for seed in range(25)]
    _until(lambda: any(one in _ended(service) for one in ids), "end of a job")
    family = service.processes()
    assert len(family) > 5
    service.kill()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
    before, done = _videos(service), _ended(service)
    assert not set(ids) <= set(done)

    service.start()
    service.wait_until_ready()
    client.headers = keyed
    # Whoever did not hear the answer asks again: it is the same job.
    assert _post(client, {**SLOW, "seed": 7}) == first
    _all_end(service, [first, *ids])
    # What was done stays as it was, and only what was in hand was begun again.
    assert {one: _videos(service)[one] for one in before} == before
    assert {one: _ended(service)[one] for one in done} == done
    assert all(_ended(service)[one]["attempt"] <= 2 for one in ids)


def test_prometheus_finds_every_metric_at_rays_endpoint(service: LocalService, client: Client) -> None:
    _all_end(service, [_post(client, REQUEST)])
    assert client.call("GET", "/v1/videos", None)[0] == 200
    # Some have nothing to tell while nothing breaks.
    quiet = {"ray_finephys_failures_total", "ray_finephys_retries_total", "ray_finephys_refused_total"}
    wanted = exposed_names(on_ray=True) - quiet
    seen = ""

    def are_there() -> bool:
        nonlocal seen
        seen = _exposition(service)
        return all(f"\n{name}{{" in seen for name in wanted)

    _until(are_there, "metrics")
    for hop in ("heatmaps", "guidance", "unet", "vae", "encode"):
        assert f'hop="{hop}"' in seen
    for line in seen.splitlines():
        if line.startswith("ray_finephys_"):
            assert line.partition("{")[0] in wanted | quiet


def test_told_to_stop_it_finishes_what_is_in_hand(service: LocalService, client: Client) -> None:
    job = _post(client, {**SLOW, "seed": 8})
    _until(lambda: client.call("GET", f"/v1/videos/{job}")[1]["status"] == "in_progress", "start")
    service.stop(patience_s=200)
    ended = _ended(service)[job]
    assert (ended["status"], ended["attempt"]) == ("completed", 1)


def _exposition(service: LocalService) -> str:
    """What Ray's metrics endpoints of this service say."""
    texts = []
    for agent in service.processes("ray::DashboardAgent"):
        ports = {one.laddr.port for one in agent.net_connections("inet") if one.status == psutil.CONN_LISTEN}
        for port in ports:
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer,
            ):
                texts.append(answer.read().decode(errors="replace"))
    return "\n".join(texts)
