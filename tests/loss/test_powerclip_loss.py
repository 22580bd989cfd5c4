"""How much the powerset loss weighs: warm-up, and lambda from gradients, against plain arithmetic."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from powerclip.config import ContrastConfig
from powerclip.loss import PowerCLIPLoss, PowersetAlignmentLoss, clip_loss
from powerclip.loss.powerclip import gradient_norm
from powerclip.types import Features
from tests.support.problems import problem
from tests.support.processes import run_on_processes

NAMES = ("image", "text", "regions", "phrases")


def features(C=7, seed=0, rows=slice(None)):
    """Some or all pairs of a batch in float64, to be differentiated."""
    regions, phrases, region_mask, phrase_mask = problem(C, C, 4, 3, seed=seed)
    g = torch.Generator().manual_seed(100 + seed)
    image, text = (normalize(torch.randn(C, 6, generator=g, dtype=torch.float64), dim=-1) for _ in range(2))
    return Features(
        **{
            name: value[rows].clone().requires_grad_()
            for name, value in zip(NAMES, (image, text, regions, phrases), strict=True)
        },
        region_mask=region_mask[rows],
        phrase_mask=phrase_mask[rows],
        logit_scale=torch.tensor(10.0, dtype=torch.float64),
    )


def powerset_loss(contrast=None):
    return PowersetAlignmentLoss(tau=0.1, margin=0.3, normalise_by_regions=True, contrast=contrast)


def terms_and_gradients(seed):
    """CLIP's and the powerset loss's value, and their gradients at image, text, regions and phrases; by themselves."""
    x = features(seed=seed)
    clip = clip_loss(x.image, x.text, x.logit_scale)
    powerset = powerset_loss()(x.regions, x.phrases, x.region_mask, x.phrase_mask)
    (clip + powerset).backward()
    return clip.detach(), powerset.detach(), [getattr(x, name).grad for name in NAMES]


def norm(*gradients):
    return math.sqrt(sum(float(value) ** 2 for gradient in gradients for value in gradient.flatten()))


def assert_step(loss, seed, expected_weight):
    """A step's total and gradient are CLIP's and the powerset loss's, the latter by the weight."""
    clip, powerset, (image, text, regions, phrases) = terms_and_gradients(seed)
    x = features(seed=seed)
    output = loss(x, measure=True)
    output.total.backward()
    torch.testing.assert_close(output.total.detach(), clip + expected_weight * powerset, rtol=1e-6, atol=1e-9)
    assert output.measures["powerset_weight"].item() == pytest.approx(expected_weight, rel=1e-6)
    expected = (image, text, expected_weight * regions, expected_weight * phrases)
    for name, gradient in zip(NAMES, expected, strict=True):
        found = getattr(x, name).grad
        found = torch.zeros_like(gradient) if found is None else found
        torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-9)


def test_the_weight_starts_late_and_rises_linearly():
    loss = PowerCLIPLoss(weight=0.4, start_step=2, warmup_steps=4, powerset=powerset_loss())
    for step, weight in enumerate([0, 0, 0.1, 0.2, 0.3, 0.4, 0.4]):
        assert_step(loss, step, weight)
    at_once = PowerCLIPLoss(weight=0.4, start_step=1, powerset=powerset_loss())
    for step, weight in enumerate([0, 0.4, 0.4]):
        assert_step(at_once, step, weight)


def test_a_step_without_the_powerset_loss_still_reports_and_calibrates_it():
    powerset = PowersetAlignmentLoss(zeta="calibrated")
    output = PowerCLIPLoss(start_step=1, powerset=powerset)(features())
    assert output.terms["powerset"] > 0
    assert output.total == output.terms["clip"]
    assert 0 < powerset.zeta_estimate < 1


def test_lambda_follows_the_ratio_of_smoothed_gradients():
    loss = PowerCLIPLoss(gradient_ratio=0.5, start_step=1, warmup_steps=2, powerset=powerset_loss())
    clip = powerset = None
    for seed, part in enumerate([0, 0.5, 1, 1, 1]):
        _, _, gradients = terms_and_gradients(seed)
        if part:
            of_clip, of_powerset = norm(*gradients[:2]), norm(*gradients[2:])
            clip = of_clip if clip is None else 0.9 * clip + 0.1 * of_clip
            powerset = of_powerset if powerset is None else 0.9 * powerset + 0.1 * of_powerset
            assert_step(loss, seed, part * 0.5 * clip / powerset)
        else:
            assert_step(loss, seed, 0)


