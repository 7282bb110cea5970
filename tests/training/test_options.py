"""Every option of jobs/train.py says what it is: its help is the comment at the field, or that of a field above it."""

import inspect
import re
from dataclasses import fields, is_dataclass
from typing import get_args

import pytest

from finephys.config import OptimizerConfig, RowsConfig, StageName, TrainConfig, ZeroConfig
from finephys.training.stages import find_stage


def config_classes(root: type) -> list[type]:
    """A dataclass and those of its fields that are dataclasses, by their defaults."""
    found = [root]
    for one in fields(root):
        if is_dataclass(one.default) and not isinstance(one.default, type):
            found += config_classes(type(one.default))
    return found


CLASSES = {
    found
    for root in (
        TrainConfig,
        OptimizerConfig,
        ZeroConfig,
        RowsConfig,
        *(find_stage(name).config for name in get_args(StageName)),
    )
    for found in config_classes(root)
}


@pytest.mark.parametrize("config", sorted(CLASSES, key=lambda config: config.__name__))
def test_every_option_has_a_comment_of_its_own(config: type) -> None:
    lines = inspect.getsource(config).splitlines()
    for number, line in enumerate(lines):
        field = re.match(r"    (\w+): (.*)", line)
        if field is None or any(part in field[2] for part in ("Config", "field(", "default_factory")):
            continue
        assert "  # " in line or lines[number - 1].startswith("    #"), f"{config.__name__}.{field[1]} has no comment"
