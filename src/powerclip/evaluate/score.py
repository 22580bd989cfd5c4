"""Run tasks on a model: encode once, then hand features to the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from powerclip.config import Score, ScoreRegions
from powerclip.evaluate.composition import hard_negative_metrics, quadruple_metrics
from powerclip.evaluate.encode import Encoder, Model, Preprocess, Tokenize
from powerclip.evaluate.powerset_score import PowersetScorer
from powerclip.evaluate.retrieval import recall_metrics, retrieval_metrics, same_texts
from powerclip.evaluate.zeroshot import average_precision_metrics, class_embeddings, classification_metrics
from powerclip.tasks import Classification, HardNegatives, MultiLabel, Quadruples, Retrieval, Task

POWERSET = "-powerset"
"""Behind a task's name: its results by the powerset score."""


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
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a model on tasks; its mode is restored afterwards.

    Memory holds the embeddings and a batch of images. Under an initialised process group every process passes the same
    tasks, encodes its share, and gets all results, equal to those of one process.

    Args:
        model: anything with open_clip's ``encode_image`` and ``encode_text``.
        preprocess: PIL image to (3, H, W).
        tokenizer: texts to (B, T).
        tasks: what to evaluate.
        device: where the model is.
        batch_size: images or texts encoded at once.
        workers: threads that open and preprocess images beside the model.
        score: of an image and a text: "global", the product of the global embeddings (what the papers report), or
            "powerset", the powerset similarity of a PowerCLIP model's regions and phrases, for retrieval, hard negatives
            and quadruples; other tasks are passed over then.
        regions: of the powerset score: "grid", boxes of fixed sizes, or "stored", a task's own masks where it has them.
        progress: told the name of each task before it runs.

    Returns:
        Metrics by task name (with "-powerset" behind it for that score), each between 0 and 1.

    Raises:
        ValueError: a task is empty or its parts do not fit together, or the model has no powerset score.
    """
    encoder = Encoder(model, preprocess, tokenizer, device=device, batch_size=batch_size, workers=workers)
    reading = PowersetScorer(encoder, regions=regions) if score == "powerset" else None
    results = {}
    with evaluating(model), torch.inference_mode():
        for task in tasks:
            if reading is not None and isinstance(task, Classification | MultiLabel):
                continue
            name = task.name if reading is None else f"{task.name}{POWERSET}"
            if progress is not None:
                progress(name)
            results[name] = _evaluate(encoder, task) if reading is None else _evaluate_powerset(reading, task)
    return results


def _evaluate_powerset(reading: PowersetScorer, task: Task) -> dict[str, float]:
    if isinstance(task, Retrieval):
        texts, owner = retrieval_texts(task)
        i, t = reading.images(task.images, task.masks), reading.texts(texts)
        return recall_metrics(
            lambda rows: reading.score(i[rows], t),
            lambda rows: reading.score(i, t[rows]).T,
            owner,
            images=len(i),
            same_text=same_texts(texts),
        )
    if isinstance(task, HardNegatives):
        i = reading.images([item.image for item in task.items])
        positive = reading.score_pairs(i, reading.texts([item.positive for item in task.items]))
        wrong, owner = _wrong_texts(task)
        scores = reading.score_pairs(i[owner], reading.texts(wrong))
        return hard_negative_metrics(
            positive, highest_of(scores, owner, count=len(i)), [item.kind for item in task.items]
        )
    assert isinstance(task, Quadruples)
    i = reading.images([image for item in task.items for image in item.images])
    t = reading.texts([caption for item in task.items for caption in item.captions])
    first = torch.arange(0, 2 * len(task.items), 2)
    columns = [reading.score_pairs(i[first + a], t[first + b]) for a in (0, 1) for b in (0, 1)]
    return quadruple_metrics(torch.stack(columns, dim=1).view(-1, 2, 2))


def _evaluate(encoder: Encoder, task: Task) -> dict[str, float]:
    if isinstance(task, Classification):
        labels = torch.tensor(list(task.labels), dtype=torch.int64)
        return classification_metrics(encoder.images(task.images), _classes(encoder, task), labels)
    if isinstance(task, MultiLabel):
        classes = _classes(encoder, task)
        targets = torch.tensor([list(row) for row in task.targets]).bool()
        return average_precision_metrics(encoder.images(task.images), classes, targets)
    if isinstance(task, Retrieval):
        texts, owner = retrieval_texts(task)
        images = encoder.images(task.images)
        return retrieval_metrics(images, encoder.texts(texts), owner, same_text=same_texts(texts))
    if isinstance(task, HardNegatives):
        return _hard_negatives(encoder, task)
    return _quadruples(encoder, task)


def _classes(encoder: Encoder, task: Classification | MultiLabel) -> Tensor:
    """(C, D) class embeddings of a task."""
    if not task.class_names or not task.templates:
        raise ValueError(
            f"task {task.name} has {len(task.class_names)} class names and {len(task.templates)} templates; it "
            "needs at least one of each"
        )
    prompts = [template.format(c=name) for name in task.class_names for template in task.templates]
    embedded = encoder.texts(prompts).view(len(task.class_names), len(task.templates), -1)
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
    texts = [caption for captions in task.captions for caption in captions]
    owner = torch.tensor([i for i, captions in enumerate(task.captions) for _ in captions], dtype=torch.int64)
    return texts, owner


def _hard_negatives(encoder: Encoder, task: HardNegatives) -> dict[str, float]:
    images = encoder.images([item.image for item in task.items])
    positive = (images * encoder.texts([item.positive for item in task.items])).sum(dim=1)
    wrong, owner = _wrong_texts(task)
    scores = (images[owner] * encoder.texts(wrong)).sum(dim=1)
    negative = highest_of(scores, owner, count=len(images))
    return hard_negative_metrics(positive, negative, [item.kind for item in task.items])


def _wrong_texts(task: HardNegatives) -> tuple[list[str], Tensor]:
    """All wrong texts, and the item each belongs to."""
    wrong = [text for item in task.items for text in (item.negative, *item.more_negatives)]
    owner = [i for i, item in enumerate(task.items) for _ in (0, *item.more_negatives)]
    return wrong, torch.tensor(owner, dtype=torch.int64)


def highest_of(scores: Tensor, owner: Tensor, *, count: int) -> Tensor:
    """(count,) the highest of each owner's scores; no number where one of them is none."""
    highest = scores.new_full((count,), -torch.inf)
    return highest.scatter_reduce(0, owner, scores, "amax")


def _quadruples(encoder: Encoder, task: Quadruples) -> dict[str, float]:
    images = encoder.images([image for item in task.items for image in item.images])
    texts = encoder.texts([caption for item in task.items for caption in item.captions])
    pairs = images.view(-1, 2, images.shape[1]) @ texts.view(-1, 2, texts.shape[1]).transpose(1, 2)
    return quadruple_metrics(pairs)


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """The model in evaluation mode, and afterwards in the one it was in."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)
