"""The values that flow through powerclip, and the legend of their dimension letters.

Dimension letters, everywhere the same: B batch (image-caption pairs), I images, J captions, M regions,
K phrases, L leaves (words), N patches, T tokens, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from powerclip.errors import PowerclipError as PowerclipError
from powerclip.errors import RunFailedError as RunFailedError


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A node of the constituency tree: a label and an inclusive range of leaves."""

    label: str
    """Penn Treebank label: NP, VP, PP or S; "CAPTION" for the whole caption where the tree has no phrase."""
    first: int
    """Index of the first leaf."""
    last: int
    """Index of the last leaf, inclusive."""


@dataclass(frozen=True, kw_only=True)
class PhraseTree:
    """The words and phrases of one caption, in character offsets: independent of any tokenizer."""

    leaves: tuple[tuple[int, int], ...]
    """Character span [start, end) of each word, in order, not overlapping."""
    phrases: tuple[Phrase, ...]
    """Nested or disjoint, never crossing; equal spans once."""
    parser: str
    """What made the tree: "gold", or the name and version of the parser."""

    def to_json(self) -> dict[str, Any]:
        """The content of a ``KEY.phrases.json`` file."""
        return {
            "leaves": [list(span) for span in self.leaves],
            "phrases": [{"label": p.label, "leaves": [p.first, p.last]} for p in self.phrases],
            "parser": self.parser,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PhraseTree:
        """Read the content of a ``KEY.phrases.json`` file.

        Raises:
            ValueError: the value does not have that form; the message says where.
        """
        try:
            leaves = tuple((int(start), int(end)) for start, end in value["leaves"])
            phrases = tuple(
                Phrase(label=str(p["label"]), first=int(p["leaves"][0]), last=int(p["leaves"][1]))
                for p in value["phrases"]
            )
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise ValueError(
                "phrases.json must hold leaves [[start, end], ...] and phrases "
                f"[{{label, leaves: [first, last]}}], but reading failed with {type(error).__name__}: {error}"
            ) from error
        position = 0
        for start, end in leaves:
            if not position <= start < end:
                raise ValueError(f"leaf [{start}, {end}) is empty, out of order or overlaps the one before it")
            position = end
        for p in phrases:
            if not 0 <= p.first <= p.last < len(leaves):
                raise ValueError(f"phrase {p.label} covers leaves [{p.first}, {p.last}] of {len(leaves)}")
        return cls(leaves=leaves, phrases=phrases, parser=str(value.get("parser", "unknown")))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch of image-caption pairs, ready for the model."""

    images: Tensor
    """(B, 3, H, W) float, normalised as the image tower expects."""
    tokens: Tensor
    """(B, T) int64 token ids, padded as the tokenizer pads."""
    leaf_of_token: Tensor
    """(B, T) int64: the leaf each token belongs to, -1 for specials and padding."""
    phrase_spans: Tensor
    """(B, K, 2) int64: first and last leaf of each phrase, inclusive; -1, -1 where absent."""
    region_masks: Tensor
    """(B, M, N) bool: regions on the patch grid, row-major; an all-False region is absent."""
    keys: tuple[str, ...] = ()
    """The B keys of the samples, for messages."""

    def __len__(self) -> int:
        return int(self.images.shape[0])

    def rows(self, which: slice) -> Batch:
        """Some of the pairs."""
        return replace(self, **{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def with_regions(self, region_masks: Tensor) -> Batch:
        """The same batch with (B, M, N) bool regions on the patch grid."""
        return replace(self, region_masks=region_masks)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        names = ("images", "tokens", "leaf_of_token", "phrase_spans", "region_masks")
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the towers make of a batch: everything a loss may need."""

    image: Tensor
    """(B, D) unit global image embeddings."""
    text: Tensor
    """(B, D) unit global text embeddings."""
    regions: Tensor
    """(B, M, D) unit region vectors, zero where absent."""
    region_mask: Tensor
    """(B, M) bool, True = present."""
    phrases: Tensor
    """(B, K, D) phrase vectors, zero where absent."""
    phrase_mask: Tensor
    """(B, K) bool, True = present."""
    logit_scale: Tensor
    """() the inverse temperature itself (already exponentiated)."""
    caption_ids: Tensor | None = None
    """(B,) int64, equal for captions of equal tokens."""
    logit_bias: Tensor | None = None
    """() bias of the similarities, where the model has one (SigLIP)."""
    patches: Tensor | None = None
    """(B, N, D) patch embeddings in the joint space, as they are."""
    tokens: Tensor | None = None
    """(B, T, D) token embeddings in the joint space, as they are."""
    token_mask: Tensor | None = None
    """(B, T) bool, False = padding."""

    def dense(self) -> tuple[Tensor, Tensor, Tensor]:
        """``patches``, ``tokens`` and ``token_mask``, for the losses that need them.

        Raises:
            ValueError: one of them is not there.
        """
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
class LossOutput:
    """A loss and the terms it is the weighted sum of."""

    total: Tensor
    """() what is differentiated."""
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    """Unweighted terms by name ("clip", "powerset"), for the logs."""


Picture = Image.Image | Callable[[], Image.Image]
"""An image, or what opens it when it is needed: evaluation holds only a batch of images at a time."""

Masks = Callable[[], Any]
"""What opens the region masks of an image when they are needed: (M, H, W) bool array in the image's pixels."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A zero-shot classification task: single-label images and the class names to choose from."""

    name: str
    images: Sequence[Picture]
    labels: Sequence[int]
    class_names: Sequence[str]
    templates: Sequence[str]
    """Prompts with one ``{c}`` where the class name goes."""


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """A zero-shot classification task whose images have any number of classes."""

    name: str
    images: Sequence[Picture]
    targets: Sequence[Sequence[int]]
    """For each image, 1 for a class that it has and 0 for one that it has not."""
    class_names: Sequence[str]
    templates: Sequence[str]
    """Prompts with one ``{c}`` where the class name goes."""


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """An image-text retrieval task: each image has one or more captions."""

    name: str
    images: Sequence[Picture]
    captions: Sequence[Sequence[str]]
    masks: Sequence[Masks | None] | None = None
    """The images' own regions, for scores that look at regions; None where an image has none stored."""


@dataclass(frozen=True, kw_only=True)
class HardNegative:
    """An image with one right and one or more minimally wrong captions (the form of SugarCrepe)."""

    image: Picture
    positive: str
    negative: str
    kind: str
    """What the captions differ in: replace_obj, swap_att, ...; each data set has its own."""
    more_negatives: tuple[str, ...] = ()
    """Further wrong captions; the right one must score higher than all."""


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """A hard-negative task."""

    name: str
    items: Sequence[HardNegative]


@dataclass(frozen=True, kw_only=True)
class Quadruple:
    """Two images and two captions of the same words; caption i fits image i only (the form of Winoground)."""

    images: tuple[Picture, Picture]
    captions: tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Quadruples:
    """A Winoground-style task."""

    name: str
    items: Sequence[Quadruple]


Task = Classification | MultiLabel | Retrieval | HardNegatives | Quadruples
