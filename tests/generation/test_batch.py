"""A batch is complete, unique and the same to the byte, whoever is killed on the way."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from finephys.data.clips import Clip, read_shard
from finephys.data.video import decode_video
from finephys.generation.batch import BatchSettings, GenerateClip, item_of, plan_tasks, watched
from finephys.generation.table import staged_table
from tests.generation.conftest import NUM_CLIPS
from tests.simulated_nodes import SimulatedNodes

ROOT = Path(__file__).parents[2]


def _command(pipeline: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        sys.executable, "jobs/generate.py", "dataset", "--pipeline", str(pipeline), "--data", str(data),
        "--output", str(output), "--num-inference-steps", "2", "--clips-per-shard", "4", *more,
    ]  # fmt: skip


def _run(pipeline: Path, data: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = _command(pipeline, data, output, *more)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)


def _hashes(output: Path) -> dict[str, str]:
    files = [path for path in output.rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _wait_for(condition, what: str, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"no {what} in {timeout_s} s"
        time.sleep(0.05)


RECIPE = ("--looks-per-clip", "3", "--clips-per-class", "9", "--num-frames", "8")


@pytest.fixture(scope="module")
def undisturbed(tiny_pipeline: Path, driving_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of what RECIPE gives when nobody is killed."""
    output = tmp_path_factory.mktemp("undisturbed") / "output"
    whole = _run(tiny_pipeline, driving_data, output, *RECIPE)
    assert whole.returncode == 0, whole.stderr
    return _hashes(output)


