"""Powerset similarity by enumeration: the readable definition, and the oracle of every faster path.

Method: Kawamura et al., "PowerCLIP: Powerset Alignment for Contrastive Pre-Training", CVPR 2026. With
s[m, k] = <region m, phrase k>, a subset A of the regions scores Q[A, k] = sum of s[m, k] over m in A, and

    T2R = mean over k of max over A of Q[A, k]          (is every phrase grounded?)
    R2T = mean over A of max over k of Q[A, k]          (is every set of regions described?)

over all 2^M subsets A of the regions that are present, the empty one included.
"""

import torch
from torch import Tensor

from powerclip.types import Similarity

MAX_REGIONS = 16
"""Enumeration is refused beyond this: 2^16 subsets per pair."""


def all_subsets(count: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """All subsets of ``count`` regions as a (2^count, count) matrix of zeros and ones."""
    numbers = torch.arange(2**count, device=device)
    return (numbers[:, None] >> torch.arange(count, device=device) & 1).to(dtype)


def enumerate_pair(s_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Scalars T2R and R2T of one image and one caption from the (M, K) s of what is present; 0 if M or K is 0."""
    M, K = s_MK.shape
    if M == 0 or K == 0:
        zero = s_MK.sum()  # 0, and part of the graph
        return zero, zero
    subsets_AM = all_subsets(M, device=s_MK.device, dtype=s_MK.dtype)
    q_AK = subsets_AM @ s_MK
    return q_AK.amax(dim=0).mean(), q_AK.amax(dim=1).mean()


def enumerate_similarity(regions: Tensor, phrases: Tensor, region_mask: Tensor, phrase_mask: Tensor) -> Similarity:
    """Similarity of every image and caption, pair after pair; vectors and masks as ``similarity`` takes them."""
    t2r, r2t = (regions.new_zeros(len(regions), len(phrases)) for _ in range(2))
    for i, present_M in enumerate(region_mask):
        for j, present_K in enumerate(phrase_mask):
            t2r[i, j], r2t[i, j] = enumerate_pair(regions[i][present_M] @ phrases[j][present_K].T)
    return Similarity(t2r=t2r, r2t=r2t)
