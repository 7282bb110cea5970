"""What clusters do to a run: on simulated nodes, everything that can be killed is, and the run is as if nothing was."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from finephys.data import storage
from finephys.data.clips import write_shard
from finephys.diffusion.vae import VAEConfig, build_vae
from finephys.telemetry import read_metrics
from finephys.training.checkpoint import list_checkpoints
from tests.data.faulty_proxy import FaultyProxy, faulty_s3
from tests.simulated_nodes import SimulatedNodes
from tests.training.made_clips import make_clip

ROOT = Path(__file__).parents[2]
STEPS = 60
NUM_CLIPS = 24


@pytest.fixture(scope="module")
def proxy() -> Iterator[FaultyProxy]:
    with faulty_s3("runs") as proxy:
        yield proxy


@pytest.fixture(scope="module")
def nodes(proxy: FaultyProxy) -> Iterator[SimulatedNodes]:
    with pytest.MonkeyPatch.context() as patch:
        # A killed node is missed after seconds, not half a minute.
        patch.setenv("RAY_health_check_period_ms", "1000")
        nodes = SimulatedNodes(num_cpus=6)
        yield nodes
        nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Shards and a pipeline folder with a VAE."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "clips").mkdir()
    clips = [make_clip(number, "train", 16) for number in range(NUM_CLIPS)]
    for shard in range(4):
        write_shard(clips[shard::4], folder / "clips" / f"train-{shard:02d}.parquet")
    write_shard([make_clip(number, "test", 16) for number in range(4)], folder / "clips" / "test-00.parquet")
    build_vae(VAEConfig()).half().save_pretrained(folder / "init" / "vae")
    return str(folder / "clips"), str(folder / "init")


def _start(nodes: SimulatedNodes, inputs: tuple[str, str], output: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.faulty_stage", *inputs, output, str(STEPS), *more],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": nodes.cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _wait_for_step(step: int, output: str, driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not [found for found in list_checkpoints(output) if found.step >= step]:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline, f"no checkpoint of step {step}"
        time.sleep(0.2)


def _steps_and_weights(output: str) -> tuple[list[tuple[int, str, float]], dict[str, np.ndarray]]:
    lines = [(x["step"], x["split"], x["loss"]) for x in read_metrics(output) if x["split"] != "checkpoint"]
    folder = storage.join(output, f"checkpoints/step-{STEPS:08d}/average-rank0.safetensors")
    return lines, load(storage.read_bytes(folder))


@pytest.mark.ray
@pytest.mark.timeout(900)
def test_whatever_is_killed_the_run_is_as_if_nothing_was(
    nodes: SimulatedNodes, proxy: FaultyProxy, inputs: tuple[str, str], tmp_path: Path
) -> None:
    """Value for value the same losses and weights: no step is lost or done twice, no clip seen twice or left out."""
    undisturbed = str(tmp_path / "undisturbed")
    driver = _start(nodes, inputs, undisturbed)
    said, _ = driver.communicate(timeout=300)
    assert f"outcome {STEPS} True" in said, said

    output = "s3://runs/disturbed"
    driver = _start(nodes, inputs, output)
    _wait_for_step(10, output, driver)
    nodes.processes("RayTrainWorker")[0].kill()

    _wait_for_step(20, output, driver)
    nodes.processes("MakeFeatures")[0].kill()

    _wait_for_step(30, output, driver)
    proxy.seen.clear()
    proxy.faults = ["500"] * 100_000
    time.sleep(8)
    proxy.faults = []
    assert proxy.seen["500"], "nobody asked the storage"

    _wait_for_step(40, output, driver)
    # The spare.
    nodes.add_node()
    nodes.kill_node_of(nodes.processes("RayTrainWorker")[0])

    _wait_for_step(50, output, driver)
    driver.kill()
    driver.communicate()
    while nodes.processes("RayTrainWorker"):
        time.sleep(0.2)
    driver = _start(nodes, inputs, output)
    said, _ = driver.communicate(timeout=300)
    assert "continuing" in said
    assert f"outcome {STEPS} True" in said, said

    lines, weights = _steps_and_weights(output)
    wanted_lines, wanted_weights = _steps_and_weights(undisturbed)
    assert lines == wanted_lines
    assert [step for step, split, _ in lines if split == "train"] == list(range(1, STEPS + 1))
    assert set(weights) == set(wanted_weights)
    for name, value in wanted_weights.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_batch_that_is_not_finite_ends_the_run_by_name(
    nodes: SimulatedNodes, inputs: tuple[str, str], tmp_path: Path
) -> None:
    driver = _start(nodes, inputs, str(tmp_path / "nan"), "train-005")
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 1
    last = said.strip().splitlines()[-1]
    assert "loss is nan at step" in last
    assert "on rank" in last
    assert "train-005" in last
    # Not tried again: the same batch would come.
    assert not list_checkpoints(str(tmp_path / "nan"))
    trained = [json.dumps(line) for line in read_metrics(str(tmp_path / "nan")) if line["split"] == "train"]
    assert all("NaN" not in line for line in trained)
