"""The configuration of a training run, composed of its parts' dataclasses.

Path:    recipes.py -> jobs/train.py -> TrainConfig -> training/
Letters: none
Units:   seconds, minutes, counts of samples and steps as the names say

A stage's own configuration (VAETrainingConfig and so on) lives beside its module and enters as `module`.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

StageName = Literal["vae", "pose2d", "lifting", "physics", "frames", "clips", "joint"]
PoseSource = Literal["detected", "truth"]

# Fields that change neither the weights nor the order of the data: a run may be taken up again with others.
OPERATIONAL_FIELDS = (
    "output",
    "max_minutes",
    "log_every",
    "checkpoint_every",
    "validate_every",
    "sample_every",
    "keep_checkpoints",
    "threads",
    "collate_processes",
    "max_failures",
    "storage_patience_minutes",
    "local_cpus",
    "object_store_gb",
    "rows.actors",
    "rows.actor_cpus",
    "rows.actor_gpus",
    "rows.ahead_mb",
    "module.denoiser.gradient_checkpointing",
)
# How the global batch is shared out: another way continues the same run as long as the global batch is the same.
SHARING_FIELDS = ("batch_size", "accumulation", "num_workers", "use_gpu", "cpus_per_worker")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay."""

    # Learning rate at the end of the warm-up.
    lr: float = 3e-4
    # Steps from 0 to lr.
    warmup_steps: int = 100
    # What the cosine ends at, as a share of lr.
    final_lr_share: float = 0.05
    # AdamW's decoupled weight decay, its share of the learning rate.
    weight_decay: float = 0.01
    # Decay of the mean of gradients ...
    beta1: float = 0.9
    # ... and of that of their squares.
    beta2: float = 0.99
    # Gradients are clipped to this global norm.
    max_grad_norm: float = 1.0
    # Decay of the exponential moving average of the weights, which is what validates and ships.
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr is {self.lr}, wanted more than 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"optimizer.ema_decay is {self.ema_decay}, wanted 0 <= ema_decay < 1")


