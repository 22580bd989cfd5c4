"""Powerset similarity: the entry point, which validates and then dispatches."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad

from powerclip.alignment.calibration import choose_pairs, fit_zeta, measure_pairs
from powerclip.alignment.kernel import check_backend, score_rows
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.subsets import draw_subsets, standard_error
from powerclip.alignment.tiled import over_tiles
from powerclip.alignment.vectors import MaskedVectors
from powerclip.config import AggregationConfig
from powerclip.config.checks import require_known
from powerclip.config.values import Backend, Method, Zeta
from powerclip.types import Similarity


@torch.compiler.disable  # type: ignore[untyped-decorator]
def similarity(
    regions: Tensor,
    phrases: Tensor,
    region_mask: Tensor | None = None,
    phrase_mask: Tensor | None = None,
    *,
    method: Method = "nla",
    tau: float = 1e-3,
    zeta: Zeta = 0.75,
    backend: Backend = "auto",
    generator: torch.Generator | None = None,
    tile_bytes: int | None = None,
    **settings: Any,
) -> Similarity:
    """Powerset similarity of every image and every caption: ``t2r``, ``r2t`` and ``total``, each (I, J).

    Plain equivalent: ``powerclip.alignment.reference.enumerate_similarity``. Regions and phrases are scored as
    given (the paper: unit regions; phrases that are sums of unit leaves). An absent region or phrase has no influence
    on any value or gradient, even if it is NaN; a pair without any region or without any phrase scores 0. Scores are
    float32 (float64 for float64 input), also under autocast. Only a tile of the (I, J, M, K) region-phrase similarities
    exists at a time, in the backward pass too. Gradients are by backward: ``torch.func.vmap``
    and forward-mode derivatives are not supported.

    Args:
        regions: (I, M, D) region vectors.
        phrases: (J, K, D) phrase vectors.
        region_mask, phrase_mask: (I, M) and (J, K) bool, True = present; all present by default.
        method: "nla", the linear-time aggregators; "exact", enumeration of the 2^M subsets (M <= 16); or "sampled",
            R2T over a random sample of subsets, unbiased, with its standard error (T2R is exact).
        tau: temperature of the aggregators; 0 is their hard limit.
        zeta: weight of log cosh in NLA-T2; "calibrated" fits it to R2T over subsets on a few of the pairs.
        backend: "torch" is plain PyTorch; "triton" is a kernel for GPUs that computes method "nla" with the default
            activations; "auto" is the kernel where that is possible. With gradient, all are PyTorch. The kernel
            multiplies float16 and bfloat16 vectors as they are, and float32 as three products of tf32, or as one
            unless ``torch.get_float32_matmul_precision()`` is "highest"; its sums are float32.
        generator: a CPU generator that draws the subsets of the method "sampled"; torch's global one by default.
        tile_bytes: working memory of a tile; a suitable size for the device by default.
        settings: further ones of ``powerclip.config.AggregationConfig``, by name: ``subsets``, ``samples``,
            ``t1_activation``, ``t2_activation``.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or an argument is out of range; the message names it.
        TypeError: there is no such setting.
    """
    r, p = validate(regions, phrases, region_mask, phrase_mask)
    require_known(settings, AggregationConfig)
    given = AggregationConfig(method=method, tau=tau, zeta=zeta, **settings)
    scoring = Scoring(**vars(given), backend=backend, tile_bytes=tile_bytes)
    check_backend(backend)
    scoring.check_regions(regions.shape[1])
    with torch.autocast(regions.device.type, enabled=False):
        if scoring.calibrates:
            scoring = replace(scoring, fitted_zeta=_calibrated_zeta(r, p, scoring=scoring))
        if scoring.samples_subsets:
            scoring = replace(scoring, sample=draw_subsets(scoring.samples, r.mask.shape[1], generator=generator))
        dtype = regions.dtype if regions.dtype == phrases.dtype else r.values.dtype
        t2r, r2t = _all_pairs(r, p, scoring=scoring, dtype=dtype)
        error = None
        if scoring.samples_subsets:
            error = _standard_errors(r, p, scoring=scoring)
        return Similarity(t2r=t2r, r2t=r2t, r2t_standard_error=error)


def _all_pairs(
    regions: MaskedVectors,
    phrases: MaskedVectors,
    *,
    scoring: Scoring,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """T2R and R2T, each (I, J)."""
    if torch.is_grad_enabled() and (regions.values.requires_grad or phrases.values.requires_grad):
        t2r, r2t = over_tiles(scoring.score, regions, phrases, scoring=scoring)
        return t2r, r2t
    t2r, r2t = (regions.values.new_empty(len(regions), len(phrases)) for _ in range(2))
    rows = score_rows(regions, phrases, scoring=scoring, dtype=dtype)
    for images, *scores in rows:
        t2r[images], r2t[images] = scores
    return t2r, r2t


@torch.no_grad()
def _standard_errors(regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring) -> Tensor:
    assert scoring.sample is not None
    if not len(regions) or not len(phrases):
        return regions.values.new_zeros(len(regions), len(phrases))
    error_of = partial(standard_error, subsets=scoring.sample, tile_bytes=scoring.budget(regions.values.device))
    return over_tiles(lambda *s: (error_of(*s),), regions, phrases, scoring=scoring)[0]


@torch.no_grad()
def _calibrated_zeta(regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring) -> Tensor:
    if not len(regions) or not len(phrases):
        return regions.values.new_zeros(())
    i, j = (index.to(regions.mask.device) for index in choose_pairs(len(regions), len(phrases), shift=0))
    pairs = measure_pairs(regions[i], phrases[j], scoring=scoring)
    return fit_zeta(pairs, tau=scoring.tau).nan_to_num(0.0)


def validate(
    regions: Tensor, phrases: Tensor, region_mask: Tensor | None, phrase_mask: Tensor | None
) -> tuple[MaskedVectors, MaskedVectors]:
    """Region and phrase vectors with their masks, in one dtype, at least float32; ValueError as in ``similarity``.

    Without a mask, all are present. What is absent is set to 0, whatever it was (NaN and infinities included), and gets
    no gradient. M and K are at least 1: an absent vector stands for none.
    """
    for name, value, letters in (("regions", regions, "(I, M, D)"), ("phrases", phrases, "(J, K, D)")):
        if isinstance(value, DTensor):
            raise ValueError(
                f"{name} is a DTensor; pass this process's own rows as a plain tensor: x.to_local(), after "
                "x.redistribute(placements=[Shard(0)]) if it is not sharded over the batch"
            )
        if value.ndim != 3:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {letters}")
        if not value.is_floating_point():
            raise ValueError(f"{name} has dtype {value.dtype}; expected a floating-point dtype")
    if regions.shape[2] != phrases.shape[2]:
        raise ValueError(
            f"regions have D = {regions.shape[2]} and phrases D = {phrases.shape[2]}; both must be in the same space"
        )
    if regions.device != phrases.device:
        raise ValueError(f"regions are on {regions.device}, phrases on {phrases.device}; move one of them")
    dtype = torch.promote_types(torch.promote_types(regions.dtype, phrases.dtype), torch.float32)
    r = _masked("region_mask", region_mask, regions.to(dtype))
    return r, _masked("phrase_mask", phrase_mask, phrases.to(dtype))


def _masked(name: str, mask: Tensor | None, vectors: Tensor) -> MaskedVectors:
    if mask is None:
        present = torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)
        return _never_empty(vectors, present)
    if mask.shape != vectors.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)} and dtype {mask.dtype}; expected {tuple(vectors.shape[:2])} bool "
            "(True = present)"
        )
    if mask.device != vectors.device:
        raise ValueError(f"{name} is on {mask.device}, its vectors on {vectors.device}; move one of them")
    return _never_empty(vectors.masked_fill(~mask[..., None], 0.0), mask)


def _never_empty(values: Tensor, mask: Tensor) -> MaskedVectors:
    """The vectors, with an absent one where there are none at all, so that no maximum is over nothing."""
    if not values.shape[1]:
        values, mask = pad(values, (0, 0, 0, 1)), pad(mask, (0, 1))
    return MaskedVectors(values=values, mask=mask)
