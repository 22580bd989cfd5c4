import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from powerclip.alignment import grounding, similarity
from powerclip.alignment.aggregators import aggregate
from powerclip.alignment.reference import enumerate_pair, enumerate_similarity
from tests.support.problems import problem


def brute_force(regions, phrases, region_mask, phrase_mask):
    """T2R and R2T with loops over itertools' subsets, sharing nothing with the code under test."""
    t2r, r2t = [], []
    for image, present in zip(regions, region_mask, strict=True):
        for caption, said in zip(phrases, phrase_mask, strict=True):
            vectors, words = image[present], caption[said]
            subsets = [
                subset
                for size in range(len(vectors) + 1)
                for subset in itertools.combinations(range(len(vectors)), size)
            ]
            q = [[sum(float(vectors[m] @ word) for m in subset) for word in words] for subset in subsets]
            t2r.append(sum(max(row[k] for row in q) for k in range(len(words))) / len(words))
            r2t.append(sum(max(row) for row in q) / len(q))
    shape = (len(regions), len(phrases))
    return torch.tensor(t2r, dtype=torch.float64).view(shape), torch.tensor(r2t, dtype=torch.float64).view(shape)


SHAPES = [(1, 1, 1, 1), (2, 3, 1, 4), (3, 2, 5, 1), (3, 3, 7, 5), (2, 5, 4, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_enumeration_is_the_definition(shape):
    inputs = problem(*shape)
    found = enumerate_similarity(*inputs)
    t2r, r2t = brute_force(*inputs)
    torch.testing.assert_close(found.t2r, t2r, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.r2t, r2t, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [1.0, 0.1, 0.001])
def test_t1_lies_within_its_bound_of_the_exact_value(shape, tau):
    inputs = problem(*shape)
    exact, smooth = similarity(*inputs, method="exact"), similarity(*inputs, tau=tau)
    error = smooth.t2r - exact.t2r
    regions = inputs[2].sum(dim=1, dtype=torch.float64)[:, None]
    assert (error >= -1e-12).all()
    assert (error <= tau * regions * math.log(2) + 1e-12).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_t1_is_the_log_sum_exp_over_all_subsets(shape, tau):
    inputs = problem(*shape, masked=False)
    regions, phrases = inputs[:2]
    for i, j in itertools.product(range(shape[0]), range(shape[1])):
        s = regions[i] @ phrases[j].T
        subsets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=shape[2])), dtype=torch.float64)
        q = subsets @ s
        expected = (tau * torch.logsumexp(q / tau, dim=0)).mean()
        torch.testing.assert_close(similarity(*inputs, tau=tau).t2r[i, j], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_t2_at_zeta_1_is_the_log_of_the_mean_exponential_over_all_subsets(shape, tau):
    inputs = problem(*shape, masked=False)
    regions, phrases = inputs[:2]
    for i, j in itertools.product(range(shape[0]), range(shape[1])):
        subsets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=shape[2])), dtype=torch.float64)
        q = subsets @ (regions[i] @ phrases[j].T)
        expected = tau * (torch.logsumexp(q.flatten() / tau, dim=0) - shape[2] * math.log(2))
        torch.testing.assert_close(similarity(*inputs, tau=tau, zeta=1.0).r2t[i, j], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_t2_brackets_the_exact_value_and_rises_with_zeta(shape):
    inputs, tau = problem(*shape), 1e-4
    exact = similarity(*inputs, method="exact").r2t
    values = [similarity(*inputs, tau=tau, zeta=zeta).r2t for zeta in (0.0, 0.25, 0.5, 0.75, 1.0)]
    slack = tau * math.log(max(shape[3], 2))
    assert (values[0] <= exact + slack).all()
    assert (values[-1] >= exact - 1e-12).all()
    assert all((low <= high + 1e-12).all() for low, high in itertools.pairwise(values))


def test_tau_0_is_the_limit():
    inputs = problem(3, 3, 5, 4)
    hard = similarity(*inputs, tau=0.0)
    near = similarity(*inputs, tau=1e-7)
    torch.testing.assert_close(hard.t2r, similarity(*inputs, method="exact").t2r, rtol=0, atol=1e-12)
    bound = 1e-7 * (5 * math.log(2) + math.log(4))
    torch.testing.assert_close(hard.t2r, near.t2r, rtol=0, atol=bound)
    torch.testing.assert_close(hard.r2t, near.r2t, rtol=0, atol=bound)


@pytest.mark.parametrize("method", ["nla", "exact"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 3, 2)])
def test_gradients_are_those_of_finite_differences(method, shape):
    regions, phrases, region_mask, phrase_mask = problem(*shape, D=3)
    regions.requires_grad_(), phrases.requires_grad_()

    def f(r, p):
        found = similarity(r, p, region_mask, phrase_mask, method=method, tau=0.3, zeta=0.4)
        return found.t2r, found.r2t

    assert torch.autograd.gradcheck(f, (regions, phrases))


