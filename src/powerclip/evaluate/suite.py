"""Run tasks on a model: encode once, then hand features to the metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from powerclip.evaluate.composition import hard_negative_metrics, quadruple_metrics
from powerclip.evaluate.retrieval import retrieval_metrics, same_texts
from powerclip.evaluate.zeroshot import class_embeddings, classification_metrics
from powerclip.types import Classification, HardNegatives, Quadruples, Retrieval, Task

Item = TypeVar("Item", Image.Image, str)


class Model(Protocol):
    """What evaluation needs of a model: any open_clip-style one will do."""

    training: bool

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) images to (B, D)."""

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(B, T) token ids to (B, D)."""

    def train(self, mode: bool = True) -> object:
        """Switch between training and evaluation."""


class Encoder:
    """A model with its preprocessing: images and texts to unit float32 embeddings on the CPU."""

    def __init__(
        self,
        model: Model,
        preprocess: Callable[[Image.Image], Tensor],
        tokenizer: Callable[[list[str]], Tensor],
        *,
        device: torch.device | str,
        batch_size: int,
    ) -> None:
        self.model, self.preprocess, self.tokenizer = model, preprocess, tokenizer
        self.device, self.batch_size = device, batch_size

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(I, D) embeddings."""
        return self._encode(
            images,
            lambda part: self.model.encode_image(torch.stack([self.preprocess(i) for i in part]).to(self.device)),
        )

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(J, D) embeddings."""
        return self._encode(texts, lambda part: self.model.encode_text(self.tokenizer(list(part)).to(self.device)))

    def _encode(self, items: Sequence[Item], encode: Callable[[Sequence[Item]], Tensor]) -> Tensor:
        parts = [
            torch.nn.functional.normalize(encode(items[i : i + self.batch_size]).float(), dim=-1).cpu()
            for i in range(0, len(items), self.batch_size)
        ]
        return torch.cat(parts) if parts else torch.zeros(0, 1)


def evaluate_tasks(
    model: Model,
    preprocess: Callable[[Image.Image], Tensor],
    tokenizer: Callable[[list[str]], Tensor],
    tasks: Sequence[Task],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    progress: Callable[[str], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a model on tasks by its global embeddings; the model's mode is restored afterwards.

    Args:
        model: anything with open_clip's ``encode_image`` and ``encode_text``.
        preprocess: PIL image to (3, H, W).
        tokenizer: texts to (B, T).
        tasks: what to evaluate.
        device: where the model is.
        batch_size: images or texts encoded at once.
        progress: told the name of each task before it runs.

    Returns:
        Metrics by task name, each between 0 and 1.

    Raises:
        ValueError: a task is empty or its parts do not fit together.
    """
    encoder = Encoder(model, preprocess, tokenizer, device=device, batch_size=batch_size)
    results = {}
    with _evaluating(model), torch.inference_mode():
        for task in tasks:
            if progress is not None:
                progress(task.name)
            results[task.name] = _evaluate(encoder, task)
    return results


def _evaluate(encoder: Encoder, task: Task) -> dict[str, float]:
    if isinstance(task, Classification):
        if not task.class_names or not task.templates:
            raise ValueError(
                f"task {task.name} has {len(task.class_names)} class names and {len(task.templates)} templates; it "
                "needs at least one of each"
            )
        prompts = [template.format(c=name) for name in task.class_names for template in task.templates]
        embedded = encoder.texts(prompts).view(len(task.class_names), len(task.templates), -1)
        labels = torch.tensor(list(task.labels), dtype=torch.int64)
        return classification_metrics(encoder.images(task.images), class_embeddings(embedded), labels)
    if isinstance(task, Retrieval):
        if len(task.images) != len(task.captions):
            raise ValueError(
                f"task {task.name} has {len(task.images)} images and captions for {len(task.captions)}; give each "
                "image its list of captions"
            )
        texts = [caption for captions in task.captions for caption in captions]
        owner = torch.tensor([i for i, captions in enumerate(task.captions) for _ in captions], dtype=torch.int64)
        images = encoder.images(task.images)
        return retrieval_metrics(images, encoder.texts(texts), owner, same_text=same_texts(texts))
    if isinstance(task, HardNegatives):
        images = encoder.images([item.image for item in task.items])
        positive = (images * encoder.texts([item.positive for item in task.items])).sum(dim=1)
        negative = (images * encoder.texts([item.negative for item in task.items])).sum(dim=1)
        return hard_negative_metrics(positive, negative, [item.kind for item in task.items])
    return _quadruples(encoder, task)


def _quadruples(encoder: Encoder, task: Quadruples) -> dict[str, float]:
    images = encoder.images([image for item in task.items for image in item.images])
    texts = encoder.texts([caption for item in task.items for caption in item.captions])
    pairs = images.view(-1, 2, images.shape[1]) @ texts.view(-1, 2, texts.shape[1]).transpose(1, 2)
    return quadruple_metrics(pairs)


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)