@pytest.mark.ray
@pytest.mark.timeout(500)
def test_whoever_is_killed_the_output_is_the_same(
    tiny_pipeline: Path,
    driving_data: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A killed node is missed after seconds, not half a minute.
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    nodes = SimulatedNodes(num_cpus=3)
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    output = tmp_path / "killed"

    def wait_for_clips(num_clips: int) -> None:
        parts = output / "parts"
        wanted = len(list(parts.glob("*.parquet"))) + num_clips
        _wait_for(lambda: len(list(parts.glob("*.parquet"))) >= wanted, "clip")

    driver = subprocess.Popen(
        _command(tiny_pipeline, driving_data, output, *RECIPE, "--min-actors", "2", "--max-actors", "2"),
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        wait_for_clips(2)
        nodes.processes("GenerateClip")[0].kill()
        wait_for_clips(2)
        nodes.kill_node_of(nodes.processes("GenerateClip")[0])
        wait_for_clips(1)
        driver.kill()
        driver.wait()
        assert not (output / "manifest.jsonl").exists()
        again = _run(tiny_pipeline, driving_data, output, *RECIPE)
    finally:
        driver.kill()
        nodes.cluster.shutdown()
    assert again.returncode == 0, again.stderr
    assert _hashes(output) == undisturbed

    # Complete and unique, and a record like any other: its ground truth is what was drawn.
    entries = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert len({entry["clip_id"] for entry in entries}) == len(entries) == 3 * NUM_CLIPS
    clips = [clip for path in sorted(output.glob("*.parquet")) for clip in read_shard(path)]
    assert [clip.clip_id for clip in clips] == [entry["clip_id"] for entry in entries]
    assert len({clip.video for clip in clips}) == len(clips)
    for clip in clips:
        _check_record(clip)
        # Eight frames over twenty at 30 fps.
        assert clip.fps == pytest.approx(30 * 7 / 19)

    # Nothing is left to do, and another batch does not mix with this one.
    assert _run(tiny_pipeline, driving_data, output, *RECIPE).returncode == 0
    assert _hashes(output) == undisturbed
    other = _run(tiny_pipeline, driving_data, output, "--looks-per-clip", "2")
    assert other.returncode == 2
    assert "is of another batch" in other.stderr


def test_a_clip_that_takes_its_process_down_is_given_up(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = BatchSettings(
        pipeline=str(tiny_pipeline), pipeline_sha256="0" * 64, num_frames=8, num_inference_steps=1, guidance_scale=1.0,
        pose_guidance_scale=1.0, reference="none", min_pck=None, max_jump=None, max_seeds=1, format="shards",
        clips_per_shard=4, min_actors=1, max_actors=1, cpus_per_actor=1.0, gpus_per_actor=0.0, threads=1,
        max_attempts=2, stall_minutes=1.0,
    )  # fmt: skip
    rows = staged_table(
        classes=("20",), performers=1, cameras=1, looks_per_clip=1, seeds_per_look=3, seed=0,
    )  # fmt: skip
    tasks = plan_tasks(rows, settings, "")
    actor = GenerateClip(settings, str(tmp_path))
    # The first task was begun twice by processes that died of it, the second once.
    for task, num_deaths in zip(tasks, (2, 1, 0), strict=True):
        for _ in range(num_deaths):
            actor._begin_attempt(task.clip_id)
    outcomes = actor(pa.Table.from_pylist([item_of(task, "") for task in tasks])).to_pylist()
    assert [outcome["error"] for outcome in outcomes] == ["its process died 2 times", None, None]
    assert [path.stem for path in (tmp_path / "failed").iterdir()] == [tasks[0].clip_id]
    assert {path.stem for path in (tmp_path / "parts").iterdir()} == {task.clip_id for task in tasks[1:]}


@pytest.mark.ray
def test_failures_are_listed_and_too_many_are_an_error(tiny_pipeline: Path, driving_data: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("clip,seed\nsway-1,0\nsway-broken,0\nsway-2,1\n")
    arguments = ("--requests", str(table), "--reference", "first", "--format", "mp4", "--num-frames", "8")
    # An untrained detector finds nobody: with a gate, every clip fails after its seeds.
    gated = _run(tiny_pipeline, driving_data, tmp_path / "gated", *arguments, "--min-pck", "1", "--max-seeds", "2")
    assert gated.returncode == 1
    assert "3 of 3 clips failed" in gated.stderr
    assert "is below min_pck 1.0 in the last of 2 seeds" in (tmp_path / "gated" / "failures.jsonl").read_text()
    assert not (tmp_path / "gated" / "clips").exists()

    output = tmp_path / "output"
    done = _run(tiny_pipeline, driving_data, output, *arguments, "--max-failed-share", "0.5")
    assert done.returncode == 0, done.stderr
    (failure,) = [json.loads(line) for line in (output / "failures.jsonl").read_text().splitlines()]
    assert failure["clip_id"].startswith("sway-broken-")
    assert "video" in failure["error"]
    videos = sorted((output / "clips").glob("*.mp4"))
    assert [path.name.rsplit("-", 1)[0] for path in videos] == ["sway-1", "sway-2"]
    assert decode_video(videos[0]).frames_THWC.shape == (8, 64, 64, 3)
    # Each with its ground truth beside it.
    truth = np.load(videos[0].with_suffix(".npz"), allow_pickle=False)
    assert truth["joints_px"].shape == (8, 17, 2)
    assert truth["joints_cam_m"].shape == (8, 17, 3)
    page = (output / "index.html").read_text()
    assert page.count("<video") == 2
    assert "mean of 2 clips" in page
    assert "A gymnast sways, number 1." in page


@pytest.mark.ray
def test_a_recipe_of_choreographed_elements(tiny_pipeline: Path, tmp_path: Path) -> None:
    output = tmp_path / "staged"
    recipe = ("--classes", "split jump", "20", "--performers", "2", "--cameras", "2", "--seeds-per-look", "2")
    # What is found again in noise jumps, and an untrained detector's joints less than this.
    done = _run(tiny_pipeline, tmp_path / "none", output, *recipe, "--num-frames", "8", "--max-jump", "1")
    assert done.returncode == 0, done.stderr
    entries = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]
    assert len({entry["clip_id"] for entry in entries}) == len(entries) == 2 * 2 * 2 * 2
    assert all(0 < entry["jump_of_box"] <= 1 for entry in entries)
    assert {entry["staging"]["label"] for entry in entries} == {12, 20}
    clips = [clip for path in sorted(output.glob("*.parquet")) for clip in read_shard(path)]
    assert {(clip.label, clip.performer) for clip in clips} == {
        (label, f"staged-{performer}") for label in (12, 20) for performer in range(2)
    }
    for clip in clips:
        _check_record(clip)
    # Seeds share a motion, cameras do not.
    by_motion = {clip.joints_cam_m.tobytes() for clip in clips if clip.joints_cam_m is not None}
    assert len(by_motion) == 2 * 2 * 2
    assert len({clip.video for clip in clips}) == len(clips)


def _check_record(clip: Clip) -> None:
    assert (clip.num_frames, clip.split) == (8, "train")
    assert clip.joints_cam_m is not None
    assert clip.intrinsics is not None
    projected = clip.joints_cam_m @ clip.intrinsics.transpose(0, 2, 1)
    assert clip.joints_px == pytest.approx(projected[..., :2] / projected[..., 2:], abs=1e-2)
    assert clip.rotation is not None
    assert np.abs(clip.rotation @ clip.rotation.transpose(0, 2, 1) - np.eye(3)).max() < 1e-5


def test_the_watchdog_complains_and_then_stops() -> None:
    complaints: list[float] = []

    def stalls() -> Iterator[dict[str, str]]:
        yield {"clip_id": "a"}
        time.sleep(5)

    watching = watched(stalls(), 0.4 / 60, complaints.append)
    assert next(watching) == {"clip_id": "a"}
    with pytest.raises(RuntimeError, match="no clip was done"):
        next(watching)
    assert 2 <= len(complaints) <= 5
    assert list(watched(iter([{"clip_id": "a"}]), 1.0, complaints.append)) == [{"clip_id": "a"}]

    def breaks() -> Iterator[dict[str, str]]:
        raise OSError("gone")
        yield {}

    with pytest.raises(OSError, match="gone"):
        list(watched(breaks(), 1.0, complaints.append))
