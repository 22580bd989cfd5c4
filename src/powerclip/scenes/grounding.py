"""Scenes with the masks of their objects: which object does a phrase name, and which pixels have which shape?"""

from functools import partial
from typing import Any

import numpy as np

from powerclip.scenes.render import object_mask, render
from powerclip.scenes.world import SHAPES, Scene, generator, random_scene
from powerclip.tasks import IGNORED, Grounding, Segmentation


def grounding_task(*, seed: int, size: int, image_size: int) -> Grounding:
    """``size`` scenes of 2 or 3 objects, no two of the same colour and shape, and a phrase for each object."""
    images, phrases, masks = [], [], []
    for index in range(size):
        random = generator(seed, "test", index, stream=6)
        scene = distinct_scene(random)
        images.append(render(scene, image_size=image_size, random=random))
        phrases.append(
            [f"{'an' if thing.colour[0] in 'aeiou' else 'a'} {thing.colour} {thing.shape}" for thing in scene]
        )
        masks.append(partial(_masks, scene, image_size))
    return Grounding(name="scenes-grounding", images=images, phrases=phrases, masks=masks)


def segmentation_task(*, seed: int, size: int, image_size: int) -> Segmentation:
    """``size`` scenes whose objects' pixels have a shape; those of the background do not count."""
    images, truths = [], []
    for index in range(size):
        random = generator(seed, "test", index, stream=7)
        scene = random_scene(random, "test", objects=int(random.integers(2, 4)))
        images.append(render(scene, image_size=image_size, random=random))
        truths.append(partial(_shapes, scene, image_size))
    return Segmentation(
        name="scenes-segmentation",
        images=images,
        truths=truths,
        class_names=[(shape,) for shape in SHAPES],
        templates=("a {c}", "a picture of a {c}", "there is a {c}"),
    )


def distinct_scene(random: np.random.Generator) -> Scene:
    """A scene of 2 or 3 objects that all differ in colour or shape."""
    while True:
        scene = random_scene(random, "test", objects=int(random.integers(2, 4)))
        if len({(thing.colour, thing.shape) for thing in scene}) == len(scene) >= 2:
            return scene


def _masks(scene: Scene, image_size: int) -> Any:
    return np.stack([object_mask(thing, image_size=image_size) for thing in scene])


def _shapes(scene: Scene, image_size: int) -> Any:
    """(H, W) the number of the shape that is seen at each pixel."""
    shapes = np.full((image_size, image_size), IGNORED)
    for thing in scene:
        shapes[object_mask(thing, image_size=image_size)] = SHAPES.index(thing.shape)
    return shapes
