"""The studies of a larger budget: many runs at a time on one GPU or CPU, from data in memory (``in_memory.py``).

    python experiments/many.py --jobs 12                # everything
    python experiments/many.py --only emoji-long/clip emoji-long/softmax --seeds 0 1 --minutes 9

Settings are chosen by the validation tasks, whose results each file keeps as "validation"; the tables show the others.
A result that is there is not run again; runs that are not finished after ``--minutes`` begin anew in the next call.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from in_memory import Samples, train
from run import RESULTS, described
from studies import STUDIES, drawings_in
from torch import Tensor

import powerclip
from powerclip.config import TrainConfig
from powerclip.data.sample import Sample
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.run import LIGHT_SEED, SCENES_SEED
from powerclip.files import write_json
from powerclip.model import make_transforms
from powerclip.scenes import evaluation_tasks as scenes_tasks
from powerclip.scenes import sample as scene
from powerclip.tasks import HardNegatives, Quadruples, Task
from powerclip.train.build import build_model

sys.path.append(str(Path(__file__).parents[1] / "examples" / "emoji"))

from emoji_scene_tasks import TEST_SEED as EMOJI_TEST_SEED
from emoji_scene_tasks import VALIDATION_SEED as EMOJI_VALIDATION_SEED
from emoji_scene_tasks import evaluation_tasks as emoji_tasks
from emoji_world import training_samples as emoji_samples

PART = 2048
"""Samples that a process makes at a time."""


@dataclass(frozen=True, kw_only=True)
class Bed:
    """Training samples and tasks."""

    parts: int
    samples: Callable[[int], Iterable[Sample]]
    """Those of a part by its number, ``PART`` of them."""
    tasks: Callable[[bool], Sequence[Task]]
    """The tasks of the tables, or those of validation."""


def beds(output: Path) -> dict[str, Bed]:
    """By study."""

    def scenes(part: int) -> Iterable[Sample]:
        return (scene("train", i, seed=0) for i in range(part * PART, (part + 1) * PART))

    def emoji(part: int) -> Iterable[Sample]:
        return islice(emoji_samples(drawings_in(output), count=12 * PART, seed=0, start=part * PART), PART)

    return {
        "emoji-long": Bed(
            parts=12,
            samples=emoji,
            tasks=lambda test: emoji_tasks(
                drawings_in(output), seed=EMOJI_TEST_SEED if test else EMOJI_VALIDATION_SEED
            ),
        ),
        "scenes-long": Bed(
            parts=12,
            samples=scenes,
            tasks=lambda test: list(scenes_tasks(seed=SCENES_SEED if test else LIGHT_SEED, size=1000, image_size=48)),
        ),
    }


def main() -> int:
    """Make data and tasks, then run what has no result yet; 0 if nothing is missing at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="STUDY/CONFIG; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=8, help="runs at a time")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, help="instead of the studies' own; for a trial, with --results elsewhere")
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    torch.set_num_threads(1)
    known = beds(arguments.output)
    names = arguments.only or [f"{study}/{name}" for study in known for name in STUDIES[study].configs]
    runs = []
    for seed in arguments.seeds:
        for study, name in (which.split("/") for which in names):
            config = replace(STUDIES[study].configs[name], seed=seed)
            config = replace(config, steps=arguments.steps or config.steps)
            place = arguments.results / study / f"{name}-seed-{seed}.json"
            if not place.exists():
                runs.append((study, config, arguments.output / study / f"{name}-seed-{seed}", place))
    data = {study: _samples(known[study], STUDIES[study].configs["clip"]) for study in {r[0] for r in runs}}
    print(f"{ {study: len(x.images) for study, x in data.items()} } samples", flush=True)
    tasks = {study: {test: known[study].tasks(test) for test in (False, True)} for study in data}
    pictures = preprocessed(tasks, STUDIES["scenes-long"].configs["clip"])
    print(f"{len(pictures)} pictures of tasks; {(end - time.monotonic()) / 60:.1f} minutes left", flush=True)

    def run(study: str, config: TrainConfig, folder: Path, place: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("w") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                write_json(place, result_of(config, data[study], tasks[study], folder, pictures))
            except BaseException:
                traceback.print_exc(file=log)
                log.flush()
        os._exit(0)

    fork, live, failed = multiprocessing.get_context("fork"), {}, 0
    while (runs or live) and time.monotonic() < end:
        while runs and len(live) < arguments.jobs:
            which = runs.pop(0)
            which[3].parent.mkdir(parents=True, exist_ok=True)
            live[which[3]] = process = fork.Process(target=run, args=which)
            process.start()
        time.sleep(0.2)
        for place, process in list(live.items()):
            if not process.is_alive():
                del live[place]
                said = "" if place.exists() else f": failed\n{_log(arguments.output, place)}"
                failed += bool(said)
                print(f"{(end - time.monotonic()) / 60:.1f} {place.parent.name}/{place.stem}{said}", flush=True)
    for place, process in live.items():
        print(f"not finished: {place.parent.name}/{place.stem} {_log(arguments.output, place)[-200:]}", flush=True)
        process.kill()
    print(f"{len(runs)} runs not begun", flush=True)
    return int(bool(runs or live or failed))


def _log(output: Path, place: Path) -> str:
    return (output / place.parent.name / place.stem / "log").read_text()[-1500:]


_work: Callable[[int], Any]


def _do(number: int) -> bytes:
    return pickle.dumps(_work(number))  # as bytes: tensors would take a file each, and shared memory


def _in_processes(work: Callable[[int], Any], count: int) -> list[Any]:
    """What ``work`` gives of each number, computed by as many processes as there are cores, which inherit its data."""
    global _work
    _work = work
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return [pickle.loads(found) for found in pool.imap(_do, range(count))]


def _samples(bed: Bed, config: TrainConfig) -> Samples:
    return Samples.joined(_in_processes(lambda part: Samples.of(bed.samples(part), config), bed.parts))


def preprocessed(tasks: dict[str, dict[bool, Sequence[Task]]], config: TrainConfig) -> dict[int, Tensor]:
    """The images of all tasks as the models take them, by identity; they are held as long as the tasks are."""
    transform = make_transforms(build_model(config))[1]
    found = {
        id(x): x for of_study in tasks.values() for given in of_study.values() for t in given for x in images_of(t)
    }
    images = list(found.values())
    parts = [images[start : start + 100] for start in range(0, len(images), 100)]
    done = _in_processes(lambda part: torch.stack([transform(image) for image in parts[part]]), len(parts))
    return dict(zip(found, torch.cat(done), strict=True)) if images else {}


def images_of(task: Task) -> list[Any]:
    """The images that a task shows."""
    if isinstance(task, HardNegatives):
        return [item.image for item in task.items]
    if isinstance(task, Quadruples):
        return [image for item in task.items for image in item.images]
    return list(task.images)


def result_of(
    config: TrainConfig, data: Samples, tasks: dict[bool, Sequence[Task]], folder: Path, pictures: dict[int, Tensor]
) -> dict[str, object]:
    """Train and evaluate; what is kept of a run, as ``run.py`` keeps it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    train(config, data.to(device), folder, device=device)
    seconds = time.perf_counter() - start
    model, _, tokenizer = powerclip.load(folder)
    model = model.to(device)

    def evaluate(test: bool, **settings: Any) -> dict[str, dict[str, float]]:
        chosen = [t for t in tasks[test] if not settings or isinstance(t, HardNegatives | Quadruples)]
        return evaluate_tasks(
            model, lambda image: pictures[id(image)], tokenizer, chosen, device=device, batch_size=1024, **settings
        )

    found = evaluate(True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {
        **described(config, lines),
        "tasks": {**found, **evaluate(True, score="powerset")},
        "counts": {task: max(getattr(v, "n", 0) or 0 for v in metrics.values()) for task, metrics in found.items()},
        "validation": evaluate(False),
        "train_s": seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
