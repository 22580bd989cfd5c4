"""Zero-shot classification: class embeddings from prompts, accuracies, and average precision."""

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


def average_precision_metrics(images: Tensor, classes: Tensor, targets: Tensor) -> dict[str, float]:
    """mAP: the mean over classes of the mean, over a class's images, of the precision at their ranks.

    Images of equal score count as wrong before right. A class without an image is left out of the mean.

    Args:
        images: (I, D) unit image embeddings.
        classes: (C, D) unit class embeddings.
        targets: (I, C) bool, True where the image has the class.

    Raises:
        ValueError: there is no image or no image with a class, or the targets do not fit.
    """
    if targets.shape != (len(images), len(classes)) or not targets.any():
        raise ValueError(
            f"the multi-label task has {len(images)} images, {len(classes)} classes and targets of shape "
            f"{tuple(targets.shape)} with {int(targets.sum())} True; expected (images, classes) and at least one True"
        )
    scores = (images @ classes.T).nan_to_num(nan=-torch.inf)
    precisions = []
    for c in range(len(classes)):
        own = targets[:, c]
        if not own.any():
            continue
        # By falling score, and among equal ones the wrong images first.
        order = own.to(torch.int8).argsort(stable=True)
        order = order[scores[order, c].argsort(descending=True, stable=True)]
        right = own[order].double()
        precision = right.cumsum(dim=0) / torch.arange(1, len(right) + 1)
        precisions.append((precision * right).sum() / right.sum())
    return {"mAP": torch.stack(precisions).mean().item()}
