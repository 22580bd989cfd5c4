"""The ``powerclip`` command: finds the subcommand, fills it from the arguments, runs it, reports errors in one line."""

import argparse
import contextlib
import dataclasses
import inspect
import io
import os
import re
import select
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

import powerclip
from powerclip import commands
from powerclip.config import TrainConfig
from powerclip.errors import PowerclipError, RunFailedError, did_you_mean, printable
from powerclip.launcher import end_with_launcher
from powerclip.recipes import RECIPES, recipe
from powerclip.silence import broken_silence

COMMANDS: dict[str, type[Any]] = {
    "demo": commands.Demo,
    "prepare": commands.Prepare,
    "train": commands.Train,
    "compare": commands.Compare,
    "evaluate": commands.Evaluate,
    "interpolate": commands.Interpolate,
    "export": commands.Export,
    "embed": commands.Embed,
    "report": commands.Report,
    "explore": commands.Explore,
}

STDOUT, STDERR = 1, 2
"""The process's standard output and error, whatever ``sys.stdout`` and ``sys.stderr`` are."""

CUT = 141
"""The exit status where nobody reads the output any more, as after ``| head``: what a shell reports for SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit status: 0 success, 2 wrong usage, 1 failure, ``CUT``."""
    end_with_launcher()
    _open_closed_streams()
    warnings.formatwarning = warning_line
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        print(end="", flush=True)  # what fails here would otherwise be reported as Python ends
    except KeyboardInterrupt as error:
        return _fail(error, 130, "interrupted")
    except (RunFailedError, OSError) as error:
        return _fail(error, 1)
    except (PowerclipError, ValueError) as error:
        return _fail(error, 2)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich's, of a console that nobody reads
            return CUT
        raise
    return status


def _open_closed_streams() -> None:
    """What is printed to a stream that the caller has closed (``>&-``) is dropped."""
    for name, number in (("stdout", STDOUT), ("stderr", STDERR)):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as the command shows it: one of ours in one line, others as Python does, with their place."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return printable(f"powerclip: {' '.join(str(message).split())}") + "\n"
    return _PYTHONS_FORM(message, category, filename, lineno, line)


_PYTHONS_FORM = warnings.formatwarning


