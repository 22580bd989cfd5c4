"""The one door to powerset similarity: validates, then dispatches."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from powerclip.alignment import reference
from powerclip.alignment.aggregators import aggregate
from powerclip.types import Similarity

Method = Literal["nla", "exact"]


def similarity(
    regions: Tensor,
    phrases: Tensor,
    region_mask: Tensor | None = None,
    phrase_mask: Tensor | None = None,
    *,
    method: Method = "nla",
    tau: float = 1e-3,
    zeta: float = 0.75,
) -> Similarity:
    """Powerset similarity of every image and every caption.

    Plain equivalent: ``powerclip.alignment.reference.enumerate_similarity``. Regions and phrases are scored as
    given (the paper: unit regions, phrases the sums of unit leaves). An absent region or phrase takes part in
    nothing; a pair without any region or without any phrase scores 0. Scores are float32 (float64 for float64
    input), also under autocast.

    Args:
        regions: (I, M, D) region vectors.
        phrases: (J, K, D) phrase vectors.
        region_mask: (I, M) bool, True = present; all present by default.
        phrase_mask: (J, K) bool, True = present; all present by default.
        method: "nla", the linear-time aggregators, or "exact", enumeration of the 2^M subsets (M <= 16).
        tau: temperature of the aggregators; 0 is their hard limit.
        zeta: weight of log cosh in NLA-T2.

    Returns:
        ``t2r``, ``r2t`` and ``total``, each (I, J).

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or an argument is out of range; the message names it.
    """
    region_mask, phrase_mask = validate(regions, phrases, region_mask, phrase_mask)
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; it must be one of {', '.join(get_args(Method))}")
    if not tau >= 0:
        raise ValueError(f"tau is {tau!r}; it must be 0 or more")
    if method == "exact" and regions.shape[1] > reference.MAX_REGIONS:
        raise ValueError(
            f"method 'exact' enumerates 2^M subsets and takes at most M = {reference.MAX_REGIONS} regions, got "
            f"{regions.shape[1]}; use method='nla'"
        )
    with torch.autocast(regions.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(regions.dtype, phrases.dtype), torch.float32)
        regions, phrases = regions.to(dtype), phrases.to(dtype)
        if method == "exact":
            return reference.enumerate_similarity(regions, phrases, region_mask, phrase_mask)
        s_IJMK = torch.einsum("imd,jkd->ijmk", regions, phrases)
        t1, t2 = aggregate(s_IJMK, region_mask[:, None], phrase_mask[None], tau=tau, zeta=zeta)
        return Similarity(t2r=t1, r2t=t2)


def validate(
    regions: Tensor, phrases: Tensor, region_mask: Tensor | None, phrase_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Check region and phrase vectors; return their masks, all True where none was given.

    Raises:
        ValueError: as ``similarity``.
    """
    for name, value, letters in (("regions", regions, "(I, M, D)"), ("phrases", phrases, "(J, K, D)")):
        if value.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {letters}")
        if not value.is_floating_point():
            raise ValueError(f"{name} has dtype {value.dtype}; expected a floating-point dtype")
    if regions.shape[2] != phrases.shape[2]:
        raise ValueError(
            f"regions have D = {regions.shape[2]} and phrases D = {phrases.shape[2]}; both must lie in one space"
        )
    if regions.device != phrases.device:
        raise ValueError(f"regions are on {regions.device}, phrases on {phrases.device}; move one of them")
    return _mask("region_mask", region_mask, regions), _mask("phrase_mask", phrase_mask, phrases)


def _mask(name: str, mask: Tensor | None, vectors: Tensor) -> Tensor:
    if mask is None:
        return torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
    if mask.shape != vectors.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}; expected {tuple(vectors.shape[:2])} bool "
            "(True = present)"
        )
    if mask.device != vectors.device:
        raise ValueError(f"{name} is on {mask.device}, its vectors on {vectors.device}; move one of them")
    return mask
