"""A run's metrics on Ray's Prometheus endpoint, as ray_finephys_train_...

Path:    loop -> rank 0's Ray agent -> Prometheus
Letters: none
Units:   as the names say

Every node's agent answers at its metrics port; those of the node with rank 0 tell of the run. Nothing goes to Ray Train
(ray.train.report): that waits on every rank for a controller that looks every two seconds, and cost 0.2 s each time.
"""

from typing import Any

from ray.util.metrics import Gauge

from finephys.hops import HOPS
from finephys.training.loop import PHASES

_PREFIX = "finephys_train_"

# Gauge -> (name in a line of metrics, factor, what it is).
_PLAIN = {
    "step": ("step", 1.0, "Optimizer steps done."),
    "learning_rate": ("lr", 1.0, "Learning rate of the newest step."),
    "samples_per_second": ("samples_per_s", 1.0, "Samples a second over all ranks."),
    "frames_per_second": ("frames_per_s", 1.0, "Video frames or poses a second over all ranks."),
    "data_wait_share": ("data_wait_share", 1.0, "Share of the step's time that rank 0 waited for its batch."),
    "gradient_norm": ("grad_norm", 1.0, "Norm of the gradient before clipping."),
    "resident_bytes": ("resident_mb", 2.0**20, "Resident memory of rank 0."),
    "gpu_peak_bytes": ("gpu_peak_mb", 2.0**20, "Most that rank 0 ever held on its GPU."),
}
# Gauge -> (label, prefix of the names in a line, what it is).
_LABELLED = {
    "part_gradient_norm": ("part", "grad_norm/", "Norm of the gradient of one part of the module."),
    "seconds": ("phase", "seconds/", f"Time of a step in {', '.join(PHASES)}; within forward in {', '.join(HOPS)}."),
}
# Neither a loss term nor under another gauge.
_NO_TERMS = {source for source, _, _ in _PLAIN.values()} | {"split", "seconds", "time_s"}


class PrometheusGauges:
    """report(metrics) of the loop: on rank 0 the gauges, on the others nothing."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        if rank == 0:
            self.plain = {name: Gauge(_PREFIX + name, text) for name, (_, _, text) in _PLAIN.items()}
            self.labelled = {
                name: Gauge(_PREFIX + name, text, tag_keys=(label,)) for name, (label, _, text) in _LABELLED.items()
            }
            self.terms = Gauge(_PREFIX + "loss", "One term of the loss, mean over the ranks.", tag_keys=("term",))

    def __call__(self, metrics: dict[str, Any]) -> None:
        """metrics: the newest line."""
        if self.rank != 0:
            return
        for name, (source, factor, _) in _PLAIN.items():
            if source in metrics:
                self.plain[name].set(factor * metrics[source])
        for source, value in metrics.items():
            for name, (label, prefix, _) in _LABELLED.items():
                if source.startswith(prefix):
                    self.labelled[name].set(value, tags={label: source.removeprefix(prefix)})
            if "/" not in source and source not in _NO_TERMS:
                self.terms.set(value, tags={"term": source})
