"""Which settings of the powerset loss are better? Trains each on the generated scenes with several seeds.

    python benchmarks/settings.py --output runs/settings --seeds 3                       # all; hours on two cores
    python benchmarks/settings.py --output runs/settings --only default calibrated --seeds 3

Every run has the steps, batch size and data of the demo. Finished runs are kept: run it again to go on, or with other
names to add some. Prints mean and standard deviation over seeds, in percent.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from powerclip.config import TrainConfig
from powerclip.data.shards import write_shards
from powerclip.evaluate.run import evaluate_model
from powerclip.recipes import scenes_tiny
from powerclip.report.comparison import comparison_markdown, comparison_table
from powerclip.runs import RunFolder
from powerclip.scenes import generate
from powerclip.train import train

SETTINGS: dict[str, dict[str, Any]] = {
    "clip": {"name": "clip"},
    "default": {},
    "calibrated": {"zeta": "calibrated"},
    "as in the paper's text": {"phrase_norm": "sum", "normalise_by_regions": False},
    "mean phrases": {"phrase_norm": "mean"},
    "margin 0.05": {"margin": 0.05},
    "margin 0.5": {"margin": 0.5},
    "weight 1": {"powerset_weight": 1.0},
    "tau 0.01": {"tau": 0.01},
    "tau 0": {"tau": 0.0},
    "single regions": {"subsets": "single"},
    "tokens": {"phrase_unit": "token"},
    "t2r only": {"direction": "t2r"},
    "r2t only": {"direction": "r2t"},
    "equal captions ignored": {"equal_captions": "ignored"},
    "5 regions": {"regions": 5},
    "exact": {"method": "exact"},
}
"""Changes to the recipe scenes_tiny, by name; "default" is the recipe itself."""


def configure(changes: dict[str, Any], seed: int) -> TrainConfig:
    """The recipe with some settings changed."""
    base = scenes_tiny()
    of_model = {key: value for key, value in changes.items() if key in ("phrase_norm", "phrase_unit")}
    of_objective = {key: value for key, value in changes.items() if key not in of_model}
    return dataclasses.replace(
        base,
        seed=seed,
        model=dataclasses.replace(base.model, **of_model),
        objective=dataclasses.replace(base.objective, **of_objective),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/settings"))
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16384, help="training scenes")
    arguments = parser.parse_args()
    data = arguments.output / "scenes"
    if not data.exists():
        write_shards(generate("train", count=arguments.samples, seed=0), data)
    runs = {
        name: [arguments.output / f"{name.replace(' ', '-')}-seed-{seed}" for seed in range(arguments.seeds)]
        for name in arguments.only
    }
    for seed in range(arguments.seeds):
        for name in arguments.only:
            run = runs[name][seed]
            if not RunFolder(run).results():
                if train(configure(SETTINGS[name], seed), data=data, output=run, resume=True).interrupted:
                    return
                evaluate_model(str(run), suite="scenes")
    results = {name: [RunFolder(run).results() for run in of_seeds] for name, of_seeds in runs.items()}
    Console(width=40 + 16 * len(results)).print(comparison_table(results))
    (arguments.output / "settings.md").write_text(comparison_markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main()
