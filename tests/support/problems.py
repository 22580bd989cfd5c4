"""Regions and phrases to align."""

import torch
from torch.nn.functional import normalize

from powerclip.alignment.vectors import MaskedVectors


def problem(I, J, M, K, D=6, seed=0, dtype=torch.float64, masked=True):
    """Unit regions, phrases that are sums of two unit leaves, and masks with at least one of each present."""
    g = torch.Generator().manual_seed(seed)
    regions = normalize(torch.randn(I, M, D, generator=g, dtype=dtype), dim=-1)
    phrases = normalize(torch.randn(2, J, K, D, generator=g, dtype=dtype), dim=-1).sum(0)
    region_mask = torch.rand(I, M, generator=g) < (0.7 if masked else 2)
    phrase_mask = torch.rand(J, K, generator=g) < (0.7 if masked else 2)
    region_mask[:, 0] = phrase_mask[:, 0] = True
    return regions, phrases, region_mask, phrase_mask


def masked(inputs):
    """Regions and phrases of a problem with their masks, as the inner functions take them; 0 where absent."""
    regions, phrases, region_mask, phrase_mask = inputs
    return tuple(
        MaskedVectors(values=values.masked_fill(~mask[..., None], 0.0), mask=mask)
        for values, mask in ((regions, region_mask), (phrases, phrase_mask))
    )
