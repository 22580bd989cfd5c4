"""A suite to run every so many steps of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from powerclip.evaluate.run import read_tasks
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Task

LIGHT_SEED = 10_000
"""Seed of the scenes to watch by: others than those of the final evaluation, which a choice of steps must not see."""


def light_suite(
    suite: str | Sequence[str] = "scenes", data: Path | None = None, *, image_size: int, size: int = 64
) -> Sequence[Task]:
    """Tasks to watch a training by: make them once, and hand them to ``evaluate_tasks`` every so many steps.

    ``evaluate_tasks`` leaves the model's mode and the random generators as they are. On many processes all must call
    it, at the same step.

    Args:
        suite: as in ``evaluate_model``; the scenes are others than those it shows.
        data: what the suite needs.
        image_size: side of the model's images in pixels.
        size: images of each generated task.

    Raises:
        PowerclipError: no such suite or data.
        ValueError: size is not positive.
    """
    names = [suite] if isinstance(suite, str) else list(suite)
    others = [name for name in names if name != "scenes"]
    tasks: list[Task] = []
    if "scenes" in names:
        tasks += evaluation_tasks(seed=LIGHT_SEED, size=size, image_size=image_size)
    if others:
        tasks += read_tasks(others, data, size=size, image_size=image_size)
    return tasks


def as_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Results as one flat line of a log: ``eval/TASK/METRIC``."""
    return {f"eval/{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}
