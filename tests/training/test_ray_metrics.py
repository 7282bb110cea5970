"""A line of metrics as Prometheus sees it at the node's agent."""

import time
from urllib.request import urlopen

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from finephys.training.ray_metrics import PrometheusGauges

LINE = {
    "step": 30,
    "split": "train",
    "loss": 0.5,
    "physics": 0.25,
    "lr": 1e-3,
    "grad_norm": 2.0,
    "grad_norm/phys_net": 1.5,
    "seconds": 1.25,
    "seconds/wait": 0.125,
    "resident_mb": 1.0,
    "time_s": 1e9,
}
# (gauge, its label) -> value.
WANTED = {
    ("step", None): 30.0,
    ("loss", "loss"): 0.5,
    ("loss", "physics"): 0.25,
    ("learning_rate", None): 1e-3,
    ("gradient_norm", None): 2.0,
    ("part_gradient_norm", "phys_net"): 1.5,
    ("seconds", "wait"): 0.125,
    ("resident_bytes", None): 2.0**20,
}


@pytest.mark.ray
def test_every_number_has_its_gauge() -> None:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        _system_config={"metrics_report_interval_ms": 500},
    )
    try:
        PrometheusGauges(1)({"step": 99})
        PrometheusGauges(0)(LINE)
        (node,) = ray.nodes()
        seen: dict[tuple[str, str | None], float] = {}
        deadline = time.monotonic() + 60
        while len(seen) < len(WANTED) and time.monotonic() < deadline:
            time.sleep(0.5)
            seen = _gauges(f"http://127.0.0.1:{node['MetricsExportPort']}")
    finally:
        ray.shutdown()
    assert seen == WANTED


def _gauges(url: str) -> dict[tuple[str, str | None], float]:
    """The gauges of training at an agent's metrics port."""
    with urlopen(url) as response:
        text = response.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("ray_finephys_train_")
            if name != sample.name:
                labels = [sample.labels[label] for label in ("part", "phase", "term") if label in sample.labels]
                found[name, labels[0] if labels else None] = sample.value
    return found