@dataclass(frozen=True, kw_only=True)
class ZeroConfig:
    """How DeepSpeed shares the state of the optimizer among ranks."""

    # 0: nothing, 1: optimizer state, 2: and gradients, 3: and weights.
    stage: Literal[0, 1, 2, 3] = 1
    # bfloat16_autocast: weights stay float32, arithmetic is bfloat16 where torch.autocast allows (RTMPose on a CPU
    # with AMX: forward 1.9 times, training 1.25 times as fast; with AVX2 alone training is 14 times as slow).
    # bfloat16: weights, too, with a float32 copy in the optimizer.
    precision: Literal["float32", "bfloat16_autocast", "bfloat16"] = "float32"
    # Keep the optimizer's state in the host's memory.
    offload_optimizer: bool = False

    def __post_init__(self) -> None:
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("zero.offload_optimizer is True and zero.stage is 0, wanted stage 1, 2 or 3")


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How the rows of a stage are made by Ray Data (finephys/data/pipeline.py)."""

    # Split whose clips train.
    train_split: str = "train"
    # Split whose clips validate.
    validation_split: str = "test"
    # Clips of train_split that are used, spread evenly over the ids; None uses all of them.
    train_clips: int | None = None
    # Clips of validation_split that validation uses, spread evenly over the ids.
    validation_clips: int = 16
    # True: the rows are made once and every rank holds them (small data). False: they stream anew each epoch.
    materialise: bool = True
    # Of a stream: MB of rows, half-made ones too, that each rank has made ahead in Ray's object store.
    ahead_mb: int = 96
    # Synthetic windows (stages lifting and physics) that are made once and come again each epoch, each time detected
    # anew; None: each is seen once.
    num_windows: int | None = None
    # Where the guidance of feature rows comes from: the estimators of --init, or the clips' ground truth.
    pose_source: PoseSource = "detected"
    # Actors that make feature rows ...
    actors: int = 1
    # ... the logical CPUs that one takes ...
    actor_cpus: float = 0.5
    # ... and the share of a GPU.
    actor_gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Names with dots are the parts' fields."""

    # Which module trains.
    stage: StageName = "joint"
    # Folder or URL of Parquet shards.
    data: str = "finephys/assets/clips"
    # Pipeline folder that the run starts from; None starts every part afresh.
    init: str | None = None
    # Folder or URL for metrics, checkpoints and the exported pipeline.
    output: str = "outputs/train"
    # Optimizer steps; also the length of the learning-rate schedule.
    steps: int = 1000
    # Stop early, cleanly and resumably, after this many minutes.
    max_minutes: float | None = None
    # Samples in a forward pass of one rank.
    batch_size: int = 8
    # Forward passes in one optimizer step.
    accumulation: int = 1
    # Of the order of clips, of augmentation, noise and fresh weights.
    seed: int = 0

    # Ranks. The global batch is batch_size x accumulation x num_workers.
    num_workers: int = 1
    # Whether each rank has a GPU of its own.
    use_gpu: bool = False
    # Logical CPUs of a rank.
    cpus_per_worker: float = 1.0
    # Threads with which a rank computes on the CPU.
    threads: int = 2
    # Processes of a rank that make its batches of held rows; 0: a thread does. A GPU waits for a thread.
    collate_processes: int = 0
    # How often lost workers are replaced before the run gives up.
    max_failures: int = 3
    # How long the output's storage may fail before a rank that writes to it does.
    storage_patience_minutes: float = 10.0
    # Where no cluster is given: logical CPUs of the local Ray (Ray Data needs at least 4 beside a trainer) ...
    local_cpus: int = 4
    # ... and the size of its object store.
    object_store_gb: float = 1.0

    # Steps between two lines of progress; metrics are kept for every step.
    log_every: int = 10
    # Steps between checkpoints; there is one after the last step in any case.
    checkpoint_every: int = 250
    # How many of the last checkpoints are kept, beside the best.
    keep_checkpoints: int = 2
    # Steps between validations; there is one before the first step and one after the last in any case.
    validate_every: int = 250
    # Batches of one rank in each of them.
    validation_batches: int = 4
    # Steps between sample videos of the first validation batch, where the stage makes videos, and after the last step;
    # None makes none.
    sample_every: int | None = None

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    zero: ZeroConfig = field(default_factory=ZeroConfig)
    rows: RowsConfig = field(default_factory=RowsConfig)
    # The stage's own configuration; its type is the stage's.
    module: object = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "num_workers", "threads", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, wanted at least 1")
        if self.collate_processes < 0:
            raise ValueError(f"collate_processes is {self.collate_processes}, wanted at least 0")
        if self.keep_checkpoints < 1:
            raise ValueError(f"keep_checkpoints is {self.keep_checkpoints}, wanted at least 1")
        if self.sample_every is not None and (self.sample_every < 1 or self.validation_batches < 1):
            raise ValueError(
                f"sample_every is {self.sample_every} and validation_batches {self.validation_batches}, "
                "wanted at least 1 of both"
            )
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes is {self.max_minutes}, wanted more than 0")
        if self.zero.offload_optimizer and not self.use_gpu:
            raise ValueError("zero.offload_optimizer is True and use_gpu is False: there is no GPU to offload from")

    @property
    def global_batch(self) -> int:
        """Samples in one optimizer step over all ranks."""
        return self.batch_size * self.accumulation * self.num_workers


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The resolved configuration as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def config_hash(config: TrainConfig) -> str:
    """Twelve hex digits that change with every field that changes the weights or the order of the data."""
    return hashlib.sha256(json.dumps(_learning_fields(as_json(config)), sort_keys=True).encode()).hexdigest()[:12]


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """'name: theirs -> ours' for each field that changes what is learnt and differs between two results of as_json.

    A field that theirs lacks is younger than they are, and its default does what was done before there was a field.
    """
    mine, others = _learning_fields(ours), _learning_fields(theirs)
    missing = object()
    found = []
    for name in sorted(others):
        if mine.get(name, missing) != others[name]:
            found.append(f"{name}: {others[name]} -> {mine.get(name, 'no such field')}")
    return found


def _learning_fields(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """By dotted name the fields that change what is learnt, "global batch" in place of SHARING_FIELDS."""
    found: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, dict):
            found |= _learning_fields(value, f"{prefix}{name}.")
        elif f"{prefix}{name}" not in OPERATIONAL_FIELDS + SHARING_FIELDS:
            found[f"{prefix}{name}"] = value
    if not prefix:
        found["global batch"] = plain["batch_size"] * plain["accumulation"] * plain["num_workers"]
    return found


def from_json(plain: dict[str, Any], module: object) -> TrainConfig:
    """The configuration that as_json wrote down; `module` is the stage's part, already rebuilt.

    Raises ValueError, naming it, on a field that this version does not have.
    """
    known = {entry.name for entry in fields(TrainConfig)}
    unknown = sorted(set(plain) - known)
    if unknown:
        raise ValueError(f"configuration field {unknown[0]!r} is unknown to this version")
    values = dict(plain, module=module)
    values["optimizer"] = OptimizerConfig(**plain["optimizer"])
    values["zero"] = ZeroConfig(**plain["zero"])
    values["rows"] = RowsConfig(**plain["rows"])
    return TrainConfig(**values)
