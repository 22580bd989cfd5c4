"""PowerCLIP's loss: CLIP's or another, plus the weighted powerset alignment loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from powerclip.config.checks import require_number
from powerclip.config.values import EqualCaptions
from powerclip.distributed import sum_over_processes
from powerclip.loss.clip import CLIPLoss
from powerclip.loss.powerset import PowersetAlignmentLoss
from powerclip.loss.siglip import SigLIPLoss
from powerclip.types import Features, LossOutput

MOMENTUM = 0.9
"""Weight of the old value when the gradients' norms, whose ratio sets lambda, are smoothed over steps."""


class PowerCLIPLoss(nn.Module):
    """L = L_CLIP + lambda * L_powerset (Kawamura et al., CVPR 2026).

    L_CLIP may be another loss of the same features; then read that one for CLIP.

    The gradients that ``gradient_ratio`` and ``gradient_cap`` compare are those of L_CLIP at ``Features.image`` and
    ``text``, and of L_powerset at ``regions`` and ``phrases``, each a Euclidean norm over the batch of all processes.
    What reaches the towers by another way is not counted: SPARC's contrast between patches and tokens.
    They cost a second backward pass through the losses, not through the towers, and they are the same in one piece and
    in several.
    """

    clip_gradient: Tensor
    powerset_gradient: Tensor

    def __init__(
        self,
        *,
        weight: float = 0.2,
        start_step: int = 0,
        warmup_steps: int = 0,
        gradient_ratio: float | None = None,
        gradient_cap: float | None = None,
        powerset: PowersetAlignmentLoss | None = None,
        equal_captions: EqualCaptions = "negatives",
        base: nn.Module | None = None,
    ) -> None:
        """Set up the loss; ValueError names a setting that is out of range.

        Args:
            weight: lambda; 0 is the global loss alone and computes no powerset term.
            start_step: training steps with lambda = 0, in which the powerset term is computed without gradient.
            warmup_steps: steps over which lambda then rises linearly, as a factor on what the other settings give.
            gradient_ratio: sets lambda, in place of ``weight``, to this times |g_CLIP| / |g_powerset|. Both norms are
                smoothed over steps (``MOMENTUM``) and saved with the module; a step that is not finite leaves them.
                The present step counts 1 - ``MOMENTUM``, so that lambda |g_powerset| of this step is at most
                1 / (1 - ``MOMENTUM``) = 10 times this ratio times the smoothed |g_CLIP|; this step's own |g_CLIP| may
                be smaller.
            gradient_cap: lowers lambda to this times |g_CLIP| / |g_powerset| of the present step where it is higher.
            powerset: by default the alignment loss with its defaults.
            equal_captions: whether pairs with the same caption are negatives of each other in it.
            base: what it is added to, a module from ``Features`` to ``LossOutput`` such as ``SPARCLoss``; by default
                SigLIP's loss if the features have a bias, else CLIP's.
        """
        super().__init__()
        for name, value in (("weight", weight), ("start_step", start_step), ("warmup_steps", warmup_steps)):
            require_number(name, value, lambda v: v >= 0, "0 or more")
        for name, ratio in (("gradient_ratio", gradient_ratio), ("gradient_cap", gradient_cap)):
            if ratio is not None:
                require_number(name, ratio, lambda v: v > 0, "positive, or None")
        self.weight, self.start_step, self.warmup_steps = weight, start_step, warmup_steps
        self.gradient_ratio, self.gradient_cap = gradient_ratio, gradient_cap
        self.powerset = powerset or PowersetAlignmentLoss()
        self.equal_captions, self.base = equal_captions, base
        for name in ("clip_gradient", "powerset_gradient"):  # their smoothed norms; NaN before the first step
            self.register_buffer(name, torch.full((), torch.nan), persistent=gradient_ratio is not None)

    @property
    def needs_dense(self) -> bool:
        """Whether the features must hold patches and tokens."""
        return bool(getattr(self.base, "needs_dense", False))

    def forward(self, features: Features, *, measure: bool = False) -> LossOutput:
        """The weighted sum, and its terms by name: those of the loss that it is added to ("clip") and "powerset".

        With ``measure`` the output has the measures of ``PowersetAlignmentLoss``, lambda as "powerset_weight" and, as
        "gradient_ratio", lambda |g_powerset| / |g_CLIP| of this step.

        Without gradient (``torch.no_grad``) no gradients are compared: the norms as they stand give lambda, or
        ``weight`` if there are none yet, and there is no cap.
        """
        base = self.base or (CLIPLoss() if features.logit_bias is None else SigLIPLoss())
        output: LossOutput = base(features)
        if self.weight == 0:
            return output
        clip = output.total
        part = self._part(self.powerset.step) if self.start_step or self.warmup_steps else 1.0
        measures: dict[str, Tensor] = {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and part > 0):
            powerset = self.powerset(
                features.regions,
                features.phrases,
                features.region_mask,
                features.phrase_mask,
                caption_ids=features.caption_ids if self.equal_captions == "ignored" else None,
                measures=measures if measure else None,
            )
        norms = None
        if powerset.requires_grad and (measure or self.gradient_ratio or self.gradient_cap):
            norms = (
                gradient_norm(clip, (features.image, features.text)),
                gradient_norm(powerset, (features.regions, features.phrases)),
            )
        weight = self._weight(part, norms)
        if measure:
            measures["powerset_weight"] = torch.as_tensor(weight, dtype=torch.float64)
            if norms is not None or part == 0:
                measures["gradient_ratio"] = weight * norms[1] / norms[0] if norms else torch.zeros(())
        total = clip + weight * powerset if part > 0 else clip
        return LossOutput(total=total, terms={**output.terms, "powerset": powerset}, measures=measures)

    def _part(self, step: int) -> float:
        """Lambda of a training step as a part of what it is after the warm-up."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / max(1, self.warmup_steps))

    def _weight(self, part: float, norms: tuple[Tensor, Tensor] | None) -> float | Tensor:
        """Lambda, from the norms of the gradients of CLIP's and the powerset loss where they are known."""
        weight: float | Tensor = self.weight * part
        if self.gradient_ratio is not None and part > 0:
            if norms is not None and self.training:
                self._smooth(*norms)
            ratio = self.gradient_ratio * self.clip_gradient / self.powerset_gradient
            ratio = torch.where(self.powerset_gradient == 0, 0.0, ratio)  # no gradient, so nothing to weigh
            weight = part * torch.where(self.clip_gradient.isnan(), self.weight, ratio)
        if self.gradient_cap is not None and norms is not None:
            highest = self.gradient_cap * norms[0] / norms[1]
            weight = highest.nan_to_num(torch.inf).clamp(max=weight)  # 0 / 0: there is nothing to cap
        return weight

    def _smooth(self, clip: Tensor, powerset: Tensor) -> None:
        finite = torch.isfinite(clip + powerset)
        for buffer, new in ((self.clip_gradient, clip), (self.powerset_gradient, powerset)):
            moved = torch.where(buffer.isnan(), new, MOMENTUM * buffer + (1 - MOMENTUM) * new)
            buffer.copy_(torch.where(finite, moved, buffer))


def gradient_norm(loss: Tensor, vectors: Sequence[Tensor]) -> Tensor:
    """() Euclidean norm, over all processes, of a loss's gradient at vectors; 0 where they are not trained."""
    trained = [x for x in vectors if x.requires_grad]
    squared = torch.zeros((), dtype=loss.dtype, device=loss.device)
    if trained and loss.requires_grad:
        for gradient in torch.autograd.grad(loss, trained, retain_graph=True, materialize_grads=True):
            squared = squared + gradient.to(loss.dtype).square().sum()
    return sum_over_processes(squared).sqrt()
