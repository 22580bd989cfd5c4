"""Run the experiments: train and evaluate every config of a study with every seed, and keep each run's result.

    python experiments/run.py scenes               # everything on generated scenes, for days; five minutes a run
    python experiments/run.py scenes --only clip selective --seeds 0 1
    python experiments/run.py scenes --jobs 12     # so many runs at a time, on one GPU or many cores

A second call continues where the first stopped. Each finished run leaves a small JSON in
``experiments/results/STUDY``, from which ``experiments/tables.py`` makes the tables and plots without training. A
result that is there is not run again.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from rich.console import Console
from studies import STUDIES, Study

import powerclip
from powerclip.compare import finish_runs
from powerclip.config import TrainConfig
from powerclip.evaluate import read_evaluation
from powerclip.files import read_json, write_json
from powerclip.runs import RunFolder

RESULTS = Path(__file__).parent / "results"
CURVE_POINTS = 60
"""Points that a result keeps of a run's curves."""


def main() -> int:
    """Run a study; the exit status is 0 when it is complete and 130 when it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=[name for name, study in STUDIES.items() if study.evaluate])
    parser.add_argument("--only", nargs="+", help="names of configs; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", help="the study's own by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"), help="data and runs (large)")
    arguments = parser.parse_args()
    study = STUDIES[arguments.study]
    names = arguments.only or list(study.configs)
    if unknown := sorted(set(names) - set(study.configs)):
        parser.error(f"{arguments.study} has no {', '.join(unknown)}; it has {', '.join(study.configs)}")
    # Seed by seed, so that an unfinished study is a balanced one.
    runs = [(name, seed) for seed in arguments.seeds or study.seeds for name in names]
    if arguments.jobs > 1:
        return at_a_time(arguments.jobs, runs, study=arguments.study, output=arguments.output)
    for name, seed in runs:
        output, results = arguments.output / arguments.study, RESULTS / arguments.study
        if not run(study, name, seed=seed, output=output, results=results):
            return 130
    return 0


def at_a_time(jobs: int, runs: Sequence[tuple[str, int]], *, study: str, output: Path) -> int:
    """Each run by a call of this program, whose lines go to a file beside its folder.

    Returns the exit status that comes first of those that are not 0; 130 when interrupted, after which no run begins.
    """
    (output / study).mkdir(parents=True, exist_ok=True)

    def call(name: str, seed: int) -> int:
        log = output / study / f"{name}-seed-{seed}.log"
        command = [sys.executable, __file__, study, "--only", name, "--seeds", str(seed), "--output", str(output)]
        with log.open("w") as lines:
            status = subprocess.run(command, stdout=lines, stderr=subprocess.STDOUT, check=False).returncode
        print(f"{name}, seed {seed}: {f'failed, see {log}' if status else 'done'}", flush=True)
        return status

    with ThreadPoolExecutor(jobs) as pool:
        try:
            return next(filter(None, list(pool.map(call, *zip(*runs, strict=True)))), 0)
        except KeyboardInterrupt:  # which the runs have had too; those that have not begun are cancelled
            return 130


def run(study: Study, name: str, *, seed: int, output: Path, results: Path) -> bool:
    """Train and evaluate one config with one seed, unless its result is there; False when interrupted."""
    config = replace(study.configs[name], seed=seed)
    result, folder = results / f"{name}-seed-{seed}.json", output / f"{name}-seed-{seed}"
    if result.exists():
        if changed := differences(read_json(result)["config"], asdict(config)):
            sys.exit(f"{result} is of other settings ({', '.join(changed)}); delete it to run this config again")
        return True
    console = Console()
    console.rule(f"{name}, seed {seed}")
    assert study.make_data is not None
    assert study.evaluate is not None
    output.mkdir(parents=True, exist_ok=True)
    with FileLock(output / ".data.lock"):  # another process may be making the same
        data = study.other_data.get(name, study.make_data)(output)
    if not finish_runs({folder: config}, data=data, evaluate=study.evaluate, console=console):
        return False
    results.mkdir(parents=True, exist_ok=True)
    write_json(result, summary(folder, config))
    return True


def summary(folder: Path, config: TrainConfig) -> dict[str, object]:
    """What is kept of a run: settings, results, curves, versions and machine."""
    evaluation = read_evaluation(folder)
    assert evaluation is not None
    lines = [json.loads(line) for line in RunFolder(folder).metrics_file.read_text(encoding="utf-8").splitlines()]
    return {
        **described(config, [line for line in lines if "loss" in line]),
        "tasks": evaluation.tasks,
        "counts": {task: origin.n for task, origin in evaluation.measured_on.items()},
    }


def described(config: TrainConfig, lines: list[dict[str, Any]]) -> dict[str, object]:
    """A run's settings and curves, and what it ran on."""
    kept = lines[:: max(1, len(lines) // CURVE_POINTS)]
    threads = f"{torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()}, {threads})"
    return {
        "config": asdict(config),
        "curves": {key: [line.get(key) for line in kept] for key in kept[-1] if _is_number(kept[-1][key])},
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"powerclip": powerclip.__version__, "torch": re.sub(r"\+.*", "", torch.__version__)},
        "machine": machine,
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(kept: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Settings that differ; what a result made before a setting existed does not say, is no difference."""
    found = []
    for key, value in json.loads(json.dumps(new)).items():
        if isinstance(value, dict) and isinstance(kept.get(key), dict):
            found += [f"{key}.{name}" for name in differences(kept[key], value)]
        elif key in kept and kept[key] != value:
            found.append(key)
    return found


if __name__ == "__main__":
    sys.exit(main())
