"""A batch of pairs that is spread over processes, as one of them sees it; vectors stay where their pairs are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from powerclip.alignment.search import Candidates
from powerclip.alignment.vectors import MaskedVectors
from powerclip.distributed import (
    RowRequest,
    exchange_sizes,
    fetch_rows,
    gather_rows,
    request_rows,
    ring,
    sum_over_processes,
    world_size,
)

Vectors = TypeVar("Vectors", Tensor, MaskedVectors)


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """This process's B images and B n captions, and what all processes know of the C images and C n captions of all.

    That is their masks and ids. Caption j belongs to image j // n, and each makes a pair with it.
    """

    regions: MaskedVectors
    """(B, M, D)"""
    phrases: MaskedVectors
    """(B n, K, D); M and K are the same on all processes."""
    region_mask: Tensor
    """(C, M) bool"""
    phrase_mask: Tensor
    """(C n, K) bool"""
    caption_ids: Tensor | None
    """(C n,) int64"""
    n: int
    """Captions of each image."""
    rows: tuple[int, ...]
    """B of every process whose pairs belong to the batch."""
    start: int
    """Index of this process's first image."""

    @classmethod
    def gather(
        cls, regions: MaskedVectors, phrases: MaskedVectors, caption_ids: Tensor | None, *, distributed: bool
    ) -> GlobalBatch:
        """The batch of all processes, from this one's vectors and ids (B n,); or this one's alone."""
        n = len(phrases) // max(1, len(regions)) or 1
        if not distributed or world_size() == 1:
            known: dict[str, Any] = {"region_mask": regions.mask, "phrase_mask": phrases.mask}
            sizes: dict[str, Any] = {"n": n, "rows": (len(regions),), "start": 0}
            return cls(regions=regions, phrases=phrases, caption_ids=caption_ids, **known, **sizes)
        device = regions.mask.device
        rows, M, K, of_each = zip(
            *exchange_sizes(*regions.mask.shape, phrases.mask.shape[1], n, device=device), strict=True
        )
        n = max(of_each)  # a process without images does not know
        regions, phrases = _widened(regions, max(M)), _widened(phrases, max(K))
        masks, start = gather_rows(torch.cat([regions.mask, phrases.mask.reshape(len(regions), n * max(K))], dim=1))
        return cls(
            regions=regions,
            phrases=phrases,
            region_mask=masks[:, : max(M)],
            phrase_mask=masks[:, max(M) :].reshape(-1, max(K)),
            caption_ids=None if caption_ids is None else gather_rows(caption_ids)[0],
            n=n,
            rows=rows,
            start=start,
        )

    def __len__(self) -> int:
        """C."""
        return sum(self.rows)

    @property
    def distributed(self) -> bool:
        """Whether some of the pairs are on other processes."""
        return len(self.rows) > 1

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.region_mask.device

    @cached_property
    def valid(self) -> Tensor:
        """(C n,) bool: the pair can be scored."""
        return self.region_mask.any(dim=1).repeat_interleave(self.n) & self.phrase_mask.any(dim=1)

    @cached_property
    def image_valid(self) -> Tensor:
        """(C,) bool: one of the image's pairs can be scored."""
        return self.valid.view(len(self), self.n).any(dim=1)

    @property
    def own(self) -> slice:
        """This process's images."""
        return slice(self.start, self.start + len(self.regions))

    @property
    def own_captions(self) -> slice:
        """This process's captions."""
        return slice(self.own.start * self.n, self.own.stop * self.n)

    @cached_property
    def ids(self) -> Tensor:
        """(C n,) int64, equal for captions that are not negatives of each other's images."""
        if self.caption_ids is not None:
            return self.caption_ids
        return torch.arange(len(self), device=self.device).repeat_interleave(self.n)

    @property
    def image_ids(self) -> Tensor:
        """(C,) int64 ids of the images' captions, or (C, n)."""
        several = self.caption_ids is not None and self.n > 1
        return self.ids.view(len(self), self.n) if several else self.ids[:: self.n]

    def by_pair(self, x: Vectors) -> Vectors:
        """The row of the image of each of this process's pairs (B n, ...), of rows (B, ...)."""
        if self.n == 1:
            return x
        return x[torch.arange(len(self.regions), device=self.device).repeat_interleave(self.n)]

    def all_rows(self, x: Tensor) -> Tensor:
        """The rows of all processes."""
        return gather_rows(x)[0] if self.distributed else x

    def total(self, x: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        return sum_over_processes(x) if self.distributed else x.detach()

    def all_phrases(self) -> MaskedVectors:
        """(C n, K, D) the phrases of all processes at once, with gradient: all of them on every process."""
        return MaskedVectors(values=self.all_rows(self.phrases.values), mask=self.phrase_mask)

    def phrase_blocks(self) -> Iterator[tuple[slice, MaskedVectors]]:
        """Every process's captions and phrases, one process after the other,
        while the next is on its way; no gradient."""
        if not self.distributed:
            yield self.own_captions, self.phrases
            return
        rows = [images * self.n for images in self.rows]
        for process, values in ring(self.phrases.values, rows):
            first = sum(rows[:process])
            captions = slice(first, first + rows[process])
            yield captions, MaskedVectors(values=values, mask=self.phrase_mask[captions])

    def request_images(self, index: Tensor) -> RowRequest | Tensor:
        """Ask for the vectors of images (P,); all processes do. With several this waits for the device."""
        return request_rows(index, self.rows) if self.distributed else index

    def request_captions(self, index: Tensor) -> RowRequest | Tensor:
        """The same of captions (P,)."""
        return request_rows(index, [images * self.n for images in self.rows]) if self.distributed else index

    def fetch_regions(self, request: RowRequest | Tensor) -> MaskedVectors:
        """(P, M, D) the regions of the images that were asked for, with gradient to whoever has them."""
        return _fetch(self.regions, self.region_mask, request)

    def fetch_phrases(self, request: RowRequest | Tensor) -> MaskedVectors:
        """(P, K, D) the phrases of the captions that were asked for."""
        return _fetch(self.phrases, self.phrase_mask, request)

    def candidates(self, captions: slice) -> Candidates:
        """Negatives of this process's images are captions equal to none of the image's own; both can be scored."""
        return Candidates(
            image_id=self.image_ids[self.own],
            caption_id=self.ids[captions],
            image_valid=self.image_valid[self.own],
            caption_valid=self.valid[captions],
        )

    def all_candidates(self) -> Candidates:
        """``candidates`` of all images and captions."""
        return Candidates(
            image_id=self.image_ids, caption_id=self.ids, image_valid=self.image_valid, caption_valid=self.valid
        )


def _fetch(vectors: MaskedVectors, mask: Tensor, request: RowRequest | Tensor) -> MaskedVectors:
    if isinstance(request, Tensor):
        return vectors[request]
    return MaskedVectors(values=fetch_rows(vectors.values, request), mask=mask.index_select(0, request.index))


def _widened(vectors: MaskedVectors, width: int) -> MaskedVectors:
    missing = width - vectors.mask.shape[1]
    return MaskedVectors(values=pad(vectors.values, (0, 0, 0, missing)), mask=pad(vectors.mask, (0, missing)))
