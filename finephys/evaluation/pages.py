"""A small page about one evaluation: its figures, its pictures and its videos.

Path:    figures, files in a folder -> output/index.html
Units:   none

Every text is escaped, every link relative.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import jinja2

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
pre{background:#f4f4f2;padding:1rem;overflow:auto}figure{display:inline-block;margin:.5rem}video,img{max-width:100%}
video{width:20rem}iframe{width:100%;height:34rem;border:1px solid #ccc}</style></head><body>
<h1>{{ title }}</h1>
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}<pre>{{ table }}</pre>
{% for frame in frames %}<iframe src="{{ frame }}" title="viewer"></iframe><p><a href="{{ frame }}">open alone</a></p>
{% endfor %}{% for picture in pictures %}<img src="{{ picture }}" alt="{{ picture }}">
{% endfor %}{% for caption, video in videos %}<figure><video src="{{ video }}" controls loop muted playsinline></video>
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}</body></html>
"""


def write_page(
    output: Path,
    *,
    title: str,
    table: str,
    notes: Sequence[str] = (),
    pictures: Sequence[str] = (),
    videos: Sequence[tuple[str, str]] = (),
    frames: Sequence[str] = (),
) -> Path:
    """Write output/index.html. pictures, frames: names of files in `output`; videos: (caption, name)."""
    output.mkdir(parents=True, exist_ok=True)
    page = (
        jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
        .from_string(_PAGE)
        .render(title=title, table=table, notes=notes, pictures=pictures, videos=videos, frames=frames)
    )
    replace(output / "index.html", page)
    return output / "index.html"


def replace(path: Path, text: str) -> None:
    """Publish `text` at `path`: a reader sees the old file or the new one."""
    writing = path.with_name(f".writing-{path.name}")
    writing.write_text(text, encoding="utf-8")
    os.replace(writing, path)
