"""Add to kept results what they lack of today's grounding metrics, from the models of the runs.

    python experiments/remeasure.py scenes           # some ten seconds a run, of those whose folders are there

Nothing is trained. A metric that a result has is measured again too, and must come out as it was.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from studies import STUDIES, Study
from validate import on_kept_runs

import powerclip
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.grounding import METRICS
from powerclip.files import read_json, write_json
from powerclip.tasks import Grounding

TOLERANCE = 0.003
"""By how much a metric may differ from what was measured before: rounding decides a few of thousands of phrases."""


def main() -> int:
    """Measure what is missing and can be had."""
    return on_kept_runs(remeasure, [name for name, study in STUDIES.items() if study.tasks], about=__doc__)


def remeasure(study: Study, *, output: Path, results: Path) -> Iterator[str]:
    """Yields a line for each result that lacks something."""
    assert study.tasks is not None
    tasks = [task for task in study.tasks(output) if isinstance(task, Grounding)]
    for place in sorted(results.glob("*.json")):
        result, run = read_json(place), output / place.stem
        if all(set(METRICS) <= set(result["tasks"][task.name]) for task in tasks):
            continue
        if not (run / "model").is_dir():
            yield f"{place.stem}: no run in {run}, so it stays as it is"
            continue
        for name, metrics in evaluate_tasks(*powerclip.load(run), tasks).items():
            before = result["tasks"][name]
            if changed := [key for key in before if abs(metrics[key] - before[key]) > TOLERANCE]:
                sys.exit(f"{run} measures another {name} ({', '.join(changed)}) than {place} says; which run is it of?")
            result["tasks"][name] = {**metrics, **before}
        write_json(place, result)
        yield f"{place.stem}: done"


if __name__ == "__main__":
    sys.exit(main())
