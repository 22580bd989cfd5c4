"""What a scene can contain: objects, their places, and what is true of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Split = Literal["train", "test", "compositional"]
SPLITS: tuple[Split, ...] = ("train", "test", "compositional")
SHAPES = ("cube", "ball", "cone", "diamond", "star", "cross", "ring", "heart")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "pink")
SIZES = ("small", "big")
TEXTURES = ("plain", "striped", "dotted", "checkered")
RELATIONS = ("left", "right", "above", "below")
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
RADIUS = {"small": 0.11, "big": 0.19}
"""Half the side of an object's box, as a share of the image's side."""

HELD_OUT = frozenset((COLOURS[i], SHAPES[(3 * i) % len(SHAPES)]) for i in range(len(COLOURS)))
"""Colour-shape pairs that training never shows: each colour and each shape once."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a scene."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    """Centre from the left, as a share of the image's side."""
    y: float
    """Centre from the top, as a share of the image's side."""

    @property
    def radius(self) -> float:
        """Half the side of its box, as a share of the image's side."""
        return RADIUS[self.size]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects that do not touch."""

    objects: tuple[Object, ...]


@dataclass(frozen=True, kw_only=True)
class Mention:
    """An object as a caption names it; None says nothing of that attribute."""

    shape: str
    colour: str | None = None
    size: str | None = None
    texture: str | None = None

    def fits(self, thing: Object) -> bool:
        """Whether the object is what the mention says."""
        attributes = ("shape", "colour", "size", "texture")
        return all(getattr(self, name) in (None, getattr(thing, name)) for name in attributes)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a clause says: a subject exists, or is in a relation to an object; it may name a further object."""

    subject: Mention
    relation: str | None = None
    object: Mention | None = None
    also: Mention | None = None
    """A further object, named without a relation."""

    def true_of(self, scene: Scene) -> bool:
        """Whether the scene has distinct objects for everything that is mentioned."""
        things = scene.objects
        for a, first in enumerate(things):
            if not self.subject.fits(first):
                continue
            for b, second in enumerate(things):
                if self.object is not None and (
                    a == b or not self.object.fits(second) or not holds(self.relation or "", first, second)
                ):
                    continue
                used = {a} if self.object is None else {a, b}
                if self.also is None or any(self.also.fits(t) for c, t in enumerate(things) if c not in used):
                    return True
        return False


def holds(relation: str, a: Object, b: Object) -> bool:
    """Whether a is in a relation to b, which is the direction in which they are clearly further apart."""
    dx, dy = b.x - a.x, b.y - a.y
    if relation in ("left", "right"):
        return abs(dx) > 1.3 * abs(dy) and (dx > 0) == (relation == "left")
    return abs(dy) > 1.3 * abs(dx) and (dy > 0) == (relation == "above")


def relation_of(a: Object, b: Object) -> str | None:
    """The relation of a to b; None if no direction is clear."""
    return next((relation for relation in RELATIONS if holds(relation, a, b)), None)


def pick(random: np.random.Generator, values: tuple[str, ...]) -> str:
    """One of the values."""
    return values[int(random.integers(len(values)))]


def random_object(random: np.random.Generator, *, held_out: bool = False) -> Object:
    """An object without a place yet; ``held_out`` decides whether its colour-shape pair is one of ``HELD_OUT``."""
    while True:
        colour, shape = pick(random, COLOURS), pick(random, SHAPES)
        if ((colour, shape) in HELD_OUT) == held_out:
            size, texture = pick(random, SIZES), pick(random, TEXTURES)
            return Object(shape=shape, colour=colour, size=size, texture=texture, x=0.5, y=0.5)


def place(random: np.random.Generator, objects: list[Object]) -> Scene:
    """Place objects so that no two touch; they become small, then fewer, if that does not succeed."""
    for attempt in range(40):
        if attempt == 20:
            objects = [replace(thing, size="small") for thing in objects]
        placed: list[tuple[float, float, float]] = []
        for thing, (u, v) in zip(objects, random.random((len(objects), 2)).tolist(), strict=True):
            low, span = thing.radius + 0.02, 0.96 - 2 * thing.radius
            x, y, radius = low + span * u, low + span * v, thing.radius
            if any(max(abs(x - p), abs(y - q)) < radius + r + 0.03 for p, q, r in placed):
                break
            placed.append((x, y, radius))
        else:
            return Scene(objects=tuple(replace(o, x=x, y=y) for o, (x, y, _) in zip(objects, placed, strict=True)))
    return place(random, objects[:-1])


def pick_count(u: float) -> int:
    """The number of objects for a uniform draw: 1 to 4 with shares 0.2, 0.4, 0.25, 0.15."""
    return 1 + (u >= 0.2) + (u >= 0.6) + (u >= 0.85)


def random_scene(random: np.random.Generator, split: Split, *, objects: int | None = None) -> Scene:
    """A scene of 1 to 4 objects; in the compositional split, training never shows the first one's colour-shape pair."""
    count = objects or pick_count(random.random())
    things = [random_object(random, held_out=split == "compositional" and i == 0) for i in range(count)]
    return place(random, things)


def generator(seed: int, split: Split, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one sample, a function of seed, split and index: any process can generate any sample."""
    return np.random.default_rng((seed, SPLITS.index(split), stream, index))
