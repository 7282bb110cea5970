"""The training engine: DeepSpeed ZeRO around a module and torch's AdamW. The only file that imports DeepSpeed.

Path:    module -> Engine -> the loop
Letters: none
Units:   none

We hand DeepSpeed a torch optimizer: its own AdamW is compiled at the first start, which takes three minutes on a CPU.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finephys.config import TrainConfig
from finephys.training.stages import Batch

CHECKPOINT_TAG = "engine"


class Engine:
    """A module under DeepSpeed on this rank. Needs the torch.distributed environment that Ray Train sets."""

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        # Read at DeepSpeed's import: without it a machine with CUDA libraries and no GPU picks CUDA.
        if not config.use_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

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
            model=module, optimizer=self.optimizer, config=deepspeed_config(config), model_parameters=trainable
        )
        self.device = torch.device(self.engine.device)
        self._plain_norm = torch.zeros(())
        persistent = module.state_dict(keep_vars=True)
        self._trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._buffers = {name: value for name, value in module.named_buffers() if name in persistent}

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


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run."""
    zero: dict[str, Any] = {"stage": config.zero.stage}
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
