"""Train one stage: python jobs/train.py [RECIPE] --stage STAGE [--FIELD VALUE ...]; --help lists every field."""

import json
import sys
from dataclasses import replace
from typing import cast, get_args

from finephys import command_line
from finephys.config import StageName, TrainConfig, as_json, config_hash
from finephys.data import storage
from finephys.recipes import RECIPES
from finephys.training import ray_trainer
from finephys.training.estimate import model_state_bytes, part_sizes, resource_request
from finephys.training.stages import Stage, find_stage

EXAMPLES = (
    "demo --stage joint --output outputs/joint",
    "demo --stage vae --data finephys/assets/clips --output outputs/vae --steps 2000 --max-minutes 10",
    "demo --stage frames --init outputs/vae/pipeline --output outputs/frames --optimizer.lr 3e-4",
    "sd15_multi_node --stage joint --output s3://bucket/run --dry-run",
)


def main(config: TrainConfig) -> None:
    outcome = ray_trainer.run(config, find_stage(config.stage))
    state = "finished" if outcome.is_finished else "stopped early; the same command continues"
    print(f"finephys: {outcome.step} of {config.steps} steps, {state}; {config.output}/pipeline", file=sys.stderr)


def dry_run(config: TrainConfig) -> None:
    """Print what a run would be, after the checks that it would begin with."""
    stage = find_stage(config.stage)
    print(json.dumps(as_json(config), indent=2))
    print(f"config hash     {config_hash(config)}")
    try:
        ray_trainer.prepare(config, stage)
        print("checks          passed")
    except (ValueError, OSError) as error:
        print(f"checks          would refuse: {error}")
    for line in _parameter_lines(config, stage):
        print(line)
    request = resource_request(config, stage)
    rows, gpus = config.rows, config.num_workers if config.use_gpu else 0
    print(
        f"resources       {config.num_workers} ranks: {config.num_workers * config.cpus_per_worker:g} CPUs, "
        f"{gpus} GPUs; {rows.actors} data actors: {rows.actor_cpus:g} CPUs, {rows.actor_gpus:g} GPUs each; "
        f"in all {request.cpus:g} CPUs, {request.gpus:g} GPUs"
    )
    print(f"global batch    {config.global_batch} = {config.batch_size} x {config.accumulation} x {config.num_workers}")


def _parameter_lines(config: TrainConfig, stage: Stage) -> list[str]:
    is_reachable = config.init is not None and storage.is_local(config.init) and storage.exists(config.init)
    lines = [] if is_reachable or config.init is None else [f"parameters      without {config.init}, of fresh parts:"]
    try:
        module = ray_trainer.build_module(config if is_reachable else replace(config, init=None), stage)
    except FileNotFoundError as error:
        return [f"parameters      unknown: {error}"]
    sizes = part_sizes(module)
    for size in sizes:
        share = size.num_trained / size.num_parameters
        lines.append(f"parameters      {size.name}: {size.num_parameters / 1e6:.3f} M, {share:.0%} trained")
    total = sum(size.num_parameters for size in sizes)
    trained = sum(size.num_trained for size in sizes)
    lines.append(f"parameters      in all: {total / 1e6:.3f} M, {trained / max(1, total):.0%} trained")
    for zero_stage in (0, 1, 2, 3):
        size_bytes = model_state_bytes(total, trained, config, zero_stage)
        chosen = ", this run" if zero_stage == config.zero.stage else ""
        place = "GPU" if config.use_gpu else "rank"
        lines.append(
            f"memory          ZeRO {zero_stage}: {size_bytes / 2**30:.3g} GiB of model states a {place}{chosen}"
        )
    lines.append("memory          activations come on top (finephys/training/estimate.py)")
    return lines


def _stage_named(arguments: list[str]) -> StageName:
    """The value of --stage, which must be known before the stage's own options are; joint if it is not given."""
    names = get_args(StageName)
    for position, argument in enumerate(arguments):
        value = None
        if argument == "--stage":
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        elif argument.startswith("--stage="):
            value = argument.removeprefix("--stage=")
        if value is not None:
            if value not in names:
                command_line.fail(f"--stage is {value!r}, wanted one of {', '.join(names)}")
            return cast(StageName, value)
    return "joint"


if __name__ == "__main__":
    arguments = sys.argv[1:]
    is_dry = "--dry-run" in arguments
    arguments = [argument for argument in arguments if argument != "--dry-run"]
    stage_name = _stage_named(arguments)
    command_line.run(
        dry_run if is_dry else main,
        {name: recipe(stage_name) for name, recipe in RECIPES.items()},
        description="Train one stage of FinePhys through Ray Data, Ray Train and DeepSpeed; --dry-run only tells. "
        "The options of `module` are those of the stage named by --stage (joint if none is).",
        examples=EXAMPLES,
        args=arguments,
    )
