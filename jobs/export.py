"""Turn a checkpoint of a training run into a pipeline folder: python jobs/export.py --run OUTPUT --output FOLDER."""

import sys
from dataclasses import dataclass

from finephys import command_line
from finephys.config import from_json
from finephys.data import storage
from finephys.training.checkpoint import best_checkpoint, list_checkpoints
from finephys.training.export import export_pipeline
from finephys.training.stages import find_stage, module_config

EXAMPLES = (
    "--run outputs/joint --output outputs/joint/pipeline",
    "--run s3://bucket/run --step 5000 --output pipeline-5000",
)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Which checkpoint becomes which folder."""

    # Output folder or URL of jobs/train.py.
    run: str
    # Folder or URL of the pipeline; what lies there is replaced.
    output: str
    # Optimizer step of the checkpoint; the newest if not given.
    step: int | None = None
    # The checkpoint with the lowest validation loss.
    best: bool = False

    def __post_init__(self) -> None:
        if self.best and self.step is not None:
            raise ValueError(f"best is True and step is {self.step}, wanted one of them")


def main(config: ExportConfig) -> None:
    checkpoints = list_checkpoints(config.run)
    if not checkpoints:
        raise FileNotFoundError(f"run {config.run} holds no checkpoint")
    steps = [checkpoint.step for checkpoint in checkpoints]
    if config.step is not None and config.step not in steps:
        raise ValueError(f"run {config.run} has no checkpoint of step {config.step}, it has {steps}")
    checkpoint = checkpoints[-1 if config.step is None else steps.index(config.step)]
    if config.best:
        best = best_checkpoint(checkpoints)
        if best is None:
            raise ValueError(f"run {config.run} has no checkpoint that was validated")
        checkpoint = best
    storage.check_writable(config.output)
    plain = checkpoint.record["config"]
    stage = find_stage(plain["stage"])
    trained = from_json(plain, module_config(stage, plain["module"]))
    export_pipeline(checkpoint, trained, stage, config.output)
    print(f"finephys: step {checkpoint.step} of {config.run} -> {config.output}", file=sys.stderr)


if __name__ == "__main__":
    command_line.run(main, ExportConfig, description="Export a checkpoint as a pipeline folder.", examples=EXAMPLES)
