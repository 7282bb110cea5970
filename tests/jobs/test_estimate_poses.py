"""The job on a Ray of its own, twice: the second run has nothing to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finephys.data.clips import read_shard, write_shard


@pytest.mark.ray
def test_a_run_fills_shards_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    clips = list(read_shard("finephys/assets/clips/test-00000.parquet"))[:2]
    for number, clip in enumerate(clips):
        write_shard([clip], tmp_path / f"in-{number}.parquet")
    command = [
        sys.executable,
        "jobs/estimate_poses.py",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
        "--actor-cpus",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for wanted in ("done: 2 clips", "2 of 2 sources are done already"):
        done = subprocess.run([*command, "0.5"], env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
        assert wanted in done.stdout
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2


def test_bad_options_are_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/estimate_poses.py", str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("finephys:")
