"""Encoded samples, or another trainer's images and captions, become a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from powerclip.phrases.clean import clean_caption
from powerclip.phrases.tokens import EncodedCaption, encode_caption, used_length
from powerclip.phrases.tree import Parser, PhraseTree
from powerclip.types import Batch

NO_PHRASES = PhraseTree(leaves=(), phrases=(), parser="none")
"""The tree of an empty caption, which parsers refuse."""


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """A sample as the towers take it; ``image`` is (3, H, W) float, ``regions`` (m, N) bool."""

    key: str
    image: Tensor
    captions: Sequence[EncodedCaption]
    """n of them, the same number for all samples of a batch."""
    regions: Tensor | None = None
    has_phrases: bool = True
    """False if a caption stands in for phrases."""


def collate(samples: Sequence[EncodedSample], *, patches: int, regions: int = 0) -> Batch:
    """Stack samples; phrases are padded with -1 to the longest list, regions with empty ones to M = ``regions``."""
    captions = [caption for sample in samples for caption in sample.captions]
    spans = [caption.phrase_spans for caption in captions]
    phrase_spans = torch.full((len(captions), max(map(len, spans)), 2), -1, dtype=torch.int64)
    for row, span in zip(phrase_spans, spans, strict=True):
        row[: len(span)] = span
    region_masks = torch.zeros((len(samples), regions, patches), dtype=torch.bool)
    for masks, sample in zip(region_masks, samples, strict=True):
        if sample.regions is not None:
            masks[: len(sample.regions)] = sample.regions
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        tokens=torch.stack([caption.tokens for caption in captions]),
        leaf_of_token=torch.stack([caption.leaf_of_token for caption in captions]),
        phrase_spans=phrase_spans,
        region_masks=region_masks,
        keys=tuple(sample.key for sample in samples),
    )


def equally_wide(pieces: Sequence[Batch]) -> list[Batch]:
    """Pieces of one batch, with their phrases padded to the longest list of all
    and their tokens cut to the ``used_length``."""
    widest = max(piece.phrase_spans.shape[1] for piece in pieces)
    length = used_length([piece.tokens for piece in pieces])
    return [
        replace(
            piece,
            tokens=piece.tokens[:, :length],
            leaf_of_token=piece.leaf_of_token[:, :length],
            phrase_spans=pad(piece.phrase_spans, (0, 0, 0, widest - piece.phrase_spans.shape[1]), value=-1),
        )
        for piece in pieces
    ]


def annotate(
    images: Tensor,
    captions: Sequence[str],
    *,
    region_masks: Tensor,
    parser: Parser,
    tokenizer: Any,
    context_length: int,
) -> Batch:
    """A batch from another trainer's images and captions, which are cleaned, parsed and tokenized here and now.

    ``images`` are (B, 3, H, W), as the image tower takes them; ``region_masks`` are (B, M, N) bool on the patch grid,
    from ``powerclip.regions.random_boxes``, say. ``parser`` is what ``powerclip.phrases.load_parser`` returns,
    ``tokenizer`` open_clip's or Hugging Face's, and ``context_length`` T. An empty caption, or one of white space,
    has no phrases, so that its pair takes no part in the powerset loss. ValueError if there are not as many captions or
    regions as images.
    """
    captions = [clean_caption(caption) for caption in captions]
    parsed = iter(parser.parse([caption for caption in captions if caption]))
    trees = [next(parsed) if caption else NO_PHRASES for caption in captions]
    encoded = [
        EncodedSample(
            key="",
            image=image,
            captions=[encode_caption(caption, tree, tokenizer, context_length=context_length)],
            regions=regions,
        )
        for image, caption, tree, regions in zip(images, captions, trees, region_masks, strict=True)
    ]
    return collate(encoded, patches=region_masks.shape[2], regions=region_masks.shape[1])
