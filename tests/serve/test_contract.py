"""Schemathesis reads the OpenAPI document and asks for what it allows, and for what it does not."""

import re
import subprocess
import sys
import time
from pathlib import Path

from serve.settings import Settings, Tokens
from tests.serve.conftest import TOKENS, Service, served

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_nothing_that_can_be_asked_breaks_the_service(settings: Settings, tmp_path: Path) -> None:
    roomy = settings.model_copy(update={"max_queue": 10**5, "max_queue_per_client": 10**5, "max_steps": 20})
    service = Service(roomy.model_copy(update={"max_requests_per_minute": 10**6}), Tokens(TOKENS))
    # Fuzzing what the document forbids fails in Schemathesis 4.32 itself, on a file in a form; its coverage phase asks
    # for the forbidden all the same.
    (tmp_path / "schemathesis.toml").write_text('[phases.fuzzing.generation]\nmode = "positive"\n')
    with served(service) as url:
        while not service.dispatcher.is_ready:
            time.sleep(0.05)
        # What is accepted is not generated: that is other tests' matter, and takes time.
        service.is_paused = True
        command = [
            str(Path(sys.executable).with_name("st")), "run", f"{url}/openapi.json", "--url", url, "--no-color",
            "--header", f"Authorization: Bearer {TOKENS['ada']}", "--max-examples", "12", "--seed", "1",
            "--checks", CHECKS,
        ]  # fmt: skip
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    # Jobs came about: the service did not only refuse.
    (accepted,) = re.findall(
        r"^finephys_jobs_accepted_total (\S+)", service.metrics.exposition().decode(), re.MULTILINE
    )
    assert float(accepted) >= 2