def test_lambda_is_capped_in_the_steps_that_need_it():
    ratios = []
    for seed in range(6):
        _, _, gradients = terms_and_gradients(seed)
        ratios.append(norm(*gradients[2:]) / norm(*gradients[:2]))
    cap = 3 * sorted(ratios)[2]
    loss = PowerCLIPLoss(weight=3.0, gradient_cap=cap, powerset=powerset_loss())
    weights = [min(3.0, cap / ratio) for ratio in ratios]
    assert len(set(weights)) == 4  # three steps are below the cap
    for seed, weight in enumerate(weights):
        assert_step(loss, seed, weight)


def test_the_cap_holds_for_a_ratio_that_a_step_exceeds():
    loss = PowerCLIPLoss(gradient_ratio=1.0, gradient_cap=0.5, powerset=powerset_loss())
    _, _, gradients = terms_and_gradients(0)
    assert_step(loss, 0, 0.5 * norm(*gradients[:2]) / norm(*gradients[2:]))


@pytest.mark.parametrize("setting", ["gradient_ratio", "gradient_cap"])
def test_a_powerset_loss_without_gradient_is_no_error(setting):
    x = features()
    x = dataclasses.replace(x, region_mask=torch.zeros_like(x.region_mask))
    loss = PowerCLIPLoss(**{setting: 0.5})
    output = loss(x)
    output.total.backward()
    assert output.total == output.terms["clip"]
    assert torch.isfinite(x.image.grad).all()
    assert 0 < loss(features(seed=1), measure=True).measures["powerset_weight"] < math.inf


@pytest.mark.parametrize("options", [{}, {"gradient_ratio": 0.5}, {"start_step": 1}], ids=str)
def test_the_gradient_ratio_is_that_of_the_weighted_terms(options):
    loss = PowerCLIPLoss(**options, powerset=powerset_loss())
    measures = loss(features(), measure=True).measures
    _, _, gradients = terms_and_gradients(0)
    expected = float(measures["powerset_weight"]) * norm(*gradients[2:]) / norm(*gradients[:2])
    assert measures["gradient_ratio"].item() == pytest.approx(expected, rel=1e-6)
    assert (expected == 0) == ("start_step" in options)


def test_measures_are_taken_on_request_and_change_nothing():
    found = []
    for measure in (False, True):
        x = features()
        output = PowerCLIPLoss(powerset=powerset_loss())(x, measure=measure)
        output.total.backward()
        found.append((output, x))
    (plain, a), (measured, b) = found
    assert plain.measures == {}
    assert not any(value.requires_grad for value in measured.measures.values())
    assert plain.total == measured.total
    for name in NAMES:
        assert torch.equal(getattr(a, name).grad, getattr(b, name).grad)
    with torch.no_grad():
        assert "gradient_ratio" not in PowerCLIPLoss(powerset=powerset_loss())(features(), measure=True).measures
    assert PowerCLIPLoss(weight=0)(features(), measure=True).measures == {}


def test_frozen_vectors_count_nothing():
    x = features()
    clip = clip_loss(x.image, x.text.detach(), x.logit_scale)
    (gradient,) = torch.autograd.grad(clip, x.image, retain_graph=True)
    assert float(gradient_norm(clip, (x.image, x.text.detach()))) == pytest.approx(norm(gradient))
    assert gradient_norm(clip.detach(), (x.image,)) == 0


def test_norms_stay_in_a_bad_step_are_saved_and_serve_without_gradient():
    loss = PowerCLIPLoss(gradient_ratio=0.5, powerset=powerset_loss())
    loss(features())
    kept = {name: value.clone() for name, value in loss.state_dict().items()}
    bad = features(seed=1)
    loss(dataclasses.replace(bad, regions=bad.regions * float("nan")))
    assert loss.clip_gradient == kept["clip_gradient"]
    assert loss.powerset_gradient == kept["powerset_gradient"]
    resumed = PowerCLIPLoss(gradient_ratio=0.5, powerset=powerset_loss())
    with torch.no_grad():
        assert resumed(features(), measure=True).measures["powerset_weight"].item() == pytest.approx(
            0.2
        )  # no gradient seen yet
    resumed.load_state_dict(kept)
    with torch.no_grad():
        expected = 0.5 * float(kept["clip_gradient"] / kept["powerset_gradient"])
        assert resumed(features(), measure=True).measures["powerset_weight"].item() == pytest.approx(expected, rel=1e-6)
    resumed.load_state_dict(kept)
    loss.load_state_dict(kept)
    assert resumed(features(seed=2)).total == loss(features(seed=2)).total


