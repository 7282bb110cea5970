"""Which checkpoint counts, whose it is, and the metrics that go with it."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from finephys.config import OptimizerConfig, TrainConfig, as_json, config_hash, from_json
from finephys.data import storage
from finephys.telemetry import MetricsLog, read_metrics
from finephys.training.checkpoint import best_checkpoint, latest_checkpoint, list_checkpoints
from finephys.training.ema import ExponentialMovingAverage
from finephys.training.schedule import learning_rate
from finephys.training.stages import module_config
from tests.training.tiny_stage import STAGE, TinyConfig, tiny_config


def _write_record(output: Path, step: int, config: TrainConfig, **more: object) -> None:
    folder = output / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    record = {"step": step, "config": as_json(config), "config_hash": config_hash(config), "world_size": 1, **more}
    (folder / "checkpoint.json").write_text(json.dumps(record))


def test_a_checkpoint_without_its_record_does_not_exist(tmp_path: Path) -> None:
    config = tiny_config("none", str(tmp_path), 100)
    _write_record(tmp_path, 10, config)
    (tmp_path / "checkpoints" / "step-00000020" / "engine").mkdir(parents=True)
    newest = latest_checkpoint(config)
    assert newest is not None
    assert newest.step == 10


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tmp_path: Path) -> None:
    config = tiny_config("none", str(tmp_path), 100)
    _write_record(tmp_path, 10, config)
    other = replace(config, optimizer=replace(config.optimizer, lr=0.5))
    with pytest.raises(ValueError, match=r"another configuration \(optimizer.lr: 0.01 -> 0.5\)"):
        latest_checkpoint(other)
    with pytest.raises(ValueError, match=r"global batch: 4 -> 8"):
        latest_checkpoint(replace(config, num_workers=2))
    with pytest.raises(ValueError, match=r"module.width: 16 -> 8"):
        latest_checkpoint(replace(config, module=TinyConfig(width=8)))
    # The same samples a step, shared out in another way.
    assert latest_checkpoint(replace(config, num_workers=2, batch_size=2)) is not None
    # How often one looks does not change what is learnt.
    assert latest_checkpoint(replace(config, log_every=1, max_minutes=3.0)) is not None


def test_a_checkpoint_that_the_run_deletes_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_record(tmp_path, 20, tiny_config("none", str(tmp_path), 100))
    seen = [*storage.list_folders(f"{tmp_path}/checkpoints"), f"{tmp_path}/checkpoints/step-00000010"]
    monkeypatch.setattr(storage, "list_folders", lambda url: seen)
    assert [checkpoint.step for checkpoint in list_checkpoints(str(tmp_path))] == [20]


def test_the_best_checkpoint_is_the_one_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    config = tiny_config("none", str(tmp_path), 100)
    for step, loss in ((10, 0.5), (20, 0.3), (30, None), (40, 0.4)):
        _write_record(tmp_path, step, config, validation_loss=loss)
    best = best_checkpoint(list_checkpoints(str(tmp_path)))
    assert best is not None
    assert best.step == 20
    assert best_checkpoint([one for one in list_checkpoints(str(tmp_path)) if one.step == 30]) is None


def test_a_record_without_a_younger_field_is_of_the_same_run(tmp_path: Path) -> None:
    config = tiny_config("none", str(tmp_path), 100)
    _write_record(tmp_path, 10, config)
    record_path = tmp_path / "checkpoints" / "step-00000010" / "checkpoint.json"
    record = json.loads(record_path.read_text())
    del record["config"]["optimizer"]["beta2"]
    record_path.write_text(json.dumps(record))
    assert latest_checkpoint(config) is not None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-00000010"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(ValueError, match=r"step-00000010/checkpoint.json cannot be read"):
        list_checkpoints(str(tmp_path))


def test_a_configuration_survives_json() -> None:
    config = tiny_config("none", "none", 100, TinyConfig(width=3))
    plain = as_json(config)
    assert from_json(plain, module_config(STAGE, plain["module"])) == config
    with pytest.raises(ValueError, match="widht"):
        module_config(STAGE, {"widht": 3})


def test_metrics_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = MetricsLog(str(tmp_path), 0, is_writer=True)
    log.append([{"step": step, "split": "train", "loss": 1.0} for step in range(1, 8)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "split": "tr')
    assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 2, 3, 4, 5, 6, 7]
    resumed = MetricsLog(str(tmp_path), 5, is_writer=True)
    resumed.append([{"step": 6, "split": "train", "loss": 1.0}])
    assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 2, 3, 4, 5, 6]


def test_learning_rate_warms_up_and_decays() -> None:
    config = OptimizerConfig(lr=1.0, warmup_steps=10, final_lr_share=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55, abs=0.01)
    assert rates[-1] == pytest.approx(0.1, abs=0.001)
    assert all(before >= after for before, after in pairwise(rates[10:]))


def test_the_average_follows_and_swaps() -> None:
    live = {"weight": torch.zeros(3)}
    average = ExponentialMovingAverage(live, decay=0.5)
    live["weight"].fill_(1.0)
    average.update(live, step=100)
    torch.testing.assert_close(average.values["weight"], torch.full((3,), 0.5))
    with average.swapped_in(live):
        torch.testing.assert_close(live["weight"], torch.full((3,), 0.5))
    torch.testing.assert_close(live["weight"], torch.ones(3))
    # The first step hardly remembers the initialisation.
    early = ExponentialMovingAverage({"weight": torch.zeros(3)}, decay=0.999)
    early.update(live, step=1)
    torch.testing.assert_close(early.values["weight"], torch.full((3,), 0.9))
