"""The triplet loss with the hardest negatives, which are searched for without the matrix of scores.

A pass without gradient finds the hardest negatives tile by tile; at most 3 C pairs are then scored again with gradient.
The result is that of the dense computation. Of n captions of an image, each makes a pair with it.

Of several processes each searches with its B images and the phrases of one process after the other, whose blocks go
round in a ring. It then scores, with gradient, its own B pairs, its images with their hardest captions and its captions
with their hardest images; what it lacks it fetches, and sends the gradient back. So it holds a few times its share of
the vectors, also where all have the same hardest negative.
"""

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.kernel import hardest_negatives
from powerclip.alignment.scoring import Scoring
from powerclip.distributed import max_over_processes, with_value
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.measures import hub_share
from powerclip.loss.objectives import Objective


def search_loss(
    batch: GlobalBatch,
    *,
    objective: Objective,
    scoring: Scoring,
    measures: dict[str, Tensor] | None,
) -> Tensor:
    """() l(S) + l(S^T), of an objective that is ``by_search``; its gradient comes from this process's pairs.

    ``measures``, if given, receives the shares of active hinges and of hubs.
    """
    caption, caption_score, image, image_score = _search(batch, scoring=scoring)
    own, r, p = batch.own_captions, batch.regions, batch.phrases
    # Both requests come before both answers: the second then waits for nothing that the first has not waited for.
    captions, images = batch.request_captions(caption), batch.request_images(image[own])
    # With gradient. All s go through one call: it has many small operations.
    sides = ((batch.by_pair(r), p), (r, batch.fetch_phrases(captions)), (batch.fetch_regions(images), p))
    s_PMK = torch.cat([torch.bmm(r.values, p.values.transpose(1, 2)) for r, p in sides])
    region_mask, phrase_mask = (torch.cat([vectors.mask for vectors in side]) for side in zip(*sides, strict=True))
    scores = scoring.total(*scoring.score(s_PMK, region_mask, phrase_mask), region_mask)
    positive, caption_negative, image_negative = torch.split(scores, [len(p), len(r), len(p)])  # (B n,), (B,), (B n,)
    caption_negative = batch.by_pair(caption_negative)

    margin = objective.margin
    assert margin is not None
    valid, pairs = batch.valid[own], batch.valid.sum().clamp(min=1)
    has_caption, has_image = batch.by_pair(caption_score > ABSENT), image_score > ABSENT  # (B n,), (C n,)
    by_caption = (margin + caption_negative - positive).relu() * (valid & has_caption)  # (B n,)
    by_image = (margin + image_negative - positive).relu() * (valid & has_image[own])  # (B n,)
    if measures is not None:
        active = torch.stack([(hinge > 0).sum() for hinge in (by_caption, by_image)])
        measures["active_share_i2t"], measures["active_share_t2i"] = batch.total(active) / pairs
        measures["hub_share_i2t"] = hub_share(batch.all_rows(batch.by_pair(caption)), batch.all_rows(has_caption))
        measures["hub_share_t2i"] = hub_share(image, has_image)
    share = (by_caption + by_image).sum() / pairs
    return with_value(share, batch.total(share))


def _search(batch: GlobalBatch, *, scoring: Scoring) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B,) each: the hardest captions of this process's images and their scores;
    (C n,) each: the images of all captions.

    Indices are of all processes' captions and images; the lowest of equals.
    Without a negative they are 0 and the score is ``ABSENT``.
    """
    parts = []
    for captions, phrases in batch.phrase_blocks():
        found = hardest_negatives(
            batch.regions,
            phrases,
            candidates=batch.candidates(captions),
            scoring=scoring,
        )
        parts.append((captions.start, found))
    if not batch.distributed:
        return found.caption, found.caption_score, found.image, found.image_score
    parts.sort(key=lambda part: part[0])
    caption_score, block = torch.stack([found.caption_score for _, found in parts]).max(dim=0)  # (B,) each
    caption = torch.stack([start + found.caption for start, found in parts]).gather(0, block[None])[0]
    image_score = torch.cat([found.image_score for _, found in parts])  # (C n,) of this process's images
    image = torch.cat([found.image for _, found in parts]) + batch.start
    highest, none = max_over_processes(image_score), torch.iinfo(torch.int64).max
    lowest = -max_over_processes(-torch.where((image_score == highest) & (highest > ABSENT), image, none))
    return caption, caption_score, lowest.where(highest > ABSENT, 0), highest
