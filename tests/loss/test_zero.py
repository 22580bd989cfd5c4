"""Thresholds and centred vectors in the loss, against nested loops."""

import pytest
import torch
from torch.nn.functional import normalize

from powerclip.alignment.vectors import MaskedVectors
from powerclip.alignment.zero import place_zero
from powerclip.loss import PowersetAlignmentLoss, triplet_loss
from tests.support.problems import pairs, rows_of, scores_by_loops, value_and_gradients
from tests.support.processes import run_on_processes

TAU, MARGIN = 0.1, 0.2


def make(zero, **options):
    return PowersetAlignmentLoss(
        margin=MARGIN, tau=TAU, normalise_by_regions=True, zero=zero, dimension=6, **{"zeta_momentum": 0.9, **options}
    )


def dense(regions, phrases, region_mask, phrase_mask, threshold=0.0):
    S = scores_by_loops(regions, phrases, region_mask, phrase_mask, tau=TAU, threshold=threshold)
    valid = region_mask.any(dim=1) & phrase_mask.any(dim=1)
    return triplet_loss(S, margin=MARGIN, rows=valid) + triplet_loss(S.T, margin=MARGIN, rows=valid)


def centred_by_loops(vectors, mask, mean=None):
    present = [(i, m) for i in range(len(mask)) for m in range(len(mask[i])) if mask[i, m]]
    mean = sum(vectors[i, m] for i, m in present) / len(present) if mean is None else mean
    found = torch.zeros_like(vectors)
    for i, m in present:
        found[i, m] = normalize(vectors[i, m] - mean, dim=-1)
    return found, mean


def between_by_loops(share, regions, phrases, region_mask, phrase_mask):
    matched, unmatched = [], []
    for i in range(len(regions)):
        for j in range(len(phrases)):
            valid = [bool(region_mask[x].any() and phrase_mask[x].any()) for x in (i, j)]
            for m in range(regions.shape[1]):
                for k in range(phrases.shape[1]):
                    if region_mask[i, m] and phrase_mask[j, k] and all(valid):
                        (matched if i == j else unmatched).append(float(regions[i, m] @ phrases[j, k]))
    return share * sum(matched) / len(matched) + (1 - share) * sum(unmatched) / len(unmatched)


def found(module, inputs):
    regions, phrases, *masks = inputs
    return value_and_gradients(lambda r, p: module(r, p, *masks), regions, phrases)


def assert_close(mine, theirs, rtol=1e-9):
    for value, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(value, other, rtol=rtol, atol=1e-11)


@pytest.mark.parametrize("options", [{}, {"zeta": "calibrated"}], ids=str)
def test_a_number_is_taken_off_every_similarity(options):
    regions, phrases, *masks = pairs()
    module = make(0.15, **options)
    mine = found(module, (regions, phrases, *masks))
    assert mine[0] > 0
    zeta = float(module.zeta_estimate) if options else 0.75

    def loss(r, p):
        S = scores_by_loops(r, p, *masks, tau=TAU, threshold=0.15, zeta=zeta)
        valid = masks[0].any(dim=1) & masks[1].any(dim=1)
        return triplet_loss(S, margin=MARGIN, rows=valid) + triplet_loss(S.T, margin=MARGIN, rows=valid)

    assert_close(mine, value_and_gradients(loss, regions, phrases))
    assert abs(mine[0] - found(make("none"), (regions, phrases, *masks))[0]) > 1e-3


@pytest.mark.parametrize(("zero", "share"), [("midpoint", 0.5), ("matched", 1.0)])
def test_a_threshold_between_matched_and_unmatched_is_found_smoothed_and_kept(zero, share):
    module, threshold = make(zero), None
    for seed in range(3):
        regions, phrases, *masks = pairs(seed=seed)
        inputs = (regions, phrases + 0.5 * regions[:, :1], *masks)  # captions that fit their image a little
        mine = found(module, inputs)
        new = between_by_loops(share, *inputs)
        threshold = new if threshold is None else 0.9 * threshold + 0.1 * new
        assert float(module.zero.threshold) == pytest.approx(threshold, rel=1e-5)
        threshold = float(module.zero.threshold)
        expected = value_and_gradients(lambda r, p, m=masks, b=threshold: dense(r, p, *m, threshold=b), *inputs[:2])
        assert_close(mine, expected)
    assert module.fitted == {"zero": threshold}
    module.eval()
    resumed = make(zero)
    resumed.load_state_dict(module.state_dict())
    assert resumed.eval()(*pairs(seed=7)) == module(*pairs(seed=7)) == make(threshold)(*pairs(seed=7))
    assert float(module.zero.threshold) == threshold


@pytest.mark.parametrize("options", [{"zero": "midpoint"}, {"zero": "centred"}, {"zero": 0.1, "zeta": "calibrated"}])
def test_evaluation_before_the_first_step_fits_to_its_batch_and_keeps_nothing(options):
    module, trained = make(**options), make(**options)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = pairs()
    expected = trained(*inputs)
    module.eval()
    for seed in (1, 0):
        value = module(*pairs(seed=seed))
    assert value == expected
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0, equal_nan=True)


