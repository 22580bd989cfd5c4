"""Scenes of two emoji: training shards, and zero-shot tasks for trained runs.

``python examples/emoji/emoji_scenes.py --output data/emoji-scenes`` downloads three npm packages of 64-pixel emoji and
writes training shards of ``emoji_world.py``; ``--evaluate RUN ...`` evaluates runs on ``emoji_scene_tasks.py``.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro
from emoji_packages import obtain
from emoji_scene_tasks import evaluation_tasks
from emoji_tasks import evaluate
from emoji_world import STYLES, TRAIN_STYLES, read_drawings, training_shards
from rich.console import Console

from powerclip.errors import PowerclipError
from powerclip.report import read_evaluations, results_table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Make training shards of scenes of two emoji, and evaluate trained runs on tasks made of other scenes.

    Example: python examples/emoji/emoji_scenes.py --output data/emoji-scenes
    """

    output: Path = Path("data/emoji-scenes")
    """Folder for packages, shards and results."""
    count: int = 20_000
    """Training scenes."""
    names: int | None = None
    """Size of the vocabulary; 240 by default, 64 for coloured scenes."""
    seed: int = 0
    """Decides the training scenes."""
    coloured: bool = False
    """Print each drawing in one of eight colours; captions name it half the time."""
    packages: Path | None = None
    """Folder with the npm packages, as tarballs or unpacked; by default npm downloads them."""
    evaluate: tuple[Path, ...] = ()
    """Trained runs to evaluate; the results go to evaluation/NAME inside the output folder."""


def main(options: Options) -> int:
    """Make the shards that are not there yet, then evaluate."""
    console = Console()
    packages = obtain(options.output / "packages", given=options.packages, styles=STYLES)
    drawings = read_drawings(packages, names=options.names, coloured=options.coloured)
    kind, names = "coloured-" if options.coloured else "", len(drawings[TRAIN_STYLES[0]])
    folder = options.output / f"train-{options.count}-{kind}of-{names}-seed-{options.seed}"
    training_shards(drawings, folder, count=options.count, seed=options.seed, coloured=options.coloured)
    console.print(f"{options.count} training scenes of {names} names: {folder}", soft_wrap=True)
    if options.evaluate:
        tasks = evaluation_tasks(drawings, coloured=options.coloured)
        results = {run.name: options.output / "evaluation" / run.name for run in options.evaluate}
        for run, output in zip(options.evaluate, results.values(), strict=True):
            evaluate(run, tasks, suite=f"{kind}emoji-scenes", output=output)
        console.print(results_table(read_evaluations({name: [path] for name, path in results.items()})).rich())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except PowerclipError as error:
        print(f"emoji_scenes: {error}", file=sys.stderr)
        sys.exit(2)
