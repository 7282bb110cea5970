"""jobs/train.py on what users get wrong: one line on stderr, exit code 2, no worker started, nothing left behind."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray

from finephys.config import as_json
from finephys.data import storage
from finephys.data.clips import VERSION_KEY
from finephys.recipes import demo
from tests.training.made_clips import write_clips

ROOT = Path(__file__).parent.parent.parent

# (arguments, what the one line must say); {data} has both splits, {tmp} is empty, {bad} has an unknown schema,
# {run} holds the checkpoint of a run of the recipe demo, stage vae, on {data}.
MISTAKES = {
    "unknown recipe": (["dmeo", "--stage", "vae"], "unknown recipe 'dmeo', wanted one of demo, sd15_one_node"),
    "two recipes": (["demo", "sd15_one_node", "--stage", "vae"], "sd15_one_node"),
    "unknown stage": (["--stage", "vea"], "--stage is 'vea', wanted one of vae, pose2d"),
    "unknown field": (["--stage", "vae", "--stpes", "3"], "--stpes"),
    "field of another stage": (["--stage", "vae", "--module.joint-jitter-px", "2"], "--module.joint-jitter-px"),
    "no number": (["--stage", "vae", "--steps", "many"], "--steps"),
    "no steps": (["--stage", "vae", "--steps", "0"], "steps is 0, wanted at least 1"),
    "no data": (["--stage", "vae", "--data", "{tmp}/nothing"], "data folder {tmp}/nothing does not exist"),
    "no shard": (["--stage", "vae", "--data", "{tmp}"], "holds no *.parquet shard"),
    "empty split": (["--stage", "vae", "--data", "{data}", "--rows.train-split", "val"], "no clip in split 'val'"),
    "unknown schema": (
        ["--stage", "vae", "--data", "{bad}"],
        "has clip schema version 7, this program reads version 1",
    ),
    "no init": (["--stage", "vae", "--data", "{data}", "--init", "{tmp}/nothing"], "init {tmp}/nothing does not exist"),
    "init without parts": (["--stage", "joint", "--data", "{data}", "--init", "{data}"], "holds no part"),
    "no lifter": (["--stage", "physics"], "stage physics needs --init: a pipeline folder with lifter"),
    "no GPU": (["sd15_one_node", "--stage", "vae", "--data", "{data}", "--num-workers", "99"], "use_gpu is True"),
    "offload without ZeRO": (["--stage", "vae", "--zero.offload-optimizer", "--zero.stage", "0"], "zero.stage is 0"),
    "output is a file": (["--stage", "vae", "--data", "{data}", "--output", "{data}/test-00.parquet"], "is a file"),
    "checkpoint of another model": (
        ["--stage", "vae", "--data", "{data}", "--output", "{run}", "--module.latent-noise", "0.5"],
        "output {run} holds a checkpoint of another configuration (module.latent_noise: ",
    ),
    "ranks that do not share the batch": (
        ["--stage", "vae", "--data", "{data}", "--output", "{run}", "--num-workers", "3"],
        "output {run} holds a checkpoint of another configuration (global batch: 4 -> 12)",
    ),
    "unknown storage": (["--stage", "vae", "--data", "gs://bucket"], "has scheme 'gs'"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("mistakes")
    for name in ("data", "bad"):
        write_clips(root / name, num_train=2, num_test=1)
    (root / "tmp").mkdir()
    shard = root / "bad" / "train-00.parquet"
    pq.write_table(pq.read_table(shard).replace_schema_metadata({VERSION_KEY: b"7"}), shard)
    config = replace(demo("vae"), data=str(root / "data"))
    record = {"step": 10, "config": as_json(config), "world_size": 1, "zero_stage": 1}
    storage.write_bytes(f"{root}/run/checkpoints/step-00000010/checkpoint.json", json.dumps(record).encode())
    return {name: str(root / name) for name in ("data", "bad", "tmp", "run")}


def _run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", *arguments])
    with pytest.raises(SystemExit) as leaving:
        runpy.run_path(str(ROOT / "jobs" / "train.py"), run_name="__main__")
    return int(leaving.value.code or 0)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(
    mistake: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, wanted = MISTAKES[mistake]
    arguments = [argument.format(**places) for argument in arguments]
    if "--output" not in arguments:
        arguments += ["--output", f"{places['tmp']}/run"]
    assert _run(arguments, monkeypatch) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert wanted.format(**places) in said[0]
    assert not ray.is_initialized()
    assert list(Path(places["tmp"]).iterdir()) == []


def test_as_a_program_without_a_traceback(tmp_path: Path) -> None:
    """Once for real: what the other cases cannot see is noise that imports make."""
    process = subprocess.run(
        [sys.executable, "jobs/train.py", "--stage", "pose2d", "--data", str(tmp_path / "nothing")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == f"finephys: data folder {tmp_path}/nothing does not exist\n"


@pytest.mark.parametrize("recipe", ["demo", "sd15_one_node", "sd15_multi_node"])
def test_dry_run_tells_what_would_be(
    recipe: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [recipe, "--stage", "vae", "--dry-run", "--data", places["data"], "--output", f"{places['tmp']}/run"]
    # A batch that the recipe does not have shows that the command line was heard.
    assert _run([*arguments, "--batch-size", "5"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert '"batch_size": 5' in said
    assert "vae: 0.5" in said
    assert "global batch    " in said
    assert all(f"ZeRO {zero_stage}: " in said for zero_stage in range(4))
    assert said.count(", this run") == 1
    assert list(Path(places["tmp"]).iterdir()) == []


def test_help_shows_recipes_examples_and_the_stages_own_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(["demo", "--stage", "vae", "--help"], monkeypatch) == 0
    said = capsys.readouterr().out
    assert "--module.latent-noise" in said
    assert "sd15_multi_node --stage joint" in said
    assert "--optimizer.lr" in said
