"""Which settings of the powerset loss are better? Trains each on the generated scenes with several seeds.

    python benchmarks/settings.py --output runs/settings --seeds 3                       # all; hours on two cores
    python benchmarks/settings.py --output runs/settings --only default calibrated --seeds 3

Every run has the steps, batch size and data of the demo. Finished runs are kept: run it again to continue, or with
other names to add some. Prints mean and standard deviation over seeds, in percent, and writes comparison.md.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from powerclip.compare import compare
from powerclip.config import ModelConfig, ObjectiveConfig, TrainConfig
from powerclip.demo import training_scenes
from powerclip.recipes import scenes_tiny

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
"""Changes to the loss's own defaults, by name, on random boxes and otherwise as in the recipe scenes_tiny."""


def configure(changes: dict[str, Any]) -> TrainConfig:
    """A run with some settings changed."""
    base = scenes_tiny()
    of_model = {key: value for key, value in changes.items() if key in ("phrase_norm", "phrase_unit")}
    of_objective = {key: value for key, value in changes.items() if key not in of_model}
    return dataclasses.replace(
        base,
        model=ModelConfig(name=base.model.name, **of_model),
        objective=ObjectiveConfig(**of_objective),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/settings"))
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16384, help="training scenes")
    arguments = parser.parse_args()
    compare(
        {name: configure(SETTINGS[name]) for name in arguments.only},
        seeds=arguments.seeds,
        data=training_scenes(arguments.output / "scenes", count=arguments.samples),
        output=arguments.output,
        console=Console(width=40 + 16 * len(arguments.only)),
    )


if __name__ == "__main__":
    main()