def _run(argv: Sequence[str]) -> int:
    """Run a subcommand; return 0, or 2 if none is given."""
    if argv[:1] in ([], ["-h"], ["--help"]):
        lines = (f"  {name:12}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items())
        print("usage: powerclip COMMAND [options]\n", *lines, "\npowerclip COMMAND --help shows its options.", sep="\n")
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"powerclip {powerclip.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        known = f"commands: {', '.join(COMMANDS)}"
        raise PowerclipError(f"unknown command {argv[0]!r}; {did_you_mean(argv[0], COMMANDS, otherwise=known)}")
    command = parse(argv[0], argv[1:])
    with broken_silence(f"powerclip {argv[0]}"):
        command.run()
    return 0


def _fail(error: BaseException, status: int, message: str = "") -> int:
    """Print an error and its notes in one line, unless it is that nobody reads the output; return the exit status."""
    cut = _is_cut()
    _drop_unwritten()
    if cut and isinstance(error, BrokenPipeError):
        return CUT
    said = ". ".join((message or str(error), *getattr(error, "__notes__", ())))
    rank = os.environ.get("RANK", "") if os.environ.get("WORLD_SIZE", "1") != "1" else ""  # whatever they hold
    process = f" [process {rank}]" if rank else ""
    print(printable(f"powerclip{process}: {' '.join(said.split())}"), file=sys.stderr)
    return status


def _is_cut() -> bool:
    """Whether standard output is a pipe whose reader has ended."""
    output = select.poll()
    output.register(STDOUT, 0)  # errors are reported without being asked for
    return bool(output.poll(0))


def _drop_unwritten() -> None:
    """Drop what standard output cannot take, which Python would try to write, and report, as it ends."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)


def _recipe_of(argv: Sequence[str]) -> TrainConfig:
    """The config of the recipe named in the arguments, found before they are parsed: it is the default of the rest.

    A length given in steps replaces the recipe's in epochs, and vice versa.
    """
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "steps", "epochs"):
        scan.add_argument(f"--{name}", nargs="?")
    given, _ = scan.parse_known_args(argv)
    if given.recipe is None and not {"-h", "--help"} & set(argv):
        raise PowerclipError(f"no recipe given; add --recipe NAME (recipes: {', '.join(RECIPES)})")
    config = recipe(given.recipe or "scenes_tiny")
    steps, epochs = (value not in (None, "None") for value in (given.steps, given.epochs))
    if steps != epochs:  # the 1 is replaced when all is parsed
        config = dataclasses.replace(config, steps=1 if steps else None, epochs=1 if epochs else None)
    return config


def parse(name: str, argv: Sequence[str]) -> Any:
    """A command, ready to run; PowerclipError with tyro's message in one line; SystemExit once help is printed."""
    given: dict[str, Any] = {}
    if required := {"train": ("data", "output"), "compare": ("data", "output", "objectives")}.get(name):
        config = _recipe_of(argv)
        unnamed = dataclasses.replace(config, recipe=tyro.MISSING)
        given["default"] = COMMANDS[name](**dict.fromkeys(required, tyro.MISSING), config=unnamed)
        shown = f"The defaults below are those of {config.recipe}; --help --recipe NAME shows another's."
        about = inspect.cleandoc(COMMANDS[name].__doc__ or "")
        given["description"] = f"{about}\n\nRecipes: {', '.join(RECIPES)}. {shown}"
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(COMMANDS[name], prog=f"powerclip {name}", args=list(argv), **given)
    except SystemExit as exit_:
        if not exit_.code:
            print(end="", flush=True)  # an error of the output comes here, not as Python ends
            raise
        # tyro frames its messages: the title goes, and what it separates by lines become sentences.
        parts = re.split("\u256d[^\n]*|\u2502 \u2500+ \u2502", errors.getvalue())
        lines = (re.sub(r"[\s\u2500-\u257f]+", " ", part).strip() for part in parts)
        said = ". ".join(line.rstrip(".") for line in lines if line)
        raise PowerclipError(_in_few_words(said, f"powerclip {name} --help shows the options")) from None


def _in_few_words(said: str, otherwise: str) -> str:
    """tyro's message on an unknown option or a wrong value, without its help texts; other messages as they are."""
    if found := re.match(r"Unrecognized options: (--[\w.-]*\w)", said):
        option = found[1]
        near = re.search(rf"(?:Perhaps you meant|Arguments similar to {option}): (--[\w.-]+)", said)
        return f"unknown option {option}; {f'did you mean {near[1]}?' if near else otherwise}"
    wrong = re.match(
        r"Error parsing (--[\w.-]+): no type matching (.+?) could be instantiated from \['([^']*)'\]", said
    )
    choice = re.match(r"invalid choice '(.*?)' for argument '(--[\w.-]+)'\. Expected one of \((.*?)\)", said)
    if wrong:
        option, types, value = wrong.groups()
        words = [word for group in re.findall(r"{(.*?)}", types) for word in re.split(r",\s*", group)]
        kinds = [kind for short, kind in (("INT", "an integer"), ("FLOAT", "a number")) if short in types]
    elif choice:
        value, option = choice[1], choice[2]
        words, kinds = re.findall(r"'(.*?)'", choice[3]), []
    else:
        return said
    hint = did_you_mean(value, words, otherwise="")
    allowed = " or ".join([*kinds, ", ".join(words)])
    return f"{option} is {value!r}; it must be {allowed}{f'; {hint}' if hint else ''}"


if __name__ == "__main__":
    sys.exit(main())
