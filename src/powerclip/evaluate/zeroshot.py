"""Zero-shot classification: class embeddings from prompts, and accuracies."""

from __future__ import annotations

import torch
from torch import Tensor


def class_embeddings(prompts: Tensor) -> Tensor:
    """(C, D) unit class embeddings: the rescaled mean of the (C, P, D) unit embeddings of each class's P prompts."""
    return torch.nn.functional.normalize(prompts.mean(dim=1), dim=-1)


def classification_metrics(images: Tensor, classes: Tensor, labels: Tensor) -> dict[str, float]:
    """acc@1, acc@5 and the mean of the classes' own accuracies.

    A tie with the right class counts as wrong, and so does a score that is not a number; acc@5 is left out with five
    classes or fewer. A class without an image is left out of the mean per class.

    Args:
        images: (I, D) unit image embeddings.
        classes: (C, D) unit class embeddings.
        labels: (I,) int64 right classes.

    Raises:
        ValueError: there is no image, or a label is not among the classes.
    """
    if len(images) == 0:
        raise ValueError("the classification task has no image; nothing can be measured")
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError(
            f"the classification task has {len(images)} images, {len(classes)} classes and {len(labels)} labels from "
            f"{labels.min() if len(labels) else '-'} to {labels.max() if len(labels) else '-'}; expected one label an "
            "image, from 0 to the number of classes less one"
        )
    scores = images @ classes.T
    own = scores.gather(1, labels[:, None])
    others = torch.arange(len(classes)) != labels[:, None]
    rank = (~(scores < own) & others).sum(dim=1).masked_fill(own[:, 0].isnan(), len(classes))
    right = (rank == 0).float()
    present = torch.unique(labels)
    metrics = {
        "acc@1": right.mean().item(),
        "mean_per_class": torch.stack([right[labels == label].mean() for label in present]).mean().item(),
    }
    if len(classes) > 5:
        metrics["acc@5"] = (rank < 5).float().mean().item()
    return metrics
