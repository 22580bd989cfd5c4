"""Scores of every image and caption, computed tile by tile.

Two passes over the pairs, as the gradient of the triplet loss is sparse: ``search.hardest_negatives`` looks at all of
them without gradient, ``score_pairs`` computes the few that matter with it. Where the gradient is dense, the second
pass is ``weighted_gradient``.

The fused tile of the default aggregators keeps three numbers per phrase while it goes through the regions one by one:
with y = s / (tau log 2), sum y, sum |y| and prod (1 + 2^-|y|), from which T1 and T2 both follow, since
tau softplus(s / tau) = (s + |s|) / 2 + tau log(1 + 2^-|y|) and tau log cosh(s / (2 tau)) = |s| / 2
+ tau log(1 + 2^-|y|) - tau log 2. Every factor is in (1, 2], so one logarithm per phrase serves all regions; and
powers of 2 because torch computes them several times faster than exp on a CPU.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from powerclip.alignment.aggregators import ABSENT, NEGLIGIBLE
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.single import SingleRegions
from powerclip.alignment.vectors import MaskedVectors

IMAGES_PER_TILE = 128
"""Images in a fused tile; with fewer, its matrix products become slow."""

REGIONS_PER_LOGARITHM = 100
"""The product of the factors, each up to 2, of this many regions stays well below float32's maximum of 2^127."""


