"""A service on this machine with a Ray of its own: `serve run`, its HTTP, and its processes to kill.

Path:    settings -> `serve run` -> http://127.0.0.1:PORT
Units:   second

The service is code that finephys/ does not import (style.md 1); it is started as a person starts it.
"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
_TOKENS_VARIABLE = "FINEPHYS_SERVE_TOKENS"
# As Ray calls them: the process that answers HTTP for Serve, the one that keeps replicas alive, the replicas.
PROXY, CONTROLLER = "ray::ProxyActor", "ray::ServeController"
WORKER, INGRESS = "ray::ServeReplica:finephys:Worker", "ray::ServeReplica:finephys:Ingress"


class LocalService:
    """`serve run` in a process of its own, which `start` may be told again after `kill`."""

    def __init__(self, folder: Path, settings: dict[str, Any], token_of_client: dict[str, str]) -> None:
        """folder: for its configuration and log.  settings: serve/settings.py."""
        self.folder = folder
        self.tokens = token_of_client
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # The one that ships, but for its address and settings.
        config = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text())
        config["http_options"] = {"host": "127.0.0.1", "port": self.port}
        config["applications"][0]["args"] = settings
        (folder / "service.yaml").write_text(yaml.safe_dump(config))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; `wait_until_ready` when it is wanted."""
        environment = {
            **os.environ,
            # A Ray of its own, whatever else runs here.
            "RAY_ADDRESS": "local",
            # Ray's processes otherwise give way to everything else on the machine.
            "RAY_worker_niceness": "0",
            # Serve's controller looks at everything ten times a second otherwise: a twentieth of a core with all that
            # it asks.
            "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
            # Five seconds are not enough on a busy machine.
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            _TOKENS_VARIABLE: ",".join(f"{client}:{token}" for client, token in self.tokens.items()),
        }
        command = [str(Path(sys.executable).with_name("serve")), "run", str(self.folder / "service.yaml")]
        with open(self.folder / "service.log", "ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # A shell may have told us to ignore Ctrl-C, which `stop` sends.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Until /readyz says so. Raises TimeoutError with the end of the log.

        On a busy machine Ray may give up on its own start: then it is started again, as whoever runs a head does.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                self.start()
            try:
                if Client(self, None).call("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise TimeoutError(f"not ready in {timeout_s:g} s:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "service.log").read_text(errors="replace")

    def processes(self, kind: str = "") -> list[psutil.Process]:
        """Its processes, Ray's among them, whose command begins with `kind`."""
        if self._process is None:
            return []
        try:
            family = psutil.Process(self._process.pid)
            found = [family, *family.children(recursive=True)]
            return [one for one in found if _command(one).startswith(kind)]
        except psutil.NoSuchProcess:
            return []

    def deploy(self, settings: dict[str, Any]) -> None:
        """`serve deploy` of other settings onto what runs. Raises RuntimeError with what it says where it is refused.

        The log names the dashboard that takes it, anew at each start.
        """
        config = yaml.safe_load((self.folder / "service.yaml").read_text())
        config["applications"][0]["args"] = settings
        changed = self.folder / "changed.yaml"
        changed.write_text(yaml.safe_dump(config))
        dashboard = re.findall(r"dashboard at \S*?(127\.0\.0\.1:\d+)", self.log())[-1]
        command = [str(Path(sys.executable).with_name("serve")), "deploy", str(changed)]
        done = subprocess.run(
            [*command, "--address", f"http://{dashboard}"],
            cwd=ROOT,
            # A Ray that starts in its own process wants a token from everybody; who only calls must be told of it.
            env={**os.environ, "RAY_AUTH_MODE": "token"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"serve deploy: {done.stderr[-3000:]}")

    def stop(self, patience_s: float = 30.0) -> None:
        """As Ctrl-C does; what is left after so long is killed."""
        if self._process is None:
            return
        family = self.processes()
        self._process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s)
        _kill(family)
        self._process = None

    def kill(self) -> None:
        """The whole machine at once: the head, its workers, `serve run` itself."""
        _kill(self.processes())
        if self._process is not None:
            self._process.wait()
            self._process = None


@contextmanager
def running(service: LocalService) -> Iterator[LocalService]:
    """The service, ready, and stopped at the end."""
    service.start()
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


class Client:
    """One connection that stays open, of one client (None: without a token)."""

    def __init__(self, service: LocalService, client: str | None) -> None:
        self.service = service
        self.headers = {} if client is None else {"Authorization": f"Bearer {service.tokens[client]}"}
        # How long the last answer asked to wait before the next look at the same job.
        self.poll_after_s: float | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status, and the answer's JSON (its bytes where it is none). Raises OSError where nobody answers."""
        headers = dict(self.headers)
        content = None
        if body is not None:
            content, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        try:
            self._connection.request(method, path, content, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise OSError(f"{method} {path}: {error!r}") from error
        poll_after_ms = answer.headers.get("openai-poll-after-ms")
        self.poll_after_s = None if poll_after_ms is None else float(poll_after_ms) / 1000
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(text) if is_json else text


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)
