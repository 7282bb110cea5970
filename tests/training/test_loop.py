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

from finephys.training.schedule import learning_rate
from tests.training.ranks import STEPS, rows
from tests.training.tiny_stage import TinyConfig, build, collate, tiny_config

ROOT = Path(__file__).parent.parent.parent


def _launch(folder: Path, world_size: int) -> None:
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
                [sys.executable, "-m", "tests.training.ranks", str(folder)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for process in processes:
        said, _ = process.communicate(timeout=150)
        assert process.returncode == 0, said[-3000:]


@pytest.fixture(scope="module", params=[1, 2])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    _launch(folder, request.param)
    return request.param, folder


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


@pytest.mark.timeout(200)
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


@pytest.mark.timeout(200)
def test_a_nan_stops_before_the_weights_move(trained: tuple[int, Path]) -> None:
    world_size, folder = trained
    for rank in range(world_size):
        found = json.loads((folder / f"nan-rank{rank}.json").read_text())
        assert found["unmoved"]
        assert f"step 1 on rank {rank}, clips clip-" in found["message"]
