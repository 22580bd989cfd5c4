"""Scenes in which a phrase names one object, with the objects' masks."""

from functools import partial
from typing import Any

import numpy as np

from powerclip.scenes.render import object_mask, render
from powerclip.scenes.world import Scene, generator, random_scene
from powerclip.tasks import Grounding


def grounding_task(*, seed: int, size: int, image_size: int) -> Grounding:
    """``size`` scenes of 2 to 4 objects, no two of the same colour and shape, and a phrase for each object."""
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


def distinct_scene(random: np.random.Generator) -> Scene:
    """A scene of 2 to 4 objects that all differ in colour or shape."""
    while True:
        scene = random_scene(random, "test", objects=int(random.integers(2, 5)))
        if len({(thing.colour, thing.shape) for thing in scene}) == len(scene) >= 2:
            return scene


def _masks(scene: Scene, image_size: int) -> Any:
    return np.stack([object_mask(thing, image_size=image_size) for thing in scene])
