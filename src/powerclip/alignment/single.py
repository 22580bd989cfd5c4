"""Single regions in place of subsets, a tile of images and captions at a time: the scores, and their gradient.

The similarities s of a tile are (M, i, k, j), regions and phrases before images and captions, so that maxima over
either run through contiguous memory; and where a maximum lies is found as where s less the maximum is zero, in floating
point: a CPU takes ten times as long for comparisons whose results are booleans. Formulas:
``aggregators.best_single_region``.
"""

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.vectors import MaskedVectors
from powerclip.config.values import Direction


class SingleRegions:
    """The regions of i images, of which each counts by itself; without gradient, as formulas."""

    def __init__(self, regions: MaskedVectors) -> None:
        self.vectors = regions.values.transpose(0, 1).flatten(0, 1)  # (M i, D)
        self.absent, self.share = _absent_and_share(regions.mask.T, regions.values.dtype)  # (M, i) each
        self.some = regions.some  # (i,)

    def scores(self, phrases: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """T2R and R2T, each (i, j), to phrases (j k, D) of j captions, which mask (j, k) says are present."""
        s, share = self._similarities(_phrases_first(phrases, mask), mask)
        t2r = (s.amax(dim=0) * share).sum(dim=1)
        r2t = (s.amax(dim=2) * self.share[..., None]).sum(dim=0)
        unscored = ~self._scored(mask)
        return t2r.masked_fill_(unscored, 0.0), r2t.masked_fill_(unscored, 0.0)

    def gradient(
        self, weights: Tensor, phrases: Tensor, mask: Tensor, *, direction: Direction
    ) -> tuple[Tensor, Tensor]:
        """(i, M, D) and (j k, D), the gradient of sum_ij weights[i, j] S[i, j]; equal maxima share it in equal parts.

        S is T2R, R2T or, for the direction "both", their sum.
        """
        columns = _phrases_first(phrases, mask)
        s, share = self._similarities(columns, mask)
        weights = weights * self._scored(mask)
        parts = []
        if direction != "r2t":
            best = (s - s.amax(dim=0)).eq_(0)  # (M, i, k, j): 1 at a phrase's best region, else 0
            parts.append(best.mul_(weights[:, None] * share / best.sum(dim=0)))
        if direction != "t2r":
            best = s.sub_(s.amax(dim=2, keepdim=True)).eq_(0)  # 1 at a region's best phrase
            parts.append(best.mul_((weights * self.share[..., None])[:, :, None] / best.sum(dim=2, keepdim=True)))
        of_s = (parts[0] if len(parts) == 1 else parts[0].add_(parts[1])).flatten(2).flatten(0, 1)  # (M i, k j)
        (M, i), (j, k) = self.share.shape, mask.shape
        of_regions = (of_s @ columns).view(M, i, -1).transpose(0, 1)
        return of_regions, (of_s.T @ self.vectors).view(k, j, -1).transpose(0, 1).flatten(0, 1)

    def _similarities(self, columns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(M, i, k, j) similarities, far below all others where absent, and (k, j) each phrase's part in its mean."""
        absent, share = _absent_and_share(mask.T, columns.dtype)
        s = (self.vectors @ columns.T).view(*self.absent.shape, *absent.shape)
        return s.add_(self.absent[..., None, None]).add_(absent), share

    def _scored(self, mask: Tensor) -> Tensor:
        return self.some[:, None] & mask.any(dim=1)  # (i, j)


def _phrases_first(phrases: Tensor, mask: Tensor) -> Tensor:
    """(k j, D) of (j k, D)."""
    return phrases.view(*mask.shape, -1).transpose(0, 1).flatten(0, 1)


def _absent_and_share(mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What makes the absent of (n, i) small, and each one's part in the mean over those that are present."""
    present = mask.to(dtype)
    return (1 - present) * ABSENT, present / present.sum(dim=0).clamp(min=1)
