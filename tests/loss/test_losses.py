import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from powerclip.alignment.reference import enumerate_similarity
from powerclip.loss import PowerCLIPLoss, PowersetAlignmentLoss, SPARCLoss, clip_loss, triplet_loss
from powerclip.types import Features
from tests.support.processes import run_on_processes


def triplet_by_loops(X, margin):
    C = len(X)
    total = torch.zeros((), dtype=X.dtype)
    for i in range(C):
        negatives = [X[i, j] for j in range(C) if j != i]
        if negatives:
            total = total + torch.clamp(margin + max(negatives) - X[i, i], min=0)
    return total / C


def pairs(C=5, M=4, K=3, D=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    regions = normalize(torch.randn(C, M, D, generator=g, dtype=torch.float64), dim=-1)
    phrases = normalize(torch.randn(C, K, D, generator=g, dtype=torch.float64), dim=-1)
    region_mask = torch.rand(C, M, generator=g) < 0.7
    phrase_mask = torch.rand(C, K, generator=g) < 0.7
    region_mask[:, 0] = phrase_mask[:, 0] = True
    return regions, phrases, region_mask, phrase_mask


@pytest.mark.parametrize("C", [2, 3, 7])
def test_the_triplet_loss_is_its_formula(C):
    X = torch.randn(C, C, dtype=torch.float64, generator=torch.Generator().manual_seed(C))
    torch.testing.assert_close(triplet_loss(X, margin=0.3), triplet_by_loops(X, 0.3), rtol=0, atol=1e-12)


def test_one_pair_has_no_negative_and_no_loss():
    regions, phrases, region_mask, phrase_mask = pairs(C=1)
    regions.requires_grad_()
    loss = PowersetAlignmentLoss()(regions, phrases, region_mask, phrase_mask)
    loss.backward()
    assert loss == 0
    assert (regions.grad == 0).all()


def test_ties_of_the_hardest_negative_leave_the_loss_right():
    X = torch.tensor([[1.0, 2.0, 2.0], [0.0, 1.0, 0.0], [5.0, 5.0, 5.0]])
    torch.testing.assert_close(triplet_loss(X, margin=0.5), triplet_by_loops(X, 0.5))


@pytest.mark.parametrize("negatives", ["hardest", "mean", "logsumexp"])
def test_the_triplet_loss_of_half_precision_and_of_nothing(negatives):
    X = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).half()
    assert torch.equal(
        triplet_loss(X, margin=0.2, negatives=negatives), triplet_loss(X.float(), margin=0.2, negatives=negatives)
    )
    nothing = torch.zeros(0, 0, requires_grad=True)
    loss = triplet_loss(nothing, margin=0.2, negatives=negatives)
    loss.backward()
    assert loss == 0


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ((3, 3), {"negatives": "hard"}, "negatives is 'hard'; it must be one of hardest, mean, logsumexp"),
        ((3, 3), {"margin": -0.1}, "margin is -0.1; it must be 0 or more"),
        ((3, 3), {"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        ((3, 4), {}, r"scores have shape \(3, 4\); expected \(C, C\), the pairs on the diagonal"),
    ],
)
def test_what_the_triplet_loss_does_not_take_is_named(scores, options, message):
    with pytest.raises(ValueError, match=message):
        triplet_loss(torch.zeros(scores), **{"margin": 0.2, **options})


@pytest.mark.parametrize("normalise", [False, True])
def test_the_exact_loss_is_the_paper_s_formula_forward_and_gradient(normalise):
    regions, phrases, region_mask, phrase_mask = pairs()
    results = []
    for way in ("module", "formula"):
        r, p = regions.clone().requires_grad_(), phrases.clone().requires_grad_()
        if way == "module":
            module = PowersetAlignmentLoss(margin=0.2, method="exact", normalise_by_regions=normalise)
            loss = module(r, p, region_mask, phrase_mask)
        else:
            S = enumerate_similarity(r, p, region_mask, phrase_mask).total
            if normalise:
                S = S / region_mask.sum(dim=1)[:, None]
            loss = triplet_by_loops(S, 0.2) + triplet_by_loops(S.T, 0.2)
        loss.backward()
        results.append((loss.detach(), r.grad, p.grad))
    for module_value, formula_value in zip(*results, strict=True):
        torch.testing.assert_close(module_value, formula_value, rtol=0, atol=1e-12)


def test_gradients_of_the_nla_loss_are_those_of_finite_differences():
    regions, phrases, region_mask, phrase_mask = pairs(C=3, M=3, K=2, D=3)
    module = PowersetAlignmentLoss(margin=0.5, tau=0.3)
    regions.requires_grad_(), phrases.requires_grad_()
    assert torch.autograd.gradcheck(lambda r, p: module(r, p, region_mask, phrase_mask), (regions, phrases))


