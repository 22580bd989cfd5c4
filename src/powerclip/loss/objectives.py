"""What a loss makes of the complete matrix of scores S of C images (rows) and their C n captions (columns).

Caption j belongs to image j // n; each makes a pair with it, and the captions of one image are not negatives of it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from powerclip.config import ContrastConfig
from powerclip.config.checks import require_number
from powerclip.config.values import Form, Margin
from powerclip.errors import shown
from powerclip.loss.siglip import INIT_LOGIT_BIAS, INIT_LOGIT_SCALE
from powerclip.loss.triplet import triplet_loss

INIT_LOG_SCALE: dict[Form, float] = {"softmax": math.log(1 / 0.07), "sigmoid": INIT_LOGIT_SCALE}
"""Initial log of the scale of S: CLIP's and SigLIP's of their similarities."""

MAX_LOG_SCALE = math.log(100)
"""The scale stays at 100 or below, as in CLIP (Radford et al., 2021)."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which entries of the scores count."""

    valid: Tensor
    """(C n,) bool: the pair can be scored."""
    negative: Tensor
    """(C, C n) bool: the image and the caption are negatives of each other."""

    @property
    def n(self) -> int:
        """Captions of each image."""
        return self.negative.shape[1] // max(1, self.negative.shape[0]) or 1

    @property
    def image_valid(self) -> Tensor:
        """(C,) bool: one of the image's pairs can be scored."""
        return self.valid.view(len(self.negative), self.n).any(dim=1)

    def of(self, scores: Tensor) -> Tensor:
        """(C n,) the scores (C, C n) of the pairs."""
        return scores.reshape(len(scores), len(scores), self.n).diagonal(dim1=0, dim2=1).T.flatten()

    def by_pair(self, rows: Tensor) -> Tensor:
        """(C n, ...) the row of each pair's image, of rows (C, ...)."""
        return rows if self.n == 1 else rows.repeat_interleave(self.n, dim=0)


class Objective(nn.Module):
    """The loss of the scores of a batch: which form, of which scores, and with which margin or scale.

    State, where the settings have it: the buffer ``adaptive_margin`` (), and the parameters ``log_scale`` () and
    ``bias`` () of the forms softmax and sigmoid.
    """

    adaptive_margin: Tensor
    log_scale: Tensor
    bias: Tensor

    def __init__(self, config: ContrastConfig, *, margin: Margin) -> None:
        """Set up the state; ValueError if the margin is out of range, or ``config`` something else."""
        super().__init__()
        if not isinstance(config, ContrastConfig):
            raise ValueError(f"contrast is {shown(config)}; it must be a powerclip.config.ContrastConfig")
        if margin != "adaptive":
            require_number("margin", margin, lambda v: v >= 0, "0 or more, or 'adaptive'")
        self.config, self.fixed_margin = config, margin
        if margin == "adaptive":
            self.register_buffer("adaptive_margin", torch.zeros(()))
        if config.form != "triplet":
            self.log_scale = nn.Parameter(torch.tensor(INIT_LOG_SCALE[config.form]))
        if config.form == "sigmoid":
            self.bias = nn.Parameter(torch.tensor(INIT_LOGIT_BIAS))

    @property
    def margin(self) -> float | Tensor | None:
        """The margin of the triplet loss in this step; None in the other forms."""
        if self.config.form != "triplet":
            return None
        return self.adaptive_margin if isinstance(self.fixed_margin, str) else self.fixed_margin

    @property
    def sparse(self) -> bool:
        """Whether only the pairs and their hardest negatives get gradient."""
        c = self.config
        return c.form == "triplet" and c.negatives == "hardest" and c.centre_scores != "full"

    @property
    def by_search(self) -> bool:
        """Whether the loss can do without the matrix of scores."""
        return self.sparse and self.config.centre_scores == "none" and self.fixed_margin != "adaptive"

    def compared(self, scores: Tensor, pairs: Pairs) -> Tensor:
        """(C, C n) the scores that are compared: as they are, or centred."""
        if self.config.centre_scores == "none":
            return scores
        return centre_scores(scores, pairs, detached=self.config.centre_scores == "detached")

    def forward(self, scores: Tensor, pairs: Pairs) -> Tensor:
        """() the loss in both directions, of ``compared`` scores (C, C n); differentiable."""
        c = self.config
        if c.form != "triplet":
            if self.training:
                with torch.no_grad():
                    self.log_scale.clamp_(max=MAX_LOG_SCALE)
            scores = self.log_scale.to(scores.dtype).exp() * scores
        if c.form == "softmax":
            return softmax_loss(scores, pairs)
        if c.form == "sigmoid":
            return sigmoid_loss(scores + self.bias.to(scores.dtype), pairs)
        margin = self.margin
        assert margin is not None
        i2t, t2i = (
            triplet_loss(
                x,
                margin=margin,
                rows=pairs.valid,
                positive=pairs.of(scores),
                negative=negative,
                negatives=c.negatives,
                temperature=c.negatives_temperature,
            )
            for x, negative in (
                (pairs.by_pair(scores), pairs.by_pair(pairs.negative)),
                (scores.T, pairs.negative.T),
            )
        )
        return i2t + t2i

    @torch.no_grad()
    def adapt(self, scores: Tensor, pairs: Pairs) -> None:
        """Set an adaptive margin for the next step, in training, from the scores (C, C n) of this one."""
        if self.fixed_margin == "adaptive" and self.training:
            gap = mean_gap(scores, pairs).clamp(0, self.config.max_margin)
            self.adaptive_margin.copy_(torch.where(gap.isfinite(), gap, self.adaptive_margin))

    def measures(self) -> dict[str, Tensor]:
        """What is fitted or learned, for the logs: "margin", "score_scale" and "score_bias", each ()."""
        found = {} if self.fixed_margin != "adaptive" else {"margin": self.adaptive_margin.clone()}
        if self.config.form != "triplet":
            found["score_scale"] = self.log_scale.detach().exp()
        if self.config.form == "sigmoid":
            found["score_bias"] = self.bias.detach().clone()
        return found

    def extra_repr(self) -> str:
        """The settings, for print."""
        return f"margin={self.fixed_margin}, {self.config}"


