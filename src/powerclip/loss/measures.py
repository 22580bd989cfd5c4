"""What shows in the logs whether powerset alignment works; docs/training.md says how to read it."""

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.scoring import Scoring
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.objectives import Pairs

PAIRS = 256
"""Number of images whose similarities are looked at, each with its own caption and with one other."""

HUBS = 5
"""Number of commonest hardest negatives."""


@torch.no_grad()
def measure_similarities(batch: GlobalBatch, *, scoring: Scoring) -> dict[str, Tensor]:
    """Where the zero is among the similarities s of regions and phrases, and how far apart the scores S are.

    Up to ``PAIRS`` images, evenly spread over the C of the batch of all processes, are compared with their own captions
    (matched) and with one other each (unmatched); the same ones in every step, so that curves are smooth. A caption of
    an id that the image's own has is not unmatched. Of several captions of an image, this is about the first.

    Returns:
        "matched_above_zero_share" and "unmatched_above_zero_share", the share of s > 0 of the pairs of each kind, and
        "score_gap", mean matched less mean unmatched S: each (), NaN without such pairs, equal on all processes.
    """
    C, ids = len(batch), batch.ids
    number = torch.arange(min(PAIRS, C))
    image = number * C // max(1, len(number))
    # Steps of the golden ratio reach every distance to another caption equally often.
    other = (image + 1 + ((number.double() * 0.6180339887498949) % 1.0 * (C - 1)).long()) % max(1, C)
    here = (image >= batch.own.start) & (image < batch.own.stop)
    images = image[here].repeat(2).to(batch.device)  # matched, then unmatched: (2 P,) each
    captions = torch.cat([image[here], other[here]]).to(batch.device) * batch.n
    r, p = batch.regions[images - batch.start], batch.fetch_phrases(batch.request_captions(captions))
    s_PMK = torch.bmm(r.values, p.values.transpose(1, 2))
    total = scoring.total(*scoring.score(s_PMK, r.mask, p.mask), r.mask)  # (2 P,)
    matched = torch.arange(len(images), device=batch.device) < len(images) // 2
    differ = matched | (ids[images * batch.n] != ids[captions])
    scored = batch.image_valid[images] & batch.valid[captions] & differ  # (2 P,)
    present_PMK = r.mask[:, :, None] & p.mask[:, None] & scored[:, None, None]
    counts = ((s_PMK > 0) & present_PMK).sum((1, 2)), present_PMK.sum((1, 2)), total * scored, scored
    both = torch.stack([x.to(total.dtype) for x in counts], dim=-1).view(2, -1, 4).sum(dim=1)  # (2, 4)
    above, of, score, pairs = batch.total(both).unbind(dim=1)
    share, mean = above / of, score / pairs  # (2,) each
    return {
        "matched_above_zero_share": share[0],
        "unmatched_above_zero_share": share[1],
        "score_gap": mean[0] - mean[1],
    }


@torch.no_grad()
def measure_scores(scores: Tensor, pairs: Pairs, *, margin: float | Tensor | None) -> dict[str, Tensor]:
    """What all scores (C, C n) of the batch show, those that are compared: in either direction, each ().

    "active_share_i2t" is the share of the images whose hardest caption comes within the margin of their
    own, and "hub_share_i2t" that of ``hub_share``; "..._t2i" are those of the captions. Without a margin
    there is no active share.
    """
    found = {}
    of_images = pairs.by_pair(scores), pairs.by_pair(pairs.negative)
    for name, x, negative in (("i2t", *of_images), ("t2i", scores.T, pairs.negative.T)):
        hardest, exists = x.masked_fill(~negative, ABSENT).max(dim=1), negative.any(dim=1)
        if margin is not None:
            active = (margin + hardest.values - pairs.of(scores) > 0) & exists
            found[f"active_share_{name}"] = active.sum() / pairs.valid.sum().clamp(min=1)
        found[f"hub_share_{name}"] = hub_share(hardest.indices, exists)
    return found


def hub_share(hardest: Tensor, exists: Tensor) -> Tensor:
    """() share of the rows whose hardest negative is one of the ``HUBS`` commonest; NaN without rows.

    ``hardest`` (C,) int64 are the indices, of C, of each row's hardest negative; those that are False in ``exists``
    (C,) bool have none.
    """
    times = torch.zeros(len(hardest), device=hardest.device).index_add_(0, hardest, exists.float())
    return times.topk(min(HUBS, len(times))).values.sum() / exists.sum()
