"""`ray job submit -- python jobs/train.py` against a running head with token authentication, as on a cluster."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from finephys.telemetry import read_metrics

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
STEPS = 16


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The dashboard's address of a head that wants a token, and the environment of a client that has it."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(16))
    port = _free_port()
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=4"]
    # All ports its own: another Ray on this machine holds the default ones.
    ports = [f"--port={_free_port()}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    ports += [f"--dashboard-agent-listen-port={_free_port()}", f"--metrics-export-port={_free_port()}"]
    # Unix sockets below it: their paths must stay short.
    folder = f"/tmp/finephys-{os.getpid()}"
    process = subprocess.Popen(
        [*command, *ports, "--object-store-memory=500000000", f"--temp-dir={folder}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            assert process.poll() is None, "the head ended"
            assert time.monotonic() < deadline, "the head did not come up"
            time.sleep(0.5)
        address = f"http://127.0.0.1:{port}"
        # The dashboard answers before the agent that starts jobs does.
        while _ray_job(address, environment, "submit", "--", "true").returncode:
            assert time.monotonic() < deadline, "the head takes no jobs"
        yield address, environment
    finally:
        # Told to end, it takes half a minute.
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _ray_job(address: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / "ray"), "job", arguments[0], "--address", address, *arguments[1:]]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def _training(output: Path) -> list[str]:
    return [
        "--runtime-env", "jobs/runtime_env.yaml", "--working-dir", ".", "--",
        "python", "jobs/train.py", "demo", "--stage", "vae", "--init", "None", "--steps", str(STEPS), "--batch-size",
        "1", "--checkpoint-every", "1", "--rows.train-clips", "8", "--rows.validation-clips", "2",
        "--output", str(output),
    ]  # fmt: skip


@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_submitted_training_runs_on_the_cluster(head: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    address, environment = head
    output = tmp_path / "run"

    def job(*arguments: str) -> subprocess.CompletedProcess[str]:
        return _ray_job(address, environment, *arguments)

    # Let go of, looked after, and stopped in the middle ...
    submitted = job("submit", "--submission-id", "train-1", "--no-wait", *_training(output))
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    deadline = time.monotonic() + 150
    while len(list((output / "checkpoints").glob("*/checkpoint.json"))) < 2:
        assert time.monotonic() < deadline, job("logs", "train-1").stdout[-3000:]
        time.sleep(0.1)
    stopped = job("stop", "train-1")
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    assert "stopped" in job("status", "train-1").stdout.lower()
    assert "rows: 8 clips = 8 + 0 failed" in job("logs", "train-1").stdout
    assert not (output / "pipeline").exists()

    # ... and taken up again by the same command.
    submitted = job("submit", "--submission-id", "train-2", *_training(output))
    assert submitted.returncode == 0, submitted.stdout[-3000:] + submitted.stderr[-3000:]
    assert "finephys: continuing " in submitted.stdout
    assert f"{STEPS} of {STEPS} steps, finished" in submitted.stdout
    assert "succeeded" in job("status", "train-2").stdout
    trained = [line["step"] for line in read_metrics(str(output)) if line["split"] == "train"]
    assert trained == [*range(1, STEPS + 1)]
    assert (output / "pipeline" / "vae" / "config.json").is_file()

    stranger = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    stranger["RAY_AUTH_TOKEN"] = "not the token"
    assert _ray_job(address, stranger, "status", "train-2").returncode != 0
