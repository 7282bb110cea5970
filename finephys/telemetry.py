"""The metrics of a run as lines of JSON and as TensorBoard files, and their curves.

Path:    loop -> OUTPUT/{metrics.jsonl, tensorboard/} -> loss.png, reports
Letters: none
Units:   as the names say

metrics.jsonl: one object a line; "split" is train (every step), validation, or checkpoint (what writing it took).
Lines beyond the checkpoint that a run resumes from are dropped, so every step stands in the file once.
"""

import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finephys.data import storage

# Beside the weights of an exported pipeline folder.
RECORD = "training.json"
METRICS_NAME = "metrics.jsonl"


class MetricsLog:
    """Appends metrics to OUTPUT/metrics.jsonl. Local files grow by every append; object stores get the whole file at
    each publish, because their objects cannot grow. Nothing is kept in memory: runs are long.
    """

    def __init__(self, output: str, first_step: int, *, is_writer: bool) -> None:
        """first_step: optimizer steps done before; lines beyond it are dropped.  is_writer: false on ranks but 0."""
        self.url = storage.join(output, METRICS_NAME)
        self.is_writer = is_writer
        if not is_writer:
            return
        kept = [line for line in read_metrics(output) if line["step"] <= first_step] if first_step else []
        storage.write_bytes(self.url, "".join(json.dumps(line) + "\n" for line in kept).encode())
        if storage.is_local(self.url):
            self.file = storage.local_path(self.url)
        else:
            self.scratch = tempfile.TemporaryDirectory(prefix="finephys-metrics-")
            self.file = Path(self.scratch.name) / METRICS_NAME
            self.file.write_bytes(storage.read_bytes(self.url))

    def append(self, metrics: list[dict[str, Any]]) -> None:
        if self.is_writer:
            with open(self.file, "a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in metrics))

    def publish(self) -> None:
        """Make what was appended visible and lasting."""
        if not self.is_writer:
            return
        if storage.is_local(self.url):
            with open(self.file, "rb") as file:
                os.fsync(file.fileno())
        else:
            storage.write_bytes(self.url, self.file.read_bytes())


class TensorBoardLog:
    """Writes numbers to OUTPUT/tensorboard/, a file a start; on object stores it appears at each publish."""

    def __init__(self, output: str, first_step: int, *, is_writer: bool) -> None:
        """first_step: optimizer steps done before; TensorBoard hides what an earlier start wrote beyond it."""
        self.url = storage.join(output, "tensorboard")
        self.is_writer = is_writer
        if not is_writer:
            return
        # Two seconds of imports that only the writer pays.
        from torch.utils.tensorboard import SummaryWriter

        if storage.is_local(self.url):
            self.folder = storage.local_path(self.url)
        else:
            self.scratch = tempfile.TemporaryDirectory(prefix="finephys-tensorboard-")
            self.folder = Path(self.scratch.name)
        self.writer = SummaryWriter(str(self.folder), purge_step=first_step + 1)

    def append(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl: each number under SPLIT/NAME."""
        if self.is_writer:
            for name, value in line.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{line['split']}/{name}", value, line["step"], walltime=line["time_s"])

    def publish(self) -> None:
        """Make what was appended visible and lasting."""
        if self.is_writer:
            self.writer.flush()
            if not storage.is_local(self.url):
                storage.upload_folder(self.folder, self.url)


def read_metrics(output: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; [] if there is none. A last line cut off by a kill is left out."""
    url = storage.join(output, METRICS_NAME)
    if not storage.exists(url):
        return []
    lines = []
    for text in storage.read_bytes(url).decode().splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def read_history(url: str | None) -> list[dict[str, Any]]:
    """The runs that trained the pipeline folder at `url`, the first of them first; [] where that is not known.

    Each is {stage, steps, validation}, the last a list of {step, loss, ...}: its lines of metrics.jsonl on held-out
    clips.
    """
    record_url = None if url is None else storage.join(url, RECORD)
    if record_url is None or not storage.exists(record_url):
        return []
    # Folders of before there was a history have none.
    return list(json.loads(storage.read_bytes(record_url)).get("history", []))


def plot_losses(output: str, before: Sequence[Mapping[str, Any]] = ()) -> None:
    """Draw OUTPUT/loss.png: the minimised loss of each step, its running median, and validation.

    before: the runs that this one goes on from (read_history); their validation comes first.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = read_metrics(output)
    trained = [line for line in metrics if line["split"] == "train"]
    validated = [line for line in metrics if line["split"] == "validation"]
    if not trained:
        return
    before = [run for run in before if run["validation"]]
    figure = Figure(figsize=(11 if before else 7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + bool(before), sharey=True, squeeze=False)[0]
    if before:
        steps_before = 0
        for run in before:
            _plot_validation(panels[0], run["validation"], steps_before)
            steps_before += run["steps"]
        panels[0].set_title(f"before this run: {steps_before} steps")
        panels[0].set_xlabel("optimizer step")
        panels[-1].set_title("this run")
    axes = panels[-1]
    steps = np.array([line["step"] for line in trained])
    losses = np.array([line["loss"] for line in trained])
    axes.plot(steps, losses, color="0.8", linewidth=0.8, label="training, each step")
    window = max(1, len(losses) // 40)
    medians = [np.median(losses[max(0, index - window) : index + window + 1]) for index in range(len(losses))]
    axes.plot(steps, medians, color="tab:blue", label=f"training, median of {2 * window + 1}")
    if validated:
        _plot_validation(axes, validated)
    axes.set_xlabel("optimizer step")
    panels[0].set_ylabel("loss")
    if losses.min() > 0:
        axes.set_yscale("log")
    axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    storage.write_bytes(storage.join(output, "loss.png"), buffer.getvalue())


def _plot_validation(axes: Any, lines: Sequence[Mapping[str, Any]], first_step: int = 0) -> None:
    """The loss on held-out batches and, where it has such a term, what of it is denoising's."""
    steps = [first_step + line["step"] for line in lines]
    labels = {
        "loss": ("tab:orange", "validation, fixed batches and noise"),
        "denoise": ("tab:green", "its denoising term"),
    }
    for name, (color, label) in labels.items():
        if name in lines[0]:
            axes.plot(steps, [line[name] for line in lines], "o-", color=color, label=label)
