"""Scenes: a generated data set of 1 to 3 coloured symbols in spatial relations, with gold annotations.

Sample i of a split is a function of the seed, the split and i. Splits: "train"; "test" (new scenes of seen
colour-shape pairs); "compositional" (at least one object of a pair that training never shows).
"""

import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, get_args

from powerclip.data.sample import Sample
from powerclip.errors import one_of
from powerclip.regions import RegionAnnotation, rle
from powerclip.scenes.captions import describe
from powerclip.scenes.grounding import segmentation_task
from powerclip.scenes.render import object_box, object_mask, render
from powerclip.scenes.tasks import evaluation_tasks
from powerclip.scenes.world import Split, generator, random_scene

SMALLEST_IMAGE = 32
"""Side in pixels below which symbols are too small to draw."""

__all__ = ["Split", "evaluation_tasks", "generate", "sample", "segmentation_task"]


def generate(split: Split, *, count: int, seed: int, image_size: int = 64) -> Iterator[Sample]:
    """The first ``count`` samples of a split, with images of ``image_size`` by ``image_size`` pixels (at least 32).

    ValueError if there is no such split, the count is negative, or the images are too small.
    """
    one_of("split", split, get_args(Split))
    if count < 0:
        raise ValueError(f"count is {count}; it must be 0 or more")
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size is {image_size}; it must be at least {SMALLEST_IMAGE}")
    return (sample(split, index, seed=seed, image_size=image_size) for index in range(count))


def sample(split: Split, index: int, *, seed: int, image_size: int = 64) -> Sample:
    """One sample: image, caption, gold phrases, gold object masks and, as metadata, the objects and statements."""
    random = generator(seed, split, index)
    scene = random_scene(random, split)
    caption, tree, statements = describe(scene, random)
    image = io.BytesIO()
    render(scene, image_size=image_size, random=random).save(image, "PNG", compress_level=1)
    masks = tuple(rle.encode(object_mask(thing, image_size=image_size)) for thing in scene)
    objects = [{**vars(thing), "box": list(object_box(thing, image_size=image_size))} for thing in scene]
    return Sample(
        key=f"{split}-{index:08d}",
        image=image.getvalue(),
        image_extension="png",
        caption=caption,
        tree=tree,
        metadata={"objects": objects, "statements": [asdict(s, dict_factory=_stated) for s in statements]},
        regions=RegionAnnotation(
            height=image_size, width=image_size, rles=masks, scores=(1.0,) * len(masks), proposer="gold"
        ),
    )


def _stated(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields if value is not None}
