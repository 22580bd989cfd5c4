"""Score tasks: embed a task's images and texts, each once, and hand the embeddings to its metrics."""

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from powerclip.config.values import Score, ScoreRegions
from powerclip.distributed import rank
from powerclip.errors import one_of
from powerclip.evaluate.datasets.images import key_of, whole
from powerclip.evaluate.encode import Encoder, Model, Preprocess, Tokenize
from powerclip.evaluate.grounding import grounding_metrics
from powerclip.evaluate.late_score import LateScorer
from powerclip.evaluate.linear_probe import linear_probe_metrics
from powerclip.evaluate.metrics import (
    average_precision_metrics,
    class_embeddings,
    classification_metrics,
    hard_negative_metrics,
    quadruple_metrics,
    recall_metrics,
    same_texts,
)
from powerclip.evaluate.powerset_score import PowersetScorer
from powerclip.evaluate.prompts import prompts_of
from powerclip.evaluate.segmentation import segmentation_metrics
from powerclip.model import PowerCLIP
from powerclip.tasks import (
    PLACE,
    Classification,
    Content,
    Grounding,
    HardNegatives,
    LinearProbe,
    MultiLabel,
    Picture,
    Quadruples,
    Region,
    Retrieval,
    Segmentation,
    Task,
    images_of,
)

PAIRS_AT_ONCE = 2**8
"""Pairs of an image and a text whose vectors are put side by side at once."""


CUT = "captions_cut"
"""The share of captions that are longer than the model's context, beside the recalls where there are any."""


class Job(NamedTuple):
    """A task with one way of scoring it, and the name of its results."""

    name: str
    task: Task
    score: Score


def evaluate_tasks(
    model: Model,
    preprocess: Preprocess,
    tokenizer: Tokenize,
    tasks: Sequence[Task],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    workers: int = 0,
    score: Score = "global",
    regions: ScoreRegions = "grid",
) -> dict[str, dict[str, float]]:
    """Evaluate a model with open_clip's ``encode_image`` and ``encode_text`` on tasks; its mode is restored afterwards.

    Each image and text is encoded once, ``batch_size`` at a time, on ``device``, where the model is. Memory holds the
    embeddings and a batch of images. Under an initialised process group every process passes the same tasks, encodes
    its share, and gets all results, equal to those of one process.

    ``preprocess`` turns a PIL image into (3, H, W), in ``workers`` threads while the model works, and ``tokenizer``
    texts into (B, T). ``score`` says how an image and a text are scored: "global", the product of the global embeddings
    (what the papers report); or, of a PowerCLIP model, "powerset", the powerset similarity of regions and phrases, or
    "late", FILIP's late interaction of patches and tokens. Both are for classification, retrieval, hard negatives and
    quadruples of images and texts; other tasks are skipped then. The regions of "powerset" are "grid", boxes of fixed
    sizes (every patch, for a model trained on patches), or "stored", a task's own masks where it has them. Grounding is
    always by regions and phrases, segmentation by patches; of models other than PowerCLIP, these and tasks on regions
    are skipped with a warning.

    Returns metrics by task name (followed by "-powerset" or "-late" for these scores, or "-powerset-stored" over the
    task's own masks), each between 0 and 1, most of them as an ``Estimate``, which knows its standard error. ValueError
    if a task is empty or its parts do not fit together, the model does not have the score, or "stored" regions are
    asked of another score or of tasks of which none has any.
    """
    if regions == "stored" and not (score == "powerset" and any(map(has_masks, tasks))):
        raise ValueError(
            "regions is 'stored', but no task has masks; use regions='grid'"
            if score == "powerset"
            else f"regions is 'stored', but score is {score!r}, which looks at no regions; use score='powerset'"
        )
    reasons = skipped(model, tasks)
    for name, reason in reasons.items():
        warnings.warn(f"{name} is skipped: {reason}", stacklevel=2)
    tasks = [task for task in tasks if task.name not in reasons]
    encoder = Encoder(model, preprocess, tokenizer, device=device, batch_size=batch_size, workers=workers)
    jobs = jobs_of(tasks, (score,), regions)
    return {job.name: metrics for job, metrics in run_jobs(encoder, jobs, regions=regions)}


def pairwise_scores(
    model: Model,
    preprocess: Preprocess,
    tokenizer: Tokenize,
    images: Sequence[Picture],
    captions: Sequence[str],
    *,
    score: Score = "powerset",
    device: torch.device | str = "cpu",
    batch_size: int = 256,
) -> Tensor:
    """(I, J) scores of every image and caption, on the CPU: what images are ranked by for a caption.

    For a search by regions and phrases: global embeddings find some hundreds of images, and these scores order them.
    Arguments as for ``evaluate_tasks``. ValueError if there is no such score, or the model does not have it.
    """
    one_of("score", score, get_args(Score))
    if not images or not captions:
        return torch.zeros(len(images), len(captions))
    encoder = Encoder(model, preprocess, tokenizer, device=device, batch_size=batch_size)
    scorer = _scorers(encoder, {score})[score]
    with evaluating(model), torch.inference_mode():
        scores: Tensor = scorer.score_images(scorer.images(images), scorer.texts(captions))
    return scores.clone()  # outside inference mode, so that it can be changed in place


