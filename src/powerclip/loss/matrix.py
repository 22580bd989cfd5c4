"""Any loss of the complete matrix of scores, which every process holds.

The scores are computed without gradient, each process its images' rows, and gathered: C x C numbers and some copies of
them, of 4 C^2 bytes each (64 MiB at C = 4096, 1 GiB at 16384). The objective is differentiated with respect to them,
and the pairs whose score has a gradient are scored again, with gradient to their vectors. The objective's ``sparse``
forms (the hardest negatives, of scores that are not centred or less means without gradient) leave at most 3 C such
pairs. All others leave C^2: a second pass over all pairs, a tile at a time, after which the loss takes 4 to 8 times as
long (docs/training.md), and their gradient has no gradient of its own.
"""

from typing import Any

import torch
from torch import Tensor

from powerclip.alignment.kernel import score_rows
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.tiled import score_pairs, weighted_gradient
from powerclip.distributed import with_value, world_size
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.measures import measure_scores
from powerclip.loss.objectives import Objective, Pairs


def matrix_loss(
    batch: GlobalBatch,
    *,
    objective: Objective,
    scoring: Scoring,
    measures: dict[str, Tensor] | None,
) -> Tensor:
    """() the loss; its gradient comes from this process's images, and for the objective's parameters in equal shares.

    ``measures``, if given, receives what the scores show and the objective's own numbers.
    """
    r, p = batch.regions, batch.all_phrases()
    if not len(p):
        return r.values.sum() + p.values.sum()  # 0, and part of the graph
    rows = r.values.new_empty(len(r), len(p))  # (B, C n)
    for images, t2r, r2t in score_rows(r, p, scoring=scoring):
        rows[images] = scoring.total(t2r, r2t, r.mask[images])
    scores = batch.all_rows(rows)  # (C, C n)
    pairs = Pairs(valid=batch.valid, negative=batch.all_candidates().negatives(slice(None)))
    trained = torch.is_grad_enabled()  # not under no_grad, nor in inference mode, in which nothing has a gradient
    compared = objective.compared(scores.requires_grad_(trained), pairs)
    value: Tensor = objective(compared, pairs)
    learned = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    if trained:
        weights, *gradients = torch.autograd.grad(value, [scores, *learned])
    if measures is not None:
        measures |= measure_scores(compared.detach(), pairs, margin=objective.margin) | objective.measures()
    objective.adapt(scores.detach(), pairs)
    if not trained:
        return value
    weights = weights[batch.own]  # (B, C n)
    if objective.sparse:
        i, j = weights.nonzero(as_tuple=True)  # (P,) each
        picked = r[i]
        again = scoring.total(*score_pairs(picked, p[j], scoring=scoring), picked.mask)
        return with_value((weights[i, j] * again).sum(), value.detach())
    of_vectors = weighted_gradient(weights, r, p, scoring=scoring)
    processes = world_size() if batch.distributed else 1  # each has the complete gradient of these
    shares = (gradient / processes for gradient in gradients)
    found: Tensor = _WithGradients.apply(value.detach(), *of_vectors, *shares, r.values, p.values, *learned)
    return found


class _WithGradients(torch.autograd.Function):
    """A value, with known gradients, of as many inputs that come after them."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradients_and_inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients_and_inputs)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        known = len(ctx.saved_tensors) // 2
        found = [grads[0] * gradient for gradient in ctx.saved_tensors[:known]]
        return None, *[None] * known, *_Final.apply(*found, *ctx.saved_tensors[known:])


class _Final(torch.autograd.Function):
    """Gradients, which depend on as many inputs that come after them in a way that is not known."""

    @staticmethod
    def forward(ctx: Any, *gradients_and_inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in gradients_and_inputs[: len(gradients_and_inputs) // 2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(
            "the powerset loss has no second derivative in this form; form triplet with negatives hardest, and "
            "centre_scores none or detached, has"
        )
