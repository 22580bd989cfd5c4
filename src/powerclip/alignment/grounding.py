"""Which regions ground a phrase."""

from dataclasses import dataclass

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.similarity import validate
from powerclip.alignment.zero import place_zero
from powerclip.config import ScoringConfig
from powerclip.config.values import Subsets, Zero


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """For every phrase of one caption, the subset of one image's regions that maximises Q[A, phrase]."""

    subsets: Tensor
    """(K, M) bool: the regions with s above its zero, or of single regions the best one;
    all False for an absent phrase."""
    scores: Tensor
    """(K,) max over subsets of Q: the sum of the positive similarities, or the highest one; 0 for an absent phrase."""
    similarities: Tensor
    """(K, M) s of every phrase and region, less its zero; 0 where either is absent."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def grounding(
    regions: Tensor,
    phrases: Tensor,
    region_mask: Tensor | None = None,
    phrase_mask: Tensor | None = None,
    *,
    subsets: Subsets = "all",
    zero: Zero = "none",
    means: Tensor | None = None,
) -> Grounding:
    """The grounding subset of every phrase and its score (paper: NLA-T1 in its exact form).

    Args:
        regions: (M, D) region vectors of one image.
        phrases: (K, D) phrase vectors of one caption.
        region_mask, phrase_mask: (M,) and (K,) bool, True = present; all present by default.
        subsets: "all", or "single" regions only (the paper's ablation): the best one grounds the phrase, whatever the
            sign of its similarity.
        zero, means: where the zero of s is, as a model's ``scoring.zero`` and ``vector_means`` say.

    Raises:
        ValueError: an argument is out of range, or shapes, dtypes or devices do not fit; the message names it.
    """
    for name, value, letters in (("regions", regions, "(M, D)"), ("phrases", phrases, "(K, D)")):
        if value.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {letters}: one image, one caption")
    ScoringConfig(subsets=subsets, zero=zero)  # checks them
    if zero == "centred" and means is None:
        raise ValueError("zero is 'centred' and means is None; give the model's vector_means")
    masks = (None if mask is None else mask[None] for mask in (region_mask, phrase_mask))
    r, p = place_zero(*validate(regions[None], phrases[None], *masks), zero=zero, means=means)
    present_KM = p.mask[0][:, None] & r.mask[0]
    s_KM = p.values[0] @ r.values[0].T
    if subsets == "single":
        best_K1 = s_KM.masked_fill(~present_KM, ABSENT).argmax(dim=1, keepdim=True)
        chosen_KM = torch.zeros_like(present_KM).scatter_(1, best_K1, True) & present_KM
        scores_K = s_KM.gather(1, best_K1)[:, 0]
    else:
        chosen_KM, scores_K = s_KM > 0, s_KM.clamp(min=0).sum(dim=1)
    K, M = len(phrases), len(regions)
    return Grounding(subsets=chosen_KM[:K, :M], scores=scores_K[:K], similarities=s_KM[:K, :M])
