"""The zero of region-phrase similarities in training: fixed, fitted to each batch, or learned."""

import torch
from torch import Tensor, nn

from powerclip.alignment.vectors import MaskedVectors
from powerclip.alignment.zero import centre, place_zero, shift
from powerclip.config.values import Zero
from powerclip.distributed import gather_rows, sum_over_processes

BETWEEN: dict[Zero, float] = {"midpoint": 0.5, "matched": 1.0}
"""Where a threshold lies, from the mean s of unmatched regions and phrases, 0, to that of matched ones, 1."""


@torch.no_grad()
def smoothed(estimate: Tensor, value: Tensor, *, momentum: float) -> Tensor:
    """A running estimate, NaN before its first value, moved; a value that is not finite leaves it as it is."""
    value = value.to(estimate)
    old = torch.where(estimate.isnan(), value, estimate)
    moved = momentum * old + (1 - momentum) * value
    return torch.where(value.isfinite().all(), moved, estimate)


class PlacedZero(nn.Module):
    """Moves the zero of s on a process's own vectors, before they are gathered.

    - "matched": the threshold is the mean s of the regions and phrases of each pair in the batch of all processes,
      smoothed over steps; it gets no gradient. A third or more of a pair's similarities are below it and get hardly any
      gradient, so that what is learnt about a phrase goes to the regions that have most of it.
    - "midpoint": the threshold lies halfway between the mean s of matched and of unmatched regions and phrases of the
      batch of all processes, likewise smoothed. Both means are products of summed vectors, so
      the cost is that of reading the vectors once. (Captions equal to a pair's own count as unmatched.)
    - "learned": the threshold is a parameter that starts at 0. Each process gets its share of the gradient.
    - "centred": the means of all present regions and of all present phrases of the batch of all processes are taken off
      them, and they become unit vectors again. The gradient goes through the means. Running means are kept, smoothed
      over steps, and used in evaluation.

    What is fitted is equal on all processes, and saved with the module.
    """

    threshold: Tensor
    means: Tensor

    def __init__(self, zero: Zero, *, dimension: int | None, momentum: float, distributed: bool) -> None:
        """Set up the state of ``zero``; "centred" vectors need their ``dimension`` D (ValueError without it)."""
        super().__init__()
        self.zero, self.momentum, self.distributed = zero, momentum, distributed
        if zero in BETWEEN:
            self.register_buffer("threshold", torch.full((), torch.nan))
        elif zero == "learned":
            self.threshold = nn.Parameter(torch.zeros(()))
        elif zero == "centred":
            if dimension is None:
                raise ValueError("zero 'centred' keeps means of vectors; give their dimension")
            self.register_buffer("means", torch.full((2, dimension), torch.nan))

    def forward(
        self, regions: MaskedVectors, phrases: MaskedVectors, *, fit: bool
    ) -> tuple[MaskedVectors, MaskedVectors]:
        """The vectors to score, of this process's regions (B, M, D) and phrases (B, K, D); with ``fit``, of this batch.

        Without ``fit`` the estimates of earlier batches are used; they are changed in training only. ValueError if the
        vectors have another dimension.
        """
        if self.zero == "centred":
            if self.means.shape[1] != regions.values.shape[2]:
                D = regions.values.shape[2]
                raise ValueError(
                    f"the vectors have D = {D} and the loss was set up with dimension={len(self.means[0])}"
                )
            means = self._batch_means(regions, phrases) if fit else self.means
            if fit and self.training:
                self.means.copy_(smoothed(self.means, means.detach(), momentum=self.momentum))
            return centre(regions, means[0]), centre(phrases, means[1])
        if self.zero in BETWEEN:
            threshold = self.threshold
            if fit:
                threshold = smoothed(threshold, self._threshold(regions, phrases), momentum=self.momentum)
            if self.training:
                self.threshold.copy_(threshold)
            return shift(regions, phrases, threshold.nan_to_num(0.0))
        if self.zero == "learned":
            return shift(regions, phrases, self.threshold)
        return place_zero(regions, phrases, zero=self.zero)

    @property
    def fitted(self) -> float | None:
        """The threshold as it stands, where it is fitted or learned."""
        found = self.threshold if self.zero in (*BETWEEN, "learned") else None
        return None if found is None or found.isnan() else found.item()

    def _batch_means(self, regions: MaskedVectors, phrases: MaskedVectors) -> Tensor:
        """(2, D) means of the vectors that are present, of all processes; with gradient."""
        both = (regions, phrases)
        sums = torch.stack([vectors.values.sum(dim=(0, 1)) for vectors in both])[None]  # (1, 2, D)
        counts = torch.stack([vectors.mask.sum() for vectors in both])
        if self.distributed:
            sums, counts = gather_rows(sums)[0], sum_over_processes(counts)
        return sums.sum(dim=0) / counts.clamp(min=1)[:, None]

    @torch.no_grad()
    def _threshold(self, regions: MaskedVectors, phrases: MaskedVectors) -> Tensor:
        """() the mean s of matched, or halfway between it and that of unmatched; NaN if there are none of either."""
        phrases = phrases.joined(len(regions))
        valid = (regions.some & phrases.some)[:, None]
        r, p = (vectors.values.sum(dim=1) * valid for vectors in (regions, phrases))  # (B, D) each
        m, k = (vectors.mask.sum(dim=1).to(r) * valid[:, 0] for vectors in (regions, phrases))  # (B,) each
        matched = torch.stack([(r * p).sum(), (m * k).sum()])  # sum of s, and number
        of_all = torch.cat([r.sum(dim=0), p.sum(dim=0), m.sum()[None], k.sum()[None], matched])
        if self.distributed:
            of_all = sum_over_processes(of_all)
        D = r.shape[1]
        matched = of_all[-2:]
        every = torch.stack([of_all[:D] @ of_all[D : 2 * D], of_all[2 * D] * of_all[2 * D + 1]])
        unmatched = every - matched
        low, high = unmatched[0] / unmatched[1], matched[0] / matched[1]
        return low + BETWEEN[self.zero] * (high - low)