def test_a_learned_threshold_has_the_loss_s_gradient():
    regions, phrases, *masks = pairs()
    module = make("learned")
    assert module.zero.threshold.item() == 0
    module.zero.threshold.data.fill_(0.25)
    mine = found(module, (regions, phrases, *masks))
    threshold = torch.tensor(0.25, dtype=torch.float64)
    value, *gradients = value_and_gradients(
        lambda r, p, b: dense(r, p, *masks, threshold=b), regions, phrases, threshold
    )
    assert_close(mine, (value, *gradients[:2]))
    assert abs(gradients[2]) > 1e-3
    torch.testing.assert_close(module.zero.threshold.grad, gradients[2].float())
    assert module.fitted == {"zero": 0.25}


def test_centred_vectors_lose_the_batch_s_means_and_are_unit_again():
    module, running = make("centred"), None
    for seed in range(2):
        regions, phrases, *masks = pairs(seed=seed)
        inputs = (regions + 0.3, phrases - 0.2, *masks)  # vectors that share a direction
        mine = found(module, inputs)

        def loss(r, p, masks=masks):
            return dense(centred_by_loops(r, masks[0])[0], centred_by_loops(p, masks[1])[0], *masks)

        assert_close(mine, value_and_gradients(loss, *inputs[:2]))
        new = torch.stack([centred_by_loops(x, mask)[1] for x, mask in zip(inputs[:2], masks, strict=True)])
        running = new if running is None else 0.9 * running + 0.1 * new
        torch.testing.assert_close(module.zero.means, running.float(), rtol=1e-5, atol=1e-6)
    module.eval()
    regions, phrases, *masks = pairs(seed=5)
    means = module.zero.means.double()
    moved = [centred_by_loops(x, m, mean)[0] for x, m, mean in zip((regions, phrases), masks, means, strict=True)]
    torch.testing.assert_close(module(regions, phrases, *masks), dense(*moved, *masks), rtol=1e-9, atol=1e-11)
    placed = place_zero(
        *(MaskedVectors(values=x, mask=m) for x, m in zip((regions, phrases), masks, strict=True)),
        zero="centred",
        means=module.zero.means,
    )
    for vectors, expected in zip(placed, moved, strict=True):
        torch.testing.assert_close(vectors.values, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("zero", ["midpoint", "matched", "learned", "centred"])
def test_what_cannot_be_measured_leaves_the_state_as_it_is(zero):
    module = make(zero)
    module(*pairs())
    before = {name: value.clone() for name, value in module.zero.state_dict().items()}
    regions, *rest = pairs(seed=1)
    module(regions * torch.nan, *rest)
    if zero in ("midpoint", "matched"):
        module(*(x[:1] for x in pairs(seed=1)))  # nothing unmatched
    for name, value in module.zero.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("zero", ["midpoint", "matched", "learned", "centred", 0.1])
def test_a_batch_without_pairs_is_no_loss(zero):
    regions, phrases, region_mask, phrase_mask = pairs()
    for inputs in ((regions, phrases, region_mask & False, phrase_mask), tuple(x[:0] for x in pairs())):
        assert all((x == 0).all() for x in found(make(zero), inputs))


ROWS = {2: (9, 4), 3: (6, 1, 6)}
ZEROS = ("midpoint", "matched", "learned", "centred")


def shares(process, size):
    results = {}
    for zero in ZEROS:
        module = make(zero)
        for seed in range(2):
            module.zero_grad()
            results[zero] = found(module, rows_of(process, ROWS[size], pairs(seed=seed)))
        state = next(iter(module.zero.state_dict().values()))
        results[f"{zero}, state"] = (state, *(b.grad for b in module.parameters()))
    return results


@pytest.mark.parametrize("size", [2, 3])
def test_many_processes_are_one_with_the_whole_batch(size, tmp_path):
    results = run_on_processes(size, shares, tmp_path)
    for zero in ZEROS:
        module = make(zero)
        for seed in range(2):
            module.zero_grad()
            whole = found(module, pairs(seed=seed))
        for result in results:
            torch.testing.assert_close(result[zero][0], whole[0], rtol=1e-7, atol=1e-9)
            state = next(iter(module.zero.state_dict().values()))
            torch.testing.assert_close(result[f"{zero}, state"][0], state)
            assert torch.equal(result[f"{zero}, state"][0], results[0][f"{zero}, state"][0])
        for position in (1, 2):  # a midpoint is a float32, rounded in another order
            gathered = torch.cat([result[zero][position] for result in results])
            torch.testing.assert_close(gathered, whole[position], rtol=1e-6, atol=1e-8)
        if zero == "learned":
            shared = sum(result["learned, state"][1] for result in results)
            torch.testing.assert_close(shared, module.zero.threshold.grad)


def test_wrong_settings_are_named():
    words = "'none', 'midpoint', 'matched', 'learned', 'centred'"
    with pytest.raises(ValueError, match=f"zero is 'middle'; it must be a finite number or {words}"):
        make("middle")
    with pytest.raises(ValueError, match="zero 'centred' keeps means of vectors; give their dimension"):
        PowersetAlignmentLoss(zero="centred")
    with pytest.raises(ValueError, match="the vectors have D = 6 and the loss was set up with dimension=5"):
        PowersetAlignmentLoss(zero="centred", dimension=5)(*pairs())
