"""The training engine: DeepSpeed ZeRO around a module and torch's AdamW. The only file that imports DeepSpeed.

Path:    module -> Engine -> the loop
Letters: none
Units:   none

We hand DeepSpeed a torch optimizer: its own AdamW is compiled at the first start, which takes three minutes on a CPU.
"""

import argparse
import contextlib
import io
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finephys.config import TrainConfig
from finephys.training.stages import Batch

CHECKPOINT_TAG = "engine"
# Gradients that are reduced together, as in torch's DDP. DeepSpeed's own 500 million elements hold the gradients of a
# model of this size whole, on top of their shares.
REDUCED_AT_ONCE_BYTES = 25 * 2**20


class Engine:
    """A module under DeepSpeed on this rank. Needs the torch.distributed environment that Ray Train sets."""

    def __init__(self, module: nn.Module, config: TrainConfig, *, is_resharding: bool = False) -> None:
        """is_resharding: the checkpoint that will be loaded was written by another number of ranks."""
        # Read at DeepSpeed's import: without it a machine with CUDA libraries and no GPU picks CUDA.
        if not config.use_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        # DeepSpeed would compile shared-memory collectives for inference, a minute at the first start; a start that is
        # killed meanwhile leaves a lock on which every later one waits for ever. Training does not use them.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if config.use_gpu else "gloo", auto_mpi_discovery=False)
        self.config = config
        trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not trainable:
            raise ValueError(f"stage {config.stage} has no trainable parameter")
        if config.zero.precision != "float32":
            # Around the module, not the engine: DeepSpeed switches off an autocast that it finds outside.
            device_type = "cuda" if config.use_gpu else "cpu"
            module.forward = torch.autocast(device_type, torch.bfloat16)(module.forward)
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            trainable,
            lr=optimizer.lr,
            betas=(optimizer.beta1, optimizer.beta2),
            weight_decay=optimizer.weight_decay,
        )
        self.optimizer.register_step_pre_hook(_refuse_nonfinite_gradients)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=self.optimizer,
            config=deepspeed_config(config) | {"checkpoint": {"load_universal": is_resharding}},
            model_parameters=trainable,
        )
        self.device = torch.device(self.engine.device)
        self._plain_norm = torch.zeros(())
        persistent = module.state_dict(keep_vars=True)
        self._trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._buffers = {name: value for name, value in module.named_buffers() if name in persistent}

    @property
    def module(self) -> nn.Module:
        """The module itself. Under ZeRO-3 its weights are whole only within the forward pass of each of its parts."""
        module: nn.Module = self.engine.module
        return module

    @property
    def cuda_devices(self) -> list[int]:
        """The GPU of this rank, for torch.random.fork_rng; none on a CPU."""
        return [torch.cuda.current_device()] if self.device.type == "cuda" else []

    @property
    def rank(self) -> int:
        return torch.distributed.get_rank()

    @property
    def world_size(self) -> int:
        return torch.distributed.get_world_size()

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The module's scalar loss terms, on the device."""
        on_device = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        losses: dict[str, Tensor] = self.engine(on_device)
        return losses

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)

    def step(self, lr: float) -> None:
        """One micro-step; the optimizer moves when the last one of the accumulation is in.

        Raises FloatingPointError before the optimizer moves where a gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.config.zero.stage == 0:
            # Without ZeRO DeepSpeed keeps the norm to itself.
            gradients = [parameter.grad for parameter in self._trained.values() if parameter.grad is not None]
            self._plain_norm = torch.stack(torch._foreach_norm(gradients)).norm()
        self.engine.step()

    def grad_norm(self) -> Tensor:
        """Global norm of the gradients of the last step before clipping, a scalar."""
        norm = self._plain_norm if self.config.zero.stage == 0 else self.engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32).detach()

    def grad_norms_by_part(self) -> dict[str, Tensor]:
        """Norm of the gradient of each direct child of the module, between backward and step; every rank calls this.

        Under ZeRO each weight's gradient is gathered for it: now and then, not at every step.
        """
        from deepspeed.utils import safe_get_full_grad

        squares: dict[str, Tensor] = {}
        for name, parameter in self._trained.items():
            gradient = parameter.grad if self.config.zero.stage == 0 else safe_get_full_grad(parameter)
            if gradient is not None:
                part = name.split(".")[0]
                square = gradient.detach().float().square().sum()
                squares[part] = squares[part] + square if part in squares else square
        return {part: square.sqrt() for part, square in squares.items()}

    def train(self, is_training: bool) -> None:
        self.engine.train(is_training)

    def live_values(self) -> dict[str, Tensor]:
        """What this rank holds of each trainable weight (ZeRO-3: its flat shard) and each floating buffer, by name."""
        # Looked up anew each time: ZeRO moves a parameter's storage.
        values = {name: getattr(parameter, "ds_tensor", parameter).data for name, parameter in self._trained.items()}
        return values | {name: value for name, value in self._buffers.items() if value.is_floating_point()}

    def integer_buffers(self) -> dict[str, Tensor]:
        """The persistent buffers that an average makes no sense of, by name."""
        return {name: value for name, value in self._buffers.items() if not value.is_floating_point()}

    def full_shapes(self) -> dict[str, list[int]]:
        """The whole shape of each entry of live_values."""
        shapes = {name: list(value.shape) for name, value in self.live_values().items()}
        for name, parameter in self._trained.items():
            if hasattr(parameter, "ds_shape"):
                shapes[name] = list(parameter.ds_shape)
        return shapes

    def any_rank(self, claim: bool) -> bool:
        """Whether `claim` is true on any rank: how ranks agree to stop."""
        if self.world_size == 1:
            return claim
        flag = torch.tensor(int(claim), device=self.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def mean_over_ranks(self, values: Tensor) -> Tensor:
        """The mean of each value over the ranks."""
        if self.world_size > 1:
            torch.distributed.all_reduce(values)
            values /= self.world_size
        return values

    def gathered(self, value: Any) -> list[Any]:
        """`value` of every rank, in their order; small plain values only."""
        values: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            torch.distributed.barrier()

    def save(self, folder: Path) -> None:
        """Write this rank's share of weights and optimizer state into `folder`."""
        self.engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        """Restore what save wrote, on the same number of ranks. `folder` must hold every rank's files."""
        loaded, _ = self.engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        if loaded is None:
            raise ValueError(f"checkpoint {folder} holds no {CHECKPOINT_TAG} state")

    def load_resharded(self, folder: Path, scratch: Path) -> None:
        """Restore what save wrote on another number of ranks, through DeepSpeed's universal checkpoint in `scratch`."""
        from deepspeed.checkpoint import ds_to_universal

        # Each rank converts for itself: ranks on other machines see no common folder.
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(
                argparse.Namespace(
                    input_folder=str(folder / CHECKPOINT_TAG),
                    output_folder=str(scratch / CHECKPOINT_TAG),
                    num_extract_workers=1,
                    num_merge_workers=1,
                    keep_temp_folder=False,
                    strict=True,
                    # Of stages 1 and 2: nothing is missing but the mark that says so.
                    inject_missing_state=True,
                )
            )
        self.load(scratch)
        self.barrier()

    def share(self, whole: Tensor, name: str) -> Tensor:
        """What this rank holds of the whole value of `name`, in the shape of live_values."""
        held = self.live_values().get(name)
        if held is None or held.shape == whole.shape:
            return whole
        # ZeRO-3: flat, in equal pieces, the last one padded.
        padded = torch.zeros(held.numel() * self.world_size, dtype=whole.dtype)
        padded[: whole.numel()] = whole.flatten()
        return padded[self.rank * held.numel() : (self.rank + 1) * held.numel()]


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run."""
    bytes_per_element = 2 if config.zero.precision == "bfloat16" else 4
    zero: dict[str, Any] = {
        "stage": config.zero.stage,
        "reduce_bucket_size": REDUCED_AT_ONCE_BYTES // bytes_per_element,
    }
    if config.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": config.zero.precision == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _refuse_nonfinite_gradients(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Runs before the optimizer moves: a weight that saw a NaN cannot be repaired."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    if gradients and not torch.isfinite(torch.stack(torch._foreach_norm(gradients))).all():
        raise FloatingPointError("a gradient is not finite")
