"""How the runs of a study do on scenes that no other table shows: what a setting is chosen by.

    python experiments/validate.py scenes            # or emoji, emoji-coloured: half a minute a run that is there

The result of each run in ``experiments/results/STUDY`` gets a part "validation"; one that has it is left as it is.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from run import RESULTS
from studies import OWN_SCORE, STUDIES, Study, own_scores

import powerclip
from powerclip.evaluate import evaluate_tasks
from powerclip.files import read_json, write_json
from powerclip.tasks import Task

SEEDS = (0, 1, 2)


def main() -> int:
    """Evaluate the runs that are there and have no such result yet."""
    return on_kept_runs(validate, [name for name, study in STUDIES.items() if study.validation], about=__doc__)


def on_kept_runs(work: Callable[..., Iterator[str]], studies: Sequence[str], *, about: str | None) -> int:
    """The program that does some work on the runs of a study, and prints its lines; ``about`` is its help."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies)
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"), help="as given to run.py")
    arguments = parser.parse_args()
    study, results = STUDIES[arguments.study], RESULTS / arguments.study
    for line in work(study, output=arguments.output / arguments.study, results=results):
        print(line, flush=True)
    return 0


def validate(study: Study, *, output: Path, results: Path) -> Iterator[str]:
    """Add what is missing, of the configs with the study's usual number of steps; yields a line for each.

    All of them are validated with the first seed, those of the study's first table with the others of ``SEEDS`` too.
    """
    assert study.validation is not None
    asked = {task.removesuffix(OWN_SCORE) for task, _ in study.chosen_by.values()}
    tasks = [task for task in study.validation(output) if task.name in asked]
    steps = study.configs["clip"].steps
    configs = [name for name, config in study.configs.items() if config.steps == steps]
    for seed, name in itertools.product(SEEDS, configs):
        if seed != SEEDS[0] and name not in study.parts[0].configs:
            continue
        place, run = results / f"{name}-seed-{seed}.json", output / f"{name}-seed-{seed}"
        if not place.exists() or "validation" in (result := read_json(place)):
            continue
        if (run / "model").is_dir():
            write_json(place, {**result, "validation": validated(run, tasks)})
            yield f"{run.name}: done"
        else:
            yield f"{run.name}: no run in {run}, so it is not in the table"


def validated(run: Path, tasks: Sequence[Task]) -> dict[str, dict[str, float]]:
    """Results by global embeddings and, where the run's loss ranks by another score, by that."""
    model, preprocess, tokenizer = powerclip.load(run)
    found: dict[str, dict[str, float]] = {}
    for score in ("global", *own_scores(run)):
        found |= evaluate_tasks(model, preprocess, tokenizer, tasks, score=score)
    return found


if __name__ == "__main__":
    sys.exit(main())
