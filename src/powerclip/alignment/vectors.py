"""The regions of several images, or the phrases of several captions, of which each has its own number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MaskedVectors:
    """Vectors and which of them are present; written here for regions (I, M), the same for phrases (J, K)."""

    values: Tensor
    """(I, M, D) vectors, 0 where absent."""
    mask: Tensor
    """(I, M) bool, True = present."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> MaskedVectors:
        """Those of some images: a slice, or (P,) int64 indices, each image as often as it is named."""
        if isinstance(rows, slice):
            return MaskedVectors(values=self.values[rows], mask=self.mask[rows])
        return MaskedVectors(values=self.values.index_select(0, rows), mask=self.mask.index_select(0, rows))

    def to(self, device: torch.device | str) -> MaskedVectors:
        """The same vectors on another device."""
        return MaskedVectors(values=self.values.to(device), mask=self.mask.to(device))

    @property
    def some(self) -> Tensor:
        """(I,) bool: whether an image has any region."""
        return self.mask.any(dim=1)
