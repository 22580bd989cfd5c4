"""Non-linear aggregators: the value of the powerset in time linear in the number of regions.

Paper: Kawamura et al., CVPR 2026, NLA-T1 and NLA-T2. With x = s / (2 tau), h = log cosh x and
L = log1p(exp(-|s| / tau)), h = |x| + L - log 2 and softplus(s / tau) = x + h + log 2, so one exponential and one
logarithm an element serve both aggregators.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ABSENT = -1e30
"""Stands for minus infinity among phrases: finite, so that its gradient is 0 and never NaN."""


def aggregate(
    s: Tensor, region_mask: Tensor, phrase_mask: Tensor, *, tau: float, zeta: float | Tensor
) -> tuple[Tensor, Tensor]:
    """NLA-T1 and NLA-T2 of similarities.

    T1 = mean_k sum_m tau softplus(s[m, k] / tau), which approaches T2R from above: T2R <= T1 <= T2R + tau M log 2.
    T2 = tau log sum_k exp(sum_m Lambda(s[m, k] / (2 tau))) with Lambda(x) = x + zeta log cosh x. At tau = 0 both
    become their limits: mean_k sum_m relu(s), and max_k sum_m (s + zeta |s|) / 2.

    Args:
        s: (..., M, K) region-phrase similarities.
        region_mask: broadcastable to (..., M) bool, True = present.
        phrase_mask: broadcastable to (..., K) bool, True = present.
        tau: temperature, 0 or more.
        zeta: weight of log cosh in T2.

    Returns:
        T1 and T2, each (...); 0 where a pair has no region or no phrase.
    """
    s = s.masked_fill(~region_mask[..., :, None], 0.0)
    regions = region_mask.sum(dim=-1, dtype=s.dtype)[..., None]
    if tau == 0:
        linear, even = s.sum(dim=-2) / 2, s.abs().sum(dim=-2) / 2  # (..., K)
        t1 = linear + even
        t2 = _masked(linear + zeta * even, phrase_mask).amax(dim=-1)
    else:
        x = s / (2 * tau)
        # An absent region has x = 0, so |x| + log1p(exp(0)) - log 2 = 0: it adds nothing.
        log_cosh = x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2)
        linear, even = x.sum(dim=-2), log_cosh.sum(dim=-2)
        t1 = tau * (linear + even + regions * math.log(2))
        t2 = tau * _masked(linear + zeta * even, phrase_mask).logsumexp(dim=-1)
    phrases = phrase_mask.sum(dim=-1, dtype=s.dtype)
    t1 = (t1 * phrase_mask).sum(dim=-1) / phrases.clamp(min=1)
    scored = (phrases > 0) & (regions[..., 0] > 0)
    return t1.masked_fill(~scored, 0.0), t2.masked_fill(~scored, 0.0)


def _masked(value: Tensor, phrase_mask: Tensor) -> Tensor:
    return value.masked_fill(~phrase_mask, ABSENT)
