"""What each training stage is: its rows, its module and its collate. Stages are data; the loop is one.

Path:    TrainConfig.stage -> Stage -> the loop
Letters: none
Units:   none

Imports are inside the function because a stage must not need the libraries of another: training the lifter loads no
diffusion code, and training the autoencoder no mmpose.
"""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import torch

RowKind = Literal["decoded", "features", "windows"]
Row = dict[str, Any]
Batch = dict[str, torch.Tensor]
Sampler = Callable[[Any, Batch], list[tuple[np.ndarray[Any, np.dtype[np.uint8]], float]]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """rows: which chain of data/pipeline.py feeds it.  config: its dataclass.

    build(config, init): the module, fresh or from the parts in the pipeline folder `init`. Its forward(batch) returns
    scalar loss terms, "loss" among them; its export(folder) writes its parts of a pipeline folder.
    init_parts: what `init` must hold beside what the rows are made with.
    collate(rows, rng): rows as the chain made them to one batch.  sample_window(index, seed) and
    sample_validation_window: only where rows is "windows".  sampler(init): where the stage makes videos, a function of
    module and batch that returns what the module makes of each sample: (F,H,W,3) uint8 frames and frames a second.
    """

    rows: RowKind
    config: type[Any]
    build: Callable[[Any, Path | None], torch.nn.Module]
    collate: Callable[[list[Row], np.random.Generator], Batch]
    sample_window: Callable[[int, int], Row] | None = None
    sample_validation_window: Callable[[int, int], Row] | None = None
    sampler: Callable[[Path], Sampler] | None = None
    init_parts: tuple[str, ...] = ()


def find_stage(name: str) -> Stage:
    """The stage called `name`. Raises ValueError on any other name."""
    if name == "vae":
        from finephys.diffusion import vae

        return Stage(rows="decoded", config=vae.VAETrainingConfig, build=vae.build, collate=vae.collate)
    if name == "pose2d":
        from finephys.pose import rtmpose, rtmpose_training

        return Stage(
            rows="decoded",
            config=rtmpose.RTMPoseConfig,
            build=rtmpose_training.build,
            collate=rtmpose_training.collate,
        )
    if name == "lifting":
        from finephys.pose import lifting_training, windows

        return Stage(
            rows="windows",
            config=lifting_training.LiftingTrainingConfig,
            build=lifting_training.build,
            collate=lifting_training.collate,
            sample_window=partial(
                windows.sample_window, is_corrupted=False, num_prompts=windows.EPISODE_PROMPTS, keeps_mechanics=False
            ),
            sample_validation_window=partial(
                windows.sample_window, split="test", is_corrupted=False, num_prompts=windows.EPISODE_PROMPTS
            ),
        )
    if name == "physics":
        from finephys.physics import training
        from finephys.pose import windows

        return Stage(
            rows="windows",
            config=training.PhysicsTrainingConfig,
            build=training.build,
            collate=training.collate,
            sample_window=partial(windows.sample_window, is_corrupted=False),
            sample_validation_window=partial(windows.sample_window, split="test", is_corrupted=False),
            init_parts=("lifter",),
        )
    if name in ("frames", "clips", "joint"):
        from finephys.diffusion import joint

        if name == "frames":
            return Stage(
                rows="features",
                config=joint.FramesTrainingConfig,
                build=joint.build_frames,
                collate=joint.collate_frames,
            )
        if name == "clips":
            return Stage(
                rows="features",
                config=joint.FramesTrainingConfig,
                build=joint.build_clips,
                collate=joint.collate_clips,
            )
        return Stage(
            rows="features",
            config=joint.JointTrainingConfig,
            build=joint.build,
            collate=joint.collate,
            sampler=joint.sampler,
        )
    raise ValueError(f"unknown stage {name!r}, wanted one of vae, pose2d, lifting, physics, frames, clips, joint")


def module_config(stage: Stage, plain: dict[str, Any]) -> Any:
    """The stage's dataclass from the JSON values that config.as_json wrote, nested dataclasses and tuples included.

    Raises ValueError, naming it, on a field that this version does not have.
    """
    return _restored(stage.config, plain)


def _restored(kind: type[Any], plain: dict[str, Any]) -> Any:
    types = get_type_hints(kind)
    unknown = sorted(set(plain) - set(types))
    if unknown:
        raise ValueError(f"{kind.__name__} has no field {unknown[0]!r} in this version")
    values = {}
    for name, value in plain.items():
        if is_dataclass(types[name]) and isinstance(types[name], type):
            values[name] = _restored(types[name], value)
        elif isinstance(value, list):
            values[name] = _as_tuple(value)
        else:
            values[name] = value
    return kind(**values)


def _as_tuple(value: list[Any]) -> tuple[Any, ...]:
    return tuple(_as_tuple(item) if isinstance(item, list) else item for item in value)
