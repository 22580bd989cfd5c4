"""Evaluate a saved model: load, run a suite's tasks, write ``evaluation.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from powerclip.data.scenes import evaluation_tasks
from powerclip.evaluate.shards import retrieval_from_shards
from powerclip.evaluate.suite import evaluate_tasks
from powerclip.model import load
from powerclip.types import PowerclipError, Task

Results = dict[str, dict[str, float]]

SCENES_SEED = 20_000
"""Seed of the evaluation scenes: the same for every model, apart from the training scenes by their split."""


def evaluate_model(
    model: str,
    *,
    suite: Literal["scenes", "retrieval"] | None = None,
    data: Path | None = None,
    size: int = 400,
    batch_size: int = 256,
    device: str = "auto",
    output: Path | None = None,
) -> Results:
    """Evaluate a run folder, a model folder or a hub id zero-shot.

    Args:
        model: what ``powerclip.load`` takes.
        suite: "scenes" (the generated tasks) or "retrieval" (the pairs of ``data``); by default "retrieval"
            where ``data`` is given.
        data: shards for the retrieval suite.
        size: images per generated task.
        batch_size: images or captions encoded at once.
        device: "auto", "cpu", "cuda", ...
        output: folder for ``evaluation.json``; by default the model's own folder where it is one.

    Returns:
        Metrics by task and name.

    Raises:
        PowerclipError: no such model or data, or a suite without its data.
    """
    name = suite or ("retrieval" if data is not None else "scenes")
    loaded, preprocess, tokenizer = load(model)
    place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    tasks = _tasks(name, data, size=size, image_size=loaded.image_size[0])
    results = evaluate_tasks(loaded.to(place), preprocess, tokenizer, tasks, device=place, batch_size=batch_size)
    folder = output or (Path(model) if Path(model).is_dir() else Path())
    write_evaluation(folder / "evaluation.json", results, suite=name)
    return results


def _tasks(suite: str, data: Path | None, *, size: int, image_size: int) -> Sequence[Task]:
    if suite == "scenes":
        return evaluation_tasks(seed=SCENES_SEED, size=size, image_size=image_size)
    if data is None:
        raise PowerclipError("the retrieval suite needs data; add --data SHARDS")
    return [retrieval_from_shards(data)]


def write_evaluation(path: Path, results: Results, *, suite: str) -> None:
    """Write results as JSON; the file appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps({"suite": suite, "tasks": results}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
