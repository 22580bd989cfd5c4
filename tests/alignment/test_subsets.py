import pytest
import torch

from powerclip.alignment import similarity
from powerclip.alignment.reference import all_subsets, enumerate_similarity
from powerclip.alignment.subsets import draw_subsets, score_over_subsets
from tests.support.problems import problem


@pytest.mark.parametrize("tile_bytes", [1024, 2**22])
def test_exact_is_the_reference_forward_and_gradient(tile_bytes):
    inputs = problem(3, 4, 6, 5)
    results = []
    for way in ("reference", "fast"):
        r, p = (x.clone().requires_grad_() for x in inputs[:2])
        if way == "reference":
            found = enumerate_similarity(r, p, *inputs[2:])
        else:
            found = similarity(r, p, *inputs[2:], method="exact", tile_bytes=tile_bytes)
        (found.t2r.square() + found.r2t.sin()).sum().backward()
        results.append((found.t2r.detach(), found.r2t.detach(), r.grad, p.grad))
    for reference, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [8, 9])
def test_subsets_come_in_complementary_pairs(count):
    subsets = draw_subsets(count, 7)
    assert subsets.shape == (2 * ((count + 1) // 2), 7)
    half = len(subsets) // 2
    assert torch.equal(subsets[:half], ~subsets[half:])


def test_sampling_is_unbiased_and_its_standard_error_honest():
    inputs = problem(2, 3, 8, 5)
    exact = similarity(*inputs, method="exact")
    repeats = 400
    found = [
        similarity(*inputs, method="sampled", samples=64, generator=torch.Generator().manual_seed(seed))
        for seed in range(repeats)
    ]
    values = torch.stack([x.r2t for x in found])
    spread = values.std(dim=0)
    # the mean of 400 has a standard error of spread / 20; 4.5 of them is one chance in 10^5 a value
    assert ((values.mean(dim=0) - exact.r2t).abs() <= 4.5 * spread / repeats**0.5).all()
    stated = torch.stack([x.r2t_standard_error for x in found]).square().mean(dim=0).sqrt()
    # a standard deviation from 400 draws is known to about 1 / sqrt(800) = 3.5 %; and so is the stated one
    torch.testing.assert_close(stated, spread, rtol=0.2, atol=0)
    torch.testing.assert_close(found[0].t2r, exact.t2r, rtol=1e-12, atol=1e-12)
    assert exact.r2t_standard_error is None


def test_complements_beat_independent_subsets():
    inputs = problem(2, 3, 8, 5, masked=False)
    s = torch.einsum("imd,jkd->ijmk", *inputs[:2])
    masks = inputs[2][:, None], inputs[3][None]
    exact = similarity(*inputs, method="exact").r2t
    errors = {"pairs": [], "independent": []}
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        samples = {"pairs": draw_subsets(32, 8, generator=g), "independent": torch.rand(32, 8, generator=g) < 0.5}
        for name, sample in samples.items():
            errors[name].append(score_over_subsets(s, *masks, sample, tile_bytes=2**20)[1] - exact)
    pairs, independent = (torch.stack(errors[name]).square().mean() for name in ("pairs", "independent"))
    assert pairs < 0.5 * independent


def test_a_sample_in_pieces_has_the_standard_error_of_the_whole():
    inputs = problem(2, 3, 8, 5)
    found = [
        similarity(
            *inputs,
            method="sampled",
            samples=512,
            generator=torch.Generator().manual_seed(0),
            tile_bytes=tile_bytes,
        ).r2t_standard_error
        for tile_bytes in (1024, 2**24)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=0)


def test_sixteen_regions_can_be_enumerated():
    inputs = problem(1, 2, 16, 3)
    subsets = all_subsets(16, device=torch.device("cpu"), dtype=torch.float64)
    s = torch.einsum("imd,jkd->ijmk", *inputs[:2]).masked_fill(~inputs[2][:, None, :, None], 0.0)
    q = (subsets @ s).masked_fill(~inputs[3][:, None], -1e30).amax(dim=-1).mean(dim=-1)
    torch.testing.assert_close(similarity(*inputs, method="exact").r2t, q, rtol=1e-12, atol=1e-12)


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="samples is 2; it must be at least 4"):
        similarity(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4), method="sampled", samples=2)
