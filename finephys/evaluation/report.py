"""The report: metrics.json, and an index.html that a person opens.

Path:    manifest entries of generated clips + metrics of the training run -> one folder to look at
Units:   as finephys/evaluation/video.py names them

The folder is self-contained: every link is relative and goes to a file that exists. Every text is escaped.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from finephys.evaluation.video import MEASURES
from finephys.generation.manifest import CLIPS_FOLDER, MANIFEST_NAME
from finephys.telemetry import read_history, read_metrics

_TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"
_TITLE = "FinePhys: generated clips"
_INTRODUCTION = (
    "A gymnast's movement is detected in 2D, lifted to 3D, re-estimated with the Euler-Lagrange equations, fused, and "
    "projected back to guide a video diffusion model."
)
_HOPS = (
    "decode",
    "2D pose",
    "3D pose S_dd",
    "physics S_pp",
    "fuse",
    "project",
    "heatmaps",
    "guidance",
    "3D-UNet",
    "video",
)
Entry = Mapping[str, Any]


def write_report(
    output: Path, entries: Sequence[Entry], *, training: Path | None = None, settings: Mapping[str, Any] | None = None
) -> Path:
    """Write output/metrics.json and output/index.html about the clips of `entries`; returns the page's path.

    entries: manifest lines (finephys/generation/manifest.py) with clip_id, sample, prompt, label_name, split and
    measures.  training: the output folder of the training run, whose metrics.jsonl and loss.png are shown.
    settings: what is said at the foot of the page.  A reader sees the old files or the new ones, never a part.
    """
    curve = _training(output, training)
    measures = mean_measures(entries)
    numbers = {
        "measures": measures,
        "training": curve,
        "clips": [
            {name: entry.get(name) for name in ("clip_id", "sample", "label_name", "prompt", "measures")}
            for entry in entries
        ],
        "settings": dict(settings or {}),
    }
    _replace(output / "metrics.json", json.dumps(numbers, indent=2) + "\n")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        title=_TITLE,
        introduction=_INTRODUCTION,
        hops=[{"name": hop, "is_physics": "physics" in hop} for hop in _HOPS],
        headline=_headline(measures, curve, len(entries)),
        clips=[_clip(output, entry) for entry in entries],
        tables=_tables(measures),
        curve=curve and {"sentence": _sentence(curve), "picture": "loss.png" if curve["has_picture"] else None},
        footer=[f"{name}: {value}" for name, value in (settings or {}).items()],
        files=[name for name in ("metrics.json", MANIFEST_NAME) if (output / name).is_file()],
    )
    _replace(output / "index.html", page)
    return output / "index.html"


def mean_measures(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Each measure's meaning and its means over the clips in which it is known, by column."""
    means: dict[str, dict[str, Any]] = {}
    for key, measure in MEASURES.items():
        columns: dict[str, float | None] = {}
        num_clips = 0
        for column in measure.columns:
            known = [(entry.get("measures") or {}).get(key, {}).get(column) for entry in entries]
            values = [float(value) for value in known if value is not None]
            columns[column] = sum(values) / len(values) if values else None
            num_clips = max(num_clips, len(values))
        if num_clips:
            means[key] = {"meaning": measure.meaning, "unit": measure.unit, "num_clips": num_clips, "mean": columns}
    return means


