import math

import pytest
import torch
from torch import nn

import powerclip
from powerclip.config import OptimConfig
from powerclip.train.optim import gradient_norm, learning_rate, make_optimizer


def test_the_gradients_of_modules_have_one_norm():
    torch.manual_seed(0)
    modules = nn.ModuleList([nn.Linear(3, 2), nn.Linear(2, 2, bias=False)])
    modules[1](modules[0](torch.ones(4, 3))).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in modules.parameters()]).norm()
    torch.testing.assert_close(gradient_norm(modules), expected)
    torch.testing.assert_close(gradient_norm((modules, nn.LayerNorm(2))), expected)  # the second has no gradients


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


def test_layer_decay_follows_the_depth_of_a_parameter():
    model = powerclip.create_model("tiny")
    optimizer = make_optimizer(model, OptimConfig(layer_decay=0.5, weight_decay=0.1))
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: scale[id(p)] for name, p in model.named_parameters()}
    assert found["backbone.visual.transformer.resblocks.2.attn.in_proj_weight"] == 0.5
    assert found["backbone.visual.transformer.resblocks.0.ln_1.weight"] == 0.125
    assert found["backbone.transformer.resblocks.1.mlp.c_fc.weight"] == 0.25
    assert found["backbone.visual.conv1.weight"] == found["backbone.token_embedding.weight"] == 0.0625
    assert found["backbone.visual.class_embedding"] == found["backbone.positional_embedding"] == 0.0625
    assert found["backbone.visual.proj"] == found["backbone.ln_final.weight"] == found["backbone.logit_scale"] == 1


def test_without_layer_decay_all_learn_alike():
    groups = make_optimizer(powerclip.create_model("tiny"), OptimConfig()).param_groups
    assert [group["lr_scale"] for group in groups] == [1.0, 1.0]
