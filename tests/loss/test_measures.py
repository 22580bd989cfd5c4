"""What the loss reports of a batch, against counting by loops."""

from collections import Counter

import pytest
import torch

from powerclip.alignment import similarity
from powerclip.alignment.scoring import Scoring
from powerclip.loss import PowersetAlignmentLoss
from powerclip.loss.batch import GlobalBatch
from powerclip.loss.measures import PAIRS, hub_share, measure_similarities
from tests.support.problems import masked, problem
from tests.support.processes import run_on_processes

SCORING = Scoring(tau=0.1, normalise_by_regions=True)


def measured(inputs, *, ids=None):
    batch = GlobalBatch.gather(*masked(inputs), ids, distributed=False)
    return measure_similarities(batch, scoring=SCORING)


def share_above_zero(inputs, pairs):
    regions, phrases, region_mask, phrase_mask = inputs
    signs = [
        float(regions[i, m] @ phrases[j, k]) > 0
        for i, j in pairs
        for m in range(regions.shape[1])
        for k in range(phrases.shape[1])
        if region_mask[i, m] and phrase_mask[j, k]
    ]
    return sum(signs) / len(signs)


def batch(C=5, seed=0):
    """Phrases near their images' regions, and two pairs that cannot be scored (C > 3)."""
    regions, phrases, region_mask, phrase_mask = problem(C, C, 4, 3, seed=seed)
    phrases = phrases + regions.mean(dim=1, keepdim=True)
    if C > 3:
        region_mask[1], phrase_mask[3] = False, False
    return regions, phrases, region_mask, phrase_mask


def test_matched_similarities_are_counted_one_by_one():
    inputs = batch()
    share = measured(inputs)["matched_above_zero_share"]
    assert share.item() == pytest.approx(share_above_zero(inputs, [(0, 0), (2, 2), (4, 4)]))


def test_two_pairs_are_each_other_s_negatives():
    inputs = problem(2, 2, 4, 3, masked=False)
    found = measured(inputs)
    assert found["unmatched_above_zero_share"].item() == pytest.approx(share_above_zero(inputs, [(0, 1), (1, 0)]))
    S = similarity(*inputs, tau=0.1).total / 4
    assert found["score_gap"].item() == pytest.approx(float(S.trace() - S[0, 1] - S[1, 0]) / 2)


@pytest.mark.parametrize("C", [6, 40, 600])
def test_the_sample_stands_for_all_pairs(C):
    inputs = batch(C=C)
    found = measured(inputs)
    regions, phrases, region_mask, phrase_mask = inputs
    valid = region_mask.any(dim=1) & phrase_mask.any(dim=1)
    S = similarity(*inputs, tau=0.1).total / region_mask.sum(dim=1).clamp(min=1)[:, None]
    other = valid[:, None] & valid & ~torch.eye(C, dtype=torch.bool)
    # The spread of the mean of the sample, of images without replacement.
    tolerance = 4 * S[other].std() / min(PAIRS, C) ** 0.5
    assert found["score_gap"].item() == pytest.approx(
        float(S.diagonal()[valid].mean() - S[other].mean()), abs=float(tolerance)
    )
    above = torch.einsum("imd,jkd->ijmk", regions, phrases) > 0
    present = other[..., None, None] & region_mask[:, None, :, None] & phrase_mask[None, :, None, :]
    share = float((above & present).sum() / present.sum())
    assert found["unmatched_above_zero_share"].item() == pytest.approx(share, abs=2 / min(PAIRS, C) ** 0.5)
    assert found["matched_above_zero_share"] > found["unmatched_above_zero_share"]


def share_of_seven(process, size):
    rows = (slice(0, 3), slice(3, 7))[process]
    batch_of_all = GlobalBatch.gather(*(x[rows] for x in masked(batch(C=7))), None, distributed=True)
    return measure_similarities(batch_of_all, scoring=SCORING)


def test_parts_of_the_images_add_up_to_all(tmp_path):
    whole = measured(batch(C=7))
    for found in run_on_processes(2, share_of_seven, tmp_path):
        torch.testing.assert_close(found, whole)


def test_equal_captions_are_not_unmatched():
    found = measured(batch(C=4), ids=torch.zeros(4, dtype=torch.int64))
    assert found["unmatched_above_zero_share"].isnan()
    assert found["score_gap"].isnan()
    assert 0 <= found["matched_above_zero_share"] <= 1


@pytest.mark.parametrize("C", [0, 1])
def test_without_another_caption_nothing_is_unmatched(C):
    found = measured(problem(C, C, 4, 3))
    assert found["unmatched_above_zero_share"].isnan()
    assert found["matched_above_zero_share"].isnan() == (C == 0)


def test_hubs_are_the_five_commonest():
    hardest = torch.tensor([7, 7, 7, 1, 1, 2, 3, 4, 5, 6, 0, 0])
    exists = torch.tensor([True] * 10 + [False] * 2)
    times = sorted(Counter(hardest[exists].tolist()).values())
    assert hub_share(hardest, exists) == sum(times[-5:]) / 10 == 0.8
    assert hub_share(torch.tensor([1, 0]), torch.tensor([True, True])) == 1
    assert hub_share(hardest, torch.zeros(12, dtype=torch.bool)).isnan()


@pytest.mark.parametrize("margin", [0.05, 0.3])
def test_active_hinges_and_hubs_are_those_of_the_matrix(margin):
    inputs = batch(C=9)
    module, found = PowersetAlignmentLoss(margin=margin, tau=0.1, normalise_by_regions=True), {}
    loss = module(*inputs, measures=found)
    assert loss == PowersetAlignmentLoss(margin=margin, tau=0.1, normalise_by_regions=True)(*inputs)
    regions, _, region_mask, phrase_mask = inputs
    S = (similarity(*inputs, tau=0.1).total / region_mask.sum(dim=1).clamp(min=1)[:, None]).tolist()
    valid = [i for i in range(9) if region_mask[i].any() and phrase_mask[i].any()]
    for name, score in (("i2t", lambda i, j: S[i][j]), ("t2i", lambda i, j: S[j][i])):
        hardest = {i: max((j for j in valid if j != i), key=lambda j, i=i: score(i, j)) for i in valid}
        active = [margin + score(i, j) - score(i, i) > 0 for i, j in hardest.items()]
        assert found[f"active_share_{name}"].item() == pytest.approx(sum(active) / len(valid))
        times = Counter(hardest.values()).most_common(5)
        assert found[f"hub_share_{name}"].item() == pytest.approx(sum(count for _, count in times) / len(valid))
    assert set(found) == {
        *(f"{what}_share_{way}" for what in ("active", "hub") for way in ("i2t", "t2i")),
        "matched_above_zero_share",
        "unmatched_above_zero_share",
        "score_gap",
    }
