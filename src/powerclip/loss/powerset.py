"""The powerset alignment loss as a module, for any trainer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.calibration import CalibrationPairs, choose_pairs, fit_zeta, measure_pairs
from powerclip.alignment.kernel import check_backend, hardest_negatives
from powerclip.alignment.scoring import UNCALIBRATED_ZETA, Scoring, tile_bytes_or_default
from powerclip.alignment.similarity import validate
from powerclip.alignment.subsets import draw_subsets
from powerclip.alignment.tiled import score_pairs, score_rows, weighted_gradient
from powerclip.alignment.vectors import MaskedVectors
from powerclip.config import (
    Backend,
    ContrastConfig,
    Direction,
    Margin,
    Method,
    Subsets,
    T1Activation,
    T2Activation,
    Zero,
    Zeta,
)
from powerclip.distributed import gather_rows, max_over_processes, sum_over_processes, with_value
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.measures import hub_share, measure_scores, measure_similarities
from powerclip.loss.objectives import Pairs, centre_scores, mean_gap, triplet_both_ways
from powerclip.loss.zero import PlacedZero, smooth


class PowersetAlignmentLoss(nn.Module):
    """Triplet loss in both directions on the powerset similarity (Kawamura et al., CVPR 2026).

    ``l(S) + l(S^T)`` with ``S = T2R + R2T`` of every image and caption and l the hardest-negative triplet loss
    (dense form: ``triplet_loss``). The vectors are scored as given. A pair whose image has no region or whose caption
    has no phrase takes no part.

    Only the C pairs and the hardest negative of each row and column receive a gradient. A pass without gradient finds
    these negatives tile by tile; at most 3 C pairs are then scored again with gradient. The result is that of the dense
    computation, with O(C) memory and backward cost.

    Any other form (``contrast``, an adaptive margin) needs all scores at once: every process then holds C x C numbers
    and some copies of them (4 C^2 bytes each: 64 MiB at C = 4096, 1 GiB at 16384). Centred but ``detached`` scores keep
    the sparse gradient of the hardest negatives; gradients through the means (``full``) and through several negatives
    are dense, so that all pairs are scored a second time with gradient, still a tile at a time.

    Under an initialised process group every process passes its own pairs; the loss is that of the global batch, with
    its gradient on the process's own rows. Only phrase vectors are communicated. DistributedDataParallel averages
    gradients of parameters, but their sum is needed: multiply the loss by the number of processes.
    """

    zeta_estimate: Tensor
    steps: Tensor
    adaptive_margin: Tensor

    def __init__(
        self,
        *,
        margin: Margin = 0.2,
        tau: float = 1e-3,
        zeta: Zeta = 0.75,
        method: Method = "nla",
        backend: Backend = "auto",
        normalise_by_regions: bool = False,
        direction: Direction = "both",
        subsets: Subsets = "all",
        t1_activation: T1Activation = "softplus",
        t2_activation: T2Activation = "tanh",
        samples: int = 256,
        zero: Zero = "none",
        dimension: int | None = None,
        contrast: ContrastConfig | None = None,
        zeta_momentum: float = 0.9,
        tile_bytes: int | None = None,
        distributed: bool = True,
    ) -> None:
        """Set up the loss; ValueError names a setting that is out of range.

        Args:
            margin: delta of the triplet loss; "adaptive" is the mean score of the pairs less that of all negatives, of
                the last training step, between 0 and ``contrast.max_margin``. It starts at 0 and is saved with the
                module.
            tau, method, direction, subsets, t1_activation, t2_activation, samples, normalise_by_regions: as in
                ``powerclip.config.ScoringConfig``.
            zeta: weight of log cosh in NLA-T2; "calibrated" fits it at every training step, on 256 pairs, so that T2
                is unbiased, and smooths it over steps. Its state is saved with the module.
            backend: of the pass without gradient, as in ``powerclip.alignment.similarity``; the kernel finds negatives
                whose scores are the highest within the rounding of float16. Their scores are PyTorch's.
            zero: as in ``powerclip.config.ScoringConfig``; details: ``powerclip.loss.zero.PlacedZero``. A learned
                threshold is a parameter of this module: give it to the optimiser, and sum its gradient over processes.
            dimension: D, which zero="centred" needs.
            contrast: forms of the loss beside the paper's.
            zeta_momentum: weight of the old estimate when a calibrated zeta, a midpoint or means are updated.
            tile_bytes: working memory of the search; a suitable size for the device by default.
            distributed: use the batch of all processes; False uses this process's alone.
        """
        super().__init__()
        if margin != "adaptive" and (isinstance(margin, str) or not margin >= 0):
            raise ValueError(f"margin is {margin!r}; it must be 0 or more, or 'adaptive'")
        if not 0 <= zeta_momentum < 1:
            raise ValueError(f"zeta_momentum is {zeta_momentum!r}; it must be at least 0 and below 1")
        check_backend(backend)
        self.scoring = Scoring(
            method=method,
            tau=tau,
            zeta=zeta,
            t1_activation=t1_activation,
            t2_activation=t2_activation,
            subsets=subsets,
            direction=direction,
            normalise_by_regions=normalise_by_regions,
            samples=samples,
            zero=zero,
        )
        self.contrast = contrast or ContrastConfig()
        self.zero = PlacedZero(zero, dimension=dimension, momentum=zeta_momentum, distributed=distributed)
        self.margin, self.backend, self.zeta_momentum = margin, backend, zeta_momentum
        self.tile_bytes, self.distributed = tile_bytes, distributed
        if margin == "adaptive":
            self.register_buffer("adaptive_margin", torch.zeros(()))
        self.register_buffer("zeta_estimate", torch.full((), torch.nan))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._steps = 0  # the buffer's value, without waiting for a device

    @property
    def step(self) -> int:
        """The number of training steps so far."""
        return self._steps

    def forward(
        self,
        regions: Tensor,
        phrases: Tensor,
        region_mask: Tensor | None = None,
        phrase_mask: Tensor | None = None,
        *,
        caption_ids: Tensor | None = None,
        measures: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """The sum of both triplet directions, unweighted: a scalar in float32, also under autocast.

        Args:
            regions: (C, M, D) region vectors; image i belongs to caption i.
            phrases: (C, K, D) phrase vectors.
            region_mask, phrase_mask: (C, M) and (C, K) bool, True = present; all present by default.
            caption_ids: (C,) int64; captions of one id (the same text, say) are not negatives of each other's images.
            measures: a dict that receives what ``powerclip.loss.measures`` finds in this batch, each (): of the
                similarities, the share of active hinges and that of hubs, in both directions.

        Raises:
            ValueError: the vectors do not fit each other; the message names the argument.
        """
        if regions.shape[:1] != phrases.shape[:1]:
            sizes = f"regions hold {regions.shape[0]} images and phrases {phrases.shape[0]} captions"
            raise ValueError(f"{sizes}; the loss takes them in pairs")
        r, p = validate(regions, phrases, region_mask, phrase_mask)
        if caption_ids is not None and (caption_ids.shape != regions.shape[:1] or caption_ids.is_floating_point()):
            raise ValueError(
                f"caption_ids has shape {tuple(caption_ids.shape)} and dtype {caption_ids.dtype}; expected "
                f"({len(regions)},) integers, one per caption"
            )
        self.scoring.check_regions(regions.shape[1])
        with torch.autocast(regions.device.type, enabled=False):
            r, p = self.zero(r, p, fit=self.training or self._steps == 0)
            batch = self._gather(r, p, caption_ids)
            scoring = self._scoring(batch)
            if self.training:
                self._steps += 1
                self.steps.fill_(self._steps)
            if measures is not None:
                measures |= measure_similarities(
                    batch.regions,
                    batch.phrases,
                    valid=batch.valid,
                    caption_ids=batch.caption_ids,
                    start=batch.start,
                    scoring=scoring,
                    tile_bytes=tile_bytes_or_default(self.tile_bytes, batch.device),
                    distributed=self.distributed,
                )
            if self.margin == "adaptive" or self.contrast.centre_scores != "none" or not self._hardest_only:
                return self._dense_loss(batch, scoring, measures)
            return self._loss(batch, scoring, measures, margin=self.margin)

    @property
    def _hardest_only(self) -> bool:
        """Whether only the pairs and their hardest negatives get gradient."""
        return self.contrast.negatives == "hardest" and self.contrast.centre_scores != "full"

    def _gather(self, regions: MaskedVectors, phrases: MaskedVectors, caption_ids: Tensor | None) -> GlobalBatch:
        values, start = gather_rows(phrases.values) if self.distributed else (phrases.values, 0)
        return GlobalBatch(
            regions=regions,
            phrases=MaskedVectors(values=values, mask=self._all_rows(phrases.mask)),
            valid=self._all_rows(regions.some & phrases.some),
            caption_ids=None if caption_ids is None else self._all_rows(caption_ids),
            start=start,
        )

    def _all_rows(self, x: Tensor) -> Tensor:
        return gather_rows(x)[0] if self.distributed else x

    def _loss(
        self, batch: GlobalBatch, scoring: Scoring, measures: dict[str, Tensor] | None, *, margin: float
    ) -> Tensor:
        """The loss; its gradient comes from the pairs whose image this process holds."""
        budget = tile_bytes_or_default(self.tile_bytes, batch.device)

        def score(images: Tensor, captions: Tensor) -> Tensor:
            r, p = batch.regions[images], batch.phrases[captions]
            return scoring.total(*score_pairs(r, p, scoring=scoring, tile_bytes=budget), r.mask)

        # First pass, without gradient: this process's B images against the C captions of all processes.
        found = hardest_negatives(
            batch.regions,
            batch.phrases,
            candidates=batch.candidates(),
            scoring=scoring,
            tile_bytes=budget,
            backend=self.backend,
        )
        B, C = len(batch.regions), len(batch.phrases)
        local = torch.arange(B, device=batch.device)
        own = local + batch.start  # (B,) the captions of these images
        image, has_image = self._hardest_images(found.image + batch.start, found.image_score)  # (C,) each
        # (P,) the captions whose hardest image is on this process
        here = ((image >= batch.start) & (image < batch.start + B) & has_image).nonzero()[:, 0]

        # Second pass, with gradient.
        positive = score(local, own)  # (B,)
        caption_negative = score(local, found.caption)  # (B,)
        image_negative = score(image[here] - batch.start, here)  # (P,)

        # The scores of all C pairs, from what each process knows: positive, hardest caption, hardest image, and whether
        # there is a hardest caption. No gradient goes through them.
        known = positive.new_zeros(4, C)
        known[0, own], known[1, own] = positive.detach(), caption_negative.detach()
        known[2, here] = image_negative.detach()
        known[3, own] = (found.caption_score > ABSENT).to(known.dtype)
        if self.distributed:
            known = sum_over_processes(known)
        caption_violation = (margin + known[1] - known[0]) * known[3]  # (C,)
        image_violation = (margin + known[2] - known[0]) * has_image  # (C,)
        pairs = batch.valid.sum().clamp(min=1)
        value = ((caption_violation.relu() + image_violation.relu()) * batch.valid).sum() / pairs

        # Each positive hinge is linear in its two scores: this process's terms of the sum.
        by_caption = ((caption_violation > 0) & batch.valid).to(known.dtype)  # (C,)
        by_image = ((image_violation > 0) & batch.valid).to(known.dtype)  # (C,)
        if measures is not None:
            caption = self._all_rows(found.caption)  # (C,)
            measures["active_share_i2t"] = by_caption.sum() / pairs
            measures["active_share_t2i"] = by_image.sum() / pairs
            measures["hub_share_i2t"] = hub_share(caption, known[3].bool())
            measures["hub_share_t2i"] = hub_share(image.where(has_image, 0), has_image)
        share = (
            (by_caption[own] * (caption_negative - positive)).sum()
            - (by_image[own] * positive).sum()
            + (by_image[here] * image_negative).sum()
        ) / pairs
        return with_value(share, value)

    def _dense_loss(self, batch: GlobalBatch, scoring: Scoring, measures: dict[str, Tensor] | None) -> Tensor:
        """The loss by any objective of all scores; its gradient comes from the pairs whose image this process holds."""
        budget = tile_bytes_or_default(self.tile_bytes, batch.device)
        r, p = batch.regions, batch.phrases
        if not len(p):
            return r.values.sum() + p.values.sum()  # 0, and part of the graph
        rows = r.values.new_empty(len(r), len(p))  # (B, C)
        for images, t2r, r2t in score_rows(r, p, scoring=scoring, tile_bytes=budget):
            rows[images] = scoring.total(t2r, r2t, r.mask[images])
        scores = self._all_rows(rows)  # (C, C)
        pairs = Pairs(valid=batch.valid, negative=batch.all_candidates().negatives(slice(None)))
        margin = self.adaptive_margin.to(scores) if self.margin == "adaptive" else self.margin
        with torch.enable_grad():
            compared = centre_scores(scores.requires_grad_(), pairs.valid, config=self.contrast)
            value = triplet_both_ways(compared, pairs, config=self.contrast, margin=margin)
            weights = torch.autograd.grad(value, scores)[0]
        if measures is not None:
            measures |= measure_scores(compared.detach(), pairs, margin=margin)
        if self.margin == "adaptive" and self.training:
            gap = mean_gap(scores.detach(), pairs).clamp(0, self.contrast.max_margin)
            self.adaptive_margin.copy_(torch.where(gap.isfinite(), gap, self.adaptive_margin))
        if not torch.is_grad_enabled():
            return value.detach()
        weights = weights[batch.start : batch.start + len(r)]  # (B, C)
        if self._hardest_only:
            i, j = weights.nonzero(as_tuple=True)  # (P,) each
            picked = r[i]
            again = scoring.total(*score_pairs(picked, p[j], scoring=scoring, tile_bytes=budget), picked.mask)
            share = (weights[i, j] * again).sum()
        else:
            of_r, of_p = weighted_gradient(weights, r, p, scoring=scoring, tile_bytes=budget)
            share = (r.values * of_r).sum() + (p.values * of_p).sum()
        return with_value(share, value.detach())

    def _hardest_images(self, image: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
        """(C,) the hardest image of every caption over all processes (the first of equals), (C,) whether there is one."""
        if not self.distributed:
            return image, score > ABSENT
        highest = max_over_processes(score)
        none = torch.iinfo(torch.int64).max
        lowest = -max_over_processes(-torch.where(score == highest, image, none))
        return lowest, highest > ABSENT

    def _scoring(self, batch: GlobalBatch) -> Scoring:
        """The scoring of this step: subsets drawn, zeta calibrated."""
        scoring = self.scoring
        if scoring.method == "sampled":
            generator = torch.Generator().manual_seed(self._steps)  # so that all processes and a resumed run agree
            scoring = replace(
                scoring, sample=draw_subsets(scoring.samples, batch.regions.mask.shape[1], generator=generator)
            )
        elif scoring.zeta == "calibrated" and scoring.method == "nla":
            if self.training or self._steps == 0:
                self._calibrate(batch, scoring)
            zeta = self.zeta_estimate.to(batch.device, batch.regions.values.dtype)
            scoring = replace(scoring, fitted_zeta=zeta.nan_to_num(UNCALIBRATED_ZETA))
        return scoring

    @torch.no_grad()
    def _calibrate(self, batch: GlobalBatch, scoring: Scoring) -> None:
        """Fit zeta to some pairs of the global batch and update the estimate."""
        C = len(batch.phrases)
        if C == 0:
            return
        image, caption = choose_pairs(C, C, shift=self._steps)
        here = (image >= batch.start) & (image < batch.start + len(batch.regions))
        i, j = (image[here] - batch.start).to(batch.device), caption[here].to(batch.device)
        pairs = measure_pairs(
            batch.regions[i],
            batch.phrases[j],
            scoring=scoring,
            tile_bytes=tile_bytes_or_default(self.tile_bytes, batch.device),
        )
        pairs = CalibrationPairs(**{name: self._all_rows(value) for name, value in vars(pairs).items()})
        smooth(self.zeta_estimate, fit_zeta(pairs, tau=scoring.tau), momentum=self.zeta_momentum)

    @property
    def fitted(self) -> dict[str, float]:
        """Scoring settings that are fitted or learned, as they stand: zeta and zero."""
        zeta = None if self.zeta_estimate.isnan() else float(self.zeta_estimate)
        found = {"zeta": zeta, "zero": self.zero.fitted}
        return {name: value for name, value in found.items() if value is not None}

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._steps = int(self.steps)

    def extra_repr(self) -> str:
        """The settings, for print."""
        return f"margin={self.margin}, {self.scoring}"
