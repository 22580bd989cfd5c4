"""Phrases without the rest of their caption: each is read by the text tower as a text of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

TOKENS_STEP = 8
"""The packed tokens of a batch are a multiple of this many, so that shapes stay few."""


@dataclass(frozen=True, kw_only=True)
class PackedPhrases:
    """The phrases of each caption one after the other, as one sequence of P tokens in which none sees another."""

    tokens: Tensor
    """(B, P) int64 token ids, 0 after the last phrase."""
    positions: Tensor
    """(B, P) int64: the place of each token in its phrase,
    which begins with the caption's start token if it has one."""
    visible: Tensor
    """(B, P, P) bool: whether a token (row) sees another (column): those of its own phrase; padding sees itself."""
    leaf_of_token: Tensor
    """(B, P) int64: leaves are numbered through the phrases, one in two phrases twice; -1 for specials and padding."""
    spans: Tensor
    """(B, K, 2) int64 first and last of these leaves, inclusive; -1, -1 for no phrase."""


def pack_phrases(tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> PackedPhrases:
    """Pack the phrases of captions; the arguments are those of ``PowerCLIP.encode_phrases``.

    P is the largest number of tokens in the phrases of a caption, rounded up; so a GPU is waited for.
    """
    (B, K), device = spans.shape[:2], tokens.device
    first, last = spans[..., 0, None], spans[..., 1, None]  # (B, K, 1)
    leaf = leaf_of_token[:, None]  # (B, 1, T)
    member_BKT = (leaf >= first) & (leaf <= last) & (leaf >= 0)
    starts = member_BKT.any(dim=2) & (leaf_of_token[:, :1] < 0)  # (B, K) phrases that begin with the start token
    member_BKT[..., 0] |= starts
    b, k, t = member_BKT.nonzero(as_tuple=True)  # in the order of captions, phrases, tokens
    of_phrase = member_BKT.sum(dim=2)  # (B, K) tokens
    of_caption = of_phrase.sum(dim=1)  # (B,)
    P = -(-max(1, int(of_caption.max())) // TOKENS_STEP) * TOKENS_STEP
    index = torch.arange(len(b), device=device)
    before_caption = of_caption.cumsum(0) - of_caption
    before_phrase = (of_phrase.flatten().cumsum(0) - of_phrase.flatten()).view(B, K)
    place = b, index - before_caption[b]

    def spread(values: Tensor, padding: int) -> Tensor:
        packed = torch.full((B, P), padding, dtype=torch.int64, device=device)
        packed[place] = values
        return packed

    phrase = spread(k, -1)
    inside = leaf_of_token[b, t]
    new = torch.ones_like(inside, dtype=torch.bool)  # whether a leaf begins here
    new[1:] = (inside[1:] != inside[:-1]) | (k[1:] != k[:-1]) | (b[1:] != b[:-1])
    begins = spread(((inside >= 0) & new).long(), 0)
    slot = torch.where(spread(inside, -1) >= 0, begins.cumsum(dim=1) - 1, -1)  # (B, P)
    in_phrase = phrase[:, None] == torch.arange(K, device=device)[:, None]  # (B, K, P)
    in_phrase &= slot[:, None] >= 0
    lowest = torch.where(in_phrase, slot[:, None], P).amin(dim=2)
    highest = torch.where(in_phrase, slot[:, None], -1).amax(dim=2)
    return PackedPhrases(
        tokens=spread(tokens[b, t], 0),
        positions=spread(index - before_phrase[b, k], 0),
        visible=(phrase[:, :, None] == phrase[:, None]) & (phrase >= 0)[:, None]
        | torch.eye(P, dtype=torch.bool, device=device),
        leaf_of_token=slot,
        spans=torch.stack([torch.where(highest < 0, -1, lowest), highest], dim=2),
    )
