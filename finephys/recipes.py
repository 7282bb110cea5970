"""Complete, named configurations of training runs.

Path:    name, stage -> TrainConfig
Letters: none
Units:   none
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finephys.config import OptimizerConfig, RowsConfig, StageName, TrainConfig, ZeroConfig
from finephys.training.stages import find_stage


def demo(stage: StageName) -> TrainConfig:
    """128x128 clips of the shipped gymnast on the CPUs of one machine, from the shipped weights."""
    common = TrainConfig(stage=stage, module=find_stage(stage).config())
    if stage == "vae":
        return replace(
            common,
            steps=4000,
            batch_size=4,
            optimizer=OptimizerConfig(lr=2e-3, ema_decay=0.995),
        )
    if stage == "pose2d":
        # 11 ms of one CPU core a crop; in float32 14.
        return replace(
            common,
            steps=9000,
            batch_size=16,
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.05),
            zero=ZeroConfig(precision="bfloat16_autocast"),
        )
    if stage == "lifting":
        return replace(
            common,
            steps=5000,
            batch_size=192,
            optimizer=OptimizerConfig(lr=1.5e-3, warmup_steps=200, weight_decay=0.05),
            # Windows take 1.4 ms each to make and 0.3 ms to be detected anew.
            rows=RowsConfig(num_windows=30_000),
            zero=ZeroConfig(precision="bfloat16_autocast"),
        )
    if stage == "physics":
        return replace(common, steps=4000, batch_size=32, optimizer=OptimizerConfig(lr=5e-4, ema_decay=0.998))
    if stage in ("frames", "clips"):
        return replace(
            common,
            init="finephys/assets/pipeline",
            steps=8000 if stage == "frames" else 4000,
            # A clip is sixteen frames.
            batch_size=16 if stage == "frames" else 2,
            optimizer=OptimizerConfig(lr=5e-4 if stage == "frames" else 3e-4),
            # They learn to follow a skeleton; it may as well be the true one.
            rows=RowsConfig(pose_source="truth"),
        )
    return replace(
        common,
        init="finephys/assets/pipeline",
        steps=100,
        batch_size=1,
        optimizer=OptimizerConfig(lr=1e-4, warmup_steps=10),
        checkpoint_every=25,
        validate_every=50,
        # A window of each held-out clip: four windows say little of a change of one percent.
        validation_batches=16,
        sample_every=100,
        # A clip a step, each seen once: its rows are made while the ones before are learned from, a core for either.
        # More would cost the ten minutes of `make demo`. Weights that ship take all clips, and hold them.
        threads=1,
        # Some 30 clips ahead; to be farther ahead would take the step's own core.
        rows=RowsConfig(train_clips=100, materialise=False, ahead_mb=4),
    )


def sd15_one_node(stage: StageName) -> TrainConfig:
    """Stable Diffusion 1.5 with AnimateDiff motion modules on the 8 GPUs of one machine."""
    common = demo(stage)
    if stage in ("frames", "clips", "joint"):
        module: Any = common.module
        denoiser = replace(
            module.denoiser,
            # Each frame its own noise, as AnimateDiff's motion modules know it.
            shared_noise=0.0,
            lora_rank=64,
            gradient_checkpointing=True,
            snr_weighting="min_snr",
        )
        common = replace(common, module=replace(module, denoiser=denoiser))
    return replace(
        common,
        data="data/finegym",
        init="data/sd15-animatediff",
        output=f"outputs/sd15-{stage}",
        steps=50_000,
        batch_size=1,
        accumulation=4,
        num_workers=8,
        use_gpu=True,
        cpus_per_worker=4,
        threads=4,
        checkpoint_every=500,
        validate_every=1000,
        sample_every=1000 if stage == "joint" else None,
        optimizer=OptimizerConfig(lr=1e-4, warmup_steps=500, ema_decay=0.9999),
        zero=ZeroConfig(stage=2, precision="bfloat16"),
        rows=RowsConfig(materialise=False, validation_clips=64, actors=24, actor_cpus=2, actor_gpus=0.1, ahead_mb=1024),
    )


def sd15_multi_node(stage: StageName) -> TrainConfig:
    """The same on 4 machines of 8 GPUs: sharded weights, storage that every node reaches."""
    return replace(
        sd15_one_node(stage),
        data="s3://finephys/finegym",
        init="s3://finephys/sd15-animatediff",
        output=f"s3://finephys/runs/sd15-{stage}",
        num_workers=32,
        accumulation=1,
        zero=ZeroConfig(stage=3, precision="bfloat16"),
        rows=RowsConfig(materialise=False, validation_clips=64, actors=96, actor_cpus=2, actor_gpus=0.1, ahead_mb=1024),
    )


RECIPES: dict[str, Callable[[StageName], TrainConfig]] = {
    "demo": demo,
    "sd15_one_node": sd15_one_node,
    "sd15_multi_node": sd15_multi_node,
}
