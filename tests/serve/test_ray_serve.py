"""On Ray Serve, with real processes: whoever is killed, no accepted job is lost and none is generated twice."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finephys.benchmarks.service import CONTROLLER, WORKER, Client, LocalService
from finephys.benchmarks.tiny import write_tiny_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TOKENS = {"ada": "ada's token of 2026"}
REQUEST = {"class": "10", "num_frames": 2, "num_inference_steps": 2, "guidance_scale": 1}
SLOW = {**REQUEST, "num_frames": 8, "num_inference_steps": 30}
IDLE_SECONDS = 3.0


def _settings(folder: Path) -> dict[str, Any]:
    return {
        "pipeline": str(folder / "pipeline"), "journal": str(folder / "journal"), "min_workers": 0, "max_workers": 2,
        "idle_seconds": IDLE_SECONDS, "lease_seconds": 3, "max_queue_per_client": 1000,
    }  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalService]:
    folder = tmp_path_factory.mktemp("service")
    write_tiny_pipeline(folder / "pipeline")
    service = LocalService(folder, _settings(folder), TOKENS)
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
    ids: list[str] = []

    def are_several() -> bool:
        # However fast one worker is, work waits for a second.
        while len(set(ids) - set(_ended(service))) < 6:
            ids.append(_post(client, {**SLOW, "seed": len(ids)}))
        return len(service.processes(WORKER)) > 1

    _until(are_several, "second worker")

    def are_done() -> bool:
        assert len(service.processes(WORKER)) <= 2
        return set(ids) <= set(_ended(service))

    _until(are_done, "end of all jobs")
    assert all(job["attempt"] == 1 for job in _ended(service).values())
    _until(lambda: not service.processes(WORKER), "scaling to zero again")


def test_whoever_is_killed_nothing_is_lost_or_made_twice(service: LocalService, client: Client) -> None:
    ids = [_post(client, {**REQUEST, "seed": seed}) for seed in range(40)]
    slow = [_post(client, {**SLOW, "motion": motion}) for motion in range(2)]
    _until(lambda: service.processes(WORKER), "worker")
    service.processes(WORKER)[0].kill()
    num_before = len(_videos(service))
    _until(lambda: len(_videos(service)) > num_before + 5, "video")
    _until(lambda: service.processes(WORKER), "another worker")
    service.processes(CONTROLLER)[0].kill()
    more = [_post(client, {**REQUEST, "seed": seed, "motion": 1}) for seed in range(5)]
    # HTTP was there all the time or is again, and the controller too.
    _until(lambda: service.processes(CONTROLLER), "controller")
    assert client.call("GET", f"/v1/videos/{more[0]}")[0] == 200

    # The whole machine, with jobs in hand.
    ids += [*slow, *more]
    _until(lambda: len(set(ids) & set(_videos(service))) > 15, "video")
    service.kill()
    made = {one: written_ns for one, written_ns in _videos(service).items() if one in ids}
    assert len(made) < len(ids)
    service.start()
    service.wait_until_ready()
    _all_end(service, ids)
    # None was made again, not even one that was published and not yet said to be done.
    assert {one: written_ns for one, written_ns in _videos(service).items() if one in made} == made
    # The old connection ended with the old process.
    assert Client(service, "ada").call("GET", f"/v1/videos/{ids[0]}/content")[0] == 200


def test_serve_deploy_takes_over_what_is_in_hand_and_waits(service: LocalService) -> None:
    client = Client(service, "ada")
    ids = [_post(client, {**SLOW, "motion": motion}) for motion in range(8, 11)]
    claims = service.folder / "journal" / "claims"
    _until(lambda: any(claims.glob(f"*{one}*") for one in ids), "claim")
    in_hand = [one for one in ids if any(claims.glob(f"*{one}*"))]
    service.deploy({**_settings(service.folder), "max_steps": 30})

    def limit() -> str:
        try:
            return str(client.call("POST", "/v1/videos", {**SLOW, "num_inference_steps": 1000}))
        except OSError:
            return "nobody answers"

    _until(lambda: "wanted 1 to 30" in limit(), "new version")
    ids.append(_post(client, {**SLOW, "motion": 14}))
    _all_end(service, ids)
    # Finished by the old version's worker, which was not killed.
    assert {_ended(service)[one]["attempt"] for one in in_hand} == {1}


def test_a_service_that_is_told_to_stop_finishes_what_is_in_hand(service: LocalService) -> None:
    in_hand = _post(Client(service, "ada"), {**SLOW, "motion": 7})
    _until(lambda: list((service.folder / "journal" / "claims").glob(f"*{in_hand}*")), "claim")
    service.stop()
    assert not service.processes()
    ended = _ended(service)[in_hand]
    assert (ended["status"], ended["attempt"]) == ("completed", 1)
