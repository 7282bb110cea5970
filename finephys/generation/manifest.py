"""The manifest: one JSON line for each clip that is done.

Path:    generated clip -> folder published by rename -> manifest line
Units:   none

The line comes last: what has a line is complete. A later line about the same folder replaces an earlier one.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST_NAME = "manifest.jsonl"
CLIPS_FOLDER = "clips"
_WRITING_PREFIX = ".writing-"


def read_manifest(output: Path) -> dict[str, dict[str, Any]]:
    """The latest line about each clip folder, by the folder's name, in the order in which the clips were done.

    A last line that a killed run left unfinished is no line. Raises ValueError on any other broken line.
    """
    path = output / MANIFEST_NAME
    entries: dict[str, dict[str, Any]] = {}
    # What follows the last line break is empty, or a line that a killed run left unfinished.
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            folder = str(entry["folder"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: not a manifest line: {line[:60]!r}") from None
        entries.pop(folder, None)
        entries[folder] = entry
    return entries


def is_done(output: Path, entries: Mapping[str, Mapping[str, Any]], folder_name: str, request_sha256: str) -> bool:
    """Whether this very request has its line and all the files that the line names."""
    entry = entries.get(folder_name)
    if entry is None or entry["request_sha256"] != request_sha256:
        return False
    return all((output / CLIPS_FOLDER / folder_name / name).is_file() for name in entry["files"])


def publish(output: Path, folder_name: str, entry: Mapping[str, Any], write: Callable[[Path], None]) -> dict[str, Any]:
    """Let `write` fill a folder, publish it by rename under clips/folder_name, then append its line.

    entry: what the line says beside `folder` and `files`.  Returns the whole line.
    Whenever this is killed, the output holds a complete clip or none, and at most a hidden leftover.
    """
    clips = output / CLIPS_FOLDER
    clips.mkdir(parents=True, exist_ok=True)
    writing, final = clips / f"{_WRITING_PREFIX}{folder_name}", clips / folder_name
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        write(writing)
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    files = sorted(path.name for path in writing.iterdir())
    shutil.rmtree(final, ignore_errors=True)
    os.replace(writing, final)
    whole_entry = {"folder": folder_name, "files": files, **entry}
    _append_line(output / MANIFEST_NAME, json.dumps(whole_entry))
    return whole_entry


def _append_line(path: Path, line: str) -> None:
    with open(path, "a+b") as file:
        file.seek(0)
        num_whole_bytes = file.read().rfind(b"\n") + 1
        file.truncate(num_whole_bytes)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
