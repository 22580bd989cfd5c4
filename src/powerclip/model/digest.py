"""What tells one model from another."""

import hashlib
import json

import torch
from torch import nn


def digest_of(model: nn.Module) -> str:
    """A hash of what decides a model's numbers: its weights, and its config without the places in it."""
    config = {name: value for name, value in getattr(model, "config", {}).items() if name != "start"}
    if "text_cfg" in config.get("model", {}):
        text = {name: value for name, value in config["model"]["text_cfg"].items() if name != "hf_tokenizer_name"}
        config["model"] = {**config["model"], "text_cfg": text}
    content = f"{digest_of_weights(model)} {json.dumps(config, sort_keys=True)}"
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def digest_of_weights(model: nn.Module) -> str:
    """A hash of a model's weights alone, by which earlier versions knew a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
