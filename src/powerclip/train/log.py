"""What a run logs: metrics.jsonl, TensorBoard and Weights & Biases."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from powerclip.config import TrainConfig
from powerclip.errors import needs_extra
from powerclip.files import atomic_write, naming
from powerclip.runs import RunFolder, read_metrics


class MetricsLog:
    """Appends one JSON object per line to ``metrics.jsonl`` and the same numbers to TensorBoard and a tracker.

    A resumed run drops the lines after its checkpoint, so that every step occurs once, also those of
    ``bad_batches.jsonl``, and continues its tracker's run.
    """

    def __init__(self, folder: Path, *, config: TrainConfig, first_step: int = 0, tracker: Any = None) -> None:
        run = RunFolder(folder)
        for path in (run.metrics_file, *filter(Path.exists, [run.bad_batches_file])):
            kept = [line for line in read_metrics(path) if line["step"] <= first_step]
            atomic_write(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._tracker = tracker and tracker.init(
            project=config.wandb_project,
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            resume="allow",
            dir=str(folder),
            config=dataclasses.asdict(config),
        )
        self._path = run.metrics_file
        self._file = self._path.open("a", encoding="utf-8")
        from torch.utils.tensorboard.writer import SummaryWriter  # takes a second to import

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def write(self, values: Mapping[str, float]) -> None:
        """Append one line; ``values`` holds "step"."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        with naming(self._path):
            self._file.write(json.dumps(finite) + "\n")
            self._file.flush()
        numbers, step = dict(values), int(values["step"])
        del numbers["step"]
        for name, value in numbers.items():
            self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(numbers, step=step)

    def sync(self) -> None:
        """Let the lines outlast a power cut."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write out what is buffered."""
        self._board.close()
        if self._tracker is not None:
            self._tracker.finish()
        with naming(self._path):
            self._file.close()


def find_tracker(config: TrainConfig) -> Any:
    """The package of Weights & Biases if a config asks for it, else None; PowerclipError if it is not installed."""
    if config.wandb_project is None:
        return None
    with needs_extra("wandb_project", "wandb"):
        import wandb
    return wandb
