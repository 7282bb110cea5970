"""Alerts and dashboard speak of metrics that exist, and alert when they should."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serve.metrics import METRICS, exposed_names
from tests.needs import needs_programs

ROOT = Path(__file__).parents[2]
ALERTS, DASHBOARD = ROOT / "cluster" / "serve-alerts.yaml", ROOT / "cluster" / "serve-dashboard.json"
# What PromQL itself says, and labels that are in our metrics' names too.
_OWN = re.compile(r"\bray_finephys_\w+|\bfinephys_\w+")


def _queries() -> dict[str, str]:
    """Panel or alert -> its query."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = {
        f"{panel['title']} {target['refId']}": target["expr"] for panel in panels for target in panel.get("targets", [])
    }
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return found | {rule["alert"]: rule["expr"] for rule in rules}


def test_every_query_names_existing_metrics_and_their_labels() -> None:
    names, asked = exposed_names(on_ray=True), set()
    for where, query in _queries().items():
        own = set(_OWN.findall(query))
        assert own, f"{where} asks for nothing of ours"
        assert own <= names, f"{where} asks for {sorted(own - names)}, which nobody exposes"
        asked |= own
        labels = {label for name in own for label in METRICS[_base(name)].labels} | {"le"}
        used = set(re.findall(r"(\w+)=~?\"", query))
        used |= {one.strip() for group in re.findall(r"by \(([^)]*)\)", query) for one in group.split(",")}
        assert used <= labels, f"{where} asks for labels {sorted(used - labels)}"
    # Whatever is measured is shown.
    assert {_base(name) for name in asked} == set(METRICS)


def _base(name: str) -> str:
    plain = name.removeprefix("ray_").removeprefix("finephys_")
    return plain if plain in METRICS else re.sub(r"_(bucket|sum|count)$", "", plain)


@needs_programs("promtool")
def test_prometheus_accepts_alerts_and_panels(tmp_path: Path) -> None:
    _promtool("check", "rules", str(ALERTS))
    # A panel's query is put into a rule, which is checked the same way.
    queries = [query.replace("$__rate_interval", "5m") for query in _queries().values()]
    rules = [{"record": f"panel_{number}", "expr": query} for number, query in enumerate(queries)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    _promtool("check", "rules", str(path))


@needs_programs("promtool")
def test_alerts_fire_when_they_should_and_not_else() -> None:
    _promtool("test", "rules", str(ROOT / "tests" / "cluster" / "serve-alerts-test.yaml"))


def _promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    assert program is not None
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.fail(done.stdout + done.stderr)
