"""Sums over subsets of regions, all of them or a random sample, for many pairs at once.

R2T = mean over A of max over k of Q[A, k] is piecewise linear in s: with k(A) the best phrase of subset A, it equals
<s, W> with W[m, k] = share of the subsets that contain m and are best described by k. W is found without gradient, in
pieces; <s, W> then has the exact value and the exact gradient, and no table of 2^M subsets is kept for the backward
pass. T2R needs no subsets: max over A of Q[A, k] = sum_m relu(s[m, k]).
"""

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT, zero_where_unscored


def draw_subsets(count: int, regions: int, *, generator: torch.Generator | None = None) -> Tensor:
    """(A, M) bool, a random sample of subsets of M regions, in complementary pairs: rows i and i + A / 2.

    Every subset is equally likely, so a mean over the sample is unbiased, and complements tend to err in opposite
    directions. A is ``count``, rounded up to even; the generator is one on the CPU, torch's own by default.
    """
    half = torch.rand((count + 1) // 2, regions, generator=generator) < 0.5
    return torch.cat([half, ~half])


def score_over_subsets(
    s: Tensor, region_mask: Tensor, phrase_mask: Tensor, subsets: Tensor, *, tile_bytes: int
) -> tuple[Tensor, Tensor]:
    """T2R, exact, and R2T over the given subsets, exact if they are all; each (...), 0 without a region or a phrase.

    Of (..., M, K) similarities, with masks broadcastable to (..., M) and (..., K) bool, True = present, and subsets
    (A, M) bool or 0 / 1: absent regions in them are ignored, and each subset of those present still counts equally
    often. ``tile_bytes`` approximately limits the largest intermediate.
    """
    s = s.masked_fill(~region_mask[..., :, None], 0.0)  # (..., M, K)
    phrases = phrase_mask.sum(dim=-1, dtype=s.dtype)
    t2r = (s.relu().sum(dim=-2) * phrase_mask).sum(dim=-1) / phrases.clamp(min=1)
    weights = _weights(s.detach(), phrase_mask, subsets, tile_bytes)
    r2t = (s * weights).sum(dim=(-2, -1))  # <s, W>
    return zero_where_unscored((t2r, r2t), region_mask, phrase_mask)


def standard_error(s: Tensor, region_mask: Tensor, phrase_mask: Tensor, subsets: Tensor, *, tile_bytes: int) -> Tensor:
    """(...) the standard error of a sampled R2T: the spread of its complementary pairs, over the root of their number.

    Arguments as in ``score_over_subsets``; the subsets (A, M) as ``draw_subsets`` makes them, A at least 4.
    """
    s = s.detach().masked_fill(~region_mask[..., :, None], 0.0)
    half = len(subsets) // 2
    count, mean, squares = 0, s.new_zeros(s.shape[:-2]), s.new_zeros(s.shape[:-2])
    halves = (_pieces(part, s, tile_bytes) for part in (subsets[:half], subsets[half:]))
    for first, second in zip(*halves, strict=True):
        pairs = (_best(s, first, phrase_mask)[0] + _best(s, second, phrase_mask)[0]) / 2  # (..., a)
        # Chan et al.: mean and sum of squares of two samples joined, without cancellation.
        delta = pairs.mean(dim=-1) - mean
        total = count + pairs.shape[-1]
        squares += pairs.var(dim=-1, correction=0) * pairs.shape[-1] + delta**2 * (count * pairs.shape[-1] / total)
        mean += delta * (pairs.shape[-1] / total)
        count = total
    error = (squares / (count - 1) / count).sqrt()
    return zero_where_unscored((error, error), region_mask, phrase_mask)[0]


@torch.no_grad()
def _weights(s: Tensor, phrase_mask: Tensor, subsets: Tensor, tile_bytes: int) -> Tensor:
    """(..., M, K): the share of the subsets that contain region m and are best described by phrase k."""
    weights = torch.zeros_like(s)
    for piece in _pieces(subsets, s, tile_bytes):
        best = _best(s, piece, phrase_mask)[1]  # (..., a)
        chosen = torch.zeros(*best.shape, s.shape[-1], dtype=s.dtype, device=s.device)  # (..., a, K)
        chosen.scatter_(-1, best[..., None], 1.0)
        weights += piece.T @ chosen  # (M, a) @ (..., a, K)
    return weights / len(subsets)


def _best(s: Tensor, subsets: Tensor, phrase_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The score of each subset's best phrase, and which one it is: (..., a) each."""
    q = subsets @ s  # (a, M) @ (..., M, K) = (..., a, K)
    best = q.masked_fill_(~phrase_mask[..., None, :], ABSENT).max(dim=-1)
    return best.values, best.indices


def _pieces(subsets: Tensor, s: Tensor, tile_bytes: int) -> list[Tensor]:
    """The subsets as numbers, in pieces whose (..., a, K) table fits the budget twice."""
    row_bytes = 2 * s.element_size() * max(s.numel() // max(s.shape[-2], 1), 1)
    return list(torch.split(subsets.to(s.device, s.dtype), max(1, tile_bytes // row_bytes)))
