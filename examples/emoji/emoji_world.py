"""Scenes of two emoji in a spatial relation, with gold phrases and masks: the vocabulary, the scenes, training shards.

Two drawing styles are for training; the third is seen in evaluation only. Training shows every name with 24 of the
other names, always the same ones; all other pairs are combinations that only the evaluation shows.

In the coloured scenes each drawing is printed in one of eight colours, and captions name the colour half the time.
"""

from __future__ import annotations

import io
import itertools
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from emoji_names import LINKS
from emoji_packages import Emoji, image_path, read_emoji
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from powerclip.data.sample import Sample
from powerclip.data.shards import tars_in, write_shards
from powerclip.errors import PowerclipError
from powerclip.files import read_json, write_json
from powerclip.regions import RegionAnnotation
from powerclip.scenes.captions import FORMS, NAMED, clause, write
from powerclip.scenes.render import RGB
from powerclip.scenes.world import COLOURS, Mention, Statement, pick, relation_of

TRAIN_STYLES = ("google", "emojione")
NEW_STYLE = "twitter"
"""The style that training never shows."""

STYLES = (*TRAIN_STYLES, NEW_STYLE)

CATEGORIES = ("Animals & Nature", "Food & Drink", "Activities", "Travel & Places", "Objects")

NAMES = 240
COLOURED_NAMES = 64
"""Size of the vocabulary, unless another is asked for; where colours tell captions apart, 240 names are learnt late."""

COLOUR_WORDS = frozenset((*COLOURS, "white", "brown"))
"""Names with one of these words are left out of the coloured scenes."""

REACH = 12
"""Names are put on a circle; training shows a name with this many on each side, and with at most a quarter of them."""

SIDES = (0.34, 0.47)
"""Smallest and largest longer side of a drawing, as shares of the image's."""

SAMPLES_PER_SHARD = 1000

RECORD = "scenes.json"
"""File in a folder of shards that says which scenes they hold."""

