"""What a loss makes of the complete matrix of scores S of C images (rows) and C captions (columns)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from powerclip.config import ContrastConfig
from powerclip.loss.triplet import triplet_loss


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which entries of the scores count."""

    valid: Tensor
    """(C,) bool: the pair can be scored."""
    negative: Tensor
    """(C, C) bool: the image and the caption are negatives of each other."""


def triplet_both_ways(scores: Tensor, pairs: Pairs, *, config: ContrastConfig, margin: float | Tensor) -> Tensor:
    """() l(S) + l(S^T) of scores (C, C), with the negatives that the config names."""
    i2t, t2i = (
        triplet_loss(
            x,
            margin=margin,
            rows=pairs.valid,
            negative=negative,
            negatives=config.negatives,
            temperature=config.negatives_temperature,
        )
        for x, negative in ((scores, pairs.negative), (scores.T, pairs.negative.T))
    )
    return i2t + t2i


def centre_scores(scores: Tensor, valid: Tensor, *, config: ContrastConfig) -> Tensor:
    """S[i, j] - mean_i S[i, j] - mean_j S[i, j] + mean S, of scores (C, C), the means over the valid rows and columns.

    The scores as they are if the config says "none".

    An image's own mean is the same for all captions it is compared with, and so makes no difference to them; what
    counts is that S[i, j] - mean_i S[i, j] is compared with S[i, i] - mean_i S[i, i], and likewise for captions.
    Through the means in full every score gets gradient; with detached means only those that get it without centring.
    """
    if config.centre_scores == "none":
        return scores
    share = valid.to(scores.dtype) / valid.sum().clamp(min=1)  # (C,)
    known = scores.detach() if config.centre_scores == "detached" else scores
    rows, columns = known @ share, share @ known  # (C,) each
    return scores - rows[:, None] - columns + rows @ share


@torch.no_grad()
def mean_gap(scores: Tensor, pairs: Pairs) -> Tensor:
    """() mean score of the pairs less that of the negatives; NaN if there are none of either."""
    positive = scores.diagonal()[pairs.valid].mean()
    return positive - (scores * pairs.negative).sum() / pairs.negative.sum()
