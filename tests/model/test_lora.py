"""Additions of low rank: at first they change nothing, all are trained, and merged they are a model without them."""

import sys

import peft
import pytest
import torch

import powerclip
from powerclip.config import ModelConfig, OptimConfig, TrainConfig
from powerclip.errors import PowerclipError
from powerclip.model import add_lora, describe, from_open_clip, save
from powerclip.train.build import build_model
from tests.support.pretrained import FAMILIES, SMALL, config_file, inputs, theirs_of


def embeddings(model, size):
    images, tokens = inputs(size)
    return model.encode_image(images), model.encode_text(tokens)


def moved(model):
    """With additions that are not zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_model_trains_every_addition_and_is_merged_when_saved(family, tmp_path):
    config = FAMILIES[family]
    size = config["vision_cfg"]["image_size"]
    name = config_file(tmp_path, config)
    torch.save(theirs_of(config).state_dict(), tmp_path / "theirs.pt")
    options = {"pretrained": str(tmp_path / "theirs.pt"), "image_pool": "tower", "text_pool": "tower"}
    plain, model = (powerclip.create_model(name, **options).eval() for _ in range(2))
    add_lora(model, rank=2, alpha=4)
    rest = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    assert rest == {name for name, _ in plain.named_parameters() if "logit" in name}
    with torch.no_grad():
        torch.testing.assert_close(embeddings(model, size), embeddings(plain, size), rtol=1e-4, atol=1e-5)
    save(model, tmp_path / "at-first")
    state = plain.state_dict()
    for name, value in powerclip.load(tmp_path / "at-first")[0].state_dict().items():
        assert torch.equal(value, state[name]), name
    moved(model).set_grad_checkpointing()
    model.train()
    sum(x.square().sum() for x in embeddings(model, size)).backward()
    still = [n for n, p in model.named_parameters() if ".lora_" in n and (p.grad is None or not p.grad.any())]
    assert not still
    model.eval()
    save(model, tmp_path / "moved")
    loaded = powerclip.load(tmp_path / "moved")[0]
    with torch.no_grad():
        found, expected = embeddings(model, size), embeddings(loaded, size)
        for a, b, before in zip(found, expected, embeddings(plain, size), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            assert (b - before).norm() > 0.01 * before.norm()


def test_peft_s_own_way_of_merging_gives_the_same_weights(tmp_path):
    torch.manual_seed(0)
    model = powerclip.create_model("tiny")
    peft_model = peft.PeftModel(
        torch.nn.Sequential(torch.nn.Linear(5, 7)), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
    )
    assert peft_model.base_model.model[0].scaling["default"] == 2  # alpha / rank, as ours
    add_lora(model, rank=3, alpha=6)
    layers = {n: m for n, m in moved(model).named_modules() if isinstance(m, peft.tuners.lora.Linear)}
    assert len(layers) == 4 * len(model.blocks())
    state = powerclip.load(save(model, tmp_path / "model"))[0].state_dict()
    for name, layer in layers.items():
        layer.merge()
        weight = state[f"{name}.weight".replace(".in_proj.", ".in_proj_")]
        torch.testing.assert_close(weight, layer.get_base_layer().weight, rtol=1e-5, atol=1e-6)


def test_under_autocast_and_with_open_clip_s_model(tmp_path):
    model = from_open_clip(theirs_of(SMALL))
    plain = embeddings(model, 32)
    add_lora(model, rank=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embeddings(model, 32)
    for a, b in zip(found, plain, strict=True):
        assert (a.float() - b).norm() < 0.02 * b.norm()  # bfloat16 has 8 bits


def test_a_frozen_tower_has_no_additions_and_the_line_says_what_is_trained(tmp_path):
    start = save(powerclip.create_model("tiny"), tmp_path / "start")
    settings = ModelConfig(pretrained=str(start), lora_rank=3)
    model = build_model(TrainConfig(model=settings, optim=OptimConfig(freeze="image"), steps=1))
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert {name.split(".")[1] for name in trained} == {"transformer", "logit_scale"}
    assert not any("lora" in name for name, _ in model.backbone.visual.named_parameters())
    line = describe(model)
    assert f"({len(powerclip.load(start)[0].state_dict())} tensors, " in line
    assert f"LoRA of rank 3 in {len([name for name in trained if 'lora_A' in name])} layers" in line


def test_what_cannot_be_adapted_is_one_line(monkeypatch):
    with pytest.raises(ValueError, match="lora_rank is for pretrained weights.*give pretrained"):
        ModelConfig(lora_rank=4)
    with pytest.raises(ValueError, match="lora_rank is 0; it must be at least 1"):
        ModelConfig(pretrained="openai", lora_rank=0)
    model = powerclip.create_model("tiny")
    block = model.blocks()[0]
    block.attn = type("Unknown", (torch.nn.Module,), {"in_proj_weight": None})()
    with pytest.raises(PowerclipError, match="cannot adapt the attention Unknown; train without lora_rank"):
        add_lora(model, rank=2)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(PowerclipError, match=r"LoRA needs peft, .*pip install 'powerclip\[lora\]'"):
        add_lora(powerclip.create_model("tiny"), rank=2)
