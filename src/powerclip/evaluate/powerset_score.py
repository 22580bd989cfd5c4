"""The powerset similarity itself as the score of an image and a caption, beside the global embeddings' product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from powerclip.alignment import similarity
from powerclip.alignment.scoring import Scoring, tile_bytes_or_default
from powerclip.alignment.tiled import score_pairs
from powerclip.config import ScoreRegions
from powerclip.distributed import gather_rows
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.encode import Encoder, Item
from powerclip.model import PowerCLIP
from powerclip.model.pooling import pool_leaves, pool_phrases, pool_regions
from powerclip.phrases import Parser, encode_caption, load_parser, whole_caption_tree
from powerclip.regions import fixed_boxes, masks_to_grid
from powerclip.tasks import Masks, Picture

PAIRS_AT_ONCE = 1024


@cache
def _default_parser() -> Parser:
    return load_parser()


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Region vectors of images, or phrase vectors of captions, on the CPU."""

    values: Tensor
    """(I, M, D) or (J, K, D), zero where absent."""
    mask: Tensor
    """(I, M) or (J, K) bool, True = present."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Tensor) -> Vectors:
        return Vectors(values=self.values[rows], mask=self.mask[rows])


class PowersetReading:
    """A PowerCLIP model read by its powerset similarity.

    An image's regions are boxes of fixed sizes that tile the patch grid, or its stored masks (boxes again where an image
    has none). A caption's phrases are those of its parse. The similarity is divided by the number of regions, so that
    images with different numbers compare.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        regions: ScoreRegions = "grid",
        tau: float = 1e-3,
        zeta: float = 0.75,
        parser: Parser | None = None,
    ) -> None:
        """Set up the reading.

        Args:
            encoder: of a PowerCLIP model.
            regions: "grid", the fixed boxes, or "stored", a task's own masks where it has them.
            tau: temperature of the aggregators.
            zeta: weight of log cosh in NLA-T2.
            parser: of captions; spaCy's small English model by default.

        Raises:
            ValueError: the model has no regions and phrases, or an argument is out of range.
        """
        if not isinstance(encoder.model, PowerCLIP):
            raise ValueError(
                f"the powerset score needs a PowerCLIP model, got {type(encoder.model).__name__}; use score='global'"
            )
        if regions not in ("grid", "stored"):
            raise ValueError(f"regions is {regions!r}; it must be grid or stored")
        self.encoder, self.model, self.regions = encoder, encoder.model, regions
        self.scoring = Scoring(tau=tau, zeta=zeta)
        self.parser = parser or _default_parser()
        self.boxes = fixed_boxes(self.model.grid_size)

    def images(self, pictures: Sequence[Picture], masks: Sequence[Masks | None] | None = None) -> Vectors:
        """The region vectors of images."""
        stored = masks if masks is not None and self.regions == "stored" else [None] * len(pictures)

        def prepare(items: Sequence[tuple[Picture, Masks | None]]) -> tuple[Tensor, Tensor]:
            images = torch.stack([self.encoder.preprocess(open_picture(picture)) for picture, _ in items])
            return images, pad_sequence([self._on_grid(open_masks) for _, open_masks in items], batch_first=True)

        def embed(images: Tensor, grids: Tensor) -> tuple[Tensor, Tensor]:
            return pool_regions(self.model.encode_patches(images), grids)

        return self._gathered(list(zip(pictures, stored, strict=True)), prepare, embed)

    def texts(self, texts: Sequence[str]) -> Vectors:
        """The phrase vectors of captions."""
        length = self.model.context_length

        def prepare(captions: Sequence[str]) -> tuple[Tensor, ...]:
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

        def embed(tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
            leaves, leaf_mask = pool_leaves(self.model.encode_tokens(tokens), leaf_of_token, leaves=length)
            return pool_phrases(leaves, leaf_mask, spans, norm=self.model.phrase_norm)

        return self._gathered(list(texts), prepare, embed)

    def score(self, images: Vectors, texts: Vectors) -> Tensor:
        """(I, J) scores of every image and caption."""
        place = self.encoder.device
        total = similarity(
            images.values.to(place),
            texts.values.to(place),
            images.mask.to(place),
            texts.mask.to(place),
            tau=self.scoring.tau,
            zeta=float(self.scoring.zeta),
        ).total.cpu()
        return total / images.mask.sum(dim=1).clamp(min=1)[:, None]

    def score_pairs(self, images: Vectors, texts: Vectors) -> Tensor:
        """(P,) scores of image p with caption p."""
        place = torch.device(self.encoder.device)
        parts = []
        for start in range(0, len(images), PAIRS_AT_ONCE):
            rows = torch.arange(start, min(start + PAIRS_AT_ONCE, len(images)))
            i, t = images[rows], texts[rows]
            t2r, r2t = score_pairs(
                i.values.to(place),
                t.values.to(place),
                i.mask.to(place),
                t.mask.to(place),
                scoring=self.scoring,
                tile_bytes=tile_bytes_or_default(None, place),
            )
            parts.append((t2r + r2t).cpu() / i.mask.sum(dim=1).clamp(min=1))
        return torch.cat(parts) if parts else torch.zeros(0)

    def _gathered(
        self,
        items: Sequence[Item],
        prepare: Callable[[Sequence[Item]], tuple[Tensor, ...]],
        embed: Callable[..., tuple[Tensor, Tensor]],
    ) -> Vectors:
        """Vectors and masks of all items, batch by batch, each process its share."""
        place = self.encoder.device
        found = [(embed(*(x.to(place) for x in batch)), own) for batch, own in self.encoder.batches(items, prepare)]
        parts = [embedded for embedded, own in found if own]
        if parts:
            values, mask = (
                pad_sequence([row for batch in kind for row in batch], batch_first=True)
                for kind in zip(*parts, strict=True)
            )
        else:
            dimensions = self.model.config["model"]["embed_dim"]
            values, mask = torch.zeros(0, 1, dimensions, device=place), torch.zeros(0, 1, device=place).bool()
        return Vectors(values=gather_rows(values)[0].cpu(), mask=gather_rows(mask)[0].cpu())

    def _on_grid(self, open_masks: Masks | None) -> Tensor:
        """(M, N) bool: an image's stored masks, put through the same crop as the image, or the fixed boxes."""
        if open_masks is None:
            return self.boxes
        masks = open_masks()
        middle = self.encoder.preprocess(Image.new("RGB", (masks.shape[2], masks.shape[1]), (128, 128, 128)))[0]
        seen = [self.encoder.preprocess(Image.fromarray(mask).convert("RGB"))[0] > middle for mask in masks]
        grids = masks_to_grid(torch.stack(seen), self.model.grid_size) if seen else self.boxes[:0]
        return grids if grids.any() else self.boxes