def skipped(model: object, tasks: Sequence[Task]) -> dict[str, str]:
    """The tasks that a model cannot be asked, and why."""
    if isinstance(model, PowerCLIP):
        return {}
    reason = f"it needs the regions and phrases of a PowerCLIP model, which {type(model).__name__} does not have"
    return {
        task.name: reason
        for task in tasks
        if isinstance(task, Grounding | Segmentation) or any(isinstance(shown, Region) for shown in images_of(task))
    }


def has_masks(task: Task) -> bool:
    """Whether any image of a task has regions of its own."""
    return isinstance(task, Retrieval) and any(task.masks or ())


def jobs_of(tasks: Sequence[Task], scores: Sequence[Score], regions: ScoreRegions = "grid") -> list[Job]:
    """Every task with every score that it has: grounding and segmentation are scores of their own."""
    jobs = []
    for task in tasks:
        shows_images = any(not isinstance(shown, Region) for shown in images_of(task))
        stored = regions == "stored" and has_masks(task)
        dense = isinstance(task, Grounding | Segmentation)
        for score in scores[:1] if dense else scores:
            if score == "global" or dense:
                jobs.append(Job(task.name, task, score))
            elif shows_images and not isinstance(task, LinearProbe):
                suffix = "-stored" if stored and score == "powerset" else ""
                jobs.append(Job(f"{task.name}-{score}{suffix}", task, score))
    return jobs


def run_jobs(
    encoder: Encoder,
    jobs: Sequence[Job],
    *,
    regions: ScoreRegions = "grid",
    progress: Callable[[str], None] | None = None,
) -> Iterator[tuple[Job, dict[str, float]]]:
    """The metrics of each job, in order, as soon as it is done; the model is in evaluation mode meanwhile.

    Embeddings are dropped after the last job that needs them. ``progress`` is called with the name of each job before
    it runs. ValueError as ``evaluate_tasks``.
    """
    scorers = _scorers(encoder, {job.score for job in jobs}, regions)
    last = {
        key: i
        for i, job in enumerate(jobs)
        for key in (*(key_of(whole(shown)) for shown in images_of(job.task)), *_texts(job.task))
    }
    with evaluating(encoder.model):
        for number, job in enumerate(jobs):
            if progress is not None:
                progress(job.name)
            following = jobs[number + 1 : number + 2]
            with torch.inference_mode():
                if job.score == "global" and following and following[0].task is job.task:
                    other = scorers[following[0].score]
                    other.images(images_of(job.task), getattr(job.task, "masks", None))  # for both scores
                metrics = _evaluate(scorers[job.score], job.task, encoder)
            is_new = number == 0 or jobs[number - 1].task is not job.task
            if is_new and rank() == 0 and isinstance(job.task, Classification | MultiLabel):
                _warn_of_equal_prompts(encoder, job.task)
            encoder.known = {key: known for key, known in encoder.known.items() if last[key[0]] > number}
            yield job, metrics


def _scorers(encoder: Encoder, asked: Set[Score], regions: ScoreRegions = "grid") -> dict[Score, Any]:
    scorers: dict[Score, Any] = {"global": encoder}
    if "powerset" in asked:
        scorers["powerset"] = PowersetScorer(encoder, regions=regions)
    if "late" in asked:
        scorers["late"] = LateScorer(encoder)
    return scorers


def _texts(task: Task) -> list[str]:
    if isinstance(task, Retrieval):
        return [caption for captions in task.captions for caption in captions]
    if isinstance(task, HardNegatives):
        return [content for item in task.items for content in item.contents if isinstance(content, str)]
    if isinstance(task, Quadruples):
        return [caption for item in task.items for caption in item.captions]
    if isinstance(task, Grounding):
        return [phrase for phrases in task.phrases for phrase in phrases]
    if isinstance(task, LinearProbe):
        return []
    return prompts_of(task)


