"""From argv to a job's configuration, and from a user's mistake to one line on stderr and exit code 2.

Path:    python jobs/*.py -> config dataclass -> main(config)

A job is its configuration (a frozen dataclass, or recipes: complete configurations by name) and a function of it:

    if __name__ == "__main__":
        run(main, Config, description="What the job does.", examples=["--output outputs/x"])
        run(main, {"demo": demo(), "sd15_one_node": sd15_one_node()}, description=..., examples=["demo --stage joint"])

With recipes the first argument names one and the rest override its fields; without a name the first recipe is taken.
tyro turns the dataclass's fields, types and docstring into the options. Nested dataclasses become `--optimizer.lr`.

What counts as the user's mistake: an option that tyro refuses, a ValueError raised by our own code (style: ValueError
for what a user got wrong), and an OSError about a named file. Everything else is a bug and keeps its traceback.
"""

import contextlib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import NoReturn, TypeVar

import tyro

ConfigT = TypeVar("ConfigT")

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_OWN_CODE = (Path(__file__).parent, Path(__file__).parent.parent / "jobs")


class JobFailed(RuntimeError):
    """The job did all it could and did not succeed; the message says in one line why."""


def run(
    main: Callable[[ConfigT], None],
    config: type[ConfigT] | Mapping[str, ConfigT],
    *,
    description: str,
    examples: Sequence[str] = (),
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line into a configuration, call `main` with it, and exit.

    config: a dataclass, or recipes by name, the default one first.
    examples: arguments only; --help prints them behind the program's name.
    args: without the program's name; sys.argv[1:] if None.
    Exit codes: 0 done; 1 failed (JobFailed), 2 the user's mistake, both in one line on stderr; 130 interrupted. Bugs
    raise as they are.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        main(parse(config, arguments, description=description, examples=examples))
    except KeyboardInterrupt:
        print("finephys: interrupted; the same command continues", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except JobFailed as error:
        print("finephys: " + " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except (ValueError, OSError) as error:
        if not is_user_error(error):
            raise
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            fail(f"{error.strerror}: {os.fspath(error.filename)!r}")
        fail(str(error))
    raise SystemExit(0)


def fail(message: str) -> NoReturn:
    """Say what the user got wrong in one line on stderr and exit with code 2."""
    print("finephys: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(EXIT_USER_ERROR)


def is_user_error(error: BaseException) -> bool:
    """Whether the user can put this right: a ValueError or OSError of our own code, or any OSError about a file."""
    if not isinstance(error, ValueError | OSError):
        return False
    if isinstance(error, OSError) and error.filename is not None:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return True
    raised_in = Path(frames[-1].filename).resolve()
    return any(raised_in.is_relative_to(folder.resolve()) for folder in _OWN_CODE)


def parse(
    config: type[ConfigT] | Mapping[str, ConfigT],
    arguments: Sequence[str],
    *,
    description: str,
    examples: Sequence[str] = (),
) -> ConfigT:
    """The configuration that `arguments` describe.

    Raises SystemExit(0) after --help, SystemExit(2) after one line on stderr, and ValueError on an unknown recipe.
    """
    spec = sys.modules["__main__"].__spec__
    program = f"python jobs/{Path(sys.argv[0]).name}" if spec is None else f"python -m {spec.name}"
    help_text = description
    if examples:
        help_text += "\n\nExamples:\n" + "\n".join(f"  {program} {example}" for example in examples)
    if isinstance(config, Mapping):
        recipe, arguments = _split_recipe(config, list(arguments))
        help_text += "\n\nRecipes (first argument): " + ", ".join(config) + f". Defaults shown are those of {recipe}."
        default = config[recipe]
        config_type, program = type(default), f"{program} {recipe}"
        return _one_line_errors(
            lambda: tyro.cli(config_type, default=default, prog=program, description=help_text, args=arguments)
        )
    return _one_line_errors(lambda: tyro.cli(config, prog=program, description=help_text, args=arguments))


def _split_recipe(recipes: Mapping[str, ConfigT], arguments: list[str]) -> tuple[str, list[str]]:
    if not arguments or arguments[0].startswith("-"):
        return next(iter(recipes)), arguments
    if arguments[0] not in recipes:
        raise ValueError(f"unknown recipe {arguments[0]!r}, wanted one of {', '.join(recipes)}")
    return arguments[0], arguments[1:]


def _one_line_errors(parse_arguments: Callable[[], ConfigT]) -> ConfigT:
    """Run tyro and put its boxed error messages into one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return parse_arguments()
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        fail(_unboxed(complaint.getvalue()))


def _unboxed(box: str) -> str:
    """tyro's message without its frame: the first paragraph, and the options that it suggests."""
    # The first line is a title; a rule follows it where stdout's encoding has no characters to draw a frame with.
    lines = [line.strip(" │╭╮╰╯") for line in box.splitlines()[1:]]
    lines = list(dropwhile(_is_rule, lines))
    message = " ".join(takewhile(lambda line: not _is_rule(line), lines))
    # What a configuration's __post_init__ says needs no name of a class before it.
    message = re.sub(r"^Error parsing \w+Config: ", "", message)
    message = re.sub(r"Missing from [^:]*:", "missing", message).replace(" (required)", "").rstrip(".")
    for index, line in enumerate(lines):
        if "Perhaps you meant" in line or "Similar" in line:
            suggested = re.findall(r"--[\w.-]*\w", " ".join(lines[index:]))
            suggested = [option for option in dict.fromkeys(suggested) if option != "--help"]
            return f"{message}; perhaps you meant {' or '.join(suggested)}" if suggested else message
    return f"{message}; --help lists the options"


def _is_rule(line: str) -> bool:
    return line != "" and not line.strip("─-")
