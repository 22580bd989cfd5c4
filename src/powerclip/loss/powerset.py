"""The powerset alignment loss as a module, for any trainer."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from powerclip.alignment.calibration import CalibrationPairs, choose_pairs, fit_zeta, measure_pairs
from powerclip.alignment.kernel import check_backend
from powerclip.alignment.scoring import UNCALIBRATED_ZETA, Scoring
from powerclip.alignment.similarity import validate
from powerclip.alignment.subsets import draw_subsets
from powerclip.config import ContrastConfig, ScoringConfig
from powerclip.config.checks import require_known, require_number
from powerclip.config.values import Backend, Margin, Method, Zeta
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.matrix import matrix_loss
from powerclip.loss.measures import measure_similarities
from powerclip.loss.objectives import Objective
from powerclip.loss.positives import fit
from powerclip.loss.search import search_loss
from powerclip.loss.zero import PlacedZero, smoothed


class PowersetAlignmentLoss(nn.Module):
    """Triplet loss in both directions on the powerset similarity (Kawamura et al., CVPR 2026).

    ``l(S) + l(S^T)`` with ``S = T2R + R2T`` of every image and caption and l the hardest-negative triplet loss
    (dense form: ``triplet_loss``). The vectors are scored as given. A pair whose image has no region or whose caption
    has no phrase takes no part.

    In this form only the C pairs and the hardest negative of each row and column receive a gradient, and no matrix of
    scores is made: O(C) memory and backward cost (``powerclip.loss.search``). The other forms, which ``contrast`` and
    an adaptive margin choose, need all scores at once (``powerclip.loss.matrix`` says at what cost). Those that give
    all pairs a gradient have no second derivative: differentiating their gradient is a NotImplementedError.

    What is fitted is kept in training only; before the first step, evaluation fits it to each batch. A call in training
    counts as a step, so do not put the loss into ``torch.utils.checkpoint``, which would call it twice; checkpoint the
    towers. ``torch.compile`` leaves it as it is. The count is the buffer ``steps``: whoever writes to it in place or
    replaces it sets it, but for ways that torch's version counters do not show (``steps.data``, a bare
    ``torch.distributed.broadcast``).

    Under an initialised process group every process passes its own pairs; the loss is that of the global batch, with
    its gradient on the process's own rows. DistributedDataParallel averages gradients of parameters, but their sum is
    needed: multiply the loss by the number of processes. If the loss is part of the module that it wraps, give
    ``broadcast_buffers=False``: with some versions of torch a GPU is waited for at each step otherwise, where a setting
    needs the count of steps (a calibrated zeta, sampled subsets, a late start, a warm-up).
    """

    zeta_estimate: Tensor
    steps: Tensor

    def __init__(
        self,
        *,
        margin: Margin = 0.2,
        tau: float = 1e-3,
        zeta: Zeta = 0.75,
        method: Method = "nla",
        backend: Backend = "auto",
        contrast: ContrastConfig | None = None,
        dimension: int | None = None,
        zeta_momentum: float = 0.9,
        tile_bytes: int | None = None,
        distributed: bool = True,
        **scoring: Any,
    ) -> None:
        """Set up the loss; ValueError names a setting that is out of range, TypeError one that does not exist.

        Args:
            margin: delta of the triplet loss; "adaptive" is the mean score of the pairs less that of all negatives, of
                the last training step, between 0 and ``contrast.max_margin``. It starts at 0 and is saved with the
                module. The triplet form alone has a margin.
            tau, method: as in ``powerclip.config.ScoringConfig``.
            zeta: weight of log cosh in NLA-T2; "calibrated" fits it at every training step, on 256 pairs, so that T2
                is unbiased, and smooths it over steps. Its state is saved with the module.
            backend: of the pass without gradient, as in ``powerclip.alignment.similarity``; the kernel finds negatives
                whose scores are the highest within the rounding of float16. Their scores are PyTorch's.
            contrast: forms of the loss beside the paper's. The scale and bias of the forms softmax and sigmoid are
                parameters of this module, as a learned threshold is: give them to the optimiser, and sum their
                gradients over processes.
            dimension: D, which zero="centred" needs.
            zeta_momentum: weight of the old estimate when a calibrated zeta, a threshold or means are updated.
            tile_bytes: working memory of the search; a suitable size for the device by default.
            distributed: use the batch of all processes; False uses this process's alone.
            scoring: further settings of ``powerclip.config.ScoringConfig``, by name, ``normalise_by_regions`` False by
                default; ``powerclip.loss.zero.PlacedZero`` says more on ``zero``.
        """
        super().__init__()
        require_number("zeta_momentum", zeta_momentum, lambda v: 0 <= v < 1, "at least 0 and below 1")
        check_backend(backend)
        named = (name for name in inspect.signature(PowersetAlignmentLoss).parameters if name != "scoring")
        require_known(scoring, ScoringConfig, named=named, contrast=ContrastConfig)
        self.scoring = Scoring(method=method, tau=tau, zeta=zeta, backend=backend, tile_bytes=tile_bytes, **scoring)
        self.objective = Objective(contrast or ContrastConfig(), margin=margin)
        self.zero = PlacedZero(self.scoring.zero, dimension=dimension, momentum=zeta_momentum, distributed=distributed)
        self.zeta_momentum, self.distributed = zeta_momentum, distributed
        self.register_buffer("zeta_estimate", torch.full((), torch.nan))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._read: tuple[int, Tensor, int | None] = 0, self.steps, _version(self.steps)

    @property
    def step(self) -> int:
        """The number of training steps so far."""
        if not self._is_read:  # it was written by a checkpoint, DDP, an average of models, ...
            self._read = int(self.steps), self.steps, _version(self.steps)
        return self._read[0]

    @property
    def _is_read(self) -> bool:
        """Whether nobody else has written the count since it was read, so that no device has to be waited for."""
        _, steps, version = self._read
        return steps is self.steps and version is not None and version == _version(steps)

    def _count_step(self) -> None:
        was_read = self._is_read
        self.steps += 1
        if was_read:
            self._read = self._read[0] + 1, self.steps, _version(self.steps)

    @property
    def _fits(self) -> bool:
        """Whether this batch is fitted to: in training, and where nothing has been fitted yet."""
        return self.training or self.step == 0

    # Not compiled: the count of steps is a Python number, so it would be compiled again at every step.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
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
        """The loss in both directions, unweighted: a scalar in float32, also under autocast.

        Args:
            regions: (C, M, D) region vectors.
            phrases: (C n, K, D) phrase vectors, n captions of each image: caption j belongs to image j // n. Each makes
                a pair with it, and none of them is its negative.
            region_mask, phrase_mask: (C, M) and (C n, K) bool, True = present; all present by default.
            caption_ids: (C n,) int64; captions of one id (the same text, say) are not negatives of each other's images.
            measures: a dict that receives what ``powerclip.loss.measures`` finds in this batch, each (): of the
                similarities, the share of active hinges and that of hubs, in both directions.

        Raises:
            ValueError: the vectors do not fit each other; the message names the argument.
        """
        if not fit(len(regions), len(phrases)):
            sizes = f"regions hold {regions.shape[0]} images and phrases {phrases.shape[0]} captions"
            raise ValueError(f"{sizes}; the loss takes them in pairs, or the same number of captions for each image")
        r, p = validate(regions, phrases, region_mask, phrase_mask)
        if caption_ids is not None and (caption_ids.shape != phrases.shape[:1] or caption_ids.is_floating_point()):
            raise ValueError(
                f"caption_ids has shape {tuple(caption_ids.shape)} and dtype {caption_ids.dtype}; expected "
                f"({len(phrases)},) integers, one per caption"
            )
        self.scoring.check_regions(regions.shape[1])
        with torch.autocast(regions.device.type, enabled=False):
            r, p = self.zero(r, p, fit=self._fits)
            batch = GlobalBatch.gather(r, p, caption_ids, distributed=self.distributed)
            scoring = self._scoring(batch)
            if self.training:
                self._count_step()
            if measures is not None:
                measures |= measure_similarities(batch, scoring=scoring)
            way = search_loss if self.objective.by_search else matrix_loss
            return way(batch, objective=self.objective, scoring=scoring, measures=measures)

    def _scoring(self, batch: GlobalBatch) -> Scoring:
        """The scoring of this step: subsets drawn, zeta calibrated."""
        scoring = self.scoring
        if scoring.samples_subsets:
            generator = torch.Generator().manual_seed(self.step)  # so that all processes and a resumed run agree
            scoring = replace(
                scoring, sample=draw_subsets(scoring.samples, batch.regions.mask.shape[1], generator=generator)
            )
        elif scoring.calibrates:
            estimate = self._calibrated(batch, scoring) if self._fits else self.zeta_estimate
            if self.training:
                self.zeta_estimate.copy_(estimate)
            zeta = estimate.to(batch.device, batch.regions.values.dtype)
            scoring = replace(scoring, fitted_zeta=zeta.nan_to_num(UNCALIBRATED_ZETA))
        return scoring

    @torch.no_grad()
    def _calibrated(self, batch: GlobalBatch, scoring: Scoring) -> Tensor:
        """() the estimate of zeta after a fit to some pairs of the global batch."""
        if not len(batch):
            return self.zeta_estimate
        image, caption = choose_pairs(len(batch), len(batch) * batch.n, shift=self.step)
        here = (image >= batch.own.start) & (image < batch.own.stop)
        i, j = (
            (x[here] - first).to(batch.device, non_blocking=True) for x, first in ((image, batch.start), (caption, 0))
        )
        phrases = batch.fetch_phrases(batch.request_captions(j))
        pairs = measure_pairs(batch.regions[i], phrases, scoring=scoring)
        pairs = CalibrationPairs(**{name: batch.all_rows(value) for name, value in vars(pairs).items()})
        return smoothed(self.zeta_estimate, fit_zeta(pairs, tau=scoring.tau), momentum=self.zeta_momentum)

    @property
    def fitted(self) -> dict[str, float]:
        """Scoring settings that are fitted or learned, as they stand: zeta and zero."""
        zeta = None if self.zeta_estimate.isnan() else float(self.zeta_estimate)
        found = {"zeta": zeta, "zero": self.zero.fitted}
        return {name: value for name, value in found.items() if value is not None}

    def extra_repr(self) -> str:
        """The settings, for print."""
        return str(self.scoring)


def _version(x: Tensor) -> int | None:
    """How often a tensor was written to; None for one of inference, of which torch does not count that."""
    return None if x.is_inference() else x._version