def _evaluate(scorer: Any, task: Task, encoder: Encoder) -> dict[str, float]:
    if isinstance(task, Grounding):
        return grounding_metrics(encoder, task)
    if isinstance(task, Segmentation):
        return segmentation_metrics(encoder, task)
    if isinstance(task, LinearProbe):
        return linear_probe_metrics(encoder, task)
    if isinstance(task, Classification | MultiLabel):
        score, images = _class_scores(scorer, task), len(task.images)
        if isinstance(task, MultiLabel):
            targets = torch.tensor([list(row) for row in task.targets]).bool()
            return average_precision_metrics(score(torch.arange(images)), targets)
        labels = torch.tensor(list(task.labels), dtype=torch.int64)
        return classification_metrics(score, labels, images=images, classes=len(task.class_names))
    if isinstance(task, Retrieval):
        if len(task.images) != len(task.captions):
            raise ValueError(
                f"task {task.name} has {len(task.images)} images and captions for {len(task.captions)}; give each "
                "image its list of captions"
            )
        texts, owner = _texts(task), torch.tensor([i for i, of in enumerate(task.captions) for _ in of]).long()
        i, t = scorer.images(task.images, task.masks), scorer.texts(texts)
        metrics = recall_metrics(
            lambda rows: scorer.score(i[rows], t),
            lambda rows: scorer.score_images(i, t[rows]).T,
            owner,
            images=len(i),
            same_text=same_texts(encoder.seen_of(texts)),
        )
        cut = encoder.cut(texts)
        return metrics | {CUT: cut} if cut else metrics
    if isinstance(task, HardNegatives):
        right = _pair_scores(scorer, [(item.image, item.positive) for item in task.items])
        scores = _pair_scores(scorer, [(item.image, wrong) for item in task.items for wrong in item.negatives])
        owner = torch.tensor([i for i, item in enumerate(task.items) for _ in item.negatives]).long()
        highest = highest_of(scores, owner, count=len(right))
        chances = 1 / (1 + torch.bincount(owner, minlength=len(right)))
        kinds = [item.kind for item in task.items]
        image = same_texts([key_of(item.image) for item in task.items])
        return hard_negative_metrics(
            right, highest, kinds, task.macro_kinds, chances=chances, units=task.units, images=image
        )
    i, t = scorer.images(images_of(task)), scorer.texts(_texts(task))
    first = torch.arange(0, 2 * len(task.items), 2)
    columns = [_in_parts(scorer, i, t, first + a, first + b) for a in (0, 1) for b in (0, 1)]  # each (Q,)
    return quadruple_metrics(torch.stack(columns, dim=1).view(-1, 2, 2), [item.kind for item in task.items])


def _pair_scores(scorer: Any, pairs: Sequence[tuple[Content, Content]]) -> Tensor:
    """(P,) scores of pairs of an image and a text, of a text and an image, or of two texts."""
    if not pairs:
        return torch.zeros(0)
    sides = [list(side) for side in zip(*pairs, strict=True)]
    if isinstance(sides[0][0], str):  # images first
        sides.reverse()
    vectors, places = [], []
    for side in sides:
        distinct = {key_of(content): content for content in side}
        number = {key: i for i, key in enumerate(distinct)}
        embed = scorer.texts if isinstance(side[0], str) else scorer.images
        vectors.append(embed(list(distinct.values())))
        places.append(torch.tensor([number[key_of(content)] for content in side]))
    (a, b), (at_a, at_b) = vectors, places
    return _in_parts(scorer, a, b, at_a, at_b)


def _in_parts(scorer: Any, images: Any, texts: Any, i: Tensor, t: Tensor) -> Tensor:
    """(P,) scores of images ``i`` (P,) with texts ``t`` (P,), some pairs at a time."""
    parts = zip(torch.split(i, PAIRS_AT_ONCE), torch.split(t, PAIRS_AT_ONCE), strict=True)
    return torch.cat([scorer.score_pairs(images[a], texts[b]) for a, b in parts])


def _class_scores(scorer: Any, task: Classification | MultiLabel) -> Callable[[Tensor], Tensor]:
    """What gives the (rows, C) scores of (rows,) images with all classes of a task."""
    images, texts, prompts = scorer.images(task.images), scorer.texts(_texts(task)), len(task.templates)
    if isinstance(scorer, Encoder):
        classes = class_embeddings(texts.view(len(task.class_names), prompts, -1))
        return lambda rows: scorer.score(images[rows], classes)
    return lambda rows: sum(scorer.score(images[rows], texts[p::prompts]) for p in range(prompts)) / prompts


def _warn_of_equal_prompts(encoder: Encoder, task: Classification | MultiLabel) -> None:
    """Warn of classes that the prompt where the name stands last, which is cut first, does not tell apart."""
    template = max(task.templates, key=lambda text: text.index(PLACE))
    first: dict[Hashable, str] = {}
    prompts = [template.replace(PLACE, name) for name in task.class_names]
    for name, seen in zip(task.class_names, encoder.seen_of(prompts), strict=True):
        if (other := first.setdefault(seen, name)) != name:  # ImageNet has two pairs of classes of one name
            warnings.warn(
                f"{task.name}: to the model the classes {_cut(other)} and {_cut(name)} are the same in the prompt "
                f"{_cut(template)}, as far as it reads; put {PLACE} nearer to its start, or rename them",
                stacklevel=2,
            )
            return


def _cut(text: str) -> str:
    """A text in quotes, without its middle if it is long."""
    return repr(text if len(text) < 80 else f"{text[:40]}...{text[-40:]}")


def highest_of(scores: Tensor, owner: Tensor, *, count: int) -> Tensor:
    """(count,) the highest of each owner's scores; NaN where one of them is NaN."""
    highest = scores.new_full((count,), -torch.inf)
    return highest.scatter_reduce(0, owner, scores, "amax")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the one it was in."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)
