"""The kernel against float64, compiled where there is a GPU and otherwise under Triton's interpreter."""

import pytest
import torch

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.reference import all_subsets, enumerate_similarity
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.search import Candidates
from tests.support.problems import masked, problem

pytest.importorskip("triton", reason="triton comes with torch on Linux only")
fused = pytest.importorskip("powerclip.alignment.fused")

DEVICE = "cpu" if fused.INTERPRETED else "cuda"
TILE = fused.Tile(images=16, rows=16, slots=4, depth=16, group=2, warps=4, stages=2)
"""Several tiles of everything at sizes that the interpreter is through with quickly."""


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Outputs hold NaN at first, so that what is not written shows."""
    new_empty = torch.Tensor.new_empty

    def poisoned(*arguments, **options):
        made = new_empty(*arguments, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def seed():
    """Fresh at every run on a GPU."""
    value = 0 if fused.INTERPRETED else torch.seed() % 2**31
    print("seed", value)
    return value


def inputs_of(shape, dtype, seed=0, D=20, masks=True):
    """Vectors that the dtype holds exactly, absent regions and phrases, an image and a caption that have none."""
    regions, phrases, region_mask, phrase_mask = problem(*shape, D=D, seed=seed, masked=masks)
    if masks and min(shape[:2]) > 4:
        region_mask[3], phrase_mask[4] = False, False
    return regions.to(dtype).double(), phrases.to(dtype).double(), region_mask, phrase_mask


def on_device(inputs):
    return (vectors.to(DEVICE) for vectors in masked((inputs[0].float(), inputs[1].float(), *inputs[2:])))


def exact(inputs, scoring):
    regions, phrases = masked(inputs)
    s = torch.einsum("imd,jkd->ijmk", regions.values, phrases.values)
    return scoring.score(s, regions.mask[:, None], phrases.mask[None])


def bound(inputs, dtype):
    """How far scores may be off: unit regions, phrases of norm 2, and derivatives by s of at most 1.

    Of a similarity |s| <= 2 each of D sums is rounded, to 2^-23 where tensor cores truncate; of a score of up to 2 M
    each of M sums, twice, and its exponent in T2; exp2 and log2 are off by less than 2^-21 of the product's M factors.
    Three products of tf32 leave 3 times 2^-22.
    """
    M, D = inputs[0].shape[1:]
    lost = 2 * M * 3 * 2**-22 if dtype == torch.float32 else 0
    return (2 * M * D + 4 * M * M + 4 * M) * 2**-23 + M * 2**-21 + lost


def scored(inputs, scoring, dtype):
    rows = list(fused.score_rows(*on_device(inputs), scoring=scoring, dtype=dtype, tile=TILE))
    return tuple(torch.cat(parts).cpu() for parts in list(zip(*rows, strict=True))[1:])


@pytest.mark.parametrize(
    ("shape", "dtype", "scoring"),
    [
        ((18, 7, 3, 6), torch.float32, Scoring(tau=0.1)),
        ((18, 7, 3, 6), torch.bfloat16, Scoring(tau=0.1)),
        ((5, 6, 2, 9), torch.float16, Scoring(tau=1e-3, fitted_zeta=torch.tensor(0.3))),
        ((5, 6, 2, 5), torch.float32, Scoring(tau=0.0)),
        ((5, 6, 1, 1), torch.bfloat16, Scoring(tau=1e-3)),
        ((1, 1, 1, 1), torch.float16, Scoring(tau=0.1)),
    ],
    ids=lambda value: str(value) if not isinstance(value, Scoring) else f"tau {value.tau}",
)
def test_scores_are_those_of_float64(shape, dtype, scoring, seed):
    inputs = inputs_of(shape, dtype, seed)
    for mine, expected in zip(scored(inputs, scoring, dtype), exact(inputs, scoring), strict=True):
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=bound(inputs, dtype))
        assert (mine[expected == 0] == 0).all()


def test_the_limits_are_those_of_enumeration(seed):
    """T1 at tau = 0 is T2R, and T2 at zeta = 1 is the log of the mean exponential over subsets and phrases."""
    inputs = inputs_of((5, 4, 4, 5), torch.float16, seed, masks=False)
    t1 = scored(inputs, Scoring(tau=0.0), torch.float16)[0]
    limit = bound(inputs, torch.float16)
    torch.testing.assert_close(t1.double(), enumerate_similarity(*inputs).t2r, rtol=0, atol=limit)
    t2 = scored(inputs, Scoring(tau=0.1, zeta=1.0), torch.float16)[1]
    subsets = all_subsets(4, device=torch.device("cpu"), dtype=torch.float64)
    q = torch.einsum("am,imd,jkd->ijak", subsets, *inputs[:2])
    expected = 0.1 * (q.flatten(2).div(0.1).logsumexp(dim=2) - torch.tensor(16.0).log())
    torch.testing.assert_close(t2.double(), expected, rtol=0, atol=limit)


def test_no_less_accurate_than_pytorch_in_the_same_precision(seed):
    inputs, scoring = inputs_of((16, 8, 3, 4), torch.bfloat16, seed), Scoring(tau=0.01)
    regions, phrases = masked(inputs)
    s = torch.einsum("imd,jkd->ijmk", regions.values.bfloat16(), phrases.values.bfloat16()).float()
    plain = scoring.score(s, regions.mask[:, None], phrases.mask[None])
    for mine, theirs, expected in zip(
        scored(inputs, scoring, torch.bfloat16), plain, exact(inputs, scoring), strict=True
    ):
        assert (mine - expected).abs().max() < (theirs - expected).abs().max()


def test_more_regions_than_one_product_can_hold():
    inputs = inputs_of((2, 3, 110, 4), torch.float16, D=4)
    inputs = (inputs[0] * 2**-10, *inputs[1:])  # |s| << tau: every factor is nearly 2
    scoring = Scoring(tau=1.0)
    for mine, expected in zip(scored(inputs, scoring, torch.float16), exact(inputs, scoring), strict=True):
        # T1 is about 110 log 2 = 76: 110 factors, and the sum in units of its size
        torch.testing.assert_close(mine.double(), expected, rtol=0, atol=110 * 2**-21 + 76 * 2**-22)


def given(I, J, seed, offsets):
    """Few ids, so that many pairs share one, and some rows that take no part."""
    g = torch.Generator().manual_seed(seed)
    values = {
        "image_id": torch.randint(4, (I,), generator=g) - 2,
        "caption_id": torch.randint(4, (J,), generator=g) - 2,
        "image_valid": torch.rand(I, generator=g) < 0.8,
        "caption_valid": torch.rand(J, generator=g) < 0.8,
    }
    if offsets:
        values |= {"image_offset": torch.rand(I, generator=g), "caption_offset": torch.rand(J, generator=g)}
    return Candidates(**{name: value.to(DEVICE) for name, value in values.items()})


@pytest.mark.parametrize(
    ("scoring", "dtype"),
    [
        (Scoring(tau=0.1, direction="both"), torch.float16),
        (Scoring(tau=1e-3, direction="t2r", normalise_by_regions=True), torch.float32),
        (Scoring(tau=0.0, direction="r2t"), torch.bfloat16),
    ],
    ids=["both", "t2r", "r2t"],
)
def test_the_search_finds_the_highest_and_sums_the_rest(scoring, dtype, seed):
    I, J = 21, 9
    inputs = inputs_of((I, J, 2, 5), dtype, seed)
    candidates = given(I, J, seed, offsets=scoring.direction != "r2t")
    search = fused.hardest_negatives(*on_device(inputs), candidates=candidates, scoring=scoring, dtype=dtype, tile=TILE)
    found = {name: value.cpu() for name, value in vars(search).items()}
    scores = scoring.total(*exact(inputs, scoring), inputs[2])
    candidates = Candidates(**{name: None if x is None else x.cpu() for name, x in vars(candidates).items()})
    everyone = slice(0, I)
    error = 2 * bound(inputs, dtype)  # of both scores together
    ways = (
        ("caption", candidates.caption_offset, scores, candidates.negatives(everyone), candidates.valid(everyone)),
        ("image", candidates.image_offset, scores.T, candidates.negatives(everyone).T, candidates.valid(everyone).T),
    )
    for (name, offset, x, negative, valid), total in zip(ways, ("image_sum", "caption_sum"), strict=True):
        compared = (x - (0.0 if offset is None else offset)).masked_fill(~negative, ABSENT)
        some = negative.any(dim=1)
        assert (found[name + "_score"][~some] == ABSENT).all()
        assert (found[name][~some] == 0).all()
        chosen = compared.gather(1, found[name][:, None])[:, 0]
        torch.testing.assert_close(chosen[some], compared.amax(dim=1)[some], rtol=0, atol=2 * error)
        torch.testing.assert_close(found[name + "_score"][some].double(), chosen[some], rtol=0, atol=2 * error)
        size = valid.shape[1]
        expected = x.masked_fill(~valid, 0.0).sum(dim=1)
        # every addition of up to 21 scores of up to 2 (2 M) = 8 may round
        slack = size * error + size * size * 8 * 2**-24
        torch.testing.assert_close(found[total].double(), expected, rtol=0, atol=slack)


def test_ties_go_to_the_lowest_index_across_tiles_and_numbers_of_phrases():
    """Copies of one pair, half of the captions with an absent phrase more."""
    regions, phrases, region_mask, phrase_mask = inputs_of((1, 1, 2, 3), torch.float16, masks=False)
    phrase_mask = torch.ones(10, 4, dtype=torch.bool)
    phrase_mask[:, 3] = False
    copies = torch.cat([phrases, torch.full((1, 1, 20), torch.nan)], dim=1).repeat(10, 1, 1)
    inputs = regions.repeat(20, 1, 1), copies, region_mask.repeat(20, 1), phrase_mask
    ids = torch.arange(20, device=DEVICE)
    candidates = Candidates(
        image_id=ids, caption_id=ids[:10], image_valid=ids >= 0, caption_valid=ids[:10] != 0, image_offset=ids * 0.0
    )
    found = fused.hardest_negatives(*on_device(inputs), candidates=candidates, scoring=Scoring(tau=0.1), tile=TILE)
    assert found.caption.tolist() == [1, 2, *[1] * 18]
    assert found.image.tolist() == [0, *[0] * 9]
    assert (found.image_score[0] == ABSENT) & (found.image_score[1:] > ABSENT).all()


def test_vectors_out_of_the_range_of_float16_are_scaled(seed):
    inputs = inputs_of((6, 7, 2, 3), torch.float16, seed, masks=False)
    ids = torch.arange(7, device=DEVICE)
    candidates = Candidates(image_id=ids[:6], caption_id=ids, image_valid=ids[:6] >= 0, caption_valid=ids >= 0)
    small, large = (
        fused.hardest_negatives(
            *on_device((inputs[0] * factor, inputs[1] * factor, *inputs[2:])),
            candidates=candidates,
            scoring=Scoring(tau=0.0),
            tile=TILE,
        )
        for factor in (1.0, 2.0**20)
    )
    assert torch.equal(large.caption, small.caption)
    assert torch.equal(large.image, small.image)
    assert torch.equal(large.caption_score, small.caption_score * 2.0**40)


@pytest.mark.parametrize(("I", "J"), [(0, 3), (3, 0), (0, 0)])
def test_nothing_to_search(I, J):
    vectors = masked((torch.ones(I, 2, 4), torch.ones(J, 3, 4), torch.ones(I, 2).bool(), torch.ones(J, 3).bool()))
    ids = torch.arange(3, device=DEVICE)
    candidates = Candidates(image_id=ids[:I], caption_id=ids[:J], image_valid=ids[:I] >= 0, caption_valid=ids[:J] >= 0)
    found = fused.hardest_negatives(*(x.to(DEVICE) for x in vectors), candidates=candidates, scoring=Scoring())
    assert found.caption.tolist() == [0] * I
    assert found.image.tolist() == [0] * J
    assert (found.caption_score == ABSENT).all()
    assert not found.image_sum.any()
    assert not list(fused.score_rows(*(x.to(DEVICE) for x in vectors), scoring=Scoring(), dtype=torch.float32))
