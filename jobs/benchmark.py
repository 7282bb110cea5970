"""Measure how fast each part is, as a ratio to the bare ceiling in the same run: python jobs/benchmark.py NAME."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from finephys.command_line import run
from finephys.evaluation.figures import figures_table, write_figures

# NAME -> finephys/benchmarks/NAME.py, which has measure() -> list[Figure].
Name = Literal["data", "pose", "physics", "generate", "serve", "train"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What to measure and where to write it."""

    name: tyro.conf.Positional[Name]
    """Part to measure."""
    json: Path | None = None
    """File for {figure: {value, goal, met}}."""


def main(config: BenchmarkConfig) -> None:
    if config.json is not None and config.json.is_dir():
        raise ValueError(f"json {config.json} is a folder, wanted a file")
    figures = importlib.import_module(f"finephys.benchmarks.{config.name}").measure()
    print(figures_table(figures))
    if config.json is not None:
        write_figures(figures, config.json)


if __name__ == "__main__":
    run(
        main,
        BenchmarkConfig,
        description="Measure the speed of one part beside its bare ceiling in the same run. Needs an idle machine.",
        examples=("physics", "data --json outputs/benchmarks/data.json"),
    )
