"""Forms of the loss beside the paper's, against nested loops."""

import pytest
import torch

from powerclip.config import ContrastConfig
from powerclip.loss import PowersetAlignmentLoss
from tests.support.problems import pairs, rows_of, scores_by_loops, value_and_gradients
from tests.support.processes import run_on_processes

TAU, MARGIN = 0.1, 0.2
IDS = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7, 8, 8, 8, 11, 12])

FORMS = {
    "detached": ContrastConfig(centre_scores="detached"),
    "full": ContrastConfig(centre_scores="full"),
    "mean": ContrastConfig(negatives="mean"),
    "logsumexp": ContrastConfig(negatives="logsumexp", negatives_temperature=0.05),
    "mean, full": ContrastConfig(negatives="mean", centre_scores="full"),
    "logsumexp, detached": ContrastConfig(negatives="logsumexp", centre_scores="detached"),
}


def centred_by_loops(S, valid, *, detached):
    """Rows of S as images compare captions: less each caption's mean over the images that can be scored."""
    kept = [i for i in range(len(S)) if valid[i]]
    known = S.detach() if detached else S
    return torch.stack([S[:, j] - sum(known[i, j] for i in kept) / len(kept) for j in range(len(S))], dim=1)


def one_direction(S, valid, ids, config, margin):
    if config.centre_scores != "none":
        S = centred_by_loops(S, valid, detached=config.centre_scores == "detached")
    kept = [i for i in range(len(S)) if valid[i]]
    total = S.sum() * 0
    for i in kept:
        others = [S[i, j] for j in kept if j != i and ids[j] != ids[i]]
        if config.negatives == "mean":
            hinges = [(margin + other - S[i, i]).clamp(min=0) for other in others]
            total = total + sum(hinges) / max(1, len(hinges))
        elif others:
            t = config.negatives_temperature
            against = max(others) if config.negatives == "hardest" else t * sum((x / t).exp() for x in others).log()
            total = total + (margin + against - S[i, i]).clamp(min=0)
    return total / len(kept)


def by_loops(S, valid, ids, config, *, margin=MARGIN):
    return one_direction(S, valid, ids, config, margin) + one_direction(S.T, valid, ids, config, margin)


def expected(inputs, ids, config, *, margin=MARGIN):
    regions, phrases, region_mask, phrase_mask = inputs
    valid = region_mask.any(dim=1) & phrase_mask.any(dim=1)

    def loss(r, p):
        return by_loops(scores_by_loops(r, p, region_mask, phrase_mask, tau=TAU), valid, ids, config, margin=margin)

    return value_and_gradients(loss, regions, phrases)


def make(config, **options):
    return PowersetAlignmentLoss(**{"margin": MARGIN, **options}, tau=TAU, normalise_by_regions=True, contrast=config)


def found(module, inputs, ids=None):
    regions, phrases, *masks = inputs
    return value_and_gradients(lambda r, p: module(r, p, *masks, caption_ids=ids), regions, phrases)


def assert_close(mine, theirs):
    for value, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("tile_bytes", [1024, None])
@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_a_form_is_its_loops_forward_and_gradient(config, tile_bytes):
    inputs = pairs()
    mine = found(make(config, tile_bytes=tile_bytes), inputs, IDS)
    assert mine[0] > 0
    assert mine[1].abs().max() > 0
    assert_close(mine, expected(inputs, IDS, config))


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
def test_without_gradient_a_form_has_the_same_value(config):
    inputs, module = pairs(), make(config)
    with torch.no_grad():
        value = module(*inputs)
    assert not value.requires_grad
    torch.testing.assert_close(value, found(module, inputs)[0])


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("C", [0, 1])
def test_no_negative_is_no_loss_in_any_form(config, C):
    inputs = tuple(x[:C] for x in pairs())
    for margin in (MARGIN, "adaptive"):
        assert all((x == 0).all() for x in found(make(config, margin=margin), inputs))


def test_a_dense_form_scores_all_methods_and_any_number_of_phrases():
    config = FORMS["full"]
    regions, phrases, region_mask, phrase_mask = pairs(K=9)
    phrase_mask[:, 3:] &= torch.arange(13)[:, None] % 4 == 0  # a few captions are much longer
    for options in ({"method": "exact"}, {"method": "sampled", "samples": 8}, {"subsets": "single"}):
        module = PowersetAlignmentLoss(margin=MARGIN, contrast=config, tile_bytes=4096, **options)
        module.eval()  # the same subsets again

        def loss(r, p, module=module):
            return module(r, p, region_mask, phrase_mask)

        r, p = regions.requires_grad_(), phrases.requires_grad_()
        assert torch.autograd.gradcheck(loss, (r, p), eps=1e-7, atol=1e-5, fast_mode=True)


