"""The loop and the engine: every ZeRO stage on one and on two ranks equals plain PyTorch; a NaN moves nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finephys.telemetry import read_metrics
from finephys.training.schedule import learning_rate
from tests.training.ranks import STEPS, rows
from tests.training.tiny_stage import TinyConfig, build, collate, tiny_config

ROOT = Path(__file__).parent.parent.parent


def _launch(folder: Path, world_size: int, *others: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(world_size):
        environment = {
            **os.environ,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world_size),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "tests.training.ranks", str(folder), *map(str, others)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in processes:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said[-3000:]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks2")
    _launch(folder, 2)
    return folder


@pytest.fixture(scope="module")
def by_one(by_two: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, which also continues what the two had left half-way."""
    folder = tmp_path_factory.mktemp("ranks1")
    _launch(folder, 1, by_two)
    return folder


@pytest.fixture(params=[1, 2])
def trained(request: pytest.FixtureRequest, by_one: Path, by_two: Path) -> tuple[int, Path]:
    return request.param, by_one if request.param == 1 else by_two


def _losses(output: Path) -> list[dict]:
    return [line for line in read_metrics(str(output)) if line["split"] != "checkpoint"]


@pytest.fixture(scope="module")
def plain() -> dict[str, torch.Tensor]:
    """The averaged weights of the same training written out in plain PyTorch."""
    config = tiny_config("none", "none", STEPS, TinyConfig(noise=0.0))
    torch.manual_seed(config.seed)
    module = build(config.module, None)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=1.0, betas=(settings.beta1, settings.beta2), weight_decay=settings.weight_decay
    )
    average = {name: value.detach().clone() for name, value in module.named_parameters()}
    held = rows()
    sequence = np.concatenate([np.random.default_rng((config.seed, e)).permutation(len(held)) for e in range(3)])
    for step in range(STEPS):
        picked = [held[index] for index in sequence[step * 4 : step * 4 + 4]]
        loss = module(collate(picked, np.random.default_rng(0)))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), settings.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, settings)
        optimizer.step()
        decay = min(settings.ema_decay, (step + 1) / (step + 10))
        for name, value in module.named_parameters():
            average[name].lerp_(value.detach(), 1 - decay)
    return average


@pytest.mark.timeout(700)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_every_zero_stage_equals_plain_pytorch(
    trained: tuple[int, Path], plain: dict[str, torch.Tensor], zero_stage: int
) -> None:
    _, folder = trained
    ours = load_file(folder / f"zero{zero_stage}.safetensors")
    fresh = dict(build(TinyConfig(), None).named_parameters())
    for name, wanted in plain.items():
        # Sums of gradients are taken in another order; weights of size 0.1 move by 0.05 in these ten steps.
        torch.testing.assert_close(ours[name], wanted, atol=2e-5, rtol=1e-4)
        assert ours[name].shape == fresh[name].shape


@pytest.mark.timeout(700)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_one_rank_continues_what_two_began(by_one: Path, plain: dict[str, torch.Tensor], zero_stage: int) -> None:
    """Five steps on two ranks and five on one are ten of plain PyTorch: the optimizer's state came along."""
    ours = load_file(by_one / f"continued{zero_stage}.safetensors")
    for name, wanted in plain.items():
        torch.testing.assert_close(ours[name], wanted, atol=2e-5, rtol=1e-4)
    whole = _losses(by_one / f"zero{zero_stage}")
    continued = _losses(by_one / f"continued{zero_stage}")
    assert [line["step"] for line in continued] == [line["step"] for line in whole]
    for line, wanted_line in zip(continued, whole, strict=True):
        # Two ranks log the mean of their losses, which is the loss of the global batch; they validate on less.
        if line["split"] == "train":
            assert line["loss"] == pytest.approx(wanted_line["loss"], rel=1e-4)


@pytest.mark.timeout(700)
def test_autocast_computes_in_bfloat16_and_keeps_float32(trained: tuple[int, Path]) -> None:
    world_size, folder = trained
    for rank in range(world_size):
        found = json.loads((folder / f"autocast-rank{rank}.json").read_text())
        assert found == {"computed": ["torch.bfloat16"], "kept": ["torch.float32"], "state": ["torch.float32"]}
    lines = _losses(folder / "autocast")
    plain_lines = _losses(folder / "zero1")
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    # Eight bits of mantissa: the same course, not the same numbers.
    for line, plain_line in zip(lines, plain_lines, strict=True):
        assert line["loss"] == pytest.approx(plain_line["loss"], rel=0.05)
    assert lines[-1]["loss"] != plain_lines[-1]["loss"]


@pytest.mark.timeout(700)
def test_a_nan_stops_before_the_weights_move(trained: tuple[int, Path]) -> None:
    world_size, folder = trained
    for rank in range(world_size):
        found = json.loads((folder / f"nan-rank{rank}.json").read_text())
        assert found["unmoved"]
        assert f"step 1 on rank {rank}, clips clip-" in found["message"]