def test_a_pair_that_cannot_be_scored_takes_no_part():
    regions, phrases, region_mask, phrase_mask = pairs(C=5)
    module = PowersetAlignmentLoss(margin=0.2)
    kept = torch.tensor([0, 1, 3])
    expected = module(regions[kept], phrases[kept], region_mask[kept], phrase_mask[kept])
    region_mask[2], phrase_mask[4] = False, False
    torch.testing.assert_close(module(regions, phrases, region_mask, phrase_mask), expected, rtol=0, atol=1e-12)


def test_clip_s_loss_is_its_formula():
    g = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(4, 5, generator=g, dtype=torch.float64), dim=-1) for _ in range(2))
    scale = torch.tensor(7.0, dtype=torch.float64)
    logits = scale * image @ text.T
    expected = sum(-torch.log_softmax(x, dim=1).diagonal().mean() for x in (logits, logits.T)) / 2
    torch.testing.assert_close(clip_loss(image, text, scale), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"expected both \(B, D\)"):
        clip_loss(image, text[:2], scale)


def share_of_clip_loss(process, size):
    image, text, scale = clip_batch()
    mine = slice(2 * process, 2 * process + 2 + (process == size - 1))
    i, t = image[mine].clone().requires_grad_(), text[mine].clone().requires_grad_()
    s = scale.clone().requires_grad_()
    loss = clip_loss(i, t, s)
    loss.backward()
    return loss.detach(), i.grad, t.grad, s.grad


def clip_batch(C=7):
    g = torch.Generator().manual_seed(1)
    image, text = (normalize(torch.randn(C, 5, generator=g, dtype=torch.float64), dim=-1) for _ in range(2))
    return image, text, torch.tensor(7.0, dtype=torch.float64)


@pytest.mark.parametrize("size", [2, 3])
def test_clip_s_loss_on_many_processes_is_that_of_the_whole_batch(size, tmp_path):
    C = 2 * size + 1  # the last process holds one pair more
    image, text, scale = (x.requires_grad_() for x in clip_batch())
    whole = clip_loss(image[:C], text[:C], scale)
    whole.backward()
    results = run_on_processes(size, share_of_clip_loss, tmp_path)
    for loss, *_ in results:
        torch.testing.assert_close(loss, whole.detach(), rtol=0, atol=1e-12)
    for position, parameter in ((1, image), (2, text)):
        gathered = torch.cat([result[position] for result in results])
        torch.testing.assert_close(gathered, parameter.grad[:C], rtol=0, atol=1e-12)
    torch.testing.assert_close(sum(result[3] for result in results), scale.grad, rtol=0, atol=1e-12)


def features(C=4):
    regions, phrases, region_mask, phrase_mask = pairs(C=C)
    return Features(
        image=regions[:, 0],
        text=phrases[:, 0],
        regions=regions,
        region_mask=region_mask,
        phrases=phrases,
        phrase_mask=phrase_mask,
        logit_scale=torch.tensor(10.0, dtype=torch.float64),
    )


def test_the_total_is_the_weighted_sum_of_its_terms():
    output = PowerCLIPLoss(weight=0.3, powerset=PowersetAlignmentLoss(margin=0.1))(features())
    torch.testing.assert_close(output.total, output.terms["clip"] + 0.3 * output.terms["powerset"])
    dense = dataclasses.replace(features(), patches=features().regions, tokens=features().phrases)
    dense = dataclasses.replace(dense, token_mask=features().phrase_mask)
    beside = PowerCLIPLoss(weight=0.3, powerset=PowersetAlignmentLoss(margin=0.1), base=SPARCLoss())(dense)
    expected = 0.5 * output.terms["clip"] + beside.terms["sparc"] + 0.3 * output.terms["powerset"]
    torch.testing.assert_close(beside.total, expected)
    plain = PowerCLIPLoss(weight=0)(features())
    assert set(plain.terms) == {"clip"}
    assert plain.total == output.terms["clip"]


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="margin is -1; it must be 0 or more"):
        PowersetAlignmentLoss(margin=-1)
    with pytest.raises(ValueError, match="weight is -1; it must be 0 or more"):
        PowerCLIPLoss(weight=-1)
    with pytest.raises(ValueError, match="regions hold 2 images and phrases 3 captions"):
        PowersetAlignmentLoss()(torch.zeros(2, 1, 4), torch.zeros(3, 1, 4))


def test_equal_captions_are_ignored_on_request():
    same = dataclasses.replace(features(), caption_ids=torch.zeros(4, dtype=torch.int64))
    powerset = PowersetAlignmentLoss(margin=0.1)
    assert PowerCLIPLoss(powerset=powerset)(same).terms["powerset"] > 0
    assert PowerCLIPLoss(powerset=powerset, equal_captions="ignored")(same).terms["powerset"] == 0
