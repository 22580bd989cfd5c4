"""The powerset alignment loss as a module, for any trainer."""

from __future__ import annotations

from torch import Tensor, nn

from powerclip.alignment import Method, similarity
from powerclip.alignment.similarity import validate
from powerclip.loss.triplet import triplet_loss


class PowersetAlignmentLoss(nn.Module):
    """Triplet loss in both directions on the powerset similarity (Kawamura et al., CVPR 2026).

    ``l(S) + l(S^T)`` with ``S = T2R + R2T`` of every image and caption and l the hardest-negative triplet loss.
    The vectors are scored as given. A pair whose image has no region or whose caption has no phrase takes no part.
    """

    def __init__(
        self,
        *,
        margin: float = 0.2,
        tau: float = 1e-3,
        zeta: float = 0.75,
        method: Method = "nla",
        normalise_by_regions: bool = False,
    ) -> None:
        """Set up the loss.

        Args:
            margin: delta of the triplet loss.
            tau: temperature of the aggregators; 0 is their hard limit.
            zeta: weight of log cosh in NLA-T2.
            method: "nla" (linear in M) or "exact" (enumeration, M <= 16).
            normalise_by_regions: divide S by each image's number of regions, so that a margin means the same
                at every M.

        Raises:
            ValueError: margin or tau is negative.
        """
        super().__init__()
        for name, value in (("margin", margin), ("tau", tau)):
            if not value >= 0:
                raise ValueError(f"{name} is {value!r}; it must be 0 or more")
        self.margin, self.tau, self.zeta = margin, tau, zeta
        self.method: Method = method
        self.normalise_by_regions = normalise_by_regions

    def forward(
        self,
        regions: Tensor,
        phrases: Tensor,
        region_mask: Tensor | None = None,
        phrase_mask: Tensor | None = None,
    ) -> Tensor:
        """The sum of both triplet directions, unweighted.

        Args:
            regions: (C, M, D) region vectors, image i beside caption i.
            phrases: (C, K, D) phrase vectors.
            region_mask: (C, M) bool, True = present.
            phrase_mask: (C, K) bool, True = present.

        Returns:
            () loss, float32 also under autocast.

        Raises:
            ValueError: the vectors do not fit each other; the message names the argument.
        """
        if regions.shape[:1] != phrases.shape[:1]:
            raise ValueError(
                f"regions hold {regions.shape[0]} images and phrases {phrases.shape[0]} captions; "
                "the loss takes them in pairs"
            )
        region_mask, phrase_mask = validate(regions, phrases, region_mask, phrase_mask)
        scores = similarity(
            regions, phrases, region_mask, phrase_mask, method=self.method, tau=self.tau, zeta=self.zeta
        ).total
        if self.normalise_by_regions:
            scores = scores / region_mask.sum(dim=1).clamp(min=1)[:, None]
        pairs = region_mask.any(dim=1) & phrase_mask.any(dim=1)
        return triplet_loss(scores, margin=self.margin, rows=pairs) + triplet_loss(
            scores.T, margin=self.margin, rows=pairs
        )

    def extra_repr(self) -> str:
        """The settings, for print."""
        return (
            f"margin={self.margin}, tau={self.tau}, zeta={self.zeta}, method={self.method!r}, "
            f"normalise_by_regions={self.normalise_by_regions}"
        )
