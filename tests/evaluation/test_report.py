"""The page escapes what it is told, links to what is there, and its numbers are the means of the clips'."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from finephys.evaluation.report import mean_measures, write_report
from finephys.generation.manifest import publish


def _measures(generated: float | None) -> dict[str, dict[str, float | None]]:
    return {"pck_0.1_box": {"generated": generated, "source": 1.0}}


def _entry(output: Path, clip_id: str, files: list[str], **changes: Any) -> dict[str, Any]:
    def write(folder: Path) -> None:
        for name in files:
            (folder / name).write_bytes(b"x")

    entry = {
        "request_sha256": "0",
        "clip_id": clip_id,
        "sample": 0,
        "label_name": "backflip",
        "split": "test",
        "prompt": "A gymnast jumps.",
        "measures": _measures(0.5),
    }
    return publish(output, f"{clip_id}-0", {**entry, **changes}, write)


def _links(page: str) -> set[str]:
    return set(re.findall(r'(?:src|href)="([^"#]+)"', page))


def test_texts_are_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    entry = _entry(tmp_path, "a", ["sheet.png"], prompt=evil, label_name=evil)
    page = write_report(tmp_path, [entry], settings={"pipeline": evil}).read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3


def test_every_link_is_relative_and_exists(tmp_path: Path) -> None:
    training = tmp_path / "run"
    training.mkdir()
    (training / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    (training / "loss.png").write_bytes(b"x")
    files = ["generated.mp4", "source.mp4", "sheet.png", "hops.gif", "generated.gif"]
    entries = [_entry(tmp_path, "whole", files), _entry(tmp_path, "bare", ["generated.mp4", "sheet.png"])]
    (tmp_path / "clips" / "bare-0" / "sheet.png").unlink()
    links = _links(write_report(tmp_path, entries, training=training).read_text())
    assert {f"clips/whole-0/{name}" for name in files} <= links
    assert "loss.png" in links
    assert "clips/bare-0/sheet.png" not in links
    for link in links:
        assert (tmp_path / link).is_file(), link


def test_numbers_are_means_over_the_clips_that_know_them(tmp_path: Path) -> None:
    entries = [
        _entry(tmp_path, "a", [], measures=_measures(0.5)),
        _entry(tmp_path, "b", [], measures=_measures(0.75)),
        _entry(tmp_path, "c", [], measures=_measures(None)),
    ]
    means = mean_measures(entries)
    assert means["pck_0.1_box"]["mean"] == {"generated": 0.625, "source": 1.0}
    assert "mpjpe_root_mm" not in means
    page = write_report(tmp_path, entries).read_text()
    assert "0.625" in page
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["measures"]["pck_0.1_box"]["mean"]["generated"] == 0.625
    assert [clip["clip_id"] for clip in numbers["clips"]] == ["a", "b", "c"]


def test_training_is_told_as_before_and_after(tmp_path: Path) -> None:
    training = tmp_path / "run"
    training.mkdir()
    lines = [{"step": 0, "split": "validation", "loss": 2.0}]
    lines += [{"step": step, "split": "train", "loss": 3.0 if step <= 10 else 1.5} for step in range(1, 101)]
    lines += [{"step": 100, "split": "validation", "loss": 1.0}]
    (training / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path, [], training=training).read_text()
    told = json.loads((tmp_path / "metrics.json").read_text())["training"]
    assert (told["steps"], told["first_validation_loss"], told["last_validation_loss"]) == (100, 2.0, 1.0)
    assert (told["first_train_loss"], told["last_train_loss"]) == (3.0, 1.5)
    assert "-50.0%" in page
    assert "loss.png" not in page
    assert "before it" not in page


def test_training_is_told_with_the_runs_before_it(tmp_path: Path) -> None:
    training = tmp_path / "run"
    (training / "pipeline").mkdir(parents=True)
    (training / "metrics.jsonl").write_text('{"step": 1, "split": "train", "loss": 1.0}\n')
    runs = [
        {"stage": "frames", "steps": 7, "validation": [{"step": 0, "loss": 9.0}]},
        {"stage": "joint", "steps": 200, "validation": [{"step": 0, "loss": 4.5}]},
        {"stage": "joint", "steps": 700, "validation": [{"step": 0, "loss": 3.0}]},
        {"stage": "joint", "steps": 1, "validation": []},
    ]
    (training / "pipeline" / "training.json").write_text(json.dumps({"history": runs}))
    page = write_report(tmp_path, [], training=training).read_text()
    assert "The 900 steps before it had begun at 4.5." in page


def test_a_report_without_training_or_clips_is_still_a_page(tmp_path: Path) -> None:
    page = write_report(tmp_path, []).read_text()
    assert page.startswith("<!doctype html>")
    assert _links(page) == {"metrics.json"}


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write_report(tmp_path, [_entry(tmp_path, "a", ["sheet.png"])]).read_text()
    assert "//" not in re.sub(r"<!doctype html>", "", page)


@pytest.mark.parametrize("name", ["index.html", "metrics.json"])
def test_a_second_report_replaces_the_first(tmp_path: Path, name: str) -> None:
    write_report(tmp_path, [])
    first = (tmp_path / name).read_text()
    write_report(tmp_path, [_entry(tmp_path, "a", ["sheet.png"])])
    assert (tmp_path / name).read_text() != first
    assert not list(tmp_path.glob(".writing*"))
