"""A small training, and what its folder says of it."""

import dataclasses
import json

import powerclip
from powerclip.config import ModelConfig, ObjectiveConfig
from powerclip.data.sample import Sample
from powerclip.data.shards import write_shards
from powerclip.recipes import scenes_tiny
from powerclip.runs import read_metrics
from tests.support.images import one_colour
from tests.support.models import write_tiny


def tiny_run(folder, **changes):
    """The config of a few steps on scenes with the smallest model, whose file is in the folder."""
    base = dataclasses.replace(
        scenes_tiny(), objective=ObjectiveConfig()
    )  # whose powerset loss acts from the first step
    usual = {
        "model": ModelConfig(name=write_tiny(folder)),
        "optim": dataclasses.replace(base.optim, warmup_steps=2),
        "batch_size": 8,
        "steps": 8,
        "log_every_steps": 1,
        "checkpoint_every_steps": 3,
        "device": "cpu",
    }
    return dataclasses.replace(base, **{**usual, **changes})


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def weights(run):
    model, _, _ = powerclip.load(str(run))
    return model.state_dict()


def own_data(folder, *captions, image=None):
    """Shards of captions without phrases, each with an image of one colour unless another is given."""
    image = one_colour("teal", size=(40, 20)) if image is None else image
    write_shards(
        [Sample(key=str(i), image=image, image_extension="png", caption=c) for i, c in enumerate(captions)], folder
    )
    return folder


def record_data(run, *sources):
    """Let a run folder say that it was trained on some sources."""
    record = {"sources": list(map(str, sources)), "samples": 1, "shards": 1, "digest": "0"}
    (run / "data.json").write_text(json.dumps(record), encoding="utf-8")
