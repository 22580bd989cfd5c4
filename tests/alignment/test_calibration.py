import pytest
import torch

from powerclip.alignment import similarity
from powerclip.alignment.calibration import choose_pairs, fit_zeta, measure_pairs
from powerclip.alignment.scoring import Scoring
from tests.support.problems import masked, problem


@pytest.mark.parametrize("tau", [0.0, 1e-3, 0.02])
def test_a_calibrated_t2_is_unbiased_on_the_fitted_pairs(tau):
    regions, phrases, region_mask, phrase_mask = problem(40, 40, 8, 6, D=32)
    region_mask[3] = False
    exact = similarity(regions, phrases, region_mask, phrase_mask, method="exact").r2t.diagonal()
    pairs = measure_pairs(*masked((regions, phrases, region_mask, phrase_mask)), scoring=Scoring(tau=tau))
    torch.testing.assert_close(pairs.exact, exact, rtol=1e-12, atol=1e-12)
    zeta = fit_zeta(pairs, tau=tau)
    assert 0 < zeta < 1
    fitted = similarity(regions, phrases, region_mask, phrase_mask, tau=tau, zeta=float(zeta)).r2t.diagonal()
    # zeta is known to 4 / 2^30, and dT2 / dzeta <= sum |s| / 2 <= 8
    torch.testing.assert_close(fitted.mean(), exact.mean(), rtol=0, atol=8 * 4 / 2**30)


def test_calibrated_similarity_is_far_less_biased_than_a_fixed_zeta():
    inputs = problem(60, 50, 10, 8, D=64)
    exact = similarity(*inputs, method="exact").r2t
    bias = {zeta: (similarity(*inputs, zeta=zeta).r2t - exact).mean().abs() for zeta in (0.75, "calibrated")}
    # fitted on 256 of the 3000 pairs, so not to rounding
    assert bias["calibrated"] < 0.1 * bias[0.75]


def test_more_regions_than_can_be_enumerated_are_sampled():
    inputs = problem(20, 20, 20, 4, D=32)
    found = similarity(*inputs, zeta="calibrated")
    sampled = similarity(*inputs, method="sampled", samples=4096, generator=torch.Generator().manual_seed(1))
    fixed = similarity(*inputs)
    assert (found.r2t - sampled.r2t).mean().abs() < 0.1 * (fixed.r2t - sampled.r2t).mean().abs()


def test_pairs_are_a_function_of_the_step_and_cover_the_batch():
    image, caption = choose_pairs(64, 64, shift=3)
    again = choose_pairs(64, 64, shift=3)
    assert torch.equal(image, again[0])
    assert torch.equal(caption, again[1])
    assert image.bincount(minlength=64).tolist() == [4] * 64
    assert len({*zip(image.tolist(), caption.tolist(), strict=True)}) > 240  # of 256
    assert not torch.equal(caption, choose_pairs(64, 64, shift=4)[1])
    for images, captions in ((1, 1), (5, 3), (1000, 1000)):
        image, caption = choose_pairs(images, captions, shift=7)
        assert image.max() < images
        assert caption.max() < captions


def test_no_pair_to_fit_is_no_number():
    regions, phrases, region_mask, phrase_mask = problem(3, 3, 4, 3)
    region_mask[:] = False
    pairs = measure_pairs(*masked((regions, phrases, region_mask, phrase_mask)), scoring=Scoring(tile_bytes=2**20))
    assert fit_zeta(pairs, tau=1e-3).isnan()
    assert (similarity(regions, phrases, region_mask, phrase_mask, zeta="calibrated").total == 0).all()