def test_the_state_of_a_fixed_weight_is_the_powerset_loss_s():
    assert set(PowerCLIPLoss().state_dict()) == {f"powerset.{name}" for name in PowersetAlignmentLoss().state_dict()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "0.2"}, "weight is '0.2'; it must be 0 or more"),
        ({"start_step": -1}, "start_step is -1; it must be 0 or more"),
        ({"warmup_steps": -2}, "warmup_steps is -2; it must be 0 or more"),
        ({"gradient_ratio": 0.0}, "gradient_ratio is 0.0; it must be positive, or None"),
        ({"gradient_cap": float("nan")}, "gradient_cap is nan; it must be positive, or None"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PowerCLIPLoss(**options)


# Many processes. Each holds its own number of pairs.

ROWS = {2: (5, 2), 3: (3, 1, 3)}
SETTINGS = {
    "ratio": {"gradient_ratio": 0.5, "start_step": 1, "warmup_steps": 3},
    "cap": {"weight": 5.0, "gradient_cap": 0.3},
    "all scores": {"gradient_ratio": 0.5},
}


def steps_of(rows):
    found = {}
    for name, options in SETTINGS.items():
        contrast = ContrastConfig(centre_scores="full" if name == "all scores" else "none")
        loss = PowerCLIPLoss(**options, powerset=powerset_loss(contrast))
        for seed in range(3):
            x = features(seed=seed, rows=rows)
            output = loss(x, measure=True)
            output.total.backward()
            of_regions = torch.zeros_like(x.regions) if x.regions.grad is None else x.regions.grad
            measures = torch.stack([value.double() for _, value in sorted(output.measures.items())])
            found[name, seed] = (output.total.detach(), measures, x.image.grad, of_regions)
    return found


def shares(process, size):
    start = sum(ROWS[size][:process])
    return steps_of(slice(start, start + ROWS[size][process]))


@pytest.mark.parametrize("size", [2, 3])
def test_many_processes_have_the_weight_and_the_gradient_of_one(size, tmp_path):
    results = run_on_processes(size, shares, tmp_path)
    for step, (total, measures, image, regions) in steps_of(slice(None)).items():
        assert len(measures) == 9
        for result in results:
            torch.testing.assert_close(result[step][0], total, rtol=1e-6, atol=1e-9)
            torch.testing.assert_close(result[step][1], measures, rtol=1e-6, atol=1e-9)
            assert torch.equal(result[step][1], results[0][step][1])
        torch.testing.assert_close(torch.cat([result[step][2] for result in results]), image, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(torch.cat([result[step][3] for result in results]), regions, rtol=1e-6, atol=1e-9)


class Trained(nn.Module):
    """Maps regions and phrases; gives ``Features``, or with a loss its total."""

    def __init__(self, loss=None):
        super().__init__()
        self.map = nn.Linear(6, 6, dtype=torch.float64)
        self.loss = loss

    def forward(self, x):
        x = dataclasses.replace(x, regions=self.map(x.regions), phrases=self.map(x.phrases))
        return x if self.loss is None else self.loss(x).total


def wrapped_by_ddp(process, size):
    start = sum(ROWS[size][:process])
    rows = slice(start, start + ROWS[size][process])
    gradients = []
    for options in ({}, {"static_graph": True}):
        torch.manual_seed(0)
        model = DistributedDataParallel(Trained(), **options)
        for seed in range(2):
            model.zero_grad()
            PowerCLIPLoss(powerset=powerset_loss())(model(features(seed=seed, rows=rows))).total.backward()
            gradients.append(model.module.map.weight.grad.clone())
    loss = PowerCLIPLoss(start_step=51, powerset=powerset_loss())
    if process == 0:  # a checkpoint that one process reads, and DDP gives to the others
        loss.load_state_dict({**loss.state_dict(), "powerset.steps": torch.tensor(50)})
    model = DistributedDataParallel(Trained(loss))
    counts = [loss.powerset.step]
    for _ in range(2):
        model(features(rows=rows)).backward()
        counts.append(loss.powerset.step)
    return gradients, counts


def test_ddp_finds_the_features_in_a_static_graph_and_gives_all_processes_one_count(tmp_path):
    for gradients, counts in run_on_processes(2, wrapped_by_ddp, tmp_path):
        torch.testing.assert_close(gradients[2:], gradients[:2], rtol=1e-12, atol=1e-15)
        assert gradients[0].any()
        assert counts == [50, 51, 52]
