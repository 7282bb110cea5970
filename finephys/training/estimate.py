"""What a run would need, before it runs: parameters by part, memory for each ZeRO stage, logical CPUs and GPUs.

Path:    TrainConfig, module -> jobs/train.py --dry-run
Letters: P parameters, Q of them trained, N ranks
Units:   bytes

Model states of one rank, after "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", section 3
(arXiv:1910.02054), where Adam in mixed precision takes 2 bytes a weight, 2 a gradient and K = 12 for the float32 copy
and the two moments. With w bytes a weight and a gradient (float32 4, bfloat16 2), frozen weights counted apart, and our
moving average (4 bytes) beside them:
    stage 0    w P + w Q + (c + 8) Q + 4 Q          c = 4: float32 copy in bfloat16; 0 in float32, which needs none
    stage 1    w P + w Q + 12 Q / N + 4 Q           DeepSpeed copies the shard in float32 too
    stage 2    w P + (w + 12) Q / N + 4 Q
    stage 3    (w P + w Q + 12 Q + 4 Q) / N
Offloading moves the 12 Q / N to the host. Activations, communication buffers and the libraries' own memory come on top.
Not yet held against measured memory.
"""

from dataclasses import dataclass

from torch import nn

from finephys.config import TrainConfig
from finephys.training.stages import Stage

# Logical CPUs for Ray Data's tasks beside the ranks: with fewer, reading waits for a CPU for ever.
CPUS_FOR_DATA = 2

COPY_AND_MOMENTS_BYTES = 12
MOMENTS_BYTES = 8
AVERAGE_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class PartSize:
    """name: of a direct child of the stage's module.  num_parameters, num_trained: counts."""

    name: str
    num_parameters: int
    num_trained: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """Logical CPUs and GPUs of a whole run: its ranks, Ray Data's actors and its tasks."""

    cpus: float
    gpus: float


def part_sizes(module: nn.Module) -> list[PartSize]:
    """The parts of a stage's module that have parameters, and what it holds itself as "itself"."""
    children = [(name, list(part.parameters())) for name, part in module.named_children()]
    children.append(("itself", list(module.parameters(recurse=False))))
    return [
        PartSize(
            name=name,
            num_parameters=sum(parameter.numel() for parameter in parameters),
            num_trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        )
        for name, parameters in children
        if parameters
    ]


def model_state_bytes(num_parameters: int, num_trained: int, config: TrainConfig, zero_stage: int) -> float:
    """Bytes of weights, gradients, optimizer and moving average on one rank's device; the equations stand above."""
    ranks = config.num_workers
    is_half = config.zero.precision == "bfloat16"
    weight_bytes = 2 if is_half else 4
    weights = weight_bytes * num_parameters
    gradients = weight_bytes * num_trained
    average = AVERAGE_BYTES * num_trained
    states = COPY_AND_MOMENTS_BYTES * num_trained
    if config.zero.offload_optimizer:
        states = 0
    if zero_stage == 0:
        # Stage 0 cannot offload.
        states = (COPY_AND_MOMENTS_BYTES if is_half else MOMENTS_BYTES) * num_trained
        return weights + gradients + states + average
    if zero_stage == 1:
        return weights + gradients + states / ranks + average
    if zero_stage == 2:
        return weights + (gradients + states) / ranks + average
    return (weights + gradients + states + average) / ranks


def resource_request(config: TrainConfig, stage: Stage) -> Request:
    """What the run asks of a cluster at most: ranks, the actors of its chain, and tasks that read."""
    num_actors = config.rows.actors if stage.rows == "features" else 0
    cpus = config.num_workers * config.cpus_per_worker + num_actors * config.rows.actor_cpus + CPUS_FOR_DATA
    gpus = config.num_workers * int(config.use_gpu) + num_actors * config.rows.actor_gpus
    return Request(cpus=cpus, gpus=gpus)
