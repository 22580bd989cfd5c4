"""What a run reports: metrics.jsonl, TensorBoard, Weights & Biases and a progress bar."""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from powerclip.config import TrainConfig
from powerclip.errors import needs_extra
from powerclip.files import atomic_write
from powerclip.runs import RunFolder, read_metrics

SPEED_OVER_S = 1800.0
"""The remaining time is estimated from the speed over this long: metrics may come minutes apart."""

LINE_EVERY_S = 60.0
"""Time between lines of progress if there is no terminal to show a bar."""


class MetricsLog:
    """Appends one JSON object per line to ``metrics.jsonl`` and the same numbers to TensorBoard and a tracker.

    A resumed run drops the lines after its checkpoint, so that every step occurs once, and continues its tracker's run.
    """

    def __init__(self, folder: Path, *, config: TrainConfig, first_step: int = 0, tracker: Any = None) -> None:
        path = RunFolder(folder).metrics_file
        kept = [line for line in read_metrics(path) if line["step"] <= first_step] if first_step else []
        atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._tracker = tracker and tracker.init(
            project=config.wandb_project,
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dataclasses.asdict(config),
        )
        self._file = path.open("a", encoding="utf-8")
        from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, values: Mapping[str, float]) -> None:
        """Append one line; ``values`` holds "step"."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()
        numbers, step = dict(values), int(values["step"])
        del numbers["step"]
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(numbers, step=step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._board.close()
        if self._tracker is not None:
            self._tracker.finish()


def find_tracker(config: TrainConfig) -> Any:
    """The package of Weights & Biases if a config asks for it, else None; PowerclipError if it is not installed."""
    if config.wandb_project is None:
        return None
    with needs_extra("wandb_project", "wandb"):
        import wandb
    return wandb


Report = Callable[[int, str], None]
"""Shows that this many steps are done, with a short text."""


@contextmanager
def progress_bar(title: str, *, steps: int, done: int = 0, console: Console) -> Iterator[Report]:
    """A progress bar with the remaining time; in a file or a pipe, a line every minute and every tenth of the steps."""
    if not console.is_terminal:
        yield _Lines(console, title, steps, done).report
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=SPEED_OVER_S) as progress:
        task = progress.add_task(title, total=steps, completed=done, text="")
        yield lambda step, text: progress.update(task, completed=step, text=text)


class _Lines:
    def __init__(self, console: Console, title: str, steps: int, done: int) -> None:
        self.console, self.title, self.steps, self.started_at = console, title, steps, done
        self.tenth, self.start = 10 * done // steps, time.monotonic()
        self.last = self.start

    def report(self, step: int, text: str) -> None:
        tenth, now = 10 * step // self.steps, time.monotonic()
        if tenth == self.tenth and now - self.last < LINE_EVERY_S:
            return
        self.tenth, self.last = tenth, now
        left = (now - self.start) / max(1, step - self.started_at) * (self.steps - step)
        self.console.print(
            f"{self.title}: {step}/{self.steps} steps, {text}, {timedelta(seconds=round(left))} left",
            highlight=False,
            soft_wrap=True,
        )
