"""Evaluate a saved model on suites: load it, read the data sets, run their tasks, write the results."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from powerclip.config import EvaluateConfig
from powerclip.config.values import Pixels
from powerclip.distributed import process_group, rank, rank0_first
from powerclip.evaluate.asked import Found, origin_of_found, suites_asked_for, tasks_asked_for, training_data
from powerclip.evaluate.averages import score_after
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.results import FILE, Evaluation, Origin
from powerclip.evaluate.score import Job, jobs_of, run_jobs, skipped
from powerclip.evaluate.stored import add_result, earlier_results
from powerclip.evaluate.suites import benchmarks_of
from powerclip.files import require_writable
from powerclip.model import PowerCLIP, load_any
from powerclip.model.digest import digest_of, digest_of_weights


def evaluate_model(
    model: str, config: EvaluateConfig | None = None, *, progress: Callable[[str], None] | None = None
) -> Evaluation:
    """Evaluate a run folder, a model folder or a hub id zero-shot; return the results of this call.

    With ``config.pretrained``, ``model`` is any model's name of open_clip.

    Started by torchrun, the processes share the work and get equal results; the first one writes them, as soon as a
    task is done: ``evaluation/TASK.json`` for it alone, and ``evaluation.json``, to which results on other data are
    added. If an evaluation of these weights was interrupted, and something that it had still to do is asked for again,
    only what it lacks is measured, with a warning. What interrupts this one gets a note of what is kept.

    ``progress`` is called with the name of each task before it runs. PowerclipError if there is no such model,
    suite or data, none of the suites' data sets is there, or regions are asked for that the data do not hold.
    """
    config = config or EvaluateConfig()
    names, folder = suites_asked_for(config.suite, config.data), results_folder(model, config)
    require_writable(folder)
    pairs = [str(config.data)] if config.data else training_data(model) if "pairs" in names else []
    with process_group(config.device) as place:
        loaded, preprocess, tokenizer = load_any(model, config.pretrained)
        size = (loaded if isinstance(loaded, PowerCLIP) else loaded.visual).image_size  # open_clip's may be a number
        height = size if isinstance(size, int) else size[0]
        found, absent = tasks_asked_for(names, config, pairs, image_size=height)
        absent |= skipped(loaded, [one.task for one in found])
        found = [one for one in found if one.task.name not in absent]
        jobs = jobs_of([one.task for one in found], config.scores, config.regions)
        asked = _origins(found, jobs, config.pixels)
        label = model if config.pretrained is None else f"{model}:{config.pretrained}"
        digest, former = digest_of(loaded), digest_of_weights(loaded)
        evaluation = rank0_first(lambda: earlier_results(folder, label, digest, former=former))
        own = {*asked, *(benchmark.name for name in names for benchmark in benchmarks_of(name))}
        if kept := evaluation.kept(asked):
            warnings.warn(
                f"continued: the results of {', '.join(kept)} are of the interrupted evaluation", stacklevel=2
            )
        jobs = [job for job in jobs if job.name not in kept]
        evaluation = replace(evaluation, absent=absent, pending=[job.name for job in jobs])
        encoder = Encoder(
            loaded.to(place),
            preprocess,
            tokenizer,
            device=place,
            batch_size=config.batch_size,
            workers=config.workers,
            pixels=config.pixels,
        )
        try:
            for job, metrics in run_jobs(encoder, jobs, regions=config.regions, progress=progress):
                evaluation = evaluation.with_result(job.name, metrics, asked[job.name])
                if rank() == 0:
                    add_result(folder, evaluation, job.name, own=own, former=former)
        except BaseException as error:  # a key press, too
            if finished := [name for name in asked if name not in evaluation.pending]:
                error.add_note(
                    f"The results of {', '.join(finished)} are kept in {folder / FILE}; "
                    f"the same command continues with {evaluation.pending[0]}"
                )
            raise
        return replace(evaluation.only(list(asked)), absent=absent)


def _origins(found: Sequence[Found], jobs: Sequence[Job], pixels: Pixels) -> dict[str, Origin]:
    """What each result is measured on, by its name; the first process looks at the files."""
    origins = rank0_first(lambda: [origin_of_found(one, pixels) for one in found])
    of_task = {id(one.task): origin for one, origin in zip(found, origins, strict=True)}
    return {job.name: replace(of_task[id(job.task)], score=score_after(job.task.name, job.name)) for job in jobs}


def results_folder(model: str, config: EvaluateConfig) -> Path:
    """Where the results of a model go: as asked for, else the model's own folder, or for a hub id the current one."""
    return config.output or (Path(model) if Path(model).is_dir() else Path())


def as_metrics(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Results as one flat line of a log: ``eval/TASK/METRIC``."""
    return {f"eval/{task}/{name}": value for task, metrics in results.items() for name, value in metrics.items()}
