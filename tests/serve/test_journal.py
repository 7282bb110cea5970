"""No accepted job is lost, none ends twice, whoever dies when."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finephys.data import storage
from serve.journal import Journal, is_job_id

ORDER: dict[str, Any] = {"prompt": "", "seed": 0}
SHOWN: dict[str, Any] = {"prompt": ""}
PROCESSES = multiprocessing.get_context("spawn")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(str(tmp_path / "journal"), lease_s=0.3)


@pytest.fixture
def s3_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    storage._s3fs.cache_clear()
    storage._s3fs().mkdir("jobs")
    yield Journal("s3://jobs/journal", lease_s=0.3)
    storage._s3fs.cache_clear()
    server.stop()


def _whole_life(journal: Journal) -> None:
    job, is_new = journal.submit("ada", ORDER, SHOWN, upload=b"driving", idempotency_key="k")
    assert is_new
    assert journal.submit("ada", ORDER, SHOWN, upload=b"driving", idempotency_key="k") == (job, False)
    with pytest.raises(ValueError, match="another request"):
        journal.submit("ada", {"prompt": "other"}, SHOWN, idempotency_key="k")
    # Another client's key is another key.
    other, is_new = journal.submit("bob", ORDER, SHOWN, idempotency_key="k")
    assert is_new
    assert journal.ids_of("ada") == [job.id]
    assert [one.id for one in journal.waiting()[1]] == sorted([job.id, other.id])

    claim = journal.claim(job.id, 1, "one")
    assert claim is not None
    assert journal.claim(job.id, 1, "two") is None
    assert journal.beat(claim, 40, 1)
    seen = journal.get(job.id)
    assert seen is not None
    assert (seen.status, seen.progress, seen.attempt) == ("in_progress", 40, 1)
    assert [one.id for one in journal.waiting()[1]] == [other.id]
    assert journal.upload(job.id) == b"driving"

    assert journal.complete(claim, b"video", shown=SHOWN, seconds_by_hop={"unet": 1.0})
    assert not journal.complete(claim, b"another", shown=SHOWN, seconds_by_hop={})
    ended = Journal(journal.url, 1.0).get(job.id)
    assert ended is not None
    assert (ended.status, ended.progress, ended.seconds_by_hop) == ("completed", 100, {"unet": 1.0})
    assert journal.video(job.id) == b"video"
    assert journal.open_ids() == [other.id]
    assert storage.list_files(journal.url + "/claims") == storage.list_files(journal.url + "/uploads") == []
    assert journal.delete(job.id)
    assert journal.get(job.id) is None
    assert not journal.delete(job.id)
    # The key is free again.
    assert journal.submit("ada", {"prompt": "other"}, SHOWN, idempotency_key="k")[1]


def test_a_job_from_submission_to_deletion(journal: Journal) -> None:
    _whole_life(journal)


def test_the_same_in_a_bucket(s3_journal: Journal) -> None:
    _whole_life(s3_journal)


def test_whose_worker_died_is_taken_up_again_and_ends_once(journal: Journal) -> None:
    job, _ = journal.submit("ada", ORDER, SHOWN)
    dead = journal.claim(job.id, 1, "dead")
    assert dead is not None
    other = Journal(journal.url, journal.lease_s)
    assert other.waiting()[1] == []
    journal.beat(dead, 10, 1)
    time.sleep(0.2)
    assert other.waiting()[1] == []
    time.sleep(0.35)
    (again,) = other.waiting()[1]
    assert again.attempt == 1
    heir = other.claim(job.id, 2, "heir")
    assert heir is not None
    # The dead one was only asleep. It learns that it lost, and whoever publishes first is the only one.
    assert not journal.beat(dead, 20, 2)
    assert journal.complete(dead, b"first", shown=SHOWN, seconds_by_hop={})
    assert not other.complete(heir, b"second", shown=SHOWN, seconds_by_hop={})
    assert other.video(job.id) == b"first"
    assert other.waiting() == ([], [])


def test_a_crash_between_any_two_steps_of_ending_is_made_good(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call into storage that ends a job is the last one before the crash, in turn."""
    calls, last = 0, 0

    def crashing(real: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                raise KeyboardInterrupt
            return real(*arguments)

        return call

    while last < 12:
        job, _ = journal.submit("ada", ORDER, SHOWN, upload=b"u")
        claim = journal.claim(job.id, 1, "crashes")
        assert claim is not None
        calls, was_cut = 0, False
        with monkeypatch.context() as patch:
            for name in ("create_bytes", "write_bytes", "delete_file"):
                patch.setattr(storage, name, crashing(getattr(storage, name)))
            try:
                journal.complete(claim, b"video", shown=SHOWN, seconds_by_hop={})
            except KeyboardInterrupt:
                was_cut = True
        heir = Journal(journal.url, 0.0)
        for free in heir.waiting()[1]:
            taken = heir.claim(free.id, free.attempt + 1, "heir")
            if taken is not None:
                video = None if heir.has_video(free.id) else b"video"
                assert heir.complete(taken, video, shown=SHOWN, seconds_by_hop={})
        ended = heir.get(job.id)
        assert ended is not None
        assert ended.status == "completed"
        assert heir.video(job.id) == b"video"
        assert heir.waiting() == ([], [])
        assert storage.list_files(journal.url + "/claims") == []
        if not was_cut:
            return
        last += 1
    raise AssertionError("ending takes more steps than were cut")


def test_deleted_while_generated_stays_deleted(journal: Journal) -> None:
    job, _ = journal.submit("ada", ORDER, SHOWN)
    claim = journal.claim(job.id, 1, "one")
    assert claim is not None
    assert journal.delete(job.id)
    assert not journal.beat(claim, 50, 1)
    assert not journal.complete(claim, b"video", shown=SHOWN, seconds_by_hop={})
    assert journal.get(job.id) is None
    assert not journal.has_video(job.id)
    assert journal.waiting() == ([], [])


def test_given_back_is_free_at_once(journal: Journal) -> None:
    job, _ = journal.submit("ada", ORDER, SHOWN)
    claim = journal.claim(job.id, 1, "one")
    assert claim is not None
    journal.release(claim)
    assert [one.attempt for one in journal.waiting()[1]] == [1]
    seen = journal.get(job.id)
    assert seen is not None
    assert seen.status == "queued"


@pytest.mark.parametrize("job_id", ["", "video_", "../../etc/passwd", "video_../" + "0" * 25, "video_" + "g" * 28])
def test_only_ids_become_names_of_files(journal: Journal, job_id: str) -> None:
    assert not is_job_id(job_id)
    assert journal.get(job_id) is None
    assert not journal.delete(job_id)


def _work(url: str, name: str, log: str) -> None:
    """Claim and complete whatever is free until nothing is; each completion that counts is a line of the log."""
    journal = Journal(url, lease_s=0.5)
    while journal.open_ids():
        for job in journal.waiting()[1]:
            claim = journal.claim(job.id, job.attempt + 1, name)
            if claim is None:
                continue
            time.sleep(0.003)
            is_first = journal.complete(claim, name.encode(), shown=SHOWN, seconds_by_hop={})
            with open(log, "a") as file:
                file.write(json.dumps([job.id, name, is_first]) + "\n")
        time.sleep(0.01)


def test_racing_and_killed_processes_do_each_job_once(tmp_path: Path) -> None:
    url, log = str(tmp_path / "journal"), tmp_path / "log"
    journal = Journal(url, lease_s=0.5)
    ids = [journal.submit(f"client {number % 3}", ORDER, SHOWN)[0].id for number in range(150)]
    workers = [PROCESSES.Process(target=_work, args=(url, f"w{number}", str(log))) for number in range(4)]
    for worker in workers:
        worker.start()
    while not log.exists() or len(log.read_text().splitlines()) < 20:
        time.sleep(0.01)
    for worker in workers[:2]:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    for worker in workers:
        worker.join(60)
    assert journal.waiting() == ([], [])
    assert {job.status for job_id in ids if (job := journal.get(job_id))} == {"completed"}
    assert all(journal.get(job_id) is not None for job_id in ids)
    ended = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("true]")]
    assert len({job_id for job_id, _, _ in ended}) == len(ended)
    # A kill between the end of a job and the log's line leaves a job without a line.
    assert len(ended) >= len(ids) - 2


def _same_key(url: str, start: float, answers: Any) -> None:
    journal = Journal(url, lease_s=1.0)
    time.sleep(max(0.0, start - time.time()))
    answers.put([journal.submit("ada", ORDER, SHOWN, idempotency_key=f"key {number}") for number in range(20)])


def test_one_key_at_a_time_from_many_processes_is_one_job(tmp_path: Path) -> None:
    url, answers = str(tmp_path / "journal"), PROCESSES.Queue()
    start = time.time() + 3
    clients = [PROCESSES.Process(target=_same_key, args=(url, start, answers)) for _ in range(3)]
    for client in clients:
        client.start()
    given = [answers.get(timeout=60) for _ in clients]
    for client in clients:
        client.join(10)
    for number in range(20):
        jobs = [one[number] for one in given]
        assert len({job.id for job, _ in jobs}) == 1
        assert sum(is_new for _, is_new in jobs) == 1
    assert len(Journal(url, 1.0).open_ids()) == 20
