"""The baselines' losses against nested loops that follow their papers, forward and gradient, in float64."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from powerclip.loss import FILIPLoss, SigLIPLoss, SPARCLoss, clip_loss, filip, filip_loss, siglip_loss, sparc_loss
from powerclip.types import Features
from tests.support.processes import run_on_processes

EXACT = {"rtol": 0, "atol": 1e-12}


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a):
    return dot(a, a).sqrt()


def unit(a):
    return [x / length(a) for x in a]


def log_softmax(scores, own):
    return scores[own] - torch.stack(scores).logsumexp(dim=0)


def looped_siglip(image, text, scale, bias):
    B, total = len(image), 0
    for i in range(B):
        for j in range(B):
            z = 1 if i == j else -1
            total = total - torch.log(1 / (1 + torch.exp(z * (-scale * dot(image[i], text[j]) - bias))))
    return total / B


def looped_filip(patches, tokens, mask, scale):
    B = len(patches)
    total = 0
    for k in range(B):
        to_texts, to_images = [], []
        for j in range(B):
            words = [unit(t) for t, present in zip(tokens[j], mask[j], strict=True) if present]
            best = [max(dot(unit(p), w) for w in words) for p in patches[k]]
            to_texts.append(scale * sum(best) / len(best))
            words = [unit(t) for t, present in zip(tokens[k], mask[k], strict=True) if present]
            best = [max(dot(w, unit(p)) for p in patches[j]) for w in words]
            to_images.append(scale * sum(best) / len(best))
        total = total - log_softmax(to_texts, k) / B - log_softmax(to_images, k) / B
    return total / 2


def looped_sparc(patches, tokens, mask, scale):
    B, N = len(patches), len(patches[0])
    total = 0
    for b in range(B):
        words = [t for t, present in zip(tokens[b], mask[b], strict=True) if present]
        grouped = []
        for word in words:
            s = [dot(word, p) for p in patches[b]]
            scaled = [(x - min(s)) / (max(s) - min(s)) for x in s]
            sparse = [x if x >= 1 / N else 0 * x for x in scaled]
            weights = [x / sum(sparse) for x in sparse]
            D = len(word)
            grouped.append(unit([sum(w * p[d] for w, p in zip(weights, patches[b], strict=True)) for d in range(D)]))
        L = len(words)
        for j in range(L):
            c_to_t = [scale * dot(grouped[j], unit(words[k])) for k in range(L)]
            t_to_c = [scale * dot(unit(words[j]), grouped[k]) for k in range(L)]
            total = total - (log_softmax(c_to_t, j) + log_softmax(t_to_c, j)) / L
    return total / (2 * B)


def batch(B=4, N=5, T=6, D=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    patches = torch.randn(B, N, D, generator=g, dtype=torch.float64)
    tokens = torch.randn(B, T, D, generator=g, dtype=torch.float64)
    lengths = torch.randint(1, T + 1, (B,), generator=g)
    lengths[0] = T
    return patches, tokens, torch.arange(T) < lengths[:, None], torch.tensor(3.0, dtype=torch.float64)


def gradients(loss, inputs):
    inputs = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    value = loss(*inputs)
    value.backward()
    return [value.detach(), *(x.grad for x in inputs if x.is_floating_point())]


def agree(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def globals_of(B=4):
    patches, tokens, _, scale = batch(B=B)
    return normalize(patches.mean(1), dim=-1), normalize(tokens.mean(1), dim=-1), scale, torch.tensor(-1.5).double()


@pytest.mark.parametrize("B", [1, 4])
def test_siglip_is_its_paper_s_formula(B):
    agree(gradients(siglip_loss, globals_of(B)), gradients(looped_siglip, globals_of(B)), **EXACT)


@pytest.mark.parametrize("tile", [1, 10**6])
@pytest.mark.parametrize("seed", [0, 1])
def test_filip_is_its_paper_s_formula_at_any_tile(tile, seed, monkeypatch):
    monkeypatch.setattr(filip, "TILE_ELEMENTS", tile)
    agree(gradients(filip_loss, batch(seed=seed)), gradients(looped_filip, batch(seed=seed)), **EXACT)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sparc_is_its_paper_s_formula(seed):
    agree(gradients(sparc_loss, batch(seed=seed)), gradients(looped_sparc, batch(seed=seed)), **EXACT)


@pytest.mark.parametrize("padding", [7.0, math.nan, math.inf])
@pytest.mark.parametrize("loss", [filip_loss, sparc_loss])
def test_padding_takes_no_part(loss, padding):
    patches, tokens, mask, scale = batch()
    other = torch.where(mask[..., None], tokens, torch.full_like(tokens, padding))
    assert not torch.equal(other, tokens)
    agree(
        gradients(loss, (patches, other, mask, scale))[:2], gradients(loss, (patches, tokens, mask, scale))[:2], **EXACT
    )


@pytest.mark.parametrize("loss", [filip_loss, sparc_loss])
def test_a_mask_of_other_tokens_is_refused(loss):
    patches, tokens, mask, scale = batch()
    with pytest.raises(ValueError, match=r"token_mask has shape \(1, 6\); expected \(4, 6\)"):
        loss(patches, tokens, mask[:1], scale)


def test_sparc_of_patches_that_are_all_alike_is_finite():
    patches, tokens, mask, scale = batch()
    for value in gradients(sparc_loss, (patches[:, :1].expand(-1, 5, -1), tokens, mask, scale)):
        assert torch.isfinite(value).all()


def share_of(process, size, loss, inputs):
    mine = slice(2 * process, 2 * process + 2 + (process == size - 1))
    return gradients(loss, [x[mine] if x.ndim else x for x in inputs])


@pytest.mark.parametrize("loss", [siglip_loss, filip_loss, sparc_loss])
@pytest.mark.parametrize("B", [5, 2])  # of two pairs, the second process has none
def test_on_two_processes_each_loss_is_that_of_the_whole_batch(loss, B, tmp_path):
    inputs = globals_of(B) if loss is siglip_loss else batch(B=B)
    expected = gradients(loss, inputs)
    results = run_on_processes(2, share_of, tmp_path, loss, inputs)
    rows = [x.ndim > 0 for x in inputs if x.is_floating_point()]
    found = [
        torch.cat(parts) if spread else sum(parts)
        for spread, *parts in zip(rows, *(r[1:] for r in results), strict=True)
    ]
    agree([results[0][0], *found], expected, **EXACT)
    assert results[0][0] == results[1][0]


def features(**more) -> Features:
    patches, tokens, mask, scale = batch()
    image, text, *_ = globals_of()
    none: Tensor = torch.zeros(4, 0, 3)
    return Features(
        image=image, text=text, regions=none, region_mask=none[..., 0] > 0, phrases=none, phrase_mask=none[..., 0] > 0,
        logit_scale=scale, **more,
    )  # fmt: skip


def test_modules_name_their_terms_and_say_what_is_missing():
    patches, tokens, mask, scale = batch()
    dense = features(patches=patches, tokens=tokens, token_mask=mask, logit_bias=torch.tensor(-1.5).double())
    assert SigLIPLoss()(dense).terms["siglip"] == siglip_loss(*globals_of())
    assert FILIPLoss()(dense).total == filip_loss(patches, tokens, mask, scale)
    found = SPARCLoss(global_weight=0.3, local_weight=2.0)(dense)
    clip, local = clip_loss(dense.image, dense.text, scale), sparc_loss(patches, tokens, mask, scale)
    torch.testing.assert_close(found.total, 0.3 * clip + 2 * local, **EXACT)
    assert set(found.terms) == {"clip", "sparc"}
    with pytest.raises(ValueError, match="have no logit_bias"):
        SigLIPLoss()(features())
    for loss in (FILIPLoss(), SPARCLoss()):
        with pytest.raises(ValueError, match="lack patches, tokens or token_mask"):
            loss(features())
    with pytest.raises(ValueError, match="local_weight is -1; it must be 0 or more"):
        SPARCLoss(local_weight=-1)
    with pytest.raises(ValueError, match=r"expected both \(B, D\)"):
        siglip_loss(dense.image, dense.text[:2], scale, scale)


def test_siglip_starts_where_its_paper_does():
    """At t = 10 and b = -10, unrelated pairs are almost surely called negatives (section 3.2)."""
    from powerclip.loss.siglip import INIT_LOGIT_BIAS, INIT_LOGIT_SCALE

    assert math.exp(INIT_LOGIT_SCALE) == pytest.approx(10)
    assert INIT_LOGIT_BIAS == -10
