"""A batch of pairs that is spread over processes, as one of them sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from powerclip.alignment.search import Candidates
from powerclip.alignment.vectors import MaskedVectors
from powerclip.distributed import gather_rows


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """This process's images and the captions of all processes."""

    regions: MaskedVectors
    """(B, M, D)"""
    phrases: MaskedVectors
    """(C, K, D), with the gradient of all processes."""
    valid: Tensor
    """(C,) bool: the pair can be scored."""
    caption_ids: Tensor | None
    """(C,) int64"""
    start: int
    """Index of the caption of this process's first image."""
    distributed: bool
    """Whether the captions are those of all processes, or this one's alone."""

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.regions.mask.device

    def all_rows(self, x: Tensor) -> Tensor:
        """(C, ...) the rows (B, ...) of all processes."""
        return gather_rows(x)[0] if self.distributed else x

    def candidates(self) -> Candidates:
        """Negatives of this process's images are no pair and have no equal captions; both can be scored."""
        captions = len(self.phrases)
        ids = torch.arange(captions, device=self.device) if self.caption_ids is None else self.caption_ids
        own = slice(self.start, self.start + len(self.regions))
        return Candidates(image_id=ids[own], caption_id=ids, image_valid=self.valid[own], caption_valid=self.valid)

    def all_candidates(self) -> Candidates:
        """``candidates`` of the images of all processes."""
        of_own = self.candidates()
        return replace(of_own, image_id=of_own.caption_id, image_valid=of_own.caption_valid)
