"""The errors of powerclip, checks of allowed values and optional packages, and suggestions for mistyped names."""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")
"""Control characters, halves of surrogate pairs, and characters that reorder the text around them."""


class PowerclipError(Exception):
    """Something the user can fix; its one-line message says what came, what was expected and what to do."""


class RunFailedError(PowerclipError):
    """Work that began as asked and could not be finished (the commands exit with 1 instead of 2)."""


class BadSampleError(ValueError):
    """A sample that cannot be used; its message is the reason, in a few words, for counting."""


class UnreadSampleError(BadSampleError):
    """A sample whose file is not there or cannot be read, as it may be the next time."""


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Check an argument that has a few allowed values; ValueError names it and them."""
    values = tuple(allowed)
    if value not in values:
        raise ValueError(f"{name} is {shown(value)}; it must be one of {', '.join(map(str, values))}")


def shown(value: object) -> str:
    """A value as messages show it, cut if it is long."""
    try:
        text = repr(value)
    except ValueError:  # of integers with thousands of digits
        text = f"{type(value).__name__} with too many digits"
    return text if len(text) < 300 else f"{text[:300]}..."


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str) -> str:
    """The end of a message about an unknown name: the known names closest to it, or ``otherwise``."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


def counted(numbers: Mapping[str, int]) -> str:
    """Numbers of things in words: "3 image file missing, 1 no caption"; a Counter's most common first."""
    items = numbers.most_common() if isinstance(numbers, Counter) else numbers.items()
    return ", ".join(f"{number} {name}" for name, number in items)


@contextmanager
def needs_extra(what: str, extra: str, *, otherwise: str = "") -> Iterator[None]:
    """For imports of optional packages: one that fails becomes a PowerclipError that says what to install."""
    try:
        yield
    except ImportError as error:
        package = (error.name or what).partition(".")[0]
        raise PowerclipError(
            f"{what} needs {package}, which is not installed; pip install 'powerclip[{extra}]'{otherwise}"
        ) from error


def printable(text: str) -> str:
    """A text without line breaks and control characters, which could act on a terminal or reorder what is shown."""
    return CONTROLS.sub("\ufffd", re.sub(r"\s", " ", text))
