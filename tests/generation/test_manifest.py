"""What has a line is complete; whatever a killed run leaves behind is done again."""

from pathlib import Path

import pytest

from finephys.generation.manifest import is_done, publish, read_manifest


def _write(folder: Path) -> None:
    (folder / "generated.mp4").write_bytes(b"video")
    (folder / "sheet.png").write_bytes(b"sheet")


def test_done_is_a_line_for_this_request_and_all_its_files(tmp_path: Path) -> None:
    publish(tmp_path, "a-0", {"request_sha256": "1"}, _write)
    entries = read_manifest(tmp_path)
    assert is_done(tmp_path, entries, "a-0", "1")
    assert not is_done(tmp_path, entries, "a-0", "2")
    assert not is_done(tmp_path, entries, "b-0", "1")
    (tmp_path / "clips" / "a-0" / "sheet.png").unlink()
    assert not is_done(tmp_path, entries, "a-0", "1")


def test_a_later_line_replaces_an_earlier_one(tmp_path: Path) -> None:
    publish(tmp_path, "a-0", {"request_sha256": "1"}, _write)
    publish(tmp_path, "b-0", {"request_sha256": "1"}, _write)
    publish(tmp_path, "a-0", {"request_sha256": "2"}, lambda folder: (folder / "other").touch())
    entries = read_manifest(tmp_path)
    assert list(entries) == ["b-0", "a-0"]
    assert entries["a-0"]["request_sha256"] == "2"
    assert [path.name for path in (tmp_path / "clips" / "a-0").iterdir()] == ["other"]


def test_a_failure_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    publish(tmp_path, "a-0", {"request_sha256": "1"}, _write)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        publish(tmp_path, "a-0", {"request_sha256": "2"}, fail)
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["a-0"]
    assert is_done(tmp_path, read_manifest(tmp_path), "a-0", "1")


def test_a_line_cut_off_by_a_kill_is_no_line_and_is_overwritten(tmp_path: Path) -> None:
    publish(tmp_path, "a-0", {"request_sha256": "1"}, _write)
    with open(tmp_path / "manifest.jsonl", "a") as file:
        file.write('{"folder": "b-0", "requ')
    assert list(read_manifest(tmp_path)) == ["a-0"]
    publish(tmp_path, "c-0", {"request_sha256": "1"}, _write)
    assert list(read_manifest(tmp_path)) == ["a-0", "c-0"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="line 1: not a manifest line: 'nonsense'"):
        read_manifest(tmp_path)
