"""Which regions ground a phrase."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from powerclip.alignment.similarity import validate


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """For every phrase of one caption, the subset of one image's regions that maximises Q[A, phrase]."""

    subsets: Tensor
    """(K, M) bool: the regions with s > 0; all False for an absent phrase."""
    scores: Tensor
    """(K,) max over subsets of Q: the sum of the positive similarities."""
    similarities: Tensor
    """(K, M) s of every phrase and region; 0 where either is absent."""


def grounding(
    regions: Tensor, phrases: Tensor, region_mask: Tensor | None = None, phrase_mask: Tensor | None = None
) -> Grounding:
    """The grounding subset of every phrase and its score (paper: NLA-T1 in its exact form).

    Args:
        regions: (M, D) region vectors of one image.
        phrases: (K, D) phrase vectors of one caption.
        region_mask: (M,) bool, True = present; all present by default.
        phrase_mask: (K,) bool, True = present; all present by default.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; the message names the argument.
    """
    for name, value, letters in (("regions", regions, "(M, D)"), ("phrases", phrases, "(K, D)")):
        if value.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {letters}: one image, one caption")
    region_masks, phrase_masks = validate(
        regions[None],
        phrases[None],
        None if region_mask is None else region_mask[None],
        None if phrase_mask is None else phrase_mask[None],
    )
    s_KM = (phrases @ regions.T).masked_fill(~(phrase_masks[0][:, None] & region_masks[0][None]), 0.0)
    return Grounding(subsets=s_KM > 0, scores=s_KM.clamp(min=0).sum(dim=1), similarities=s_KM)
