"""A small suite to run every so many steps of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from powerclip.data.scenes import evaluation_tasks
from powerclip.evaluate.shards import retrieval_from_shards
from powerclip.types import Task

LIGHT_SEED = 10_000
"""Seed of the light suite's scenes: others than those of the scenes suite, which a choice of steps must not see."""


def light_suite(*, image_size: int, size: int = 64, data: Path | None = None) -> Sequence[Task]:
    """Tasks to watch a training by: make them once, and hand them to ``evaluate_tasks`` every so many steps.

    ``evaluate_tasks`` leaves the model's mode and the random generators as they are. On many processes all must call
    it, at the same step.

    Args:
        image_size: side of the model's images in pixels.
        size: images of each task.
        data: held-out shards, for retrieval among their first pairs; the generated scenes by default.

    Raises:
        PowerclipError: ``data`` holds no usable pair.
        ValueError: size is not positive.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    if data is not None:
        return [retrieval_from_shards(data, limit=size)]
    return evaluation_tasks(seed=LIGHT_SEED, size=size, image_size=image_size)


def as_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Results as one flat line of a log: ``evaluation/TASK/METRIC``."""
    return {f"evaluation/{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}
