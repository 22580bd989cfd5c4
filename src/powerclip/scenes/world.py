"""What a scene can contain: objects, their places, and what is true of them."""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "test", "compositional"]
SYMBOLS = {
    "sun": "☀",
    "cloud": "☁",
    "umbrella": "☂",
    "snowman": "☃",
    "comet": "☄",
    "star": "★",
    "telephone": "☎",
    "teacup": "☕",
    "shamrock": "☘",
    "finger": "☝",
    "skull": "☠",
    "ankh": "☥",
    "crescent": "☪",
    "wheel": "☸",
    "smiley": "☻",
    "moon": "☽",
    "king": "♚",
    "queen": "♛",
    "castle": "♜",
    "bishop": "♝",
    "horse": "♞",
    "pawn": "♟",
    "spade": "♠",
    "heart": "♥",
    "diamond": "♦",
    "club": "♣",
    "note": "♪",
    "wheelchair": "♿",
    "die": "⚄",
    "flag": "⚑",
    "hammer": "⚒",
    "anchor": "⚓",
    "swords": "⚔",
    "scales": "⚖",
    "flask": "⚗",
    "flower": "⚘",
    "gear": "⚙",
    "atom": "⚛",
    "lily": "⚜",
    "bolt": "⚡",
    "coffin": "⚰",
    "urn": "⚱",
    "scissors": "✂",
    "airplane": "✈",
    "envelope": "✉",
    "hand": "✌",
    "pencil": "✏",
    "pen": "✒",
    "tick": "✔",
    "cross": "✖",
    "asterisk": "✽",
    "snowflake": "❄",
    "arrow": "➜",
    "mouse": "🐭",
    "cow": "🐮",
    "cat": "🐱",
    "monkey": "🐵",
    "house": "⌂",
    "hexagon": "⬢",
    "triangle": "▲",
    "square": "■",
    "ball": "●",
    "ring": "◯",
    "pentagon": "⬟",
}
"""Names of what objects can be, and the characters that draw them in the font DejaVu Sans."""
SHAPES = tuple(SYMBOLS)
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "pink")
SIZES = ("small", "big")
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
"""The relations, and how each is said from the other object's side."""
OBJECT_COUNTS = (0.2, 0.8)
"""Cumulative shares of scenes of 1 and 2 objects; the others have 3."""
RADIUS = {"small": 0.18, "big": 0.23}
"""Half the side of an object's box, as a share of the image's side: large enough that symbols can be told apart on a
grid of 6 x 6 patches."""

HELD_OUT = frozenset((COLOURS[i % len(COLOURS)], shape) for i, shape in enumerate(SHAPES))
"""Colour-shape pairs that training never shows: each shape once, each colour as often as the others."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a scene."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    """Centre from the left and from the top, as shares of the image's side."""

    @property
    def radius(self) -> float:
        """Half the side of its box, as a share of the image's side."""
        return RADIUS[self.size]


Scene = tuple[Object, ...]
"""Objects that do not touch."""


@dataclass(frozen=True, kw_only=True)
class Mention:
    """An object as a caption names it; None says nothing of that attribute."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def fits(self, thing: Object) -> bool:
        """Whether the object is what the mention says."""
        return all(said in (None, getattr(thing, name)) for name, said in vars(self).items())


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
        mentions = [mention for mention in (self.subject, self.object, self.also) if mention is not None]
        return any(
            all(mention.fits(thing) for mention, thing in zip(mentions, things, strict=True))
            and (self.relation is None or holds(self.relation, things[0], things[1]))
            for things in permutations(scene, len(mentions))
        )


def holds(relation: str, a: Object, b: Object) -> bool:
    """Whether a is in a relation to b, which is the direction in which they are clearly further apart."""
    dx, dy = b.x - a.x, b.y - a.y
    if relation in ("left", "right"):
        return abs(dx) > 1.3 * abs(dy) and (dx > 0) == (relation == "left")
    return abs(dy) > 1.3 * abs(dx) and (dy > 0) == (relation == "above")


def relation_of(a: Object, b: Object) -> str | None:
    """The relation of a to b; None if no direction is clear."""
    return next((relation for relation in INVERSE if holds(relation, a, b)), None)


def pick(random: np.random.Generator, values: tuple[str, ...]) -> str:
    """One of the values."""
    return values[int(random.integers(len(values)))]


def random_object(random: np.random.Generator, *, held_out: bool = False) -> Object:
    """An object without a place yet; ``held_out`` decides whether its colour-shape pair is one of ``HELD_OUT``."""
    while True:
        colour, shape = pick(random, COLOURS), pick(random, SHAPES)
        if ((colour, shape) in HELD_OUT) == held_out:
            return Object(shape=shape, colour=colour, size=pick(random, SIZES), x=0.5, y=0.5)


def place(random: np.random.Generator, objects: list[Object]) -> Scene:
    """Place objects so that no two touch; they become small, then fewer, if that does not succeed."""
    for attempt in range(40):
        if attempt == 20:
            objects = [replace(thing, size="small") for thing in objects]
        placed: list[Object] = []
        for thing, (u, v) in zip(objects, random.random((len(objects), 2)).tolist(), strict=True):
            low, span = thing.radius + 0.02, 0.96 - 2 * thing.radius
            moved = replace(thing, x=low + span * u, y=low + span * v)
            if any(max(abs(moved.x - o.x), abs(moved.y - o.y)) < moved.radius + o.radius + 0.03 for o in placed):
                break
            placed.append(moved)
        else:
            return tuple(placed)
    return place(random, objects[:-1])


def random_scene(random: np.random.Generator, split: Split, *, objects: int | None = None) -> Scene:
    """A scene of 1 to 3 objects; in the compositional split, training never shows the first one's colour-shape pair."""
    count = objects or 1 + int(np.digitize(random.random(), OBJECT_COUNTS))
    things = [random_object(random, held_out=split == "compositional" and i == 0) for i in range(count)]
    return place(random, things)


def related_pair(random: np.random.Generator) -> tuple[Scene, Statement]:
    """A scene of two objects that differ in shape and colour, and the statement of their relation."""
    while True:
        scene = place(random, [random_object(random), random_object(random)])
        if len(scene) < 2:
            continue
        a, b = scene
        relation = relation_of(a, b)
        if relation is not None and a.shape != b.shape and a.colour != b.colour:
            subject, target = (Mention(shape=t.shape, colour=t.colour) for t in (a, b))
            return scene, Statement(subject=subject, relation=relation, object=target)


def generator(seed: int, split: Split, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one sample, a function of seed, split and index: any process can generate any sample."""
    return np.random.default_rng((seed, get_args(Split).index(split), stream, index))
