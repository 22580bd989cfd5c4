from dataclasses import replace

import pytest
import torch

from powerclip.alignment import similarity
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.tiled import score_rows, weighted_gradient
from tests.support.problems import masked, problem

TILE_SIZES = [1024, 2**14, 2**22]


def plain(inputs, scoring):
    """Both scores from s of all pairs at once."""
    regions, phrases, region_mask, phrase_mask = inputs
    s = torch.einsum("imd,jkd->ijmk", regions, phrases)
    return scoring.score(s, region_mask[:, None], phrase_mask[None])


def in_tiles(inputs, scoring, tile_bytes):
    rows = [
        (t2r.clone(), r2t.clone())
        for _, t2r, r2t in score_rows(*masked(inputs), scoring=replace(scoring, tile_bytes=tile_bytes))
    ]
    return tuple(torch.cat(values) for values in zip(*rows, strict=True))


SCORINGS = {
    "nla": Scoring(tau=0.1),
    "nla at small tau": Scoring(tau=1e-3, zeta=0.3),
    "hard limit": Scoring(tau=0.0),
    "other activations": Scoring(tau=0.1, t1_activation="gelu", t2_activation="erf"),
    "single regions": Scoring(subsets="single"),
    "exact": Scoring(method="exact"),
}


@pytest.mark.parametrize("tile_bytes", TILE_SIZES)
@pytest.mark.parametrize("name", SCORINGS)
def test_tiles_give_the_scores_of_the_whole(name, tile_bytes):
    inputs = problem(9, 7, 5, 6)
    inputs[2][3] = False  # an image without regions, a caption without phrases
    inputs[3][4] = False
    for mine, expected in zip(in_tiles(inputs, SCORINGS[name], tile_bytes), plain(inputs, SCORINGS[name]), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_more_regions_than_one_product_can_hold():
    inputs = problem(2, 3, 230, 4, D=300)
    regions, phrases = inputs[0].float() * 1e-5, inputs[1].float()  # |s| << tau: every factor is nearly 2
    scoring = Scoring(tau=0.1)
    for mine, expected in zip(
        in_tiles((regions, phrases, *inputs[2:]), scoring, 2**22),
        plain((regions.double(), phrases.double(), *inputs[2:]), scoring),
        strict=True,
    ):
        assert torch.isfinite(mine).all()
        # T1 is about 230 tau log 2 = 16; 230 roundings of 2^-24 in the product, one of the sum's in units of its size
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=0.1 * 230 * 2**-23 + 16 * 2**-22)


def test_zeta_may_be_a_tensor():
    inputs = problem(3, 4, 5, 6)
    found = in_tiles(inputs, Scoring(tau=0.1, fitted_zeta=torch.tensor(0.3, dtype=torch.float64)), 2**14)[1]
    assert torch.equal(found, in_tiles(inputs, Scoring(tau=0.1, zeta=0.3), 2**14)[1])


@pytest.mark.parametrize("tile_bytes", TILE_SIZES)
@pytest.mark.parametrize("method", ["nla", "exact", "sampled"])
def test_gradients_through_tiles_are_those_of_the_whole(method, tile_bytes):
    inputs = problem(5, 4, 4, 3)
    sample = torch.rand(64, 4, generator=torch.Generator().manual_seed(5)) < 0.5
    sample = torch.cat([sample, ~sample])
    scoring = Scoring(method=method, tau=0.1, sample=sample if method == "sampled" else None)
    gradients = []
    for way in ("whole", "tiles"):
        r, p = (x.clone().requires_grad_() for x in inputs[:2])
        if way == "whole":
            t2r, r2t = plain((r, p, *inputs[2:]), scoring)
        else:
            generator = torch.Generator().manual_seed(5)
            found = similarity(
                r, p, *inputs[2:], method=method, tau=0.1, tile_bytes=tile_bytes, generator=generator, samples=128
            )
            t2r, r2t = found.t2r, found.r2t
        (t2r.square() + r2t.sin()).sum().backward()
        gradients.append((r.grad, p.grad))
    for whole, tiles in zip(*gradients, strict=True):
        torch.testing.assert_close(tiles, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["nla", "exact", "sampled"])
@pytest.mark.parametrize("subsets", ["all", "single"])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    ("I", "J", "M", "K"), [(0, 0, 2, 3), (0, 9, 2, 3), (9, 0, 2, 3), (9, 8, 0, 3), (9, 8, 2, 0), (9, 8, 0, 0)]
)
def test_nothing_to_score_is_an_empty_matrix_or_one_of_zeros(I, J, M, K, method, subsets, grad):
    regions, phrases = torch.ones(I, M, 4, requires_grad=grad), torch.ones(J, K, 4, requires_grad=grad)
    for zeta in (0.75, "calibrated"):
        found = similarity(regions, phrases, method=method, subsets=subsets, zeta=zeta, tile_bytes=1024)
        assert found.total.shape == (I, J)
        assert not found.total.any()
        if grad:
            found.total.sum().backward()
    if method == "sampled" and subsets == "all":
        assert found.r2t_standard_error.shape == (I, J)
        assert not found.r2t_standard_error.any()


WEIGHTED = {
    **{
        f"single regions, {direction}": Scoring(subsets="single", direction=direction)
        for direction in ("both", "t2r", "r2t")
    },
    "nla": Scoring(tau=0.1, normalise_by_regions=True),
}


@pytest.mark.parametrize("tile_bytes", TILE_SIZES)
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_gradient_of_weighted_scores_is_that_of_autograd(name, tile_bytes):
    scoring = WEIGHTED[name]
    inputs = problem(9, 7, 5, 6)
    inputs[0][1, 2] = inputs[0][1, 4]  # equal regions and equal phrases, as boxes on a small grid often are
    inputs[1][2, :3] = inputs[1][2, 0]
    inputs[2][1], inputs[3][2] = True, True
    inputs[2][3], inputs[3][4] = False, False  # an image without regions, a caption without phrases
    weights = torch.randn(9, 7, dtype=torch.float64)
    r, p = (x.clone().requires_grad_() for x in inputs[:2])
    total = scoring.total(*plain((r, p, *inputs[2:]), scoring), inputs[2])
    expected = torch.autograd.grad((weights * total).sum(), (r, p))
    found = weighted_gradient(weights, *masked(inputs), scoring=replace(scoring, tile_bytes=tile_bytes))
    for mine, whole, present in zip(found, expected, inputs[2:], strict=True):
        torch.testing.assert_close(mine[present], whole[present], rtol=1e-10, atol=1e-12)
        assert not whole[~present].any()
        assert not mine[~present].any()
