"""From the dense outputs of the towers to region, leaf and phrase vectors; always in float32, also under autocast.

Symbols as in Kawamura et al., CVPR 2026: phi_m = normalise(sum of the patches of region m), or with its
length, psi_l = normalise(sum of the tokens of leaf l), p_B = sum of the leaves of phrase B.
"""

import torch
from torch import Tensor

from powerclip.config.values import PhraseNorm, RegionNorm

SHORTEST = 0.01
"""What the length of an image's mean patch counts as at least, in units of the patches' root mean square."""


def at_least_float32(x: Tensor) -> Tensor:
    """float32 for half precision; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def normalise(x: Tensor) -> Tensor:
    """Unit vectors along the last dimension; a zero vector stays zero, with a finite gradient."""
    return x * x.square().sum(dim=-1, keepdim=True).clamp(min=1e-24).rsqrt()


def pool_regions(patches: Tensor, masks: Tensor | None, *, norm: RegionNorm = "unit") -> tuple[Tensor, Tensor]:
    """``PowerCLIP.encode_regions``, from (B, N, D) patch embeddings; without ``masks`` each patch is a region.

    ``norm`` is that of ``PoolingConfig.region_norm``: "unit" is the direction of the sum of a region's patches, "image"
    their mean over the length of the mean of all N, so that the vector of the whole image has unit length; that length
    counts as no less than ``SHORTEST`` of the patches' root mean square, so that no region is longer without bound.
    """
    B, N = patches.shape[:2]
    if masks is not None and (masks.ndim != 3 or masks.shape[0] != B or masks.shape[2] != N):
        raise ValueError(
            f"masks have shape {tuple(masks.shape)}; expected (B, M, N) with B = {B} images and N = {N} patches"
        )
    with torch.autocast(patches.device.type, enabled=False):
        patches = at_least_float32(patches)
        if masks is None:
            sums, sizes = patches, torch.ones(B, N, dtype=torch.int64, device=patches.device)
        else:
            sums, sizes = torch.bmm(masks.to(patches.dtype), patches), masks.sum(dim=-1)  # (B, M, D), (B, M)
        present = sizes > 0
        if norm == "unit":
            return normalise(sums), present
        squared_B11 = patches.mean(dim=1, keepdim=True).square().sum(dim=-1, keepdim=True)
        floor_B11 = SHORTEST**2 * patches.square().sum(dim=-1).mean(dim=1)[:, None, None]
        means = sums / sizes.clamp(min=1)[..., None]
        return means * torch.maximum(squared_B11, floor_B11).clamp(min=1e-24).rsqrt(), present


def mean_of_valid(tokens: Tensor, valid: Tensor) -> Tensor:
    """(B, D) mean over the valid tokens of (B, T, D); ``valid`` is (B, T) bool."""
    with torch.autocast(tokens.device.type, enabled=False):
        weights = valid.to(at_least_float32(tokens).dtype)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.einsum("btd,bt->bd", at_least_float32(tokens), weights)


def pool_leaves(tokens: Tensor, leaf_of_token: Tensor, *, leaves: int) -> tuple[Tensor, Tensor]:
    """Unit leaf vectors: the direction of the sum of a word's tokens.

    Args:
        tokens: (B, T, D) token embeddings in the joint space.
        leaf_of_token: (B, T) int64, the leaf each token belongs to, -1 for none.
        leaves: L, more than the largest leaf index.

    Returns:
        (B, L, D) unit vectors, zero for a leaf without tokens, and (B, L) bool, True = present.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = at_least_float32(tokens)
        member_BLT = leaf_of_token[:, None] == torch.arange(leaves, device=tokens.device)[None, :, None]
        return normalise(torch.bmm(member_BLT.to(tokens.dtype), tokens)), member_BLT.any(dim=-1)


def pool_tokens(tokens: Tensor, leaf_of_token: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors of the single tokens that belong to a word, in place of phrases (the paper's ablation).

    The arguments are those of ``pool_leaves``.

    Returns:
        (B, T, D) unit vectors, zero where a token belongs to no leaf, and (B, T) bool, True = present.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        present_BT = leaf_of_token >= 0
        return normalise(at_least_float32(tokens).masked_fill(~present_BT[..., None], 0.0)), present_BT


def pool_phrases(
    leaves: Tensor, leaf_mask: Tensor, phrase_spans: Tensor, *, norm: PhraseNorm = "sum"
) -> tuple[Tensor, Tensor]:
    """Phrase vectors from the leaves that they span.

    Args:
        leaves: (B, L, D) leaf vectors, zero where absent.
        leaf_mask: (B, L) bool, True = present.
        phrase_spans: (B, K, 2) int64 first and last leaf, inclusive; -1, -1 for no phrase.
        norm: "sum" of the leaves (the paper), their "mean", or the sum's direction ("unit").

    Returns:
        (B, K, D) vectors, zero where absent, and (B, K) bool, True = present. A phrase none of whose leaves has a
        token is absent.
    """
    position = torch.arange(leaves.shape[1], device=leaves.device)
    first, last = phrase_spans[..., 0, None], phrase_spans[..., 1, None]  # (B, K, 1)
    member_BKL = (position >= first) & (position <= last) & leaf_mask[:, None]
    with torch.autocast(leaves.device.type, enabled=False):
        phrases = torch.bmm(member_BKL.to(leaves.dtype), leaves)
        if norm == "unit":
            phrases = normalise(phrases)
        elif norm == "mean":
            phrases = phrases / member_BKL.sum(dim=-1, keepdim=True).clamp(min=1)
        return phrases, member_BKL.any(dim=-1)


def caption_ids(tokens: Tensor) -> Tensor:
    """(B,) int64 ids of captions (B, T) of token ids; equal captions have equal ids, on every process.

    A polynomial hash modulo 2^64: the probability that any two of 2^15 different captions share an id is about 2^-35.
    """
    # Computed on the tokens' device: a copy to it would wait for it.
    factors = torch.full((tokens.shape[1],), 6364136223846793005, dtype=torch.int64, device=tokens.device)
    return (tokens.long() * factors.cumprod(dim=0)).sum(dim=1)
