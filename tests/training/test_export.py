"""The exported pipeline folder: killed at whatever file, it counts as whole only where it is."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from finephys.config import TrainConfig, as_json, config_hash
from finephys.data import storage
from finephys.diffusion.pipeline import SAMPLED_SHARED_NOISE, write_model_index
from finephys.telemetry import RECORD, read_history
from finephys.training.checkpoint import Checkpoint, list_checkpoints
from finephys.training.export import export_pipeline, is_exported
from tests.training.tiny_stage import STAGE, TinyConfig, build, tiny_config


class _Killed(BaseException):
    """Passes every `except Exception`, as a signal would."""


def _checkpoint(config: TrainConfig, step: int, weight: float) -> Checkpoint:
    folder = Path(config.output) / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    state = {name: torch.full_like(value, weight) for name, value in build(TinyConfig(), None).state_dict().items()}
    save_file(state, folder / "average-rank0.safetensors")
    record = {"step": step, "config": as_json(config), "config_hash": config_hash(config)}
    shapes = {name: list(value.shape) for name, value in state.items()}
    record |= {"world_size": 1, "zero_stage": 1, "shapes": shapes}
    (folder / "checkpoint.json").write_text(json.dumps(record))
    return list_checkpoints(config.output)[-1]


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """A run from an init of two parts, of which it trains none: three files to copy beside its own."""
    for part in ("vae", "lifter", "text_encoder"):
        (tmp_path / "init" / part).mkdir(parents=True)
        (tmp_path / "init" / part / "config.json").write_text(part)
    return tiny_config("none", str(tmp_path / "run"), 20, init=str(tmp_path / "init"))


def test_the_index_keeps_how_much_noise_frames_share(config: TrainConfig, tmp_path: Path) -> None:
    assert config.init is not None
    init, url = Path(config.init), tmp_path / "pipeline"
    for part in ("unet", "tokenizer", "scheduler", "guidance_encoder"):
        (init / part).mkdir()
        (init / part / "config.json").write_text(part)
    checkpoint = _checkpoint(config, 10, 1.0)
    export_pipeline(checkpoint, config, STAGE, str(url))
    assert json.loads((url / "model_index.json").read_text())["shared_noise"] == SAMPLED_SHARED_NOISE
    write_model_index(init, shared_noise=0.25)
    export_pipeline(checkpoint, config, STAGE, str(url))
    assert json.loads((url / "model_index.json").read_text())["shared_noise"] == 0.25


def _encoder(url: str) -> float:
    return float(load_file(Path(url) / "tiny" / "model.safetensors")["encoder.weight"][0, 0])


def test_an_export_holds_what_it_started_from_and_what_was_trained(config: TrainConfig, tmp_path: Path) -> None:
    url = str(tmp_path / "pipeline")
    first = _checkpoint(config, 10, 1.0)
    export_pipeline(first, config, STAGE, url)
    assert sorted(path.name for path in Path(url).iterdir()) == ["lifter", "text_encoder", "tiny", RECORD, "vae"]
    assert is_exported(first, config, url)
    (Path(url) / "stray").touch()
    second = _checkpoint(config, 20, 2.0)
    assert not is_exported(second, config, url)
    export_pipeline(second, config, STAGE, url)
    assert _encoder(url) == 2.0
    assert not (Path(url) / "stray").exists()
    assert not is_exported(first, config, url)


def test_an_export_tells_how_the_runs_that_led_to_it_validated(config: TrainConfig, tmp_path: Path) -> None:
    first = replace(config, output=str(tmp_path / "first"))
    second = replace(config, output=str(tmp_path / "second"), init=str(tmp_path / "first" / "pipeline"))
    for run, losses in ((first, [4.0, 2.0]), (second, [2.0, 1.0])):
        checkpoint = _checkpoint(run, 10, 1.0)
        lines = [
            {"step": step, "split": "validation", "loss": loss, "seconds": 1.0, "time_s": 1.0}
            for step, loss in zip((0, 10), losses, strict=True)
        ]
        # What an earlier, longer attempt left beyond the checkpoint is not of this export.
        lines += [{"step": 5, "split": "train", "loss": 9.0}, {"step": 20, "split": "validation", "loss": 9.0}]
        (Path(run.output) / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        export_pipeline(checkpoint, run, STAGE, str(Path(run.output) / "pipeline"))
        assert is_exported(checkpoint, run, str(Path(run.output) / "pipeline"))
    told = read_history(str(tmp_path / "second" / "pipeline"))
    assert [(run["steps"], [line["loss"] for line in run["validation"]]) for run in told] == [
        (10, [4.0, 2.0]),
        (10, [2.0, 1.0]),
    ]
    assert read_history(str(tmp_path / "init")) == []
    # One of before there was a history.
    (tmp_path / "init" / RECORD).write_text('{"stage": "joint", "step": 3}')
    assert read_history(str(tmp_path / "init")) == []


@pytest.mark.parametrize("num_files", range(5))
def test_killed_while_it_copies(
    num_files: int, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "pipeline")
    export_pipeline(_checkpoint(config, 10, 1.0), config, STAGE, url)
    newest = _checkpoint(config, 20, 2.0)
    real, published = os.replace, []

    def publish(source: Any, target: Any) -> None:
        if len(published) == num_files:
            raise _Killed
        real(source, target)
        published.append(target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", publish)
        with pytest.raises(_Killed):
            export_pipeline(newest, config, STAGE, url)
    assert not is_exported(newest, config, url)
    export_pipeline(newest, config, STAGE, url)
    assert is_exported(newest, config, url)
    assert sorted(path.name for path in Path(url).rglob("*") if path.is_file()) == [
        "config.json", "config.json", "config.json", "model.safetensors", RECORD,
    ]  # fmt: skip
    assert _encoder(url) == 2.0


def test_killed_while_it_deletes(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checkpoint once more: half of the old folder must not pass for the new one."""
    url = str(tmp_path / "pipeline")
    newest = _checkpoint(config, 20, 2.0)
    export_pipeline(newest, config, STAGE, url)

    def delete_half(url: str) -> None:
        shutil.rmtree(Path(url) / "tiny")
        raise _Killed

    monkeypatch.setattr(storage, "delete_folder", delete_half)
    with pytest.raises(_Killed):
        export_pipeline(newest, config, STAGE, url)
    assert not is_exported(newest, config, url)
