"""The values that flow through powerclip, and the legend of their dimension letters.

Dimension letters, everywhere the same: B batch (image-caption pairs), I images, J captions, M regions,
K phrases, L leaves (words), N patches, T tokens, D embedding, C pairs of the global batch (the rows and columns of a
loss), A subsets of an image's regions, P pairs picked out of the I x J, Q queries of a retrieval or grounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import register_dataclass


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of images, each with n captions (one, unless more are asked for), ready for the model.

    Caption j belongs to image j // n.
    """

    images: Tensor
    """(B, 3, H, W) float, normalised as the image tower expects."""
    tokens: Tensor
    """(B n, T) int64 token ids, padded as the tokenizer pads."""
    leaf_of_token: Tensor
    """(B n, T) int64: the leaf each token belongs to, -1 for specials and padding."""
    phrase_spans: Tensor
    """(B n, K, 2) int64: first and last leaf of each phrase, inclusive; -1, -1 where absent."""
    region_masks: Tensor
    """(B, M, N) bool: regions on the patch grid, row-major; an all-False region is absent. A model whose regions are
    the patches does not read it."""
    keys: tuple[str, ...] = ()
    """The B keys of the samples, for messages."""

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        changed: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if name != "keys"}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the towers make of a batch: everything a loss may need. Caption j belongs to image j // n."""

    image: Tensor
    """(B, D) unit global image embeddings."""
    text: Tensor
    """(B n, D) unit global text embeddings."""
    regions: Tensor
    """(B, M, D) region vectors, of unit length unless the model keeps lengths, zero where absent."""
    region_mask: Tensor
    """(B, M) bool, True = present."""
    phrases: Tensor
    """(B n, K, D) phrase vectors, zero where absent."""
    phrase_mask: Tensor
    """(B n, K) bool, True = present."""
    logit_scale: Tensor
    """() the inverse temperature itself (already exponentiated)."""
    caption_ids: Tensor | None = None
    """(B n,) int64, equal for captions of equal tokens."""
    logit_bias: Tensor | None = None
    """() bias of the similarities, where the model has one (SigLIP)."""
    patches: Tensor | None = None
    """(B, N, D) patch embeddings in the joint space, as they are."""
    tokens: Tensor | None = None
    """(B n, T, D) token embeddings in the joint space, as they are."""
    token_mask: Tensor | None = None
    """(B n, T) bool, False = padding."""
    token_ids: Tensor | None = None
    """(B n, T) int64, as in ``Batch.tokens``."""

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """``patches``, ``tokens`` and ``token_mask``, for the losses that need them; ValueError if one is not there."""
        if self.patches is None or self.tokens is None or self.token_mask is None:
            raise ValueError("the features lack patches, tokens or token_mask; take those of PowerCLIP.forward")
        return self.patches, self.tokens, self.token_mask


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """The two powerset similarities of I images and J captions; see ``powerclip.alignment.similarity``."""

    t2r: Tensor
    """(I, J) tree to regions: is every phrase grounded?"""
    r2t: Tensor
    """(I, J) regions to tree: is every set of regions described?"""
    r2t_standard_error: Tensor | None = None
    """(I, J) how far a sampled r2t is likely off; None for the other methods."""

    @property
    def total(self) -> Tensor:
        """(I, J) t2r + r2t."""
        return self.t2r + self.r2t


@dataclass(frozen=True, kw_only=True)
class DataProvenance:
    """Which data a model is trained on, as a run's ``data.json`` keeps it."""

    sources: tuple[str, ...]
    """Absolute paths, patterns or URLs, in the order in which they were given."""
    samples: int
    shards: int
    """Image-caption pairs and tar files in all of them."""
    digest: str
    """Hash of the shards' names and of the names, sizes and places of the files in them: the same for the same shards
    in another folder."""
    content: str = ""
    """Hash of what a few samples of each shard hold; empty where an index of an earlier version does not say."""

    def same_as(self, other: DataProvenance) -> bool:
        """Whether both are the same data, as far as they say."""
        contents = {self.content, other.content}
        return self.digest == other.digest and (len(contents) == 1 or "" in contents)


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """A loss and the terms it is the weighted sum of."""

    total: Tensor
    """() what is differentiated."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Unweighted terms by name ("clip", "powerset"), for the logs."""
    measures: Mapping[str, Tensor] = field(default_factory=dict)
    """() what else the loss reports of this step, by its name in the logs; without a graph, equal on all processes."""


for _kind in (Batch, Features, LossOutput):  # as pytrees, in which DDP and FSDP look for the outputs of a module
    register_dataclass(_kind)
