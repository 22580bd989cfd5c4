"""Evaluation tasks made of emoji: single drawings, and scenes of two that training does not show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from emoji_world import (
    NEW_STYLE,
    TRAIN_STYLES,
    Drawings,
    Pair,
    Thing,
    colours_named,
    generator,
    masks,
    mention,
    pairs,
    place,
    render,
    statement_of,
    two_colours,
)
from PIL import Image

from powerclip.scenes.captions import FORMS, clause, write
from powerclip.scenes.world import COLOURS, INVERSE, Statement, pick
from powerclip.tasks import Classification, Grounding, HardNegative, HardNegatives, Retrieval, Task

TEST_SEED = 20_000
VALIDATION_SEED = 10_000
"""Seeds of the tasks to report, and of those to choose settings by."""

PLAIN_FORMS = FORMS[:4]
"""The forms that every relation has, so that a wrong caption differs from the right one in what it says alone."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A scene, its caption and, by kind, a right caption and a wrong one, all in the same wording."""

    things: tuple[Thing, ...]
    image: Image.Image
    caption: str
    contrasts: dict[str, tuple[str, str]]


def evaluation_tasks(
    drawings: Drawings,
    *,
    seed: int = TEST_SEED,
    scenes: int = 1500,
    per_name: int = 10,
    image_size: int = 64,
    coloured: bool = False,
) -> list[Task]:
    """Tasks in the training styles, in the new one ("-new-style") and on combinations training never shows ("-unseen").

    - ``emoji-object``: the name of a single drawing among all names, ``per_name`` images each;
    - ``emoji-retrieval``: caption to image and back among ``scenes`` scenes (at most), no two of the same pair;
    - ``emoji-hard-negatives``: on the same scenes, the right caption or one with another name, another relation, or
      the names exchanged. Names are replaced so that the wrong pair is seen in training if the right one is;
    - ``emoji-grounding``: on the same scenes, where each of the two names is.

    In ``coloured`` scenes all names of tasks begin with ``coloured-emoji``, and there are the kinds of hard negatives
    with another colour and with the colours exchanged, and

    - ``coloured-emoji-colour-object``: the colour and the name of the same single drawings among all.

    The seed determines the images; none of them occurs in training. ValueError if a number is below 1.
    """
    for name, value in (("scenes", scenes), ("per_name", per_name)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    world = "coloured-emoji" if coloured else "emoji"
    tasks: list[Task] = []
    for number, (suffix, styles, seen) in enumerate(
        (("", TRAIN_STYLES, True), ("-new-style", (NEW_STYLE,), True), ("-unseen", TRAIN_STYLES, False))
    ):
        if seen:
            random = generator(seed, 2 * number + 1)
            tasks += _objects(drawings, (world, suffix), styles, random, per_name, image_size, coloured=coloured)
        random = generator(seed, 2 * number + 2)
        possible = pairs(list(drawings[styles[0]]), seen=seen)
        questions = _questions(
            drawings, possible, styles, random, count=scenes, image_size=image_size, coloured=coloured
        )
        images = [question.image for question in questions]
        captions = [[question.caption] for question in questions]
        items = [
            HardNegative(image=question.image, positive=right, negatives=[wrong], kind=kind)
            for question in questions
            for kind, (right, wrong) in question.contrasts.items()
        ]
        tasks.append(Retrieval(name=f"{world}-retrieval{suffix}", images=images, captions=captions))
        tasks.append(HardNegatives(name=f"{world}-hard-negatives{suffix}", items=items))
        phrases = [[thing.name for thing in question.things] for question in questions]
        gold = [partial(masks, question.things, image_size=image_size) for question in questions]
        tasks.append(Grounding(name=f"{world}-grounding{suffix}", images=images, phrases=phrases, masks=gold))
    return tasks


def _objects(
    drawings: Drawings,
    name: tuple[str, str],
    styles: Sequence[str],
    random: np.random.Generator,
    per_name: int,
    image_size: int,
    *,
    coloured: bool,
) -> list[Task]:
    """Single drawings, to be classified by name and, if they are coloured, by colour and name; a task's ``name`` is its
    beginning and end."""
    names = list(drawings[styles[0]])
    labels = [label for label in range(len(names)) for _ in range(per_name)]
    images, by_both = [], []
    for label in labels:
        colour = pick(random, COLOURS) if coloured else None
        things = place(drawings, [names[label]], styles, random, image_size=image_size, colours=[colour])
        images.append(render(things, random, image_size=image_size))
        by_both.append((label, colour))
    begin, end = name
    tasks: list[Task] = [
        Classification(name=f"{begin}-object{end}", images=images, labels=labels, class_names=names, templates=("{c}",))
    ]
    if coloured:
        classes = [(label, colour) for label in range(len(names)) for colour in COLOURS]
        tasks.append(
            Classification(
                name=f"{begin}-colour-object{end}",
                images=images,
                labels=[classes.index(one) for one in by_both],
                class_names=[_in_colour(names[label], colour) for label, colour in classes],
                templates=("{c}",),
            )
        )
    return tasks


def _in_colour(name: str, colour: str) -> str:
    """``a cup`` in red: ``a red cup``."""
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {name.partition(' ')[2]}"


def _questions(
    drawings: Drawings,
    possible: Sequence[Pair],
    styles: Sequence[str],
    random: np.random.Generator,
    *,
    count: int,
    image_size: int,
    coloured: bool,
) -> list[Question]:
    """Scenes of different pairs."""
    partners: dict[str, set[str]] = {}
    for a, b in possible:
        partners.setdefault(a, set()).add(b)
        partners.setdefault(b, set()).add(a)
    questions = []
    for position in random.permutation(len(possible))[:count]:
        pair = possible[position]
        ordered = pair if random.random() < 0.5 else pair[::-1]
        colours = two_colours(random) if coloured else (None, None)
        things = place(drawings, ordered, styles, random, image_size=image_size, colours=colours)
        image = render(things, random, image_size=image_size)
        others = sorted(partners[ordered[1]] - {ordered[0]})
        caption, contrasts = _captions(things, others, random)
        questions.append(Question(things=things, image=image, caption=caption, contrasts=contrasts))
    return questions


def _captions(
    things: tuple[Thing, ...], others: Sequence[str], random: np.random.Generator
) -> tuple[str, dict[str, tuple[str, str]]]:
    """The caption of a scene and, by kind, a right and a wrong one, all in the same wording.

    Others are names for the subject. Where things have colours the caption names them half the time, and the right and
    wrong ones always; but when names are exchanged, never.
    """
    coloured = things[0].colour is not None
    plain = statement_of(things)
    full = statement_of(things, colours=(coloured, coloured))
    a, b = full.subject, full.object
    assert b is not None
    contrasts = {
        "replace_rel": (
            full,
            replace(full, relation=pick(random, tuple(r for r in INVERSE if r != full.relation))),
        ),
        "swap_obj": (plain, replace(plain, subject=plain.object, object=plain.subject)),
    }
    if others:
        contrasts["replace_obj"] = (full, replace(full, subject=mention(pick(random, tuple(others)), a.colour)))
    said = full
    if coloured:
        another = pick(random, tuple(colour for colour in COLOURS if colour not in (a.colour, b.colour)))
        exchanged = replace(full, subject=replace(a, colour=b.colour), object=replace(b, colour=a.colour))
        contrasts["replace_att"] = (full, replace(full, subject=replace(a, colour=another)))
        contrasts["swap_att"] = (full, exchanged)
        said = statement_of(things, colours=colours_named(random))
    wording, form = int(random.integers(2**31)), pick(random, PLAIN_FORMS)

    def text(statement: Statement) -> str:
        return write(clause(statement, np.random.default_rng(wording), form))[0]

    return text(said), {kind: (text(right), text(wrong)) for kind, (right, wrong) in contrasts.items()}
