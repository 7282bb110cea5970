"""jobs/build_shards.py on a small copy of FineGym: exact frames, nothing lost, the same bytes whatever is killed."""

import hashlib
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from finephys.data.clips import read_shard
from finephys.data.finegym import read_poses
from finephys.data.video import decode_video
from tests.data.finegym_copy import ELEMENTS, UNANNOTATED, VIDEOS, clip_id, pyskl, write_copy
from tests.data.numbered import number_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_copy(tmp_path_factory.mktemp("finegym"))


def _command(files: dict[str, Path], output: Path, *more: str) -> list[str]:
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    return [sys.executable, "jobs/build_shards.py", *options, "--output", str(output), "--height", "32", *more]


def _run(files: dict[str, Path], output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(files, output, *more), cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


def _hashes(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir()}


@pytest.mark.ray
def test_every_element_is_a_clip_or_a_failure(files: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "official"
    poses = tmp_path / "gym_hrnet.pkl"
    poses.write_bytes(pickle.dumps(pyskl()))
    options = ("--splits", "official", "--poses", str(poses))
    done = _run(files, output, *options)
    assert done.returncode == 0, done.stderr
    clips = {clip.clip_id: clip for path in sorted(output.glob("*.parquet")) for clip in read_shard(path)}
    assert set(clips) == {clip_id(0), clip_id(1), clip_id(4)}
    for number in (0, 1, 4):
        clip = clips[clip_id(number)]
        video, _, _, label, split, event_s, start_s, end_s = ELEMENTS[number]
        assert (clip.label, clip.split, clip.height, clip.width) == (label, split, 32, 32)
        fps = 30 if video == VIDEOS[0] else 25
        first = math.ceil((event_s + start_s) * fps)
        shown = [number_of(frame) for frame in decode_video(clip.video).frames_THWC]
        assert shown == list(range(first, first + round((end_s - start_s) * fps)))
    # PYSKL's file knows the first element only.
    joints_px, confidence = read_poses(poses)[clip_id(0)].at(30, 32, 32)
    np.testing.assert_array_equal(clips[clip_id(0)].joints_px, joints_px)
    np.testing.assert_array_equal(clips[clip_id(0)].joints_confidence, confidence)
    assert clips[clip_id(1)].joints_px is None

    failures = {one["clip_id"]: one["error"] for one in map(json.loads, (output / "failures.jsonl").open())}
    assert set(failures) == {clip_id(2), clip_id(5), clip_id(6), UNANNOTATED}
    assert "element has 6 frames, wanted 16 to 600" in failures[clip_id(2)]
    assert "nothing decodes at 18.500 s" in failures[clip_id(5)]
    assert failures[clip_id(6)] == f"video {VIDEOS[2]} is missing"
    summary = json.loads((output / "summary.json").read_text())
    assert summary["splits"] == {"train": 2, "val": 1}
    assert summary["missing_videos"] == [VIDEOS[2]]
    assert summary["official_leak"]["num_shared_videos"] == 2
    assert "the official splits share 2 of 3 videos and 2 of 3 routines" in done.stderr

    # Killed in the middle and run again: the same files.
    killed = tmp_path / "killed"
    command = _command(files, killed, *options, "--num-workers", "1")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    end = time.monotonic() + 90
    while not list(killed.glob("parts/*.parquet")):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "summary.json").exists()
    assert _run(files, killed, *options).returncode == 0
    assert _hashes(killed) == _hashes(output)

    other = _run(files, output)
    assert other.returncode == 2
    assert "is of another build: its splits is 'official', this one's 'by-video'" in other.stderr


def test_mistakes_are_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for changed, message in (
        ({"annotation": tmp_path / "nowhere.json"}, "annotation"),
        ({"videos": tmp_path / "nowhere"}, "videos folder"),
        ({"videos": empty}, "has none of the 3 videos"),
    ):
        done = _run(files | changed, tmp_path / "output")
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "output").exists()
