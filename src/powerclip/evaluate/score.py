"""Score tasks: embed a task's images and texts, each once, and hand the embeddings to its metrics."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from powerclip.config import Score, ScoreRegions
from powerclip.evaluate.datasets.images import key_of
from powerclip.evaluate.encode import Encoder, Model, Preprocess, Tokenize
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
from powerclip.evaluate.suites import POWERSET
from powerclip.tasks import (
    PLACE,
    Classification,
    HardNegative,
    HardNegatives,
    Masks,
    MultiLabel,
    Picture,
    Quadruples,
    Retrieval,
    Task,
)

Job = tuple[Task, Score]
Key = TypeVar("Key", bound=Hashable)


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
    """Evaluate a model on tasks; its mode is restored afterwards.

    Each image and text is encoded once. Memory holds the embeddings and a batch of images. Under an initialised process
    group every process passes the same tasks, encodes its share, and gets all results, equal to those of one process.

    Args:
        model: anything with open_clip's ``encode_image`` and ``encode_text``.
        preprocess: PIL image to (3, H, W).
        tokenizer: texts to (B, T).
        tasks: what to evaluate.
        device: where the model is.
        batch_size: images or texts encoded at once.
        workers: threads that open and preprocess images while the model works.
        score: how an image and a text are scored: "global", the product of the global embeddings (what the papers
            report), or "powerset", the powerset similarity of a PowerCLIP model's regions and phrases, for retrieval,
            hard negatives and quadruples; other tasks are skipped then.
        regions: of the powerset score: "grid", boxes of fixed sizes, or "stored", a task's own masks where it has them.

    Returns:
        Metrics by task name (followed by "-powerset" for that score), each between 0 and 1.

    Raises:
        ValueError: a task is empty or its parts do not fit together, or the model has no powerset score.
    """
    encoder = Encoder(model, preprocess, tokenizer, device=device, batch_size=batch_size, workers=workers)
    run = Run(encoder, jobs_of(tasks, (score,)), regions=regions)
    with evaluating(model):
        return {result_name(*job): run.metrics(number) for number, job in enumerate(run.jobs)}


def jobs_of(tasks: Sequence[Task], scores: Sequence[Score]) -> list[Job]:
    """Every task with every score that it has: the powerset score says nothing about classes."""
    return [
        (task, score)
        for task in tasks
        for score in scores
        if score == "global" or not isinstance(task, Classification | MultiLabel)
    ]


def result_name(task: Task, score: Score) -> str:
    """The name of a task's results."""
    return task.name if score == "global" else f"{task.name}{POWERSET}"


class Run:
    """The jobs of one evaluation, which share an encoder; an embedding is dropped after the last job that needs it."""

    def __init__(self, encoder: Encoder, jobs: Sequence[Job], *, regions: ScoreRegions = "grid") -> None:
        """Set up the run.

        Args:
            encoder: of the model, which must be in evaluation mode while jobs run.
            jobs: what to evaluate, in this order.
            regions: as in ``evaluate_tasks``.

        Raises:
            ValueError: the model has no powerset score, or an argument is out of range.
        """
        self.encoder, self.jobs = encoder, jobs
        self.scorers: dict[Score, Any] = {"global": GlobalScorer(encoder)}
        if any(score == "powerset" for _, score in jobs):
            both = any(score == "global" for _, score in jobs)
            self.scorers["powerset"] = PowersetScorer(encoder, regions=regions, with_global=both)
        last_image = {key_of(image): i for i, (task, _) in enumerate(jobs) for image in _images(task)}
        last_text = {text: i for i, (task, _) in enumerate(jobs) for text in _texts(task)}
        self._last_images, self._last_texts = _by_job(last_image), _by_job(last_text)

    @torch.inference_mode()
    def metrics(self, number: int) -> dict[str, float]:
        """The metrics of a job, by its number."""
        task, score = self.jobs[number]
        following = self.jobs[number + 1 : number + 2]
        if score == "global" and following and following[0][0] is task:
            self.scorers["powerset"].images(_images(task), getattr(task, "masks", None))  # one pass for both scores
        found = _evaluate(self.scorers[score], task)
        for scorer in self.scorers.values():
            scorer.forget(self._last_images.get(number, set()), self._last_texts.get(number, set()))
        return found


def _by_job(last: Mapping[Key, int]) -> dict[int, set[Key]]:
    """The keys that each job is the last to need."""
    found: dict[int, set[Key]] = {}
    for key, job in last.items():
        found.setdefault(job, set()).add(key)
    return found


def _images(task: Task) -> Sequence[Picture]:
    if isinstance(task, HardNegatives):
        return [item.image for item in task.items]
    if isinstance(task, Quadruples):
        return [image for item in task.items for image in item.images]
    return task.images


