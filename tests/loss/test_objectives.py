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
    "softmax": ContrastConfig(form="softmax"),
    "softmax, detached": ContrastConfig(form="softmax", centre_scores="detached"),
    "sigmoid": ContrastConfig(form="sigmoid"),
    "sigmoid, full": ContrastConfig(form="sigmoid", centre_scores="full"),
}
STATE = {"softmax": (1.5,), "sigmoid": (1.5, -0.75)}
"""Log scale and bias of the forms that have them."""


def centred_by_loops(S, valid, *, detached):
    """Rows of S as images compare captions: less each caption's mean over the images that can be scored."""
    kept = [i for i in range(len(S)) if valid[i]]
    known = S.detach() if detached else S
    return torch.stack([S[:, j] - sum(known[i, j] for i in kept) / len(kept) for j in range(len(S))], dim=1)


def softmax_by_loops(S, kept, ids, scale):
    total = S.sum() * 0
    for i in kept:
        logits = [scale * S[i, j] for j in kept if j == i or ids[j] != ids[i]]
        total = total + sum(x.exp() for x in logits).log() - scale * S[i, i]
    return total / len(kept) / 2


def sigmoid_by_loops(S, kept, ids, scale, bias):
    total = S.sum() * 0
    for i in kept:
        for j in kept:
            if j == i or ids[j] != ids[i]:
                z = 1 if i == j else -1
                total = total + (1 + (-z * (scale * S[i, j] + bias)).exp()).log()
    return total / len(kept)


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


def by_loops(S, valid, ids, config, *, margin=MARGIN, state=()):
    if config.form != "triplet":
        detached = config.centre_scores == "detached"
        kept = [i for i in range(len(S)) if valid[i]]
        X, Y = S, S.T
        if config.centre_scores != "none":
            X, Y = (centred_by_loops(x, valid, detached=detached) for x in (X, Y))
        if config.form == "softmax":
            return softmax_by_loops(X, kept, ids, state[0].exp()) + softmax_by_loops(Y, kept, ids, state[0].exp())
        if config.centre_scores != "none":  # less the means of rows and of columns
            X = centred_by_loops(X.T, valid, detached=detached).T
        return sigmoid_by_loops(X, kept, ids, state[0].exp(), state[1])
    return one_direction(S, valid, ids, config, margin) + one_direction(S.T, valid, ids, config, margin)


def expected(inputs, ids, config, *, margin=MARGIN):
    regions, phrases, region_mask, phrase_mask = inputs
    valid = region_mask.any(dim=1) & phrase_mask.any(dim=1)

    def loss(r, p, *state):
        S = scores_by_loops(r, p, region_mask, phrase_mask, tau=TAU)
        return by_loops(S, valid, ids, config, margin=margin, state=state)

    state = [torch.tensor(x, dtype=torch.float64) for x in STATE.get(config.form, ())]
    return value_and_gradients(loss, regions, phrases, *state)


def make(config, **options):
    module = PowersetAlignmentLoss(
        **{"margin": MARGIN, **options}, tau=TAU, normalise_by_regions=True, contrast=config
    ).double()
    for parameter, value in zip(module.parameters(), STATE.get(config.form, ()), strict=True):
        parameter.data.fill_(value)
    return module


def found(module, inputs, ids=None):
    """The loss, and its gradients at regions, phrases and parameters."""
    regions, phrases, *masks = inputs
    module.zero_grad()
    mine = value_and_gradients(lambda r, p: module(r, p, *masks, caption_ids=ids), regions, phrases)
    return *mine, *(torch.zeros(()) if x.grad is None else x.grad for x in module.parameters())


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


@pytest.mark.parametrize("config", [*FORMS.values(), ContrastConfig()], ids=[*FORMS, "paper"])
def test_a_second_derivative_is_right_or_refused(config):
    regions, phrases, *masks = pairs(C=5)
    module = make(config)

    def gradients(r, p):
        return torch.autograd.grad(module(r, p, *masks), (r, p), create_graph=True)

    inputs = regions.requires_grad_(), phrases.requires_grad_()
    if module.objective.sparse:
        assert torch.autograd.gradcheck(gradients, inputs)
        return
    for gradient in gradients(*inputs):
        for x in inputs:
            with pytest.raises(NotImplementedError, match="no second derivative in this form; form triplet"):
                torch.autograd.grad(gradient.square().sum(), x, retain_graph=True)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("margin", [MARGIN, "adaptive"])
