"""The powerset similarity as the score of an image and a caption, in place of the product of global embeddings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import get_args

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from torchvision.tv_tensors import Mask

from powerclip.alignment.reference import MAX_REGIONS
from powerclip.alignment.scoring import Scoring, tile_bytes_or_default
from powerclip.alignment.subsets import draw_subsets
from powerclip.alignment.tiled import score_pairs, score_rows
from powerclip.alignment.vectors import MaskedVectors
from powerclip.config import ScoreRegions
from powerclip.distributed import gather_rows
from powerclip.errors import one_of
from powerclip.evaluate.datasets.images import key_of, open_picture
from powerclip.evaluate.encode import Encoder, Item, Memory
from powerclip.model import PowerCLIP, make_transforms
from powerclip.phrases import Parser, encode_caption, load_parser, whole_caption_tree
from powerclip.phrases.clean import clean_caption
from powerclip.regions import fixed_boxes, masks_to_grid
from powerclip.tasks import Masks, Picture

PAIRS_AT_ONCE = 1024
"""Pairs of an image and a caption that are scored together."""

Rows = tuple[Tensor, Tensor]
"""(M, D) vectors of one image or caption, and (M,) bool, which of them are present."""


@cache
def _default_parser() -> Parser:
    return load_parser()


def _tile_bytes(vectors: MaskedVectors) -> int:
    return tile_bytes_or_default(None, vectors.values.device)


def _rows(values: Tensor, mask: Tensor) -> Iterable[Rows]:
    return zip(values, mask, strict=True)


def _padded(rows: Sequence[Rows]) -> MaskedVectors:
    if not rows:
        return MaskedVectors(values=torch.zeros(0, 1, 1), mask=torch.zeros(0, 1).bool())
    values, mask = (pad_sequence(list(kind), batch_first=True) for kind in zip(*rows, strict=True))
    return MaskedVectors(values=values, mask=mask)


class PowersetScorer:
    """Scores images and captions by the powerset similarity of a PowerCLIP model, as the model was trained to.

    An image's regions are boxes of fixed sizes that tile the patch grid, or its stored masks (boxes again where an image
    has none). A caption's phrases are those of its parse, or its tokens for a model trained on tokens. Unless the model
    was trained otherwise, the similarity is divided by the number of regions, so that images with different numbers
    compare.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        regions: ScoreRegions = "grid",
        parser: Parser | None = None,
        with_global: bool = False,
    ) -> None:
        """Set up the scorer.

        Args:
            encoder: of a PowerCLIP model.
            regions: "grid", the fixed boxes, or "stored", a task's own masks where it has them.
            parser: of captions; spaCy's small English model by default.
            with_global: whether the encoder gets to know the images' global embeddings, which cost no further pass.

        Raises:
            ValueError: the model has no regions and phrases, or an argument is out of range.
        """
        if not isinstance(encoder.model, PowerCLIP):
            raise ValueError(
                f"the powerset score needs a PowerCLIP model, got {type(encoder.model).__name__}; use score='global'"
            )
        one_of("regions", regions, get_args(ScoreRegions))
        self.encoder, self.model, self.regions = encoder, encoder.model, regions
        self.parser = parser or _default_parser()
        self.transform = make_transforms(self.model)[1]
        self.boxes = fixed_boxes(self.model.grid_size)
        self.with_global = with_global
        self.known_images: Memory[tuple[Picture, Masks | None], Rows] = Memory(lambda x: (key_of(x[0]), id(x[1])))
        self.known_texts: Memory[str, Rows] = Memory(str)

    def images(self, pictures: Sequence[Picture], masks: Sequence[Masks | None] | None = None) -> MaskedVectors:
        """The region vectors of images."""
        stored = masks if masks is not None and self.regions == "stored" else [None] * len(pictures)

        def prepare(items: Sequence[tuple[Picture, Masks | None]]) -> tuple[Tensor, Tensor]:
            images = torch.stack([self.encoder.preprocess(open_picture(picture)) for picture, _ in items])
            return images, pad_sequence([self.on_grid(open_masks) for _, open_masks in items], batch_first=True)

        def compute(items: list[tuple[Picture, Masks | None]]) -> Iterable[Rows]:
            if not self.with_global:
                return _rows(*self._gathered(items, prepare, self.model.encode_regions))
            *vectors, images = self._gathered(items, prepare, self.model.encode_image_and_regions)
            self.encoder.known_images.add([picture for picture, _ in items], normalize(images.float(), dim=-1))
            return _rows(*vectors)

        return _padded(self.known_images.get(list(zip(pictures, stored, strict=True)), compute))

    def texts(self, texts: Sequence[str]) -> MaskedVectors:
        """The phrase vectors of captions."""
        length = self.model.context_length

        def prepare(captions: Sequence[str]) -> tuple[Tensor, ...]:
            captions = [clean_caption(caption) for caption in captions]
            trees = self.parser.parse(captions)
            encoded = [
                encode_caption(
                    caption,
                    tree if tree.phrases else whole_caption_tree(caption),
                    self.encoder.tokenizer,
                    context_length=length,
                )
                for caption, tree in zip(captions, trees, strict=True)
            ]
            tokens, leaves = (torch.stack([getattr(e, name) for e in encoded]) for name in ("tokens", "leaf_of_token"))
            return tokens, leaves, pad_sequence([e.phrase_spans for e in encoded], batch_first=True, padding_value=-1)

        def compute(items: list[str]) -> Iterable[Rows]:
            return _rows(*self._gathered(items, prepare, self.model.encode_phrases))

        return _padded(self.known_texts.get(texts, compute))

    def forget(self, pictures: Collection[Hashable], texts: Iterable[str]) -> None:
        """Drop the vectors of some images, by ``key_of``, and of some texts."""
        self.known_images.forget([key for key in self.known_images if isinstance(key, tuple) and key[0] in pictures])
        self.known_texts.forget(texts)

    def score(self, images: MaskedVectors, texts: MaskedVectors) -> Tensor:
        """(I, J) scores of every image and caption."""
        i, t = images.to(self.encoder.device), texts.to(self.encoder.device)
        scoring = self._scoring(i)
        rows = [
            scoring.total(t2r, r2t, i.mask[some]).cpu()
            for some, t2r, r2t in score_rows(i, t, scoring=scoring, tile_bytes=_tile_bytes(i))
        ]
        return torch.cat(rows) if rows else torch.zeros(0, len(texts))

    def score_pairs(self, images: MaskedVectors, texts: MaskedVectors, owner: Tensor | None = None) -> Tensor:
        """(P,) scores of each of P captions with its image: the p-th, or the one that (P,) ``owner`` names."""
        parts = []
        for start in range(0, len(texts), PAIRS_AT_ONCE):
            rows = slice(start, start + PAIRS_AT_ONCE)
            i = images[rows if owner is None else owner[rows]].to(self.encoder.device)
            t = texts[rows].to(self.encoder.device)
            scoring = self._scoring(i)
            t2r, r2t = score_pairs(i, t, scoring=scoring, tile_bytes=_tile_bytes(i))
            parts.append(scoring.total(t2r, r2t, i.mask).cpu())
        return torch.cat(parts) if parts else torch.zeros(0)

    def _scoring(self, images: MaskedVectors) -> Scoring:
        """The model's own scoring, for this many regions.

        Enumeration goes up to 16 regions; beyond, and for a model trained on sampled subsets, the subsets are a random
        sample that depends on M alone, so that all scores compare.
        """
        M = images.mask.shape[1]
        scoring = Scoring(**vars(self.model.scoring))
        if scoring.method == "exact" and M > MAX_REGIONS:
            scoring = replace(scoring, method="sampled")
        if scoring.method == "sampled":
            generator = torch.Generator().manual_seed(0)
            scoring = replace(scoring, sample=draw_subsets(scoring.samples, M, generator=generator))
        return scoring

    def _gathered(
        self,
        items: Sequence[Item],
        prepare: Callable[[Sequence[Item]], tuple[Tensor, ...]],
        embed: Callable[..., tuple[Tensor, ...]],
    ) -> tuple[Tensor, ...]:
        """Vectors, mask and whatever else ``embed`` gives of all items, batch by batch, each process its share."""
        place = self.encoder.device
        found = [(embed(*(x.to(place) for x in batch)), own) for batch, own in self.encoder.batches(items, prepare)]
        parts = [embedded for embedded, own in found if own]
        if not parts:  # others have all batches; what this process computed with them has the right form
            parts = [tuple(kind[:0] for kind in found[0][0])]
        kinds = (
            pad_sequence([row for batch in kind for row in batch], batch_first=True) if any(map(len, kind)) else kind[0]
            for kind in zip(*parts, strict=True)
        )
        return tuple(gather_rows(kind)[0].cpu() for kind in kinds)

    def on_grid(self, open_masks: Masks | None) -> Tensor:
        """(M, N) bool: an image's stored masks, put through the same crop as the image, or the fixed boxes."""
        if open_masks is None:
            return self.boxes
        masks = torch.from_numpy(open_masks()).to(torch.uint8)  # (M, h, w)
        if not len(masks):
            return self.boxes
        grids = masks_to_grid(self.transform(Mask(masks)).bool(), self.model.grid_size)  # (M, N)
        return grids if grids.any() else self.boxes
