import math

import pytest
import torch
from torch import nn

from powerclip.config import OptimConfig
from powerclip.train.optim import learning_rate, make_optimizer


def test_warm_up_then_cosine():
    config = OptimConfig(learning_rate=2.0, warmup_steps=4)
    rates = [learning_rate(step, steps=12, config=config) for step in range(12)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:] == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)])


def test_a_run_shorter_than_its_warm_up_still_trains():
    config = OptimConfig(learning_rate=1.0, warmup_steps=100)
    assert learning_rate(1, steps=2, config=config) == 1.0


def test_norms_biases_and_the_temperature_do_not_decay():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model.logit_scale = nn.Parameter(torch.tensor(2.0))
    decayed, kept = make_optimizer(model, OptimConfig(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 3)]
    assert kept["weight_decay"] == 0.0
    assert sum(p.numel() for p in kept["params"]) == 2 + 2 + 2 + 1
