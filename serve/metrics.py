"""What is counted, under which names: in every process, and the same on Ray's metrics endpoint and on /metrics.

Path:    API and workers -> Prometheus -> cluster/serve-alerts.yaml, cluster/serve-dashboard.json
Units:   as the names say

Without Ray prometheus-client's registry is exposed at /metrics. With Ray each process reports to Ray too, whose agents
expose all of them, ten seconds late, as `ray_finephys_...`: there is one /metrics, but there may be several processes.
Queue and in-progress jobs are read from the journal, so every process tells the same.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from finephys.hops import HOPS

_PREFIX = "finephys_"
_FAST_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SLOW_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric without its prefix. A counter's name ends with _total."""

    kind: Literal["counter", "gauge", "histogram"]
    text: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: dict[str, Metric] = {
    "requests_total": Metric(kind="counter", text="HTTP requests answered.", labels=("route", "method", "status")),
    "request_seconds": Metric(
        kind="histogram", text="Time to answer an HTTP request.", labels=("route",), buckets=_FAST_S
    ),
    "refused_total": Metric(kind="counter", text="Requests refused at the door, by reason.", labels=("reason",)),
    "jobs_accepted_total": Metric(kind="counter", text="Jobs written to the journal."),
    "clips_total": Metric(kind="counter", text="Clips generated and published."),
    "failures_total": Metric(kind="counter", text="Jobs that ended without a clip, by code.", labels=("code",)),
    "retries_total": Metric(kind="counter", text="Attempts that broke and were given back."),
    "queue_jobs": Metric(kind="gauge", text="Jobs in the journal that have not ended."),
    "oldest_job_seconds": Metric(kind="gauge", text="Age of the oldest job that has not ended."),
    "batches_out": Metric(kind="gauge", text="Batches handed to workers and not back."),
    "ready": Metric(kind="gauge", text="1 once a worker has loaded the weights and done a denoising step."),
    "job_seconds": Metric(kind="histogram", text="From acceptance to the end of a job.", buckets=_SLOW_S),
    "hop_seconds": Metric(
        kind="histogram", text="Time of a batch in one hop: " + ", ".join(HOPS) + ".", labels=("hop",), buckets=_SLOW_S
    ),
    "batch_size": Metric(kind="histogram", text="Jobs generated together.", buckets=(1, 2, 4, 8, 16, 32)),
}


class Metrics:
    """The metrics of one process. on_ray: report to Ray's agents as well."""

    def __init__(self, *, on_ray: bool) -> None:
        self.registry = CollectorRegistry()
        self._own = {name: _own(name, metric, self.registry) for name, metric in METRICS.items()}
        self._rays = {name: _rays(name, metric) for name, metric in METRICS.items()} if on_ray else {}

    def count(self, name: str, **labels: str) -> None:
        """Add one to a counter."""
        self._labelled(name, labels).inc()
        if name in self._rays:
            self._rays[name].inc(1, tags=labels)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put a value into a histogram."""
        self._labelled(name, labels).observe(value)
        if name in self._rays:
            self._rays[name].observe(value, tags=labels)

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._own[name].set(value)
        if name in self._rays:
            self._rays[name].set(value)

    def exposition(self) -> bytes:
        """This process's metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _labelled(self, name: str, labels: dict[str, str]) -> Any:
        return self._own[name].labels(**labels) if labels else self._own[name]


class MeasuredRequests:
    """Counts and times what the API answers.

    Plain ASGI: Starlette's BaseHTTPMiddleware runs each request in a task of its own and passes its answer through a
    queue, which was half of a status call's time.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            # The route's pattern, so that there are as many time series as routes and not as requests.
            route = getattr(scope.get("route"), "path", "none")
            self.metrics.count("requests_total", route=route, method=scope["method"], status=str(status))
            self.metrics.observe("request_seconds", time.perf_counter() - started, route=route)


def exposed_names(*, on_ray: bool) -> set[str]:
    """Every name of a time series that Prometheus finds, the buckets' included."""
    names = set()
    for name, metric in METRICS.items():
        full = ("ray_" if on_ray else "") + _PREFIX + name
        names |= {full + part for part in ("_bucket", "_sum", "_count")} if metric.kind == "histogram" else {full}
    return names


def _own(name: str, metric: Metric, registry: CollectorRegistry) -> Any:
    kinds: dict[str, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
    more = {"buckets": metric.buckets} if metric.kind == "histogram" else {}
    return kinds[metric.kind](_PREFIX + name, metric.text, metric.labels, registry=registry, **more)


def _rays(name: str, metric: Metric) -> Any:
    from ray.util import metrics

    full = _PREFIX + name
    if metric.kind == "histogram":
        return metrics.Histogram(full, metric.text, boundaries=list(metric.buckets), tag_keys=metric.labels)
    kind = metrics.Counter if metric.kind == "counter" else metrics.Gauge
    return kind(full, metric.text, tag_keys=metric.labels)
