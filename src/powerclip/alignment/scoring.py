"""Which method turns s into two scores, and its settings; formulas: ``aggregators``, ``subsets``, ``reference``."""

from dataclasses import dataclass

import torch
from torch import Tensor

from powerclip.alignment import reference
from powerclip.alignment.aggregators import aggregate, best_single_region
from powerclip.alignment.subsets import score_over_subsets
from powerclip.alignment.vectors import MaskedVectors
from powerclip.config import ScoringConfig
from powerclip.config.checks import require_at_least
from powerclip.config.values import Backend

TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""Default working memory of one tile: about the size of a CPU's second-level cache, and enough to keep a GPU busy."""

UNCALIBRATED_ZETA = 0.75
"""Stands in for a calibrated zeta while there is no estimate."""


@dataclass(frozen=True, kw_only=True)
class Scoring(ScoringConfig):
    """All that turns s into T2R and R2T: the settings, checked, and what is drawn or fitted for images and captions."""

    normalise_by_regions: bool = False
    """Divide the score by each image's number of regions, unless it is of single regions."""
    fitted_zeta: Tensor | None = None
    """() what replaces a calibrated zeta."""
    sample: Tensor | None = None
    """(A, M) the subsets of the method "sampled"."""
    backend: Backend = "auto"
    """What computes the scores of all pairs without gradient, as in ``powerclip.alignment.similarity``."""
    tile_bytes: int | None = None
    """Working memory of a tile; None is a suitable size for the device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 2**10, "tile_bytes")

    def budget(self, device: torch.device) -> int:
        """Bytes that a tile may take on a device."""
        return self.tile_bytes or TILE_BYTES.get(device.type, TILE_BYTES["cuda"])

    @property
    def even_weight(self) -> float | Tensor:
        """Zeta as a number: the weight of the even part in NLA-T2."""
        if self.fitted_zeta is not None:
            return self.fitted_zeta
        return UNCALIBRATED_ZETA if isinstance(self.zeta, str) else self.zeta

    @property
    def fused(self) -> bool:
        """Whether ``powerclip.alignment.tiled`` has a fused form of these aggregators."""
        names = (self.method, self.subsets, self.t1_activation, self.t2_activation)
        return names == ("nla", "all", "softplus", "tanh")

    @property
    def calibrates(self) -> bool:
        """Whether there is a zeta to fit."""
        return self.zeta == "calibrated" and self.method == "nla" and self.subsets == "all"

    @property
    def samples_subsets(self) -> bool:
        """Whether there are subsets to draw."""
        return self.method == "sampled" and self.subsets == "all"

    def check_regions(self, regions: int) -> None:
        """Raise ValueError if M is over the limit of the method "exact", which enumerates the subsets."""
        if self.method == "exact" and self.subsets == "all" and regions > reference.MAX_REGIONS:
            raise ValueError(
                f"method 'exact' enumerates 2^M subsets and takes at most M = {reference.MAX_REGIONS} regions, got "
                f"{regions}; use method='nla' or method='sampled'"
            )

    def score(self, s: Tensor, region_mask: Tensor, phrase_mask: Tensor) -> tuple[Tensor, Tensor]:
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
        subsets = self.sample
        if self.method == "exact":
            subsets = reference.all_subsets(s.shape[-2], device=s.device, dtype=s.dtype)
        if subsets is None:
            raise ValueError("method 'sampled' needs its subsets; draw them with draw_subsets")
        return score_over_subsets(s, region_mask, phrase_mask, subsets, tile_bytes=self.budget(s.device))

    def total(self, t2r: Tensor, r2t: Tensor, region_mask: Tensor) -> Tensor:
        """The score that is compared, from T2R and R2T (I, ...) of images with region masks (I, M)."""
        total = {"both": t2r + r2t, "t2r": t2r, "r2t": r2t}[self.direction]
        if not self.divides_by_regions:
            return total
        counts = region_mask.sum(dim=1, dtype=total.dtype).clamp(min=1)
        return total / counts.view(-1, *[1] * (total.ndim - 1))

    def pairs_per_tile(self, regions: MaskedVectors, phrases: MaskedVectors) -> int:
        """About how many pairs, at least one, ``score`` can take at once within the memory limit, in float32."""
        M, K = regions.mask.shape[1], phrases.mask.shape[1]
        # A piece of subsets holds at least one row of their table; 64 rows make the matrix products efficient.
        rows = M if self.method == "nla" or self.subsets == "single" else max(M, 64)
        return max(1, self.budget(regions.values.device) // (4 * 6 * rows * K))
