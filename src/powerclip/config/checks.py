"""What settings are checked by when they are made,
each with a ValueError that names the setting; and parts of settings."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from functools import cache
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from powerclip.errors import did_you_mean, one_of, shown

T = TypeVar("T")

NUMBERS: dict[type, tuple[type, str]] = {float: (Real, "a finite number"), int: (Integral, "a whole number below 2^40")}
"""What the values of settings that are numbers are instances of, and how messages say so."""


def part(config: Any, kind: type[T]) -> T:
    """The settings of a config that are also those of ``kind``, a dataclass."""
    return kind(**{field.name: getattr(config, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]


def changed(config: Any) -> dict[str, Any]:
    """The settings of a config that differ from their defaults."""
    return {f.name: value for f in dataclasses.fields(config) if (value := getattr(config, f.name)) != f.default}


def require_known(given: Iterable[str], kind: type, *, named: Iterable[str] = (), **elsewhere: type) -> None:
    """Check names of settings of ``kind``, a dataclass; TypeError names an unknown one, and where it belongs.

    ``named`` are the arguments that are not settings, ``elsewhere`` other arguments and the dataclass that each takes.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    names += [name for name in named if name not in names]
    for name in given:
        if name in names:
            continue
        hint = did_you_mean(name, names, otherwise=f"settings: {', '.join(names)}")
        for argument, other in elsewhere.items():
            if name in {field.name for field in dataclasses.fields(other)}:
                hint = f"give {argument}={other.__name__}({name}=...)"
        raise TypeError(f"there is no argument {name!r}; {hint}")


def require(config: object, valid: Callable[[Any], object], rule: str, *names: str) -> None:
    """Check settings, or those that are not None; ``rule`` says what they must be."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not valid(value):
            raise ValueError(f"{name} is {shown(value)}; it must be {rule}")


def require_at_least(config: object, low: int, *names: str) -> None:
    """Check that numbers are not below ``low``."""
    require(config, lambda value: value >= low, f"at least {low}" if low else "0 or more", *names)


def require_number(name: str, value: object, valid: Callable[[Any], object], rule: str) -> None:
    """Check an argument that is a finite number; ``rule`` says what else it must be."""
    if not (_is_number(value, float) and valid(value)):
        raise ValueError(f"{name} is {shown(value)}; it must be {rule}")


def require_listed(config: Any) -> None:
    """Check all settings that have a list of values (Literal), hold several of them, or are a number or one of them."""
    kind: Any = type(config)
    for name, (words, number) in _listed(kind).items():
        value = getattr(config, name)
        if number is None:
            for one in value if isinstance(value, tuple | list) else (value,):
                one_of(name, one, words)
        elif not (_is_number(value, number) or value in words):
            rule = NUMBERS[number][1] + (f" or {', '.join(map(repr, words))}" if words else "")
            raise ValueError(f"{name} is {shown(value)}; it must be {rule}")


def _is_number(value: Any, kind: type) -> bool:
    right = isinstance(value, NUMBERS[kind][0]) and not isinstance(value, bool)  # True is an int to Python
    return right and abs(value) < (2**40 if kind is int else math.inf)


@cache
def _listed(kind: type) -> dict[str, tuple[tuple[object, ...], type | None]]:
    """The words (or None) that settings of a dataclass may have, by name, and the kind of number they may be instead.

    Others than these two are left out.
    """
    found = {}
    for name, hint in typing.get_type_hints(kind).items():
        options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        number = next((option for option in options if option in NUMBERS), None)
        words = _words(hint) + ((None,) if number and types.NoneType in options else ())
        if number or words:
            found[name] = words, number
    return found


def _words(hint: Any) -> tuple[object, ...]:
    options = typing.get_args(hint)
    return options if typing.get_origin(hint) is Literal else tuple(word for one in options for word in _words(one))
