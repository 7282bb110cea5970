"""A whole run through Ray Data, Ray Train and DeepSpeed: what it learns and leaves. test_faults.py kills one."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finephys.telemetry import read_metrics
from finephys.training.checkpoint import list_checkpoints
from finephys.training.ray_trainer import run
from tests.training.made_clips import write_clips
from tests.training.tiny_stage import STAGE, tiny_config

ROOT = Path(__file__).parent.parent.parent
STEPS = 40
CORRUPT = 3


def _start(data: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.tiny_stage", str(data), str(output), str(STEPS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, corrupt=(CORRUPT,))
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run that nothing interrupted."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = _start(data, output)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert f"outcome {STEPS} True" in said
    assert "train rows: 12 clips = 11 + 1 failed" in said
    return output


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_learns_and_leaves_what_it_should(finished: Path) -> None:
    metrics = read_metrics(str(finished))
    trained = [line for line in metrics if line["split"] == "train"]
    assert [line["step"] for line in trained] == list(range(1, STEPS + 1))
    wanted = {"loss", "worst", "lr", "grad_norm", "seconds", "samples_per_s", "frames_per_s", "data_wait_share"}
    assert wanted | {"resident_mb", "time_s"} <= set(trained[0])
    for line in trained:
        phases = sum(line[f"seconds/{name}"] for name in ("wait", "forward", "backward", "optimizer"))
        assert 0 < phases <= line["seconds"]
    validated = {line["step"]: line["loss"] for line in metrics if line["split"] == "validation"}
    assert set(validated) == {0, 20, 40}
    assert validated[40] < validated[20] < validated[0]

    exported = load_file(finished / "pipeline" / "tiny" / "model.safetensors")
    assert exported["encoder.weight"].dtype == np.float16
    # The counter is no average: 40 steps, 40 passes.
    assert exported["num_seen"] == STEPS
    average = load_file(finished / "checkpoints" / f"step-{STEPS:08d}" / "average-rank0.safetensors")
    np.testing.assert_array_equal(exported["encoder.weight"], average["encoder.weight"].astype(np.float16))
    assert (finished / "loss.png").stat().st_size > 1000
    kept = list_checkpoints(str(finished))
    # The best, which a run that learns all the time has at its end, and the newest two.
    assert [checkpoint.step for checkpoint in kept] == [30, 40]
    assert [checkpoint.record["validation_loss"] for checkpoint in kept] == [None, validated[40]]
    assert not (finished / "ray_train").exists()


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_run_leaves_tensorboard_files_and_a_page(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    wanted = {line["step"]: line for line in read_metrics(str(finished)) if line["split"] == "train"}
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == list(range(5, STEPS + 1, 5))
    for event in losses:
        assert event.value == pytest.approx(wanted[event.step]["loss"], rel=1e-5)
    # By part: together they are the whole.
    parts = sorted(name for name in events.Tags()["scalars"] if name.startswith("train/grad_norm/"))
    assert parts == ["train/grad_norm/decoder", "train/grad_norm/encoder"]
    for step in range(5, STEPS + 1, 5):
        norms = [wanted[step][name.removeprefix("train/")] for name in parts]
        assert np.linalg.norm(norms) == pytest.approx(wanted[step]["grad_norm"], rel=1e-4)
    assert [event.step for event in events.Scalars("validation/loss")] == [0, 20, 40]

    page = (finished / "index.html").read_text()
    links = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert "curves.png" in links
    for link in links:
        assert (finished / link).is_file()
    assert "&#34;batch_size&#34;: 4" in page


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_corrupt_clip_is_listed_and_the_rest_trains(finished: Path) -> None:
    failures = [json.loads(line) for line in (finished / "failures-rows.jsonl").read_text().splitlines()]
    assert [failure["clip_id"] for failure in failures] == [f"train-{CORRUPT:03d}"]
    assert "video" in failures[0]["error"]


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_a_finished_run_started_again_says_so(data: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    outcome = run(tiny_config(str(data), str(finished), STEPS), STAGE)
    assert outcome.is_finished
    assert "is finished" in capsys.readouterr().err
    assert time.monotonic() - started < 5