def _texts(task: Task) -> list[str]:
    if isinstance(task, Retrieval):
        return [caption for captions in task.captions for caption in captions]
    if isinstance(task, HardNegatives):
        return [text for item in task.items for text in (item.positive, *_wrong(item))]
    if isinstance(task, Quadruples):
        return [caption for item in task.items for caption in item.captions]
    return [template.replace(PLACE, name) for name in task.class_names for template in task.templates]


def _wrong(item: HardNegative) -> list[str]:
    return [*([] if item.negative is None else [item.negative]), *item.more_negatives]


class GlobalScorer:
    """Scores by the product of the global embeddings; ``PowersetScorer`` has the same methods."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def images(self, pictures: Sequence[Picture], masks: Sequence[Masks | None] | None = None) -> Tensor:
        """(I, D) embeddings."""
        return self.encoder.images(pictures)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(J, D) embeddings."""
        return self.encoder.texts(texts)

    def score(self, images: Tensor, texts: Tensor) -> Tensor:
        """(I, J) scores of every image and text."""
        return images @ texts.T

    def score_pairs(self, images: Tensor, texts: Tensor, owner: Tensor | None = None) -> Tensor:
        """(P,) scores of each of P texts with its image: the p-th, or the one that (P,) ``owner`` names."""
        return ((images if owner is None else images[owner]) * texts).sum(dim=1)

    def forget(self, pictures: Iterable[Hashable], texts: Iterable[str]) -> None:
        """Drop the embeddings of some images, by ``key_of``, and of some texts."""
        self.encoder.known_images.forget(pictures)
        self.encoder.known_texts.forget(texts)


def _evaluate(scorer: Any, task: Task) -> dict[str, float]:
    if isinstance(task, Classification):
        classes, labels = _classes(scorer, task), torch.tensor(list(task.labels), dtype=torch.int64)
        return classification_metrics(scorer.images(task.images), classes, labels)
    if isinstance(task, MultiLabel):
        classes, targets = _classes(scorer, task), torch.tensor([list(row) for row in task.targets]).bool()
        return average_precision_metrics(scorer.images(task.images), classes, targets)
    if isinstance(task, Retrieval):
        texts, owner = retrieval_texts(task)
        i, t = scorer.images(task.images, task.masks), scorer.texts(texts)
        return recall_metrics(
            lambda rows: scorer.score(i[rows], t),
            lambda rows: scorer.score(i, t[rows]).T,
            owner,
            images=len(i),
            same_text=same_texts(texts),
        )
    if isinstance(task, HardNegatives):
        wrong = [text for item in task.items for text in _wrong(item)]
        owner = torch.tensor([i for i, item in enumerate(task.items) for _ in _wrong(item)]).long()
        i = scorer.images(_images(task))
        right = scorer.score_pairs(i, scorer.texts([item.positive for item in task.items]))
        scores = scorer.score_pairs(i, scorer.texts(wrong), owner)
        highest = highest_of(scores, owner, count=len(i))
        return hard_negative_metrics(right, highest, [item.kind for item in task.items], task.macro_kinds)
    i, t = scorer.images(_images(task)), scorer.texts(_texts(task))
    first = torch.arange(0, 2 * len(task.items), 2)
    columns = [scorer.score_pairs(i[first + a], t[first + b]) for a in (0, 1) for b in (0, 1)]  # each (Q,)
    return quadruple_metrics(torch.stack(columns, dim=1).view(-1, 2, 2))


def _classes(scorer: GlobalScorer, task: Classification | MultiLabel) -> Tensor:
    """(C, D) class embeddings of a task."""
    if not task.class_names or not task.templates:
        raise ValueError(
            f"task {task.name} has {len(task.class_names)} class names and {len(task.templates)} templates; it "
            "needs at least one of each"
        )
    for template in task.templates:
        if PLACE not in template:
            raise ValueError(f"template {template!r} of task {task.name} has no {PLACE} for the class name; add it")
    embedded = scorer.texts(_texts(task)).view(len(task.class_names), len(task.templates), -1)
    return class_embeddings(embedded)


def retrieval_texts(task: Retrieval) -> tuple[list[str], Tensor]:
    """All texts of a retrieval task, and (J,) the image each belongs to.

    Raises:
        ValueError: not every image has its list of captions.
    """
    if len(task.images) != len(task.captions):
        raise ValueError(
            f"task {task.name} has {len(task.images)} images and captions for {len(task.captions)}; give each "
            "image its list of captions"
        )
    owner = torch.tensor([i for i, captions in enumerate(task.captions) for _ in captions], dtype=torch.int64)
    return _texts(task), owner


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
