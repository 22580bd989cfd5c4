"""Zero-shot classification: class embeddings from prompts, and accuracies."""

from __future__ import annotations

import torch
from torch import Tensor


def class_embeddings(prompts: Tensor) -> Tensor:
    """(C, D) unit class embeddings: the rescaled mean of the (C, P, D) unit embeddings of each class's P prompts."""
    return torch.nn.functional.normalize(prompts.mean(dim=1), dim=-1)


def classification_metrics(images: Tensor, classes: Tensor, labels: Tensor) -> dict[str, float]:
    """acc@1, acc@5 and the mean of the classes' own accuracies.

    A tie with the right class counts as wrong; acc@5 is left out with five classes or fewer.

    Args:
        images: (I, D) unit image embeddings.
        classes: (C, D) unit class embeddings.
        labels: (I,) int64 right classes.

    Raises:
        ValueError: there is no image.
    """
    if len(images) == 0:
        raise ValueError("the classification task has no image; nothing can be measured")
    scores = images @ classes.T
    own = scores.gather(1, labels[:, None])
    rank = (scores >= own).sum(dim=1) - 1  # the own class is among those counted
    right = (rank == 0).float()
    present = torch.unique(labels)
    metrics = {
        "acc@1": right.mean().item(),
        "mean_per_class": torch.stack([right[labels == label].mean() for label in present]).mean().item(),
    }
    if len(classes) > 5:
        metrics["acc@5"] = (rank < 5).float().mean().item()
    return metrics
