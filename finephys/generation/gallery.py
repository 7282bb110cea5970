"""The page about a generated data set: how many clips of what, what failed, and a few to look at.

Path:    OUTPUT/manifest.jsonl, shards or mp4 -> OUTPUT/index.html
Units:   none
"""

import base64
import html
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from finephys.data import storage
from finephys.data.clips import Clip

NUM_SHOWN = 12

_MEASURES = {
    "pck_0.1_box": "PCK@0.1 of the box, guidance against what is found again",
    "jump_of_box": "jumps about the guidance from frame to frame, as a share of the box",
}
_STYLE = (
    "body{font:16px system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    ".clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem}"
    "video{width:100%;image-rendering:pixelated}figure{margin:0}figcaption{font-size:.8rem;overflow-wrap:anywhere}"
    "td{padding:.1rem 1rem .1rem 0}"
)


def write_gallery(output: str, pipeline: Path) -> str:
    """Write OUTPUT/index.html from the lists and the clips there, a random few shown and measured; returns its URL.

    pipeline: the folder whose 2D detector looks for the guidance in what is shown.
    """
    entries = _lines(storage.join(output, "manifest.jsonl"))
    failures = _lines(storage.join(output, "failures.jsonl"))
    shown = random.Random(0).sample(entries, min(NUM_SHOWN, len(entries)))
    clips = [_read(output, entry) for entry in shown]
    found = _found_again(pipeline, clips)
    figures = "".join(
        _figure(entry, video, measured) for entry, (video, _), measured in zip(shown, clips, found, strict=True)
    )
    facts: dict[str, object] = {
        "clips": len(entries),
        "failures": len(failures),
        "prompts": len({e["request"]["prompt"] for e in entries}),
    }
    # A gate measured every clip; without one, those that are shown are measured.
    measured = [entry for entry in entries if "pck_0.1_box" in entry] or [one for one in found if one]
    for name, text in _MEASURES.items():
        if measured:
            mean = sum(one[name] for one in measured) / len(measured)
            facts[f"{text}, mean of {len(measured)} clips"] = f"{mean:.3f}"
    reasons = Counter(failure["error"] for failure in failures).most_common(10)
    page = (
        f"<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<title>Generated clips</title><h1>Generated clips</h1><table>{_table(facts.items())}</table>"
        f"<h2>Some of them</h2><div class=clips>{figures}</div>"
    )
    if reasons:
        page += f"<h2>Failures</h2><table>{_table((error, count) for error, count in reasons)}</table>"
    url = storage.join(output, "index.html")
    storage.write_bytes(url, page.encode())
    return url


def _figure(entry: dict[str, Any], video: bytes, found: dict[str, float]) -> str:
    measured = f"<br>PCK {found['pck_0.1_box']:.2f}, jumps {found['jump_of_box']:.3f}" if found else ""
    return (
        "<figure><video autoplay loop muted playsinline "
        f"src='data:video/mp4;base64,{base64.b64encode(video).decode()}'></video>"
        f"<figcaption>{html.escape(entry['request']['prompt'])}<br>{html.escape(entry['clip_id'])}{measured}"
        "</figcaption></figure>"
    )


def _read(output: str, entry: dict[str, Any]) -> tuple[bytes, NDArray[np.float32]]:
    """A clip's mp4 and its joints_px (F,17,2)."""
    url = storage.join(output, *entry["file"].split("/"))
    if url.endswith(".mp4"):
        truth = np.load(io.BytesIO(storage.read_bytes(url.removesuffix(".mp4") + ".npz")), allow_pickle=False)
        return storage.read_bytes(url), truth["joints_px"]
    filesystem, path = storage.open_filesystem(url)
    with filesystem.open_input_file(path) as source:
        table = pq.read_table(source, filters=pc.field("clip_id") == entry["clip_id"])
    clip = Clip.from_row(table.to_pylist()[0])
    assert clip.joints_px is not None
    return clip.video, clip.joints_px


def _found_again(folder: Path, clips: list[tuple[bytes, NDArray[np.float32]]]) -> list[dict[str, float]]:
    """What a gate measures, of each; {} where the pipeline has no detector."""
    # torch and diffusers: seconds that whoever only plans need not wait for.
    from finephys.diffusion.pipeline import FinePhysPipeline
    from finephys.generation.record import found_again

    pipeline = FinePhysPipeline.from_pretrained(folder)
    if pipeline.pose_estimator is None:
        return [{} for _ in clips]
    return [found_again(pipeline, video, joints_px) for video, joints_px in clips]


def _table(rows: Any) -> str:
    return "".join(f"<tr><td>{html.escape(str(name))}<td>{html.escape(str(value))}" for name, value in rows)


def _lines(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]
