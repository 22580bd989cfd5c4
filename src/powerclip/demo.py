"""The demo: CLIP and PowerCLIP-R on generated scenes, same seed, same data, same number of steps."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import track

from powerclip.config import TrainConfig
from powerclip.data.shards import write_shards
from powerclip.evaluate.run import evaluate_model
from powerclip.recipes import scenes_tiny
from powerclip.report import results_table, write_report
from powerclip.scenes import generate
from powerclip.train import train

TRAINING_SCENES = 16384
"""Scenes to train on."""

EVALUATION_IMAGES = 400
"""Images of each evaluation task."""


def demo_configs(*, steps: int | None, seed: int) -> dict[str, TrainConfig]:
    """The two runs of the demo: they differ in the weight of the powerset loss and in nothing else."""
    base = scenes_tiny()
    base = dataclasses.replace(base, seed=seed, steps=steps or base.steps)
    clip = dataclasses.replace(base, objective=dataclasses.replace(base.objective, powerset_weight=0.0))
    return {"clip": clip, "powerclip": base}


def run_demo(
    output: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    console: Console,
    scenes: int = TRAINING_SCENES,
    images: int = EVALUATION_IMAGES,
) -> Path | None:
    """Train both models, evaluate them, print the table and write ``output/report.html``.

    Run again on the same folder it goes on where it was interrupted.

    Args:
        output: folder for the data, the runs ``clip`` and ``powerclip``, and the report.
        steps: training steps of each model; the recipe's own by default.
        seed: decides scenes, initial weights, data order and boxes.
        console: where the table goes.
        scenes: training scenes to generate.
        images: images of each evaluation task.

    Returns:
        The report, or None when interrupted.

    Raises:
        PowerclipError: ``output`` holds runs with other settings.
    """
    progress = Console(stderr=True)
    data = _training_scenes(output / "scenes", count=scenes, seed=seed, console=progress)
    runs = {}
    for name, config in demo_configs(steps=steps, seed=seed).items():
        result = train(config, data=data, output=output / name, resume=True, console=progress)
        if result.interrupted:
            console.print("Run the same command to go on.", highlight=False)
            return None
        runs[name] = result.output
    results = {}
    for name, run in runs.items():
        results[name] = evaluate_model(str(run), suite="scenes", size=images).tasks
    console.print(results_table(results))
    report = write_report(runs, output / "report.html")
    console.print(f"One seed, one run each. Pictures, curves and this table: {report}", soft_wrap=True)
    return report


def _training_scenes(folder: Path, *, count: int, seed: int, console: Console) -> Path:
    """Shards of training scenes, made once; the folder appears when they are all there."""
    target = folder / f"train-{count}-seed-{seed}"
    if target.is_dir():
        return target
    temporary = folder / f".{target.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    samples = generate("train", count=count, seed=seed)
    write_shards(
        track(samples, total=count, description="scenes", console=console, disable=not console.is_terminal),
        temporary,
    )
    temporary.rename(target)
    return target
