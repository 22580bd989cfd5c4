"""Calibrated zeta: the weight of log cosh at which NLA-T2 is unbiased on the data at hand.

At a fixed zeta, T2 is too high or too low by a similar amount for all pairs. T2 increases with zeta, so R2T of a few
pairs, computed over subsets, determines the zeta at which the two agree on average.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from powerclip.alignment import reference
from powerclip.alignment.aggregators import linear_and_even, soft_max_over_phrases
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.subsets import draw_subsets, score_over_subsets
from powerclip.alignment.vectors import MaskedVectors

PAIRS = 256
"""Number of pairs that zeta is fitted to."""

EXACT_UP_TO = 12
"""The fit enumerates all subsets of up to this many regions, and samples 2^12 subsets of more."""

HIGHEST = 4.0
"""Zeta is searched for in [0, 4]: as tau -> 0, T2 at zeta = 0 is at most R2T, and at zeta = 1 (log cosh) above it."""

STEPS = 30
"""Number of bisections; zeta is found to within 4 / 2^30."""


@dataclass(frozen=True, kw_only=True)
class CalibrationPairs:
    """What a fit needs to know about some pairs; rows from different processes can be concatenated."""

    linear: Tensor
    """(P, K) sum of s / 2 over regions."""
    even: Tensor
    """(P, K) sum of tau F(s / (2 tau)) over regions."""
    phrase_mask: Tensor
    """(P, K) bool, True = present."""
    exact: Tensor
    """(P,) R2T."""
    scored: Tensor
    """(P,) bool: the image has a region and the caption a phrase."""


def choose_pairs(images: int, captions: int, *, shift: int) -> tuple[Tensor, Tensor]:
    """(P,) image and (P,) caption indices of the pairs to fit, of I images and J captions, both at least 1.

    Images are evenly spread, captions depend on the shift; all processes and a resumed run choose the same pairs.
    """
    number = torch.arange(PAIRS)
    image = number * images // PAIRS if images >= PAIRS else number % images
    # Steps of the golden ratio spread any number of successive shifts evenly over the captions.
    moved = torch.tensor((shift * 0.6180339887498949) % 1.0, dtype=torch.float64)
    offset = (number.double() * 0.7548776662466927 + moved) % 1.0
    return image, (image + (offset * captions).long()) % captions


@torch.no_grad()
def measure_pairs(regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring) -> CalibrationPairs:
    """What a fit needs to know of regions (P, M, D) and phrases (P, K, D) of P images and as many captions."""
    s = torch.bmm(regions.values, phrases.values.transpose(1, 2))  # (P, M, K)
    s = s.masked_fill(~regions.mask[..., None], 0.0)
    M = s.shape[1]
    if M <= EXACT_UP_TO:
        subsets = reference.all_subsets(M, device=s.device, dtype=s.dtype)
    else:
        subsets = draw_subsets(2**EXACT_UP_TO, M, generator=torch.Generator().manual_seed(0))
    exact = score_over_subsets(s, regions.mask, phrases.mask, subsets, tile_bytes=scoring.budget(s.device))[1]
    linear, even = linear_and_even(s, tau=scoring.tau, activation=scoring.t2_activation)
    scored = regions.some & phrases.some
    return CalibrationPairs(linear=linear, even=even, phrase_mask=phrases.mask, exact=exact, scored=scored)


@torch.no_grad()
def fit_zeta(pairs: CalibrationPairs, *, tau: float) -> Tensor:
    """() zeta in [0, 4] at which mean T2 is closest to mean R2T; NaN if no pair can be scored or one is not finite."""
    low = torch.zeros((), dtype=pairs.linear.dtype, device=pairs.linear.device)
    high = torch.full_like(low, HIGHEST)
    target = (pairs.exact * pairs.scored).sum()
    for _ in range(STEPS):
        zeta = (low + high) / 2
        value = soft_max_over_phrases(pairs.linear + zeta * pairs.even, pairs.phrase_mask, tau=tau)
        above = (value * pairs.scored).sum() > target
        low, high = torch.where(above, low, zeta), torch.where(above, zeta, high)
    valid = pairs.scored.any() & target.isfinite() & pairs.linear.isfinite().all() & pairs.even.isfinite().all()
    return torch.where(valid, (low + high) / 2, torch.nan)