def softmax_loss(logits: Tensor, pairs: Pairs) -> Tensor:
    """() mean over pairs of the cross-entropies of rows and of columns (CLIP's loss), of logits (C, C n).

    A row's candidates are the image's captions and its negatives, a column's are the caption's image and its negatives.
    """
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device).repeat_interleave(pairs.n, dim=1)
    kept = logits.masked_fill(~(pairs.negative | own), -torch.inf)
    unscored = own & ~pairs.valid & pairs.image_valid[:, None]  # beside others of the image that can be scored
    rows = kept.masked_fill(unscored, -torch.inf).logsumexp(dim=1)  # (C,)
    each = (pairs.by_pair(rows) + kept.logsumexp(dim=0)) / 2 - pairs.of(logits)  # (C n,)
    return (each * pairs.valid).sum() / pairs.valid.sum().clamp(min=1)


def sigmoid_loss(logits: Tensor, pairs: Pairs) -> Tensor:
    """() -1/P sum_ij log sigmoid(z_ij logits_ij),
    z = 1 for the P pairs and -1 for negatives (SigLIP's loss); (C, C n)."""
    of_pairs = F.logsigmoid(pairs.of(logits)) * pairs.valid
    of_negatives = F.logsigmoid(-logits) * pairs.negative
    return -(of_pairs.sum() + of_negatives.sum()) / pairs.valid.sum().clamp(min=1)


def centre_scores(scores: Tensor, pairs: Pairs, *, detached: bool) -> Tensor:
    """S[i, j] - mean_i S[i, j] - mean_j S[i, j] + mean S, of scores (C, C n), the means over valid rows and columns.

    An image's own mean is the same for all captions it is compared with, and so makes no difference to them; what
    counts is that S[i, j] - mean_i S[i, j] is compared with S[i, i] - mean_i S[i, i], and likewise for captions.
    Through the means every score gets gradient; through ``detached`` ones only those that get it without centring.
    """
    images, captions = (v.to(scores.dtype) / v.sum().clamp(min=1) for v in (pairs.image_valid, pairs.valid))
    known = scores.detach() if detached else scores
    rows, columns = known @ captions, images @ known  # (C,), (C n,)
    return scores - rows[:, None] - columns + rows @ images


@torch.no_grad()
def mean_gap(scores: Tensor, pairs: Pairs) -> Tensor:
    """() mean score of the pairs less that of the negatives; NaN if there are none of either."""
    positive = pairs.of(scores)[pairs.valid].mean()
    return positive - (scores * pairs.negative).sum() / pairs.negative.sum()
