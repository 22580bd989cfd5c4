"""Scenes: a generated data set of 1 to 4 coloured, textured objects in spatial relations, with gold annotations.

Sample i of a split is a function of the seed, the split and i. Splits: "train"; "test" (new scenes of seen
colour-shape pairs); "compositional" (at least one object of a pair that training never shows).
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import get_args

from powerclip.data.sample import Sample
from powerclip.data.scenes.captions import describe
from powerclip.data.scenes.evaluation import evaluation_tasks
from powerclip.data.scenes.render import object_mask, render
from powerclip.data.scenes.world import Split, generator, random_scene
from powerclip.regions import rle

__all__ = ["Split", "evaluation_tasks", "generate", "sample"]


def generate(split: Split, *, count: int, seed: int, image_size: int = 64) -> Iterator[Sample]:
    """The first samples of a split.

    Raises:
        ValueError: no such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(get_args(Split))}")
    for index in range(count):
        yield sample(split, index, seed=seed, image_size=image_size)


def sample(split: Split, index: int, *, seed: int, image_size: int = 64) -> Sample:
    """One sample: image, caption, gold phrases, gold object masks and, as metadata, the objects."""
    random = generator(seed, split, index)
    scene = random_scene(random, split)
    caption, tree, _ = describe(scene, random)
    image = io.BytesIO()
    render(scene, image_size=image_size, random=random).save(image, "PNG", compress_level=1)
    masks = [{"rle": rle.encode(object_mask(thing, image_size=image_size)), "score": 1.0} for thing in scene.objects]
    return Sample(
        key=f"{split}-{index:08d}",
        image=image.getvalue(),
        image_extension="png",
        caption=caption,
        tree=tree,
        metadata={"objects": [dataclasses.asdict(thing) for thing in scene.objects]},
        regions={"height": image_size, "width": image_size, "masks": masks, "proposer": "gold"},
    )