Pair = tuple[str, str]
Drawings = Mapping[str, Mapping[str, Image.Image]]
"""By style and name: RGBA images, cropped to what is drawn."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A drawing in its place."""

    name: str
    style: str
    left: int
    top: int
    """Pixels from the image's corner."""
    drawing: Image.Image
    """RGBA, in its final size."""
    colour: str | None = None
    """What it is printed in; None for the colours it was drawn with."""

    @property
    def x(self) -> float:
        """Centre in pixels from the left."""
        return self.left + self.drawing.width / 2

    @property
    def y(self) -> float:
        """Centre in pixels from the top."""
        return self.top + self.drawing.height / 2

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in pixels, the last two exclusive."""
        return self.left, self.top, self.left + self.drawing.width, self.top + self.drawing.height


def read_drawings(
    packages: Mapping[str, Path], *, names: int | None = None, coloured: bool = False
) -> dict[str, dict[str, Image.Image]]:
    """The drawings of emoji by style and name, the same names in the same order for every style.

    There are ``names`` of them, by default ``NAMES``, for ``coloured`` scenes ``COLOURED_NAMES``. A name is an article
    and one or two words ("a red apple") in one of ``CATEGORIES``, for ``coloured`` scenes without ``COLOUR_WORDS``. The
    order is arbitrary but fixed, and so is which names are left out. PowerclipError if the packages have fewer.
    """
    names = names or (COLOURED_NAMES if coloured else NAMES)
    found: dict[str, Emoji] = {}
    unwanted = COLOUR_WORDS if coloured else frozenset[str]()
    for emoji in read_emoji(dict(packages)):
        if emoji.category in CATEGORIES and not emoji.tones and is_plain(emoji.base, without=unwanted):
            found.setdefault(emoji.base, emoji)
    if len(found) < names:
        raise PowerclipError(f"the packages have {len(found)} emoji with plain names, fewer than {names}")
    chosen = sorted(found, key=lambda name: zlib.crc32(name.encode()))[:names]
    return {
        style: {name: _cropped(image_path(package, style, found[name])) for name in chosen}
        for style, package in packages.items()
    }


def is_plain(name: str, *, without: frozenset[str]) -> bool:
    """Whether a name is an article and one or two words that captions can be made of, none of them unwanted."""
    article, *words = name.split()
    return (
        len(words) in (1, 2)
        and article == ("an" if words[0][0] in "aeiou" else "a")  # as the captions' grammar writes it
        and not (LINKS | without) & set(words)
        and all(word.isalpha() and word.islower() for word in words)
    )


def _cropped(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


def pairs(names: Sequence[str], *, seen: bool) -> list[Pair]:
    """All pairs of names that training shows, or all that it never shows, in any style or order."""
    count = len(names)
    reach = max(1, min(REACH, count // 4))
    return [
        (names[i], names[j])
        for i, j in itertools.combinations(range(count), 2)
        if (min(j - i, count - (j - i)) <= reach) == seen
    ]


def generator(seed: int, stream: int, index: int = 0) -> np.random.Generator:
    """The random numbers of one scene; stream 0 is training."""
    return np.random.default_rng((seed, stream, index))


def two_colours(random: np.random.Generator) -> tuple[str, str]:
    """Two different colours."""
    first, second = random.permutation(len(COLOURS))[:2]
    return COLOURS[first], COLOURS[second]


def printed(drawing: Image.Image, colour: str) -> Image.Image:
    """An RGBA drawing in shades of one colour; which pixels it covers stays as it is."""
    alpha = drawing.getchannel("A")
    grey = ImageOps.autocontrast(drawing.convert("L"), mask=alpha.point(lambda value: 255 * (value > 127)))
    middle = RGB[colour]
    dark, light = ([round(value + 0.35 * (end - value)) for value in middle] for end in (0, 255))
    shades = ImageOps.colorize(grey, black=tuple(dark), mid=middle, white=tuple(light))
    shades.putalpha(alpha)
    return shades


def place(
    drawings: Drawings,
    names: Sequence[str],
    styles: Sequence[str],
    random: np.random.Generator,
    *,
    image_size: int,
    colours: Sequence[str | None] = (None, None),
) -> tuple[Thing, ...]:
    """Drawings of the names, each in one of the styles, that do not overlap; two are in a clear relation."""
    chosen = []
    for name, colour in zip(names, colours, strict=False):
        style, side = pick(random, tuple(styles)), random.uniform(*SIDES) * image_size
        drawing = drawings[style][name]
        scale = side / max(drawing.size)
        size = tuple(max(4, round(scale * length)) for length in drawing.size)
        drawing = drawing.resize(size, Image.Resampling.LANCZOS)
        chosen.append((name, style, printed(drawing, colour) if colour else drawing, colour))
    while True:
        things = tuple(
            Thing(
                name=name,
                style=style,
                drawing=drawing,
                colour=colour,
                left=int(random.integers(image_size - drawing.width + 1)),
                top=int(random.integers(image_size - drawing.height + 1)),
            )
            for name, style, drawing, colour in chosen
        )
        if len(things) == 1 or (_apart(*things) and relation_of(*things)):
            return things


def _apart(a: Thing, b: Thing) -> bool:
    return (
        2 * abs(a.x - b.x) > a.drawing.width + b.drawing.width
        or 2 * abs(a.y - b.y) > a.drawing.height + b.drawing.height
    )


def render(things: Sequence[Thing], random: np.random.Generator, *, image_size: int) -> Image.Image:
    """Draw things on a background that runs from one random light colour to another, in a random direction."""
    colours = random.uniform(130, 255, (2, 3))
    angle = random.uniform(0, 2 * np.pi)
    line = np.linspace(-0.5, 0.5, image_size)
    ramp = (0.5 + (np.cos(angle) * line + np.sin(angle) * line[:, None]) / np.sqrt(2))[..., None]  # (H, W, 1)
    canvas = Image.fromarray((colours[0] + (colours[1] - colours[0]) * ramp).round().astype(np.uint8)).convert("RGBA")
    for thing in things:
        canvas.alpha_composite(thing.drawing, (thing.left, thing.top))
    return canvas.convert("RGB")


def masks(things: Sequence[Thing], *, image_size: int) -> NDArray[np.bool_]:
    """(M, H, W) bool: the pixels of each thing that are more than half opaque."""
    full = np.zeros((len(things), image_size, image_size), dtype=np.bool_)
    for mask, thing in zip(full, things, strict=True):
        alpha = np.asarray(thing.drawing.getchannel("A"))
        mask[thing.top : thing.top + alpha.shape[0], thing.left : thing.left + alpha.shape[1]] = alpha > 127
    return full


def statement_of(things: tuple[Thing, ...], *, colours: Sequence[bool] = (False, False)) -> Statement:
    """What is true of two things, said of the first; ``colours`` says whose colour is named."""
    first, second = (
        mention(thing.name, thing.colour if named else None) for thing, named in zip(things, colours, strict=True)
    )
    return Statement(subject=first, relation=relation_of(*things), object=second)


def colours_named(random: np.random.Generator) -> tuple[bool, ...]:
    """Whose colour a caption of two things names: each half the time, as in the generated scenes."""
    return tuple((random.random(2) < NAMED[0]).tolist())


def mention(name: str, colour: str | None = None) -> Mention:
    """A name and colour, in the captions' grammar, which writes the article itself."""
    return Mention(shape=name.partition(" ")[2], colour=colour)


