"""The triplet loss from the complete matrix of scores: the definition that ``powerset.py`` is compared with."""

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT


def triplet_loss(scores: Tensor, *, margin: float, rows: Tensor | None = None) -> Tensor:
    """() mean_i max(0, margin + max_{j != i} X[i, j] - X[i, i]) (paper: the powerset loss l), in its dense form.

    X is ``scores`` (C, C), with the pairs on its diagonal; those that are False in ``rows`` (C,) are neither pairs nor
    negatives, and without any negative the loss is 0. ``PowersetAlignmentLoss`` has the same value and gradient without
    the matrix; this is its oracle. Of equal negatives the first gets the gradient, and a violation of exactly 0 none.
    """
    C = scores.shape[0]
    valid = torch.ones(C, dtype=torch.bool, device=scores.device) if rows is None else rows
    diagonal = torch.eye(C, dtype=torch.bool, device=scores.device)
    hardest = scores.masked_fill(diagonal | ~valid[None, :], ABSENT).max(dim=1).values
    violation = (margin + hardest - scores.diagonal()).relu()
    return (violation * valid).sum() / valid.sum().clamp(min=1)