@pytest.mark.parametrize("config", [*FORMS.values(), ContrastConfig()], ids=[*FORMS, "paper"])
def test_without_gradient_a_form_has_the_same_value_and_measures(config, margin, mode):
    inputs = pairs()
    measures, others = {}, {}
    with mode():
        value = make(config, margin=margin)(*inputs, measures=measures)
    assert not value.requires_grad
    trained = make(config, margin=margin)
    torch.testing.assert_close(value, trained(*inputs, measures=others).detach())
    assert measures.keys() == others.keys() >= {"score_gap", "hub_share_i2t"}
    for name, measure in measures.items():
        torch.testing.assert_close(measure, others[name])


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_a_scale_can_be_frozen(form):
    module, free = make(FORMS[form]), make(FORMS[form])
    module.objective.log_scale.requires_grad_(False)
    assert_close(found(module, pairs())[:3], found(free, pairs())[:3])


@pytest.mark.parametrize("config", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("C", [0, 1])
def test_no_negative_is_no_loss_in_any_form(config, C):
    inputs = tuple(x[:C] for x in pairs())
    for margin in (MARGIN, "adaptive"):
        value, *gradients = found(make(config, margin=margin), inputs)
        if config.form == "sigmoid" and C:  # a pair counts by itself
            assert value > 0
        else:
            assert all((x == 0).all() for x in (value, *gradients))


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
        assert float(module.objective.adaptive_margin) == pytest.approx(margin, rel=1e-6)
        margin = float(module.objective.adaptive_margin)
    assert max(gaps) > config.max_margin
    assert min(gaps) < 0
    module.eval()
    module(*pairs())
    assert float(module.objective.adaptive_margin) == margin
    resumed = make(config, margin="adaptive")
    resumed.load_state_dict(module.state_dict())
    assert float(resumed.objective.adaptive_margin) == margin


ROWS = {2: (9, 4), 3: (6, 1, 6)}


def shares(process, size):
    results = {}
    for name, config in FORMS.items():
        results[name] = found(make(config), rows_of(process, ROWS[size], pairs()), ids_of(process, size))
    module = make(ContrastConfig(), margin="adaptive")
    for seed in range(2):
        results["adaptive"] = found(module, rows_of(process, ROWS[size], pairs(seed=seed)))
    results["margin"] = (module.objective.adaptive_margin,)
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
    assert module.objective.adaptive_margin > 0
    for name, (value, *gradients) in whole.items():
        for result in results:
            torch.testing.assert_close(result[name][0], value, rtol=1e-9, atol=1e-9)
        for position, gradient in enumerate(gradients, start=1):
            parts = [result[name][position] for result in results]
            gathered = torch.cat(parts) if gradient.ndim else sum(parts)
            torch.testing.assert_close(gathered, gradient, rtol=1e-7, atol=1e-9)
    for result in results:
        torch.testing.assert_close(result["margin"][0], module.objective.adaptive_margin)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "ball"}, "form is 'ball'; it must be one of triplet, softmax, sigmoid"),
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
    dense.objective.adaptive_margin.fill_(MARGIN)
    regions, phrases, *masks = pairs()
    inputs = (regions, phrases + regions[:, :1], *masks)  # captions that fit their own image
    of_dense, of_sparse = {}, {}
    values = [m(*inputs, caption_ids=ids, measures=x) for m, x in ((dense, of_dense), (sparse, of_sparse))]
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)
    assert of_dense.pop("margin") == MARGIN
    assert of_dense.keys() == of_sparse.keys()
    assert 0 < of_sparse["active_share_i2t"] < 1
    for name, value in of_sparse.items():
        torch.testing.assert_close(of_dense[name].double(), value.double(), rtol=1e-6, atol=1e-8)


def test_scales_start_where_clip_s_and_siglip_s_do_and_stay_below_100():
    softmax, sigmoid = (PowersetAlignmentLoss(contrast=ContrastConfig(form=form)) for form in ("softmax", "sigmoid"))
    measures = {}
    sigmoid(*pairs(), measures=measures)
    assert (measures["score_scale"].item(), measures["score_bias"].item()) == pytest.approx((10, -10))
    assert {"hub_share_i2t", "score_gap"} < measures.keys()
    assert "active_share_i2t" not in measures
    measures = {}
    softmax(*pairs(), measures=measures)
    assert measures["score_scale"].item() == pytest.approx(1 / 0.07)
    softmax.objective.log_scale.data.fill_(9.0)
    softmax(*pairs(), measures=measures)
    assert measures["score_scale"].item() == pytest.approx(100)
