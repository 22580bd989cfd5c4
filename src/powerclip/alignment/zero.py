"""Where the similarity s of a region and a phrase is zero; subsets choose the regions above it.

A threshold and centred vectors both keep s a product of two vectors, so that every score stays additive over regions.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from powerclip.alignment.vectors import MaskedVectors
from powerclip.config.values import Zero


def place_zero(
    regions: MaskedVectors, phrases: MaskedVectors, *, zero: Zero, means: Tensor | None = None
) -> tuple[MaskedVectors, MaskedVectors]:
    """The vectors to score, of a model whose ``ScoringConfig.zero`` is this.

    ``means`` are (2, D), of regions and of phrases, for "centred" vectors. A threshold that was never fitted or
    learned leaves the zero where it is.
    """
    if zero == "centred" and means is not None:
        return centre(regions, means[0]), centre(phrases, means[1])
    return (regions, phrases) if isinstance(zero, str) else shift(regions, phrases, zero)


def shift(
    regions: MaskedVectors, phrases: MaskedVectors, threshold: float | Tensor
) -> tuple[MaskedVectors, MaskedVectors]:
    """The vectors with one dimension more, D + 1: their products are s - threshold, a number or a () tensor."""
    ones, minus = regions.mask[..., None].to(regions.values), -threshold * phrases.mask[..., None].to(phrases.values)
    return (
        MaskedVectors(values=torch.cat([regions.values, ones], dim=-1), mask=regions.mask),
        MaskedVectors(values=torch.cat([phrases.values, minus], dim=-1), mask=phrases.mask),
    )


def centre(vectors: MaskedVectors, mean: Tensor) -> MaskedVectors:
    """The vectors less a mean (D,), as unit vectors."""
    values = normalize(vectors.values - mean.to(vectors.values), dim=-1)
    return MaskedVectors(values=values.masked_fill(~vectors.mask[..., None], 0.0), mask=vectors.mask)