def test_an_adaptive_margin_is_the_last_step_s_gap_between_limits():
    config = ContrastConfig(max_margin=0.25)
    module = make(config, margin="adaptive")
    margin = 0.0
    gaps = []
    for seed, scale in ((0, 1.0), (1, 1.0), (2, -1.0), (3, 1.0)):
        regions, phrases, *masks = pairs(seed=seed)
        valid = masks[0].any(dim=1) & masks[1].any(dim=1)
        aligned = phrases + scale * regions[:, :1]  # captions that fit their own image, or not
        inputs = (regions, aligned, *masks)
        assert_close(found(module, inputs), expected(inputs, torch.arange(13), config, margin=margin))
        S = scores_by_loops(*inputs, tau=TAU)
        own = [S[i, i] for i in range(13) if valid[i]]
        others = [S[i, j] for i in range(13) for j in range(13) if valid[i] and valid[j] and i != j]
        gaps.append(float(sum(own) / len(own) - sum(others) / len(others)))
        margin = min(max(gaps[-1], 0.0), config.max_margin)
        assert float(module.adaptive_margin) == pytest.approx(margin, rel=1e-6)
        margin = float(module.adaptive_margin)
    assert max(gaps) > config.max_margin
    assert min(gaps) < 0
    module.eval()
    module(*pairs())
    assert float(module.adaptive_margin) == margin
    resumed = make(config, margin="adaptive")
    resumed.load_state_dict(module.state_dict())
    assert float(resumed.adaptive_margin) == margin


ROWS = {2: (9, 4), 3: (6, 1, 6)}


def shares(process, size):
    results = {}
    for name, config in FORMS.items():
        results[name] = found(make(config), rows_of(process, ROWS[size], pairs()), ids_of(process, size))
    module = make(ContrastConfig(), margin="adaptive")
    for seed in range(2):
        results["adaptive"] = found(module, rows_of(process, ROWS[size], pairs(seed=seed)))
    results["margin"] = (module.adaptive_margin,)
    return results


def ids_of(process, size):
    return rows_of(process, ROWS[size], (IDS,))[0]


@pytest.mark.parametrize("size", [2, 3])
def test_many_processes_are_one_with_the_whole_batch(size, tmp_path):
    results = run_on_processes(size, shares, tmp_path)
    whole = {name: found(make(config), pairs(), IDS) for name, config in FORMS.items()}
    module = make(ContrastConfig(), margin="adaptive")
    for seed in range(2):
        whole["adaptive"] = found(module, pairs(seed=seed))
    assert module.adaptive_margin > 0
    for name, (value, *gradients) in whole.items():
        for result in results:
            torch.testing.assert_close(result[name][0], value, rtol=1e-9, atol=1e-9)
        for position, gradient in enumerate(gradients, start=1):
            gathered = torch.cat([result[name][position] for result in results])
            torch.testing.assert_close(gathered, gradient, rtol=1e-7, atol=1e-9)
    for result in results:
        torch.testing.assert_close(result["margin"][0], module.adaptive_margin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negatives": "some"}, "negatives is 'some'; it must be one of hardest, mean, logsumexp"),
        ({"centre_scores": "half"}, "centre_scores is 'half'; it must be one of none, detached, full"),
        ({"negatives_temperature": 0.0}, "negatives_temperature is 0.0; it must be positive"),
        ({"max_margin": 0.0}, "max_margin is 0.0; it must be positive"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**options)


def test_a_wrong_margin_is_named():
    with pytest.raises(ValueError, match="margin is 'wide'; it must be 0 or more, or 'adaptive'"):
        PowersetAlignmentLoss(margin="wide")


@pytest.mark.parametrize("ids", [None, IDS])
def test_the_matrix_of_scores_gives_what_the_search_gives(ids):
    dense, sparse = make(ContrastConfig(), margin="adaptive"), make(ContrastConfig())
    dense.adaptive_margin.fill_(MARGIN)
    regions, phrases, *masks = pairs()
    inputs = (regions, phrases + regions[:, :1], *masks)  # captions that fit their own image
    of_dense, of_sparse = {}, {}
    values = [m(*inputs, caption_ids=ids, measures=x) for m, x in ((dense, of_dense), (sparse, of_sparse))]
    torch.testing.assert_close(*values, rtol=1e-6, atol=1e-8)  # the margin is a float32
    assert of_dense.keys() == of_sparse.keys()
    assert 0 < of_sparse["active_share_i2t"] < 1
    for name, value in of_sparse.items():
        torch.testing.assert_close(of_dense[name].double(), value.double(), rtol=1e-6, atol=1e-8)
