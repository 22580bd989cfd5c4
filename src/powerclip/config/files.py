"""Settings as YAML, and back."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from powerclip.config.training import TrainConfig
from powerclip.errors import printable, shown

T = TypeVar("T")

MAX_YAML_BYTES = 1 << 17
"""Size up to which a YAML file is read: up to 45 MB and a second. A config has some 3,000 bytes."""


def to_yaml(config: object) -> str:
    """A config dataclass as YAML, with every setting."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)  # type: ignore[call-overload]


def from_dict(cls: type[T], values: object, *, where: str = "config") -> T:
    """A config dataclass from nested dicts; ValueError names the place of an unknown, missing or refused setting."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds {type(values).__name__}; expected a mapping of settings")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := values.keys() - fields.keys():
        names = printable(", ".join(sorted(name if isinstance(name, str) else shown(name) for name in unknown)))
        raise ValueError(f"{where} has unknown settings {names[:300]}; known: {', '.join(fields)}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where} lacks the settings {', '.join(missing)}")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = from_dict(hint, value, where=f"{where}.{name}")
        elif not _fits(value, hint):
            raise ValueError(f"{where}.{name} is {shown(value)}; expected {_described(hint)}")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fits(value: object, hint: Any) -> bool:
    """Whether a YAML value is of an annotated type (the few that configs use)."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in options
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(x, hint) for item in value.items() for x, hint in zip(item, options, strict=True)
        )
    if hint in (int, float):
        return (isinstance(value, float) and hint is float) or (type(value) is int and abs(value) < 2**63)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    """An annotated type in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(repr, options))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, options))
    if origin in (tuple, dict):
        return "a list" if origin is tuple else "a mapping"
    return "None" if hint is types.NoneType else str(hint.__name__)


def load_config(path: Path) -> TrainConfig:
    """Read the ``config.yaml`` of a run folder; ValueError names the place of what is wrong."""
    values = read_yaml(path)
    objective = values.get("objective") if isinstance(values, dict) else None
    if isinstance(objective, dict) and objective.get("powerset_weight") == 0:  # how earlier versions said it
        del objective["powerset_weight"]
        objective["name"] = "clip" if objective.get("name", "powerclip") == "powerclip" else objective["name"]
    return from_dict(TrainConfig, values, where=str(path))


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of up to ``MAX_YAML_BYTES``, without aliases, which could make it grow without bounds.

    ValueError if the file cannot be read, is larger, or is not such YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise yaml.YAMLError(f"it is larger than {MAX_YAML_BYTES} bytes")
        return yaml.load(content, Loader=_PlainLoader)
    except (OSError, ValueError, LookupError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML and refuses aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias; write the value again in its place")
        return super().compose_node(parent, index)
