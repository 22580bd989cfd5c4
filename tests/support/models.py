"""Small models, and what a loader needs of one."""

import json
from functools import cache
from pathlib import Path

import powerclip
from powerclip.data.dataset import TowerInputs
from powerclip.model import make_tokenizer, make_transforms

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 24, "width": 16, "heads": 2, "layers": 1},
}
"""The smallest model that trains on scenes."""


def write_tiny(folder):
    """The path of a file with TINY, as a setting of a model's name takes it."""
    path = Path(folder) / "small.json"
    if not path.exists():  # processes that share the folder read it
        path.write_text(json.dumps(TINY))
    return str(path)


@cache
def tiny_model():
    """One model for all; leave it as it is."""
    return powerclip.create_model("tiny")


def tiny_tower(**transform_options):
    """What a loader needs of the tiny model."""
    model = tiny_model()
    return TowerInputs(
        transform=make_transforms(model, **transform_options)[0],
        tokenizer=make_tokenizer(model),
        context_length=model.context_length,
        grid=model.grid_size,
    )


def write_start(folder):
    """The path of a saved TINY, as a setting of what a model starts from takes it."""
    path = Path(folder) / "start"
    if not path.exists():
        powerclip.model.save(powerclip.create_model(write_tiny(folder)), path)
    return str(path)
