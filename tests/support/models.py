"""What a loader needs of a model, made once."""

from functools import cache

import powerclip
from powerclip.model import make_tokenizer, make_transforms


@cache
def tiny_model():
    return powerclip.create_model("tiny")


def tiny_tower(**transform_options):
    model = tiny_model()
    return {
        "transform": make_transforms(model, **transform_options)[0],
        "tokenizer": make_tokenizer(model),
        "context_length": model.context_length,
        "grid": model.grid_size,
    }