def score_pairs(regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """T2R and R2T, each (P,), of the regions (P, M, D) and phrases (P, K, D) of P pairs; differentiable."""
    s_PMK = torch.bmm(regions.values, phrases.values.transpose(1, 2))
    return scoring.score(s_PMK, regions.mask, phrases.mask)


@torch.no_grad()
def score_rows(
    regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield slices of images with their T2R and R2T to all captions, each (images, J), without gradient.

    Captions are sorted by their number of phrases, so that those of one tile need little padding.
    """
    I, J = len(regions), len(phrases)
    if scoring.fused:
        step = min(max(I, 1), IMAGES_PER_TILE)
        columns = max(1, scoring.budget(regions.values.device) // (4 * regions.values.element_size() * step))
    else:
        step, columns = _plain_sizes(regions, phrases, scoring=scoring)
    tiles = list(_caption_tiles(phrases, columns=columns))
    for i in range(0, I, step):
        images = slice(i, min(i + step, I))
        rows = regions[images]
        score = _scorer(rows, scoring=scoring)
        t2r, r2t = (rows.values.new_empty(len(rows), J) for _ in range(2))
        for tile in tiles:
            t2r[:, tile.captions], r2t[:, tile.captions] = score(tile)
        yield images, t2r, r2t


@torch.no_grad()
def weighted_gradient(
    weights: Tensor, regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """(I, M, D) and (J, K, D), the gradient of sum_ij weights[i, j] S[i, j], of weights (I, J) and the total score S.

    Every pair is scored with gradient, a tile at a time, and each tile's gradient is added up before the next tile.
    """
    of_regions, of_phrases = torch.zeros_like(regions.values), torch.zeros_like(phrases.values)
    step, columns = _plain_sizes(regions, phrases, scoring=scoring)
    tiles = list(_caption_tiles(phrases, columns=columns))
    for i in range(0, len(regions), step):
        images = slice(i, i + step)
        rows = regions[images]
        single = SingleRegions(rows) if scoring.subsets == "single" else None
        for tile in tiles:
            of_tile = weights[images, tile.captions]
            if single:
                found = single.gradient(of_tile, tile.phrases, tile.mask, direction=scoring.direction)
            else:
                found = _plain_gradient(of_tile, rows, tile, scoring=scoring)
            of_regions[images] += found[0]
            of_phrases.flatten(0, 1).index_add_(0, tile.slots, found[1])
    return of_regions, of_phrases


def over_tiles(
    function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]],
    regions: MaskedVectors,
    phrases: MaskedVectors,
    *,
    scoring: Scoring,
) -> tuple[Tensor, ...]:
    """Apply a function of s (i, j, M, K) and masks (i, 1, M) and (1, j, K) to all images and captions: values (I, J).

    They are differentiable: the backward pass computes each tile of s again instead of keeping it.
    """

    def tile(*inputs: Tensor) -> tuple[Tensor, ...]:
        r, p, r_mask, p_mask = inputs
        return function(torch.einsum("imd,jkd->ijmk", r, p), r_mask[:, None], p_mask[None])

    side = math.isqrt(scoring.pairs_per_tile(regions, phrases))
    if side >= max(len(regions), len(phrases)) or not len(regions) or not len(phrases):
        return tile(regions.values, phrases.values, regions.mask, phrases.mask)
    rows = []
    for i in range(0, len(regions), side):
        r = regions[i : i + side]
        parts: list[tuple[Tensor, ...]] = []
        for j in range(0, len(phrases), side):
            p = phrases[j : j + side]
            parts.append(checkpoint(tile, r.values, p.values, r.mask, p.mask, use_reentrant=False))
        rows.append([torch.cat(values, dim=1) for values in zip(*parts, strict=True)])
    return tuple(torch.cat(values) for values in zip(*rows, strict=True))


@dataclass(frozen=True, kw_only=True)
class _CaptionTile:
    """Captions with nearly equal numbers of phrases."""

    captions: Tensor
    """(j,) their indices."""
    phrases: Tensor
    """(j k, D) their phrase vectors, 0 where absent."""
    slots: Tensor
    """(j k,) where these are among the J K vectors of all captions."""
    mask: Tensor
    """(j, k) bool, True = present."""


def _caption_tiles(phrases: MaskedVectors, *, columns: int) -> Iterator[_CaptionTile]:
    """Pack captions into tiles of at most ``columns`` phrase slots (or of one caption), present phrases first."""
    counts, captions = phrases.mask.sum(dim=1).sort(stable=True)  # (J,) each
    slots = phrases.mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    sizes = counts.clamp(min=1).tolist()  # the only wait for the device: tiles need their sizes
    start = 0
    while start < len(sizes):
        stop = start + 1
        while stop < len(sizes) and (stop + 1 - start) * sizes[stop] <= columns:
            stop += 1
        width = sizes[stop - 1]
        index = captions[start:stop]  # (j,)
        order = slots.index_select(0, index)[:, :width]
        mask = phrases.mask.index_select(0, index).gather(1, order)  # (j, k)
        flat = (index[:, None] * phrases.mask.shape[1] + order).flatten()
        packed = phrases.values.flatten(0, 1).index_select(0, flat)
        yield _CaptionTile(captions=index, phrases=packed.mul_(mask.flatten()[:, None]), slots=flat, mask=mask)
        start = stop


def _plain_sizes(regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring) -> tuple[int, int]:
    """How many images, and phrase slots of captions, a tile of ``_plain`` may have."""
    pairs = scoring.pairs_per_tile(regions, phrases)
    step = max(1, min(len(regions), math.isqrt(pairs)))
    return step, max(1, pairs // step) * phrases.mask.shape[1]


def _plain(regions: MaskedVectors, tile: _CaptionTile, *, scoring: Scoring) -> tuple[Tensor, Tensor]:
    """T2R and R2T, each (i, j), with any scoring: all of s of a tile at once."""
    i, M, D = regions.values.shape
    j, k = tile.mask.shape
    s = regions.values.reshape(i * M, D) @ tile.phrases.T  # (i M, j k)
    s = s.view(i, M, j, k).transpose(1, 2)  # (i, j, M, k)
    return scoring.score(s, regions.mask[:, None], tile.mask[None])


def _plain_gradient(
    weights: Tensor, regions: MaskedVectors, tile: _CaptionTile, *, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """(i, M, D) and (j k, D), the gradient of the sum of the weighted scores (i, j), by autograd."""
    vectors = [regions.values.detach().requires_grad_(), tile.phrases.detach().requires_grad_()]
    rows, part = replace(regions, values=vectors[0]), replace(tile, phrases=vectors[1])
    with torch.enable_grad():
        scores = scoring.total(*_plain(rows, part, scoring=scoring), rows.mask)
    of_regions, of_phrases = torch.autograd.grad(scores, vectors, weights)
    return of_regions, of_phrases


def _scorer(regions: MaskedVectors, *, scoring: Scoring) -> Callable[[_CaptionTile], tuple[Tensor, Tensor]]:
    """The function of a tile that gives its T2R and R2T to these images, (i, j) each."""
    if scoring.fused:
        return _FusedBlock(regions, scoring=scoring)
    if scoring.subsets == "single":
        single = SingleRegions(regions)
        return lambda tile: single.scores(tile.phrases, tile.mask)
    return lambda tile: _plain(regions, tile, scoring=scoring)


class _FusedBlock:
    """A block of images with NLA-T1 of softplus and NLA-T2 of log cosh: region after region, in place."""

    def __init__(self, regions: MaskedVectors, *, scoring: Scoring) -> None:
        self.tau, self.zeta = scoring.tau, scoring.even_weight
        self.unit = self.tau * math.log(2) or 1.0  # y = s / unit
        masked = regions.values * regions.mask[..., None] / self.unit
        self.by_region = masked.transpose(0, 1).contiguous()  # (M, i, D)
        self.all_regions = masked.sum(dim=1)  # (i, D)
        self.present = regions.some  # (i,)
        self.absent = (~regions.mask).sum(dim=1, dtype=masked.dtype)

    def __call__(self, tile: _CaptionTile) -> tuple[Tensor, Tensor]:
        columns = tile.phrases.T  # (D, j k)
        j, k = tile.mask.shape
        linear = self.all_regions @ columns  # (i, j k) sum of y over the regions
        absolute = torch.zeros_like(linear)  # (i, j k) sum of |y|
        product = torch.ones_like(linear) if self.tau else None  # (i, j k) product of 1 + 2^-|y|
        logarithm: Tensor | float = 0.0  # (i, j k) log2 of the products so far
        buffer = torch.empty_like(linear)  # (i, j k) y of one region
        for m, region in enumerate(self.by_region):
            torch.mm(region, columns, out=buffer)
            absolute += buffer.abs_()
            if product is not None:
                product.addcmul_(product, buffer.neg_().clamp_(min=-NEGLIGIBLE).exp2_())
                if (m + 1) % REGIONS_PER_LOGARITHM == 0:
                    logarithm = logarithm + product.log2()
                    product.fill_(1.0)
        if product is not None:
            logarithm = product.log2_() + logarithm
        M = len(self.by_region)
        counts = tile.mask.sum(dim=1, dtype=linear.dtype).clamp(min=1)  # (j,)
        weights = (tile.mask / counts[:, None]).to(linear.dtype)  # (j, k) each phrase's part in its caption's mean
        linear, absolute = linear.div_(2), absolute.div_(2)
        softplus = (linear + absolute).add_(logarithm).view(-1, j, k)  # (i, j, k) sum of softplus, in units
        t1 = self.unit * (softplus * weights).sum(dim=-1)  # (i, j)
        even = absolute  # (i, j k) at tau = 0; else completed below to the sum of log cosh, in units
        if self.tau:
            # An absent region has y = 0, so a factor of 2: it added 1 to softplus, and nothing to log cosh.
            t1 -= self.unit * self.absent[:, None]
            even = absolute.add_(logarithm).sub_(M)
        exponent = linear.add_(even * self.zeta).view(-1, j, k).masked_fill_(~tile.mask, ABSENT)  # (i, j, k), in units
        highest = exponent.amax(dim=-1)  # (i, j)
        t2 = highest
        if self.tau:
            t2 = exponent.sub_(highest[..., None]).clamp_(min=-NEGLIGIBLE).exp2_().sum(dim=-1).log2_().add_(highest)
        t2 = t2 * self.unit
        unscored = ~(self.present[:, None] & tile.mask.any(dim=1))  # (i, j)
        return t1.masked_fill_(unscored, 0.0), t2.masked_fill_(unscored, 0.0)
