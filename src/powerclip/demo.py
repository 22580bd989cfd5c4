"""The demo: CLIP and PowerCLIP on segments of generated scenes, with the same seed, data and number of steps."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import track

from powerclip.compare import finish_runs
from powerclip.config import EvaluateConfig, PrepareConfig, TrainConfig
from powerclip.config.values import Score
from powerclip.cores import available_cores
from powerclip.data.shards import write_shards
from powerclip.evaluate.run import evaluate_model
from powerclip.files import atomic_folder, require_writable
from powerclip.prepare import prepare
from powerclip.recipes import scenes_superpixels
from powerclip.regions import load_proposer
from powerclip.report import read_evaluations, results_table, write_report
from powerclip.scenes import generate


def demo_configs(*, steps: int | None = None, seed: int = 0) -> dict[str, TrainConfig]:
    """The two runs of the demo, which differ only in the objective; None trains for the recipe's own steps."""
    base = scenes_superpixels()
    data = dataclasses.replace(base.data, workers=min(1, available_cores() - 1))
    base = dataclasses.replace(base, seed=seed, steps=base.steps if steps is None else steps, data=data)
    return {"clip": base.with_objective("clip"), "powerclip": base}


def run_demo(
    output: Path, configs: Mapping[str, TrainConfig], *, console: Console, scenes: int = 16384, images: int = 1000
) -> Path | None:
    """Train the models, evaluate them, print the table and write ``output/report.html``; continue an interrupted demo.

    ``output`` also holds the data, ``scenes`` training scenes by the first config's seed, and a run of each config by
    its name; an evaluation task has ``images`` images. Returns the report, or None when interrupted. PowerclipError if
    ``output`` holds runs with other settings.
    """
    require_writable(output)
    load_proposer("superpixels")  # what is missing for it is said before the work
    seed = next(iter(configs.values())).seed
    data = with_segments(
        training_scenes(output / "scenes" / f"train-{scenes}-seed-{seed}", count=scenes, seed=seed),
        workers=available_cores(),
    )
    runs = {name: output / name for name in configs}
    run_configs = {runs[name]: config for name, config in configs.items()}
    suite = ("scenes", "scenes-segmentation")

    def evaluate(run: Path) -> None:
        """By global embeddings, and a model that learnt from regions and phrases by their score, too."""
        scores: tuple[Score, ...] = ("global", "powerset") if run_configs[run].objective.uses_regions else ("global",)
        evaluate_model(str(run), EvaluateConfig(suite=suite, size=images, scores=scores))

    done = finish_runs(run_configs, data=data, evaluate=evaluate, suites=suite, console=console)
    if not done:
        return None
    console.print(results_table(read_evaluations({name: [run] for name, run in runs.items()})).rich())
    report = write_report(runs, output / "report.html")
    console.print(f"One seed, one run each. Images, curves and this table: {report}", soft_wrap=True)
    return report


def training_scenes(folder: Path, *, count: int, seed: int = 0, image_size: int = 64) -> Path:
    """A folder of shards of generated training scenes, made only once; it exists when it is complete."""
    if not folder.is_dir():
        console = Console(stderr=True)
        samples = generate("train", count=count, seed=seed, image_size=image_size)
        with atomic_folder(folder) as temporary:
            shown = track(samples, total=count, description="scenes", console=console, disable=not console.is_terminal)
            write_shards(shown, temporary)
    return folder


def with_segments(shards: Path, *, workers: int = 1) -> Path:
    """The same samples, with segments of the image in place of their regions, made only once."""
    folder = shards.with_name(f"{shards.name}-superpixels")
    prepare(shards, folder, PrepareConfig(parser="none", regions="superpixels", replace_regions=True, workers=workers))
    return folder
