"""Compositionality: hard negatives (SugarCrepe's form) and quadruples (Winoground's form). Ties are wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hard_negative_metrics(positive: Tensor, negative: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Share of images whose right caption scores strictly higher, by kind, with micro and macro averages.

    Args:
        positive: (I,) scores of the right captions.
        negative: (I,) scores of the wrong ones, the highest where an image has several.
        kinds: the kind of each.

    Raises:
        ValueError: there is no item.
    """
    if len(positive) == 0:
        raise ValueError("the hard-negative task has no item; nothing can be measured")
    right = (positive > negative).float()
    metrics = {}
    for kind in sorted(set(kinds)):
        metrics[kind] = right[torch.tensor([k == kind for k in kinds])].mean().item()
    macro = sum(metrics.values()) / len(metrics)
    return {"micro": right.mean().item(), "macro": macro, **metrics}


def quadruple_metrics(scores: Tensor) -> dict[str, float]:
    """Winoground's text, image and group scores (Thrush et al., 2022).

    Args:
        scores: (Q, 2, 2) score of image i with caption j of each quadruple.

    Raises:
        ValueError: there is no quadruple.
    """
    if len(scores) == 0:
        raise ValueError("the quadruple task has no item; nothing can be measured")
    text = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    image = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    names = {"text": text, "image": image, "group": text & image}
    return {name: value.float().mean().item() for name, value in names.items()}
