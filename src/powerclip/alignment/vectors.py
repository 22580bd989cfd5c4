"""Vectors with a mask: the regions of several images or the phrases of several captions, in different numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaskedVectors:
    """Vectors and which of them are present. The shapes given are those of regions; phrases have (J, K, D), (J, K)."""

    values: Tensor
    """(I, M, D) vectors, 0 where absent."""
    mask: Tensor
    """(I, M) bool, True = present."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> MaskedVectors:
        """The vectors of some images: a slice, or (P,) int64 indices, which may repeat."""
        if isinstance(rows, slice):
            return MaskedVectors(values=self.values[rows], mask=self.mask[rows])
        return MaskedVectors(values=self.values.index_select(0, rows), mask=self.mask.index_select(0, rows))

    def joined(self, count: int) -> MaskedVectors:
        """(count, n K, D) the vectors of n consecutive captions as those of one."""
        width = (len(self) // max(1, count) or 1) * self.mask.shape[1]
        return MaskedVectors(
            values=self.values.reshape(count, width, self.values.shape[2]), mask=self.mask.reshape(count, width)
        )

    def to(self, device: torch.device | str) -> MaskedVectors:
        """The same vectors on another device."""
        return MaskedVectors(values=self.values.to(device), mask=self.mask.to(device))

    @property
    def some(self) -> Tensor:
        """(I,) bool: whether an image has at least one region."""
        return self.mask.any(dim=1)
