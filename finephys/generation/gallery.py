"""The page about a generated data set: how many clips of what, what failed, and a few to look at.

Path:    OUTPUT/manifest.jsonl, shards or mp4 -> OUTPUT/index.html
Units:   none
"""

import base64
import html
import json
import os
import random
from collections import Counter
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from finephys.data import storage

NUM_SHOWN = 12

_STYLE = (
    "body{font:16px system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    ".clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem}"
    "video{width:100%;image-rendering:pixelated}figure{margin:0}figcaption{font-size:.8rem;overflow-wrap:anywhere}"
    "td{padding:.1rem 1rem .1rem 0}"
)


def write_gallery(output: str) -> str:
    """Write OUTPUT/index.html from the lists and the clips there, a random few shown; returns its URL."""
    entries = _lines(storage.join(output, "manifest.jsonl"))
    failures = _lines(storage.join(output, "failures.jsonl"))
    shown = random.Random(0).sample(entries, min(NUM_SHOWN, len(entries)))
    figures = "".join(_figure(output, entry) for entry in shown)
    scores = [entry["pck_0.1_box"] for entry in entries if "pck_0.1_box" in entry]
    facts = {
        "clips": len(entries),
        "failures": len(failures),
        "prompts": len({e["request"]["prompt"] for e in entries}),
    }
    if scores:
        facts["PCK@0.1 of the box, mean"] = round(sum(scores) / len(scores), 3)
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


def _figure(output: str, entry: dict[str, Any]) -> str:
    video = base64.b64encode(_video(output, entry)).decode()
    return (
        f"<figure><video autoplay loop muted playsinline src='data:video/mp4;base64,{video}'></video>"
        f"<figcaption>{html.escape(entry['request']['prompt'])}<br>{html.escape(entry['clip_id'])}</figcaption></figure>"
    )


def _video(output: str, entry: dict[str, Any]) -> bytes:
    url = storage.join(output, *entry["file"].split("/"))
    if os.path.splitext(url)[1] == ".mp4":
        return storage.read_bytes(url)
    filesystem, path = storage.open_filesystem(url)
    with filesystem.open_input_file(path) as source:
        table = pq.read_table(source, columns=["video"], filters=pc.field("clip_id") == entry["clip_id"])
    return bytes(table["video"][0].as_py())


def _table(rows: Any) -> str:
    return "".join(f"<tr><td>{html.escape(str(name))}<td>{html.escape(str(value))}" for name, value in rows)


def _lines(url: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]
