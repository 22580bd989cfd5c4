"""Non-linear aggregators: the value of the powerset in time linear in the number of regions.

Paper: Kawamura et al., CVPR 2026, NLA-T1 and NLA-T2, and the activations of their ablation. With f an activation,

    T1 = mean_k sum_m tau f(s[m, k] / tau)                                       f = softplus
    T2 = tau log sum_k exp(sum_m x + zeta F(x)),  x = s[m, k] / (2 tau),         F' = tanh, so F = log cosh

At tau = 0 both are their limits: mean_k sum_m relu(s), and max_k sum_m (s + zeta |s|) / 2.
"""

import math
from collections.abc import Callable
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from powerclip.config.values import T1Activation, T2Activation

ABSENT = -1e30
"""Used as minus infinity in maxima over phrases: finite, so that its gradient is 0 and never NaN."""


NEGLIGIBLE = 64.0
"""exp(-64) and 2^-64 vanish beside 1, in float64 too. Smaller ones are taken for these: around exp(-90), where
similarities at a small tau lie, numbers are subnormal in float32, and a CPU takes 30 times as long for exp."""


def _decay(x: Tensor) -> Tensor:
    """exp(-x) of x >= 0."""
    return torch.exp(-x.clamp(max=NEGLIGIBLE))


def _softplus(x: Tensor) -> Tensor:
    # torch's softplus is linear beyond a threshold; this one is also exact in float64.
    return x.clamp(min=0) + torch.log1p(_decay(x.abs()))


def _log_cosh(x: Tensor) -> Tensor:
    return x.abs() + torch.log1p(_decay(2 * x.abs())) - math.log(2)


T1_ACTIVATIONS: dict[T1Activation, Callable[[Tensor], Tensor]] = {
    "softplus": _softplus,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
}
"""f by name. Each tends to relu: tau f(s / tau) -> relu(s) as tau -> 0."""

T2_ACTIVATIONS: dict[T2Activation, Callable[[Tensor], Tensor]] = {
    "tanh": _log_cosh,
    "sign": torch.abs,
    "erf": lambda x: x * torch.erf(x) + (torch.exp(-x.square()) - 1) / math.sqrt(math.pi),
    "softsign": lambda x: x.abs() - torch.log1p(x.abs()),
    "arctan": lambda x: x * torch.atan(x) - torch.log1p(x.square()) / 2,
    "sigmoid": lambda x: _softplus(x) - math.log(2),
}
"""F, with F(0) = 0, by the name of its derivative."""

T2_LIMITS: dict[T2Activation, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(get_args(T2Activation), torch.abs),
    "arctan": lambda x: x.abs() * (math.pi / 2),
    "sigmoid": F.relu,
}
"""lim tau F(x / tau) as tau -> 0."""

assert T1_ACTIVATIONS.keys() == set(get_args(T1Activation))
assert T2_ACTIVATIONS.keys() == T2_LIMITS.keys() == set(get_args(T2Activation))


def aggregate(
    s: Tensor,
    region_mask: Tensor,
    phrase_mask: Tensor,
    *,
    tau: float,
    zeta: float | Tensor,
    t1_activation: T1Activation = "softplus",
    t2_activation: T2Activation = "tanh",
) -> tuple[Tensor, Tensor]:
    """NLA-T1 and NLA-T2, each (...), of (..., M, K) similarities; 0 where a pair has no region or no phrase.

    The masks are broadcastable to (..., M) and (..., K) bool, True = present; ``zeta`` is the weight of F in T2. With
    softplus, T1 approaches T2R from above: T2R <= T1 <= T2R + tau M log 2.
    """
    s = s.masked_fill(~region_mask[..., :, None], 0.0)  # (..., M, K)
    activation = T1_ACTIVATIONS[t1_activation]
    positive = (s.relu() if tau == 0 else tau * activation(s / tau)).masked_fill(~region_mask[..., :, None], 0.0)
    phrases = phrase_mask.sum(dim=-1, dtype=s.dtype)
    t1 = (positive.sum(dim=-2) * phrase_mask).sum(dim=-1) / phrases.clamp(min=1)  # over M, then over K: (...)
    linear, even = linear_and_even(s, tau=tau, activation=t2_activation)  # (..., K) each
    t2 = soft_max_over_phrases(linear + zeta * even, phrase_mask, tau=tau)
    return zero_where_unscored((t1, t2), region_mask, phrase_mask)


def linear_and_even(s: Tensor, *, tau: float, activation: T2Activation = "tanh") -> tuple[Tensor, Tensor]:
    """(..., K) sum_m s / 2 and sum_m tau F(s / (2 tau)), which T2 is made of; s (..., M, K) is 0 for absent regions."""
    half = s / 2
    even = T2_LIMITS[activation](half) if tau == 0 else tau * T2_ACTIVATIONS[activation](half / tau)
    return half.sum(dim=-2), even.sum(dim=-2)


def soft_max_over_phrases(value: Tensor, phrase_mask: Tensor, *, tau: float) -> Tensor:
    """tau log sum_k exp(value / tau) over the phrases that are present; their maximum at tau = 0. (..., K) -> (...)."""
    value = value.masked_fill(~phrase_mask, ABSENT)
    if tau == 0:
        return value.amax(dim=-1)
    exponent = value / tau
    lowest = exponent.detach().amax(dim=-1, keepdim=True) - NEGLIGIBLE
    return tau * torch.maximum(exponent, lowest).logsumexp(dim=-1)


def best_single_region(s: Tensor, region_mask: Tensor, phrase_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The paper's ablation "single regions instead of subsets": only the subsets of one region count.

    T2R = mean_k max_m s[m, k] and R2T = mean_m max_k s[m, k], exactly; shapes and masks as in ``aggregate``.
    """
    regions = region_mask.sum(dim=-1, dtype=s.dtype).clamp(min=1)
    phrases = phrase_mask.sum(dim=-1, dtype=s.dtype).clamp(min=1)
    by_phrase = s.masked_fill(~region_mask[..., :, None], ABSENT).amax(dim=-2)  # (..., K)
    by_region = s.masked_fill(~phrase_mask[..., None, :], ABSENT).amax(dim=-1)  # (..., M)
    t2r = by_phrase.masked_fill(~phrase_mask, 0.0).sum(dim=-1) / phrases
    r2t = by_region.masked_fill(~region_mask, 0.0).sum(dim=-1) / regions
    return zero_where_unscored((t2r, r2t), region_mask, phrase_mask)


def zero_where_unscored(
    values: tuple[Tensor, Tensor], region_mask: Tensor, phrase_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """0 where an image has no region or a caption no phrase: there is nothing to align."""
    unscored = ~(region_mask.any(dim=-1) & phrase_mask.any(dim=-1))
    return values[0].masked_fill(unscored, 0.0), values[1].masked_fill(unscored, 0.0)
