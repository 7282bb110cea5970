"""What a run would need: the paper's own example, and what the recipes ask for."""

from dataclasses import replace

import pytest
from torch import nn

from finephys.config import RowsConfig, ZeroConfig
from finephys.recipes import demo, sd15_multi_node
from finephys.training.estimate import model_state_bytes, part_sizes, resource_request
from finephys.training.stages import find_stage
from tests.training.tiny_stage import tiny_config


def test_the_papers_example() -> None:
    """Figure 1 of arXiv:1910.02054: 7.5 B parameters on 64 GPUs; our moving average (4 bytes) apart."""
    config = tiny_config("none", "none", 1, num_workers=64, zero=ZeroConfig(stage=1, precision="bfloat16"))
    parameters = 7_500_000_000
    states = [model_state_bytes(parameters, parameters, config, stage) / 1e9 for stage in range(4)]
    average = 4 * parameters / 1e9
    assert states[0] - average == pytest.approx(120.0)
    assert states[1] - average == pytest.approx(31.4, abs=0.05)
    assert states[2] - average == pytest.approx(16.6, abs=0.05)
    assert states[3] - average / 64 == pytest.approx(1.9, abs=0.05)


def test_frozen_weights_and_offloading() -> None:
    config = tiny_config("none", "none", 1, num_workers=2)
    # Frozen: nothing but the weights.
    assert model_state_bytes(1000, 0, config, 0) == 4000
    assert model_state_bytes(1000, 0, config, 3) == 2000
    offloaded = replace(config, use_gpu=True, zero=ZeroConfig(stage=2, offload_optimizer=True))
    assert model_state_bytes(1000, 1000, offloaded, 2) == model_state_bytes(1000, 1000, config, 2) - 6000


def test_parts_and_what_a_module_holds_itself() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    module.register_parameter("gain", nn.Parameter(module[1].bias.detach().clone()))
    found = [(size.name, size.num_parameters, size.num_trained) for size in part_sizes(module)]
    assert found == [("0", 9, 0), ("1", 4, 4), ("itself", 1, 1)]


def test_requests() -> None:
    joint = resource_request(sd15_multi_node("joint"), find_stage("joint"))
    assert joint.gpus == pytest.approx(32 + 96 * 0.1)
    assert joint.cpus == pytest.approx(32 * 4 + 96 * 2 + 2)
    truth = replace(demo("frames"), rows=RowsConfig(pose_source="truth"))
    assert resource_request(truth, find_stage("frames")).cpus == pytest.approx(1 + 0.5 + 2)
    assert resource_request(demo("vae"), find_stage("vae")).gpus == 0
