"""The triplet loss from the complete matrix of scores: the definition that ``powerset.py`` is compared with."""

from typing import get_args

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.config.checks import require_number
from powerclip.config.values import Negatives
from powerclip.errors import one_of


def triplet_loss(
    scores: Tensor,
    *,
    margin: float | Tensor,
    positive: Tensor | None = None,
    rows: Tensor | None = None,
    negative: Tensor | None = None,
    negatives: Negatives = "hardest",
    temperature: float = 0.02,
) -> Tensor:
    """() mean_i max(0, margin + max_{j != i} X[i, j] - X[i, i]) (paper: the powerset loss l), in its dense form.

    X is ``scores`` (C, C), with the pairs on its diagonal; those that are False in ``rows`` (C,) are neither pairs nor
    negatives, and without any negative the loss is 0. ``negative`` (C, C) bool says which entries are negatives
    instead; with it and the pairs' own scores ``positive`` (C,), X may have another number of columns than C.
    ``PowersetAlignmentLoss`` has the same value and gradient without the matrix; this is its oracle. Of equal negatives
    the first gets the gradient, and a violation of exactly 0 none.

    In place of the maximum, "logsumexp" takes t log sum_j exp(X[i, j] / t) with the temperature t.
    "mean" takes the mean over j of max(0, margin + X[i, j] - X[i, i]) (the sum of hinges in Faghri et al.,
    VSE++, BMVC 2018, by their number).

    The loss is computed and returned in float32, or in float64 for scores of that dtype. ValueError if an argument is
    out of range, or the scores are not square without ``negative`` and ``positive``.
    """
    one_of("negatives", negatives, get_args(Negatives))
    require_number("temperature", temperature, lambda v: v > 0, "positive")
    if not isinstance(margin, Tensor):
        require_number("margin", margin, lambda v: v >= 0, "0 or more")
    if scores.ndim != 2 or ((negative is None or positive is None) and scores.shape[0] != scores.shape[1]):
        raise ValueError(f"scores have shape {tuple(scores.shape)}; expected (C, C), the pairs on the diagonal")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if not scores.numel():
        return scores.sum()  # 0
    C = scores.shape[0]
    valid = torch.ones(C, dtype=torch.bool, device=scores.device) if rows is None else rows
    if negative is None:
        negative = valid & ~torch.eye(C, dtype=torch.bool, device=scores.device)
    positive = scores.diagonal() if positive is None else positive
    if negatives == "mean":
        hinges = (margin + scores - positive[:, None]).relu() * negative
        violation = hinges.sum(dim=1) / negative.sum(dim=1).clamp(min=1)
    else:
        masked = scores.masked_fill(~negative, ABSENT)
        if negatives == "hardest":
            against = masked.max(dim=1).values
        else:
            against = temperature * (masked / temperature).logsumexp(dim=1)
        violation = (margin + against - positive).relu()
    return (violation * valid).sum() / valid.sum().clamp(min=1)