def test_the_gradient_at_small_tau_is_that_of_enumeration():
    regions, phrases, region_mask, phrase_mask = problem(3, 3, 5, 4)
    gradients = []
    for method, tau in (("exact", 1.0), ("nla", 1e-6)):
        r, p = regions.clone().requires_grad_(), phrases.clone().requires_grad_()
        similarity(r, p, region_mask, phrase_mask, method=method, tau=tau).t2r.square().sum().backward()
        gradients.append((r.grad, p.grad))
    for exact, smooth in zip(*gradients, strict=True):
        torch.testing.assert_close(smooth, exact, rtol=1e-4, atol=1e-4)


def test_an_image_without_regions_and_a_caption_without_phrases_score_0_and_get_no_gradient():
    regions, phrases, region_mask, phrase_mask = problem(3, 3, 4, 3)
    region_mask[1], phrase_mask[2] = False, False
    for method in ("nla", "exact"):
        r, p = regions.clone().requires_grad_(), phrases.clone().requires_grad_()
        found = similarity(r, p, region_mask, phrase_mask, method=method)
        for value in (found.t2r, found.r2t, found.total):
            assert (value[1] == 0).all()
            assert (value[:, 2] == 0).all()
            assert (value[0, :2] != 0).all()
        found.total.sum().backward()
        assert torch.isfinite(r.grad).all()
        assert torch.isfinite(p.grad).all()
        assert (r.grad[1] == 0).all()
        assert (p.grad[2] == 0).all()


@pytest.mark.parametrize("method", ["nla", "exact"])
def test_what_is_absent_does_not_matter(method):
    regions, phrases, region_mask, phrase_mask = problem(3, 4, 5, 4)
    before = similarity(regions, phrases, region_mask, phrase_mask, method=method).total
    regions[~region_mask], phrases[~phrase_mask] = 1e3, -1e3
    after = similarity(regions, phrases, region_mask, phrase_mask, method=method).total
    assert torch.equal(before, after)


def test_float32_keeps_the_precision_of_float32():
    inputs = problem(4, 4, 10, 8, D=64)
    truth = similarity(*inputs, tau=1e-3)
    found = similarity(inputs[0].float(), inputs[1].float(), *inputs[2:], tau=1e-3)
    # each of the M D products of a score, |s| <= 2, is rounded once to 2^-24 of its size
    bound = 10 * 64 * 2 * 2**-24
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.t2r.double(), truth.t2r, rtol=0, atol=bound)
    torch.testing.assert_close(found.r2t.double(), truth.r2t, rtol=0, atol=bound)


def test_scores_are_float32_under_autocast_and_for_half_precision():
    inputs = problem(2, 2, 3, 2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = similarity(*inputs).total
    assert torch.equal(under, similarity(*inputs).total)
    assert similarity(inputs[0].bfloat16(), inputs[1].bfloat16()).total.dtype == torch.float32


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1000))
def test_the_total_is_the_sum_and_order_does_not_matter(I, J, M, K, seed):
    regions, phrases, region_mask, phrase_mask = problem(I, J, M, K, seed=seed)
    found = similarity(regions, phrases, region_mask, phrase_mask)
    assert torch.equal(found.total, found.t2r + found.r2t)
    g = torch.Generator().manual_seed(seed)
    m, k = torch.randperm(M, generator=g), torch.randperm(K, generator=g)
    other = similarity(regions[:, m], phrases[:, k], region_mask[:, m], phrase_mask[:, k])
    torch.testing.assert_close(other.total, found.total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": torch.zeros(2, 3)}, r"regions has shape \(2, 3\); expected \(I, M, D\)"),
        ({"phrases": torch.zeros(2, 3, 5)}, "regions have D = 4 and phrases D = 5"),
        ({"regions": torch.zeros(2, 3, 4, dtype=torch.int64)}, "regions has dtype torch.int64"),
        (
            {"region_mask": torch.ones(2, 2, dtype=torch.bool)},
            r"region_mask has shape \(2, 2\).*expected \(2, 3\) bool",
        ),
        ({"phrase_mask": torch.ones(2, 2)}, "phrase_mask has shape .* torch.float32; expected"),
        ({"method": "magic"}, "method is 'magic'; it must be one of nla, exact, sampled"),
        ({"tau": -1.0}, "tau is -1.0; it must be 0 or more"),
        ({"regions": torch.zeros(1, 17, 4), "method": "exact"}, "at most M = 16 regions, got 17; use method='nla'"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"regions": torch.zeros(2, 3, 4), "phrases": torch.zeros(2, 2, 4), **change}
    with pytest.raises(ValueError, match=message):
        similarity(**arguments)


def test_an_unknown_setting_is_named():
    with pytest.raises(TypeError, match="there is no argument 'subset'; did you mean subsets"):
        similarity(*problem(2, 2, 3, 2), subset="single")


def test_single_regions_draw_no_subsets():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    found = similarity(*problem(2, 2, 3, 2), subsets="single", method="sampled", generator=generator)
    assert torch.equal(found.total, similarity(*problem(2, 2, 3, 2), subsets="single", zeta="calibrated").total)
    assert torch.equal(generator.get_state(), before)


def test_aggregate_takes_a_differentiable_zeta():
    s = torch.randn(3, 4, dtype=torch.float64)
    zeta = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    present = torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda z: aggregate(s, *present, tau=0.3, zeta=z)[1], (zeta,))


