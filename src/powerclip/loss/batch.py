"""A batch of pairs that is spread over processes, as one of them sees it; vectors stay where their pairs are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """This process's B pairs, and what all processes know of the C pairs of all: masks and ids."""

    regions: MaskedVectors
    """(B, M, D)"""
    phrases: MaskedVectors
    """(B, K, D); M and K are the same on all processes."""
    region_mask: Tensor
    """(C, M) bool"""
    phrase_mask: Tensor
    """(C, K) bool"""
    caption_ids: Tensor | None
    """(C,) int64"""
    rows: tuple[int, ...]
    """B of every process whose pairs belong to the batch."""
    start: int
    """Index of this process's first pair."""

    @classmethod
    def gather(
        cls, regions: MaskedVectors, phrases: MaskedVectors, caption_ids: Tensor | None, *, distributed: bool
    ) -> GlobalBatch:
        """The batch of all processes, from this one's vectors and ids (B,); or this one's alone."""
        if not distributed or world_size() == 1:
            known: dict[str, Any] = {"region_mask": regions.mask, "phrase_mask": phrases.mask}
            sizes: dict[str, Any] = {"rows": (len(regions),), "start": 0}
            return cls(regions=regions, phrases=phrases, caption_ids=caption_ids, **known, **sizes)
        device = regions.mask.device
        rows, M, K = zip(*exchange_sizes(*regions.mask.shape, phrases.mask.shape[1], device=device), strict=True)
        regions, phrases = _widened(regions, max(M)), _widened(phrases, max(K))
        masks, start = gather_rows(torch.cat([regions.mask, phrases.mask], dim=1))
        return cls(
            regions=regions,
            phrases=phrases,
            region_mask=masks[:, : max(M)],
            phrase_mask=masks[:, max(M) :],
            caption_ids=None if caption_ids is None else gather_rows(caption_ids)[0],
            rows=rows,
            start=start,
        )

    def __len__(self) -> int:
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
        """(C,) bool: the pair can be scored."""
        return self.region_mask.any(dim=1) & self.phrase_mask.any(dim=1)

    @property
    def own(self) -> slice:
        """This process's pairs."""
        return slice(self.start, self.start + len(self.regions))

    @cached_property
    def ids(self) -> Tensor:
        """(C,) int64, equal for captions that are not negatives of each other's images."""
        return torch.arange(len(self), device=self.device) if self.caption_ids is None else self.caption_ids

    def all_rows(self, x: Tensor) -> Tensor:
        """(C, ...) the rows (B, ...) of all processes."""
        return gather_rows(x)[0] if self.distributed else x

    def total(self, x: Tensor) -> Tensor:
        """The sum over processes, without gradient."""
        return sum_over_processes(x) if self.distributed else x.detach()

    def all_phrases(self) -> MaskedVectors:
        """(C, K, D) the phrases of all processes at once, with gradient: all of them on every process."""
        return MaskedVectors(values=self.all_rows(self.phrases.values), mask=self.phrase_mask)

    def phrase_blocks(self) -> Iterator[tuple[slice, MaskedVectors]]:
        """Every process's pairs and phrases, one process after the other, while the next is on its way; no gradient."""
        if not self.distributed:
            yield self.own, self.phrases
            return
        for process, values in ring(self.phrases.values, self.rows):
            first = sum(self.rows[:process])
            pairs = slice(first, first + self.rows[process])
            yield pairs, MaskedVectors(values=values, mask=self.phrase_mask[pairs])

    def request(self, index: Tensor) -> RowRequest | Tensor:
        """Ask for the vectors of pairs (P,); all processes do. With several this waits for the device."""
        return request_rows(index, self.rows) if self.distributed else index

    def fetch_regions(self, request: RowRequest | Tensor) -> MaskedVectors:
        """(P, M, D) the regions of the pairs that were asked for, with gradient to whoever has them."""
        return _fetch(self.regions, self.region_mask, request)

    def fetch_phrases(self, request: RowRequest | Tensor) -> MaskedVectors:
        """(P, K, D) their phrases."""
        return _fetch(self.phrases, self.phrase_mask, request)

    def candidates(self, captions: slice) -> Candidates:
        """Negatives of this process's images are no pair and have no equal captions; both can be scored."""
        ids, valid, own = self.ids, self.valid, self.own
        return Candidates(
            image_id=ids[own], caption_id=ids[captions], image_valid=valid[own], caption_valid=valid[captions]
        )

    def all_candidates(self) -> Candidates:
        """``candidates`` of all images and captions."""
        return Candidates(image_id=self.ids, caption_id=self.ids, image_valid=self.valid, caption_valid=self.valid)


def _fetch(vectors: MaskedVectors, mask: Tensor, request: RowRequest | Tensor) -> MaskedVectors:
    if isinstance(request, Tensor):
        return vectors[request]
    return MaskedVectors(values=fetch_rows(vectors.values, request), mask=mask.index_select(0, request.index))


def _widened(vectors: MaskedVectors, width: int) -> MaskedVectors:
    missing = width - vectors.mask.shape[1]
    return MaskedVectors(values=pad(vectors.values, (0, 0, 0, missing)), mask=pad(vectors.mask, (0, missing)))
