"""The triplet loss with the hardest negatives, which are searched for without the matrix of scores.

A pass without gradient finds the hardest negatives tile by tile; at most 3 C pairs are then scored again with gradient.
The result is that of the dense computation.
"""

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.kernel import hardest_negatives
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.tiled import score_pairs
from powerclip.config import Backend
from powerclip.distributed import max_over_processes, sum_over_processes, with_value
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.measures import hub_share
from powerclip.loss.objectives import Objective


def search_loss(
    batch: GlobalBatch,
    *,
    objective: Objective,
    scoring: Scoring,
    tile_bytes: int,
    backend: Backend,
    measures: dict[str, Tensor] | None,
) -> Tensor:
    """() l(S) + l(S^T), of an objective that is ``by_search``; its gradient comes from this process's images.

    ``measures``, if given, receives the shares of active hinges and of hubs.
    """

    def score(images: Tensor, captions: Tensor) -> Tensor:
        r, p = batch.regions[images], batch.phrases[captions]
        return scoring.total(*score_pairs(r, p, scoring=scoring, tile_bytes=tile_bytes), r.mask)

    # First pass, without gradient: this process's B images against the C captions of all processes.
    found = hardest_negatives(
        batch.regions,
        batch.phrases,
        candidates=batch.candidates(),
        scoring=scoring,
        tile_bytes=tile_bytes,
        backend=backend,
    )
    B, C = len(batch.regions), len(batch.phrases)
    local = torch.arange(B, device=batch.device)
    own = local + batch.start  # (B,) the captions of these images
    image = found.image + batch.start
    image, has_image = _hardest_images(image, found.image_score, distributed=batch.distributed)  # (C,) each
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
    if batch.distributed:
        known = sum_over_processes(known)
    margin = objective.margin
    assert margin is not None
    caption_violation = (margin + known[1] - known[0]) * known[3]  # (C,)
    image_violation = (margin + known[2] - known[0]) * has_image  # (C,)
    pairs = batch.valid.sum().clamp(min=1)
    value = ((caption_violation.relu() + image_violation.relu()) * batch.valid).sum() / pairs

    # Each positive hinge is linear in its two scores: this process's terms of the sum.
    by_caption = ((caption_violation > 0) & batch.valid).to(known.dtype)  # (C,)
    by_image = ((image_violation > 0) & batch.valid).to(known.dtype)  # (C,)
    if measures is not None:
        caption = batch.all_rows(found.caption)  # (C,)
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


def _hardest_images(image: Tensor, score: Tensor, *, distributed: bool) -> tuple[Tensor, Tensor]:
    """(C,) the hardest image of every caption over all processes (the first of equals), (C,) whether there is one."""
    if not distributed:
        return image, score > ABSENT
    highest = max_over_processes(score)
    none = torch.iinfo(torch.int64).max
    lowest = -max_over_processes(-torch.where(score == highest, image, none))
    return lowest, highest > ABSENT
