"""A data set of a suite: how it is read, where to get it, and which of its metrics are averaged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from powerclip.tasks import Task

Reader = Callable[[Path, str], list[Task]]

HUB = "https://huggingface.co/datasets"


@dataclass(frozen=True)
class Benchmark:
    """One data set of a suite, and the ``source`` to get it from."""

    name: str
    """The name of the data set and, by default, of its task."""
    read: Reader
    """Reads its tasks, given its folder and name; raises PowerclipError if it cannot."""
    source: str
    averaged: tuple[str, ...] = ()
    """The metrics that are averaged over the suite; none if it has no average."""
    also_known_as: tuple[str, ...] = ()
    """Other names of its folder."""
    tasks: tuple[str, ...] = ()
    """Its tasks, if they have other names."""
    items: tuple[int, ...] = ()
    """How many items (as ``Origin.n``) each task of the complete release has, where that is known."""
    needs: str = ""
    """A folder in its folder, without which it is missing."""

    @property
    def metrics(self) -> tuple[tuple[str, str], ...]:
        """Task and name of each metric that is averaged over the suite."""
        return tuple((task, metric) for task in self.tasks or (self.name,) for metric in self.averaged)

    @property
    def complete(self) -> dict[str, int]:
        """How many items the complete release has, by task."""
        return dict(zip(self.tasks or (self.name,), self.items, strict=False))

    def folder(self, data: Path) -> Path | None:
        """Where the data set is under a folder; None if it, or what it needs, is missing."""
        for name in (self.name, *self.also_known_as):
            for form in (name, f"wds_{name}", f"wds_vtab-{name}", f"vtab-{name}", f"vtab/{name}"):
                if (data / form / self.needs).is_dir():
                    return data / form
        return None
