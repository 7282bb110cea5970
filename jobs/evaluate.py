"""Measure how good each part is, from the shipped data and weights: python jobs/evaluate.py NAME."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from finephys.command_line import run
from finephys.evaluation.figures import figures_table, write_figures

# NAME -> finephys/evaluation/evaluate_NAME.py: evaluate(pipeline, data, output) -> list[Figure], which also writes
# output/index.html.
Name = Literal["pose", "lifting", "physics", "video"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to measure, of which weights, and where to write it."""

    name: tyro.conf.Positional[Name]
    """Part to measure."""
    pipeline: Path = Path("finephys/assets/pipeline")
    """Folder of the weights."""
    data: str = "finephys/assets/clips"
    """Folder of Parquet shards; their test split is measured."""
    output: Path | None = None
    """Folder for index.html with plots and videos; outputs/evaluate/NAME if not given."""
    networks: Path | None = None
    """For video: folder with videomae/ and clip/ in transformers' layout, for Fréchet distance and CLIP similarity."""
    json: Path | None = None
    """File for {figure: {value, goal, met}}."""


def main(config: EvaluateConfig) -> None:
    if not config.pipeline.is_dir():
        raise FileNotFoundError(f"pipeline folder {config.pipeline} does not exist")
    if config.json is not None and config.json.is_dir():
        raise ValueError(f"json {config.json} is a folder, wanted a file")
    if config.networks is not None and config.name != "video":
        raise ValueError(f"networks {config.networks} is given for {config.name}, wanted only for video")
    output = config.output or Path("outputs/evaluate") / config.name
    module = importlib.import_module(f"finephys.evaluation.evaluate_{config.name}")
    more = {} if config.networks is None else {"networks": config.networks}
    figures = module.evaluate(config.pipeline, config.data, output, **more)
    print(figures_table(figures))
    print(f"done: open {output / 'index.html'}")
    if config.json is not None:
        write_figures(figures, config.json)


if __name__ == "__main__":
    run(
        main,
        EvaluateConfig,
        description="Measure one part of the shipped weights on the held-out clips, with a page of plots and videos.",
        examples=(
            "pose",
            "lifting --json outputs/evaluate/lifting.json",
            "physics",
            "pose --pipeline outputs/train/pipeline",
        ),
    )
