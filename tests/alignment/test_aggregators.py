import math

import pytest
import torch

from powerclip.alignment.aggregators import (
    T1_ACTIVATIONS,
    T2_ACTIVATIONS,
    T2_LIMITS,
    aggregate,
    best_single_region,
)

DERIVATIVES = {
    "tanh": torch.tanh,
    "sign": torch.sign,
    "erf": torch.erf,
    "softsign": torch.nn.functional.softsign,
    "arctan": torch.atan,
    "sigmoid": torch.sigmoid,
}
x = torch.linspace(-6, 6, 240, dtype=torch.float64)  # 0 is not among them


@pytest.mark.parametrize("name", T2_ACTIVATIONS)
def test_the_even_part_is_the_integral_of_the_named_derivative(name):
    y = x.clone().requires_grad_()
    T2_ACTIVATIONS[name](y).sum().backward()
    torch.testing.assert_close(y.grad, DERIVATIVES[name](x), rtol=1e-9, atol=1e-9)
    assert float(T2_ACTIVATIONS[name](torch.zeros((), dtype=torch.float64))) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("name", T2_ACTIVATIONS)
def test_the_limit_of_the_even_part_is_that_of_small_tau(name):
    tau = 1e-9
    # softsign and arctan come near it as tau log(1 / tau)
    torch.testing.assert_close(tau * T2_ACTIVATIONS[name](x / tau), T2_LIMITS[name](x), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", T1_ACTIVATIONS)
def test_every_activation_of_t1_tends_to_relu(name):
    tau = 1e-9
    torch.testing.assert_close(tau * T1_ACTIVATIONS[name](x / tau), x.relu(), rtol=0, atol=2 * tau)


def test_softplus_is_exact_in_float64():
    expected = torch.tensor([math.log1p(math.exp(v)) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(T1_ACTIVATIONS["softplus"](x), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("t1", T1_ACTIVATIONS)
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_an_absent_region_adds_nothing_whatever_the_activation(t1, tau):
    s = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    phrases = torch.ones(3, dtype=torch.bool)
    for t2 in T2_ACTIVATIONS:
        options = {"tau": tau, "zeta": 0.5, "t1_activation": t1, "t2_activation": t2}
        present = torch.tensor([True, False, True, True])
        with_absent = aggregate(s, present, phrases, **options)
        without = aggregate(s[present], present[present], phrases, **options)
        for mine, theirs in zip(with_absent, without, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_single_regions_are_the_best_region_of_each_phrase_and_the_best_phrase_of_each_region():
    s = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    regions = torch.tensor([[True, True, False, True], [False] * 4])
    phrases = torch.tensor([[True, False, True], [True] * 3])
    t2r, r2t = best_single_region(s, regions, phrases)
    kept = s[0][[0, 1, 3]][:, [0, 2]]
    assert t2r[0] == kept.amax(dim=0).mean()
    assert r2t[0] == kept.amax(dim=1).mean()
    assert t2r[1] == r2t[1] == 0