def _training(output: Path, training: Path | None) -> dict[str, Any] | None:
    """Loss before and after, from the run's metrics.jsonl; its loss.png is copied into the report."""
    lines = [] if training is None else read_metrics(str(training))
    trained = [line for line in lines if line["split"] == "train"]
    if training is None or not trained:
        return None
    validated = [line["loss"] for line in lines if line["split"] == "validation"]
    picture = training / "loss.png"
    has_picture = picture.is_file()
    if has_picture and picture.resolve() != (output / "loss.png").resolve():
        writing = output / ".writing-loss.png"
        shutil.copyfile(picture, writing)
        os.replace(writing, output / "loss.png")
    # A tenth of the run at either end: the loss of one step is mostly the luck of its noise level.
    share = max(1, len(trained) // 10)
    losses = [float(line["loss"]) for line in trained]
    # The last is the run itself.
    runs = read_history(str(training / "pipeline"))
    before = [run for run in runs[:-1] if run["stage"] == runs[-1]["stage"] and run["validation"]]
    return {
        "steps": int(trained[-1]["step"]),
        "steps_before": sum(run["steps"] for run in before),
        "validation_loss_before": float(before[0]["validation"][0]["loss"]) if before else None,
        "first_train_loss": sum(losses[:share]) / share,
        "last_train_loss": sum(losses[-share:]) / share,
        "first_validation_loss": float(validated[0]) if validated else None,
        "last_validation_loss": float(validated[-1]) if len(validated) > 1 else None,
        "has_picture": has_picture,
    }


def _sentence(curve: Mapping[str, Any]) -> str:
    text = f"{curve['steps']} optimizer steps. "
    if curve["last_validation_loss"] is not None:
        text += (
            f"On held-out clips with fixed noise the loss went from {curve['first_validation_loss']:.4g} "
            f"to {curve['last_validation_loss']:.4g}. "
        )
    if curve["validation_loss_before"] is not None:
        text += f"The {curve['steps_before']} steps before it had begun at {curve['validation_loss_before']:.4g}. "
    return text + (
        f"Training loss, mean of the first and of the last tenth: {curve['first_train_loss']:.4g}, "
        f"{curve['last_train_loss']:.4g}."
    )


def _clip(output: Path, entry: Entry) -> dict[str, Any]:
    folder = f"{CLIPS_FOLDER}/{entry['folder']}"
    present = [f"{folder}/{name}" for name in entry["files"] if (output / folder / name).is_file()]

    def link(name: str) -> str | None:
        path = f"{folder}/{name}"
        return path if path in present else None

    badges = [entry["split"]] if entry.get("split") else []
    videos = [{"name": "source", "path": link("source.mp4")}, {"name": "generated", "path": link("generated.mp4")}]
    return {
        "anchor": entry["folder"],
        "title": entry.get("label_name") or entry["clip_id"],
        "prompt": entry["prompt"],
        "badges": [*badges, *([entry["clip_id"]] if entry.get("label_name") else []), f"sample {entry['sample']}"],
        "videos": [video for video in videos if video["path"]],
        "animation": link("hops.gif"),
        "sheet": link("sheet.png"),
        "downloads": present,
    }


def _headline(measures: Mapping[str, Any], curve: Mapping[str, Any] | None, num_clips: int) -> list[dict[str, str]]:
    """The few numbers at the top of the page."""
    shown = [{"value": str(num_clips), "meaning": "clips generated"}]
    pck = measures.get("pck_0.1_box")
    if pck and pck["mean"]["generated"] is not None:
        source = pck["mean"]["source"]
        meaning = "joints follow the guidance" + ("" if source is None else f" (in the source video: {source:.0%})")
        shown.append({"value": f"{pck['mean']['generated']:.0%}", "meaning": meaning})
    mpjpe = measures.get("mpjpe_root_mm")
    if mpjpe and mpjpe["mean"]["fused"] is not None:
        shown.append({"value": f"{mpjpe['mean']['fused']:.0f} mm", "meaning": "3D error of the fused pose"})
    if curve and curve["last_validation_loss"] is not None and curve["first_validation_loss"]:
        change = curve["last_validation_loss"] / curve["first_validation_loss"] - 1
        shown.append({"value": f"{change:+.1%}", "meaning": "validation loss over this training run"})
    return shown


def _tables(measures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table for each set of columns, so that a number stands under what it was measured on."""
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, measured in measures.items():
        measure = MEASURES[key]
        values = [measured["mean"][column] for column in measure.columns]
        row = {
            "name": measure.name + (f" ({measure.unit})" if measure.unit else ""),
            "meaning": f"{measure.meaning} {measured['num_clips']} clips.",
            "values": ["not known" if value is None else f"{value:.{measure.digits}f}" for value in values],
        }
        tables.setdefault(measure.columns, []).append(row)
    return [{"columns": columns, "rows": rows} for columns, rows in tables.items()]


def _replace(path: Path, text: str) -> None:
    writing = path.with_name(f".writing-{path.name}")
    writing.write_text(text, encoding="utf-8")
    os.replace(writing, path)