def sample(
    drawings: Drawings, pair: Pair, index: int, *, seed: int, image_size: int = 64, coloured: bool = False
) -> Sample:
    """One training sample: image, caption, gold phrases and masks and, as metadata, names, styles, boxes, statement."""
    random = generator(seed, 0, index)
    names = pair if random.random() < 0.5 else pair[::-1]
    colours = two_colours(random) if coloured else (None, None)
    things = place(drawings, names, TRAIN_STYLES, random, image_size=image_size, colours=colours)
    image = io.BytesIO()
    render(things, random, image_size=image_size).save(image, "PNG", compress_level=1)
    said = statement_of(things, colours=colours_named(random) if coloured else (False, False))
    tree = clause(said, random, pick(random, FORMS))
    caption, phrases = write(tree, sentence=tree.label == "S" and random.random() < 0.5)
    objects = [
        {"name": thing.name, "style": thing.style, "box": thing.box} | ({"colour": thing.colour} if coloured else {})
        for thing in things
    ]
    statement = {"subject": things[0].name, "relation": said.relation, "object": things[1].name}
    gold = masks(things, image_size=image_size)
    return Sample(
        key=f"train-{index:08d}",
        image=image.getvalue(),
        image_extension="png",
        caption=caption,
        tree=phrases,
        metadata={"objects": objects, "statements": [statement]},
        regions=RegionAnnotation.from_masks(gold, scores=[1.0] * len(gold), proposer="gold"),
    )


def training_samples(
    drawings: Drawings, *, count: int, seed: int, image_size: int = 64, start: int = 0, coloured: bool = False
) -> Iterator[Sample]:
    """Training samples ``start`` to ``count`` of a seed; the seen pairs take turns, in a new order each time."""
    shown = pairs(list(drawings[TRAIN_STYLES[0]]), seen=True)
    for turn in range(start // len(shown), -(-count // len(shown))):
        order = np.random.default_rng((seed, turn)).permutation(len(shown))
        for index in range(max(start, turn * len(shown)), min(count, (turn + 1) * len(shown))):
            pair = shown[order[index % len(shown)]]
            yield sample(drawings, pair, index, seed=seed, image_size=image_size, coloured=coloured)


def training_shards(
    drawings: Drawings, folder: Path, *, count: int, seed: int = 0, image_size: int = 64, coloured: bool = False
) -> Path:
    """Shards of training samples in ``folder``, made only once; it exists when it is complete.

    What an interrupted call has written is next to it, and the next call continues there. PowerclipError if the folder
    holds other scenes than those asked for.
    """
    names = list(drawings[TRAIN_STYLES[0]])
    made = {"count": count, "seed": seed, "image_size": image_size, "styles": list(TRAIN_STYLES), "names": names}
    made |= {"colours": list(COLOURS)} if coloured else {}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # another process may be making them
        if folder.is_dir():
            if not _holds(folder, made):
                raise PowerclipError(f"{folder} does not hold {count} scenes of seed {seed}; name another folder")
            return folder
        partial = folder.with_name(f".{folder.name}.partial")
        if not _holds(partial, made):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            write_json(partial / RECORD, made)
        done = len(tars_in(partial))
        start = done * SAMPLES_PER_SHARD
        samples = training_samples(
            drawings, count=count, seed=seed, image_size=image_size, start=start, coloured=coloured
        )
        write_shards(samples, partial, samples_per_shard=SAMPLES_PER_SHARD, first=done)
        partial.rename(folder)
    return folder


def _holds(folder: Path, made: dict[str, object]) -> bool:
    return (folder / RECORD).is_file() and read_json(folder / RECORD) == made