def test_grounding_is_the_subset_that_enumeration_finds_best():
    regions, phrases, _, _ = problem(1, 1, 6, 4, masked=False)
    found = grounding(regions[0], phrases[0])
    t2r, _ = enumerate_pair(regions[0] @ phrases[0].T)
    torch.testing.assert_close(found.scores.mean(), t2r, rtol=0, atol=1e-12)
    for subset, score, phrase in zip(found.subsets, found.scores, phrases[0], strict=True):
        torch.testing.assert_close((regions[0][subset] @ phrase).sum(), score, rtol=0, atol=1e-12)


@pytest.mark.parametrize("absent", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tau": 0.0},
        {"zeta": "calibrated"},
        {"method": "exact"},
        {"method": "sampled"},
        {"subsets": "single"},
        {"t1_activation": "gelu", "t2_activation": "arctan"},
        {"tile_bytes": 1024},
    ],
    ids=str,
)
def test_what_is_absent_has_no_influence_whatever_it_holds(options, absent):
    regions, phrases, region_mask, phrase_mask = problem(4, 5, 6, 3)
    region_mask[2], phrase_mask[1] = False, False
    found = []
    for fill in (0.0, absent):
        r = regions.masked_fill(~region_mask[..., None], fill).requires_grad_()
        p = phrases.masked_fill(~phrase_mask[..., None], fill).requires_grad_()
        for differentiable in (True, False):
            with torch.set_grad_enabled(differentiable):
                generator = torch.Generator().manual_seed(0)
                scores = similarity(r, p, region_mask, phrase_mask, generator=generator, **options)
            found.append([scores.t2r, scores.r2t, scores.total])
        found[-2][2].square().sum().backward()
        found[-2] += [r.grad, p.grad]
        s = grounding(r[0], p[0], region_mask[0], phrase_mask[0])
        found[-1] += [s.scores, s.similarities, s.subsets]
    for zero, other in zip(found[:2], found[2:], strict=True):
        for expected, value in zip(zero, other, strict=True):
            assert torch.equal(value, expected)
            assert torch.isfinite(value).all()


def test_grounding_leaves_out_what_is_absent():
    regions, phrases, _, _ = problem(1, 1, 3, 2, masked=False)
    region_mask, phrase_mask = torch.tensor([True, False, True]), torch.tensor([True, False])
    found = grounding(regions[0], phrases[0], region_mask, phrase_mask)
    assert not found.subsets[1].any()
    assert not found.subsets[:, 1].any()
    assert found.scores[1] == 0
    with pytest.raises(ValueError, match=r"expected \(M, D\): one image"):
        grounding(regions, phrases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero": "middle"}, "zero is 'middle'; it must be a finite number or 'none'"),
        ({"zero": float("nan")}, "zero is nan; it must be a finite number or 'none'"),
        ({"zero": "centred"}, "zero is 'centred' and means is None; give the model's vector_means"),
        ({"subsets": "some"}, "subsets is 'some'; it must be one of all, single"),
    ],
)
def test_what_grounding_does_not_take_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        grounding(torch.ones(3, 4), torch.ones(2, 4), **options)


@pytest.mark.parametrize("function", [similarity, grounding])
def test_a_compiled_trainer_calls_it_as_it_is(function):
    vectors = problem(1, 1, 6, 4, masked=False)[:2]
    inputs = vectors if function is similarity else [x[0] for x in vectors]
    found = torch.compile(lambda *x: function(*x), backend="eager")(*inputs)
    torch.testing.assert_close(vars(found), vars(function(*inputs)), rtol=0, atol=0)


@pytest.mark.parametrize("subsets", ["all", "single"])
@pytest.mark.parametrize(("M", "K"), [(0, 3), (3, 0), (0, 0)])
def test_grounding_without_regions_or_phrases_is_empty(M, K, subsets):
    found = grounding(torch.ones(M, 4), torch.ones(K, 4), subsets=subsets)
    assert found.subsets.shape == found.similarities.shape == (K, M)
    assert found.scores.tolist() == [0] * K
