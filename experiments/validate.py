"""How the runs of seed 0 do on scenes that no other table shows: what a setting is chosen by.

    python experiments/validate.py scenes            # half a minute a run, of those whose folders are there

The result of each run in ``experiments/results/STUDY`` gets a part "validation"; one that has it is left as it is.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from run import RESULTS
from studies import OWN_SCORES, STUDIES

import powerclip
from powerclip.config import load_config
from powerclip.evaluate import evaluate_tasks
from powerclip.files import read_json, write_json
from powerclip.tasks import Task


def main() -> int:
    """Evaluate the runs that are there and have no such result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[name for name, study in STUDIES.items() if study.validation])
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"), help="as given to run.py")
    arguments = parser.parse_args()
    study, console = STUDIES[arguments.study], Console()
    assert study.validation is not None
    tasks = study.validation()
    steps = study.configs["clip"].steps
    for name in (name for name, config in study.configs.items() if config.steps == steps):
        place, run = (
            RESULTS / arguments.study / f"{name}-seed-0.json",
            arguments.output / arguments.study / f"{name}-seed-0",
        )
        if not place.exists() or "validation" in (result := read_json(place)):
            continue
        if not (run / "model").is_dir():
            console.print(f"{name}: no run in {run}, so it is not in the table")
            continue
        write_json(place, {**result, "validation": validated(run, tasks)})
        console.print(f"{name}: done")
    return 0


def validated(run: Path, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Results by global embeddings and, where the run's loss ranks by another score, by that."""
    model, preprocess, tokenizer = powerclip.load(run)
    own = OWN_SCORES.get(load_config(run / "config.yaml").objective.name)
    found = evaluate_tasks(model, preprocess, tokenizer, tasks)
    return found if own is None else {**found, **evaluate_tasks(model, preprocess, tokenizer, tasks, score=own)}


if __name__ == "__main__":
    sys.exit(main())
