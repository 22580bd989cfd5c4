"""How the similarities of one image's regions and one caption's phrases become two scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from powerclip.alignment import reference
from powerclip.alignment.aggregators import aggregate, best_single_region
from powerclip.alignment.subsets import score_over_subsets
from powerclip.config import ScoringConfig

TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Default working memory of one tile: about the size of a CPU's second-level cache, and enough to keep a GPU busy."""


UNCALIBRATED_ZETA = 0.75
"""Stands in for a calibrated zeta while there is no estimate."""


@dataclass(frozen=True, kw_only=True)
class Scoring(ScoringConfig):
    """All that turns s into T2R and R2T: the settings, and what is drawn or fitted for some images and captions.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    normalise_by_regions: bool = False
    """Divide the score by each image's number of regions."""
    fitted_zeta: Tensor | None = None
    """() what replaces a calibrated zeta."""
    sample: Tensor | None = None
    """(A, M) the subsets of the method "sampled"."""

    @property
    def even_weight(self) -> float | Tensor:
        """Zeta as a number: the weight of the even part in NLA-T2."""
        if self.fitted_zeta is not None:
            return self.fitted_zeta
        return UNCALIBRATED_ZETA if isinstance(self.zeta, str) else self.zeta

    @property
    def fused(self) -> bool:
        """Whether ``powerclip.alignment.tiled`` has a fused form of these aggregators."""
        return (
            self.method == "nla"
            and self.subsets == "all"
            and self.t1_activation == "softplus"
            and self.t2_activation == "tanh"
        )

    def check_regions(self, regions: int) -> None:
        """Refuse to enumerate the subsets of too many regions.

        Raises:
            ValueError: M is over the limit of the method "exact".
        """
        if self.method == "exact" and self.subsets == "all" and regions > reference.MAX_REGIONS:
            raise ValueError(
                f"method 'exact' enumerates 2^M subsets and takes at most M = {reference.MAX_REGIONS} regions, got "
                f"{regions}; use method='nla' or method='sampled'"
            )

    def score(self, s: Tensor, region_mask: Tensor, phrase_mask: Tensor, *, tile_bytes: int) -> tuple[Tensor, Tensor]:
        """T2R and R2T, each (...), of similarities (..., M, K) and masks (..., M) and (..., K); differentiable."""
        if self.subsets == "single":
            return best_single_region(s, region_mask, phrase_mask)
        if self.method == "nla":
            return aggregate(
                s,
                region_mask,
                phrase_mask,
                tau=self.tau,
                zeta=self.even_weight,
                t1_activation=self.t1_activation,
                t2_activation=self.t2_activation,
            )
        return score_over_subsets(s, region_mask, phrase_mask, self._subsets(s), tile_bytes=tile_bytes)

    def total(self, t2r: Tensor, r2t: Tensor, region_mask: Tensor) -> Tensor:
        """The score that is compared, from T2R and R2T (I, ...) of images with region masks (I, M)."""
        total = {"both": t2r + r2t, "t2r": t2r, "r2t": r2t}[self.direction]
        if not self.normalise_by_regions:
            return total
        counts = region_mask.sum(dim=1, dtype=total.dtype).clamp(min=1)
        return total / counts.view(-1, *[1] * (total.ndim - 1))

    def bytes_per_pair(self, regions: int, phrases: int) -> int:
        """About how much memory ``score`` takes for one pair, in float32."""
        table = regions * phrases
        if self.method != "nla" and self.subsets == "all":
            # A piece holds at least one subset's row of the table; 64 rows make the matrix products efficient.
            table = max(table, 64 * phrases)
        return 4 * 6 * table

    def _subsets(self, s: Tensor) -> Tensor:
        if self.method == "sampled":
            if self.sample is None:
                raise ValueError("method 'sampled' needs its subsets; draw them with draw_subsets")
            return self.sample
        return reference.all_subsets(s.shape[-2], device=s.device, dtype=s.dtype)


def tile_bytes_or_default(tile_bytes: int | None, device: torch.device) -> int:
    """The byte budget of a tile on a device.

    Raises:
        ValueError: the given one is too small for any tile.
    """
    if tile_bytes is None:
        return TILE_BYTES.get(device.type, TILE_BYTES["cuda"])
    if tile_bytes < 2**10:
        raise ValueError(f"tile_bytes is {tile_bytes}; it must be at least 1024")
    return tile_bytes
