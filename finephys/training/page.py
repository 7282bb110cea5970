"""The page that a finished run leaves: its curves, its samples and its configuration.

Path:    OUTPUT/{metrics.jsonl, samples/} -> OUTPUT/{index.html, curves.png}
Letters: none
Units:   as the metrics' names say

The page links to nothing outside OUTPUT, and every text is escaped.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from finephys.config import TrainConfig, as_json, config_hash
from finephys.data import storage
from finephys.telemetry import read_metrics

SAMPLES_FOLDER = "samples"
_TEMPLATE = Path(__file__).parent.parent / "assets" / "training.html"
# Numbers of a line that are no terms of the loss.
_NO_TERMS = {"step", "lr", "grad_norm", "seconds", "time_s", "samples_per_s", "frames_per_s", "data_wait_share"}
_NO_TERMS |= {"resident_mb", "gpu_peak_mb"}
Line = Mapping[str, Any]


def write_page(config: TrainConfig) -> None:
    """Write index.html and curves.png into the run's output; nothing where it has no metrics."""
    lines = read_metrics(config.output)
    trained = [line for line in lines if line["split"] == "train"]
    validated = [line for line in lines if line["split"] == "validation"]
    if not trained:
        return
    storage.write_bytes(storage.join(config.output, "curves.png"), _curves(trained, validated))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=f"FinePhys: training {config.stage}",
        numbers=_numbers(trained, validated),
        samples=_samples(config.output),
        config=json.dumps(as_json(config), indent=2),
        config_hash=config_hash(config),
    )
    storage.write_bytes(storage.join(config.output, "index.html"), page.encode())


def _numbers(trained: Sequence[Line], validated: Sequence[Line]) -> list[dict[str, str]]:
    """The few numbers at the top: medians of the second half of the run, which no start-up slows."""
    late = trained[len(trained) // 2 :]

    def median(name: str) -> float:
        return float(np.median([line[name] for line in late]))

    shown = [{"value": str(trained[-1]["step"]), "meaning": "optimizer steps"}]
    if len(validated) > 1:
        first, last = validated[0]["loss"], validated[-1]["loss"]
        shown.append({"value": f"{first:.4g} → {last:.4g}", "meaning": "validation loss, fixed batches and noise"})
    shown += [
        {"value": f"{median('samples_per_s'):.3g}", "meaning": "samples a second"},
        {"value": f"{median('frames_per_s'):.3g}", "meaning": "frames a second"},
        {"value": f"{median('data_wait_share'):.1%}", "meaning": "of the time waiting for data"},
        {
            "value": f"{max(line['resident_mb'] for line in trained):.0f} MB",
            "meaning": "resident memory of rank 0, most",
        },
    ]
    return shown


def _samples(output: str) -> list[dict[str, Any]]:
    """The sample videos by step, the newest first, as links relative to the output."""
    folder = storage.join(output, SAMPLES_FOLDER)
    return [
        {
            "step": int(Path(of_step).name.removeprefix("step-")),
            "videos": [
                {"name": Path(url).stem, "path": f"{SAMPLES_FOLDER}/{Path(of_step).name}/{Path(url).name}"}
                for url in storage.list_files(of_step, ".mp4")
            ],
        }
        for of_step in reversed(storage.list_folders(folder))
    ]


def _curves(trained: Sequence[Line], validated: Sequence[Line]) -> bytes:
    """A PNG of six plots over the optimizer steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted({name for line in trained for name, value in line.items() if isinstance(value, float)})
    terms = [name for name in names if "/" not in name and name not in _NO_TERMS]
    plots: dict[str, list[str]] = {
        "loss by term": terms,
        "gradient norm by part": ["grad_norm", *(name for name in names if name.startswith("grad_norm/"))],
        "seconds of a step": ["seconds", *(name for name in names if name.startswith("seconds/"))],
        "samples and frames a second": ["samples_per_s", "frames_per_s"],
        "memory in MB": [name for name in ("resident_mb", "gpu_peak_mb") if name in names],
        "learning rate": ["lr"],
    }
    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, shown) in zip(figure.subplots(3, 2).flat, plots.items(), strict=True):
        positive = True
        for name in shown:
            steps, values = _series(trained, name)
            positive &= bool((values > 0).all())
            axes.plot(steps, _smoothed(values), linewidth=1.2, label=name.partition("/")[2] or name)
            if name in terms and validated and name in validated[0]:
                axes.plot(*_series(validated, name), "o", markersize=4, color=axes.lines[-1].get_color())
        axes.set_title(title + (", dots: validation" if shown is terms and validated else ""))
        axes.set_xlabel("optimizer step")
        if positive and title not in ("memory in MB", "learning rate"):
            axes.set_yscale("log")
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _series(lines: Sequence[Line], name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    known = [line for line in lines if name in line]
    return np.array([line["step"] for line in known]), np.array([line[name] for line in known], float)


def _smoothed(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Running median over a fortieth of the run: a step's loss is mostly the luck of its noise level."""
    window = max(1, len(values) // 80)
    return np.array([np.median(values[max(0, at - window) : at + window + 1]) for at in range(len(values))])
