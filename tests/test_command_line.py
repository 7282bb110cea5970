"""A job's command line: options from a dataclass, recipes by name, and one line for every mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest

from finephys.command_line import is_user_error, run


@dataclass(frozen=True, kw_only=True)
class Part:
    width: int = 3


@dataclass(frozen=True, kw_only=True)
class MadeUpConfig:
    steps: int = 10
    part: Part = field(default_factory=Part)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}, wanted 0 or more")


RECIPES = {"small": MadeUpConfig(), "large": MadeUpConfig(steps=1000)}


def _run(*arguments: str) -> tuple[int, MadeUpConfig | None]:
    seen: list[MadeUpConfig] = []
    with pytest.raises(SystemExit) as leaving:
        run(seen.append, RECIPES, description="Does it.", examples=["large --steps 3"], args=arguments)
    assert isinstance(leaving.value.code, int)
    return leaving.value.code, seen[0] if seen else None


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], MadeUpConfig()),
        (["--part.width", "7"], MadeUpConfig(part=Part(width=7))),
        (["large"], MadeUpConfig(steps=1000)),
        (["large", "--steps", "5"], MadeUpConfig(steps=5)),
    ],
)
def test_a_recipe_and_what_overrides_it(arguments: list[str], wanted: MadeUpConfig) -> None:
    assert _run(*arguments) == (0, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["huge"], "unknown recipe 'huge', wanted one of small, large"),
        (["--part.widht", "7"], "Unrecognized options: --part.widht, 7; perhaps you meant --part.width"),
        (["--steps", "many"], "Error parsing --steps: invalid literal for int() with base 10: 'many'"),
        (["--steps", "-1"], "steps is -1, wanted 0 or more"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*arguments) == (2, None)
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith(f"finephys: {message}")
    assert stderr.count("\n") == 1


def test_help_names_recipes_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--help") == (0, None)
    text = capsys.readouterr().out
    assert "Recipes (first argument): small, large" in text
    assert "large --steps 3" in text
    assert "--part.width" in text


def test_a_missing_file_is_the_users_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_config: MadeUpConfig) -> None:
        Path("/nowhere/at/all").read_bytes()

    with pytest.raises(SystemExit, match="2"):
        run(main, MadeUpConfig, description="", args=[])
    assert capsys.readouterr().err == "finephys: No such file or directory: '/nowhere/at/all'\n"


def test_a_bug_keeps_its_traceback() -> None:
    def main(_config: MadeUpConfig) -> NoReturn:
        # Raised by the standard library, not by our own checks.
        raise AssertionError(int("x"))

    with pytest.raises(ValueError, match="invalid literal"):
        run(main, MadeUpConfig, description="", args=[])


def test_an_interruption_has_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def main(_config: MadeUpConfig) -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="130"):
        run(main, MadeUpConfig, description="", args=[])
    assert "interrupted" in capsys.readouterr().err


def test_only_mistakes_about_input_are_the_users() -> None:
    assert is_user_error(FileNotFoundError(2, "No such file", "a"))
    assert not is_user_error(KeyError("a"))
    assert not is_user_error(RuntimeError("out of memory"))
