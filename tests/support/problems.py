"""Regions and phrases to align."""

import torch
from torch.nn.functional import normalize, softplus

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


def pairs(C=13, M=4, K=3, seed=0):
    """A problem of C pairs, of which the third has no region and the fifth no phrase."""
    regions, phrases, region_mask, phrase_mask = problem(C, C, M, K, seed=seed)
    region_mask[2], phrase_mask[4] = False, False
    return regions, phrases, region_mask, phrase_mask


def scores_by_loops(regions, phrases, region_mask, phrase_mask, *, tau, zeta=0.75, threshold=0.0):
    """(I, J) T1 + T2 as the paper writes them, divided by the number of regions; pair after pair."""
    rows = []
    for r, r_mask in zip(regions, region_mask, strict=True):
        row = []
        for p, p_mask in zip(phrases, phrase_mask, strict=True):
            s_MK = r[r_mask] @ p[p_mask].T - threshold
            if not s_MK.numel():
                row.append(s_MK.sum())
                continue
            t1 = (tau * softplus(s_MK / tau, threshold=1e9)).sum(dim=0).mean()
            x_MK = s_MK / (2 * tau)
            t2 = tau * (x_MK + zeta * x_MK.cosh().log()).sum(dim=0).logsumexp(dim=0)
            row.append((t1 + t2) / len(s_MK))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def value_and_gradients(function, *tensors):
    """A scalar function's value and its gradients at the tensors."""
    inputs = [x.clone().requires_grad_() for x in tensors]
    value = function(*inputs)
    value.backward()
    return value.detach(), *(x.grad for x in inputs)


def rows_of(process, counts, tensors):
    """The rows of each tensor that a process holds, of ``counts`` of all processes."""
    start = sum(counts[:process])
    return tuple(x[start : start + counts[process]].clone() for x in tensors)
