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
    Thing,
    generator,
    masks,
    mention,
    pairs,
    place,
    render,
    statement_of,
)
from PIL import Image

from powerclip.scenes.captions import FORMS, clause, write
from powerclip.scenes.world import INVERSE, Statement, pick
from powerclip.tasks import Classification, Grounding, HardNegative, HardNegatives, Retrieval, Task

TEST_SEED = 20_000
VALIDATION_SEED = 10_000
"""Seeds of the tasks to report, and of those to choose settings by."""

PLAIN_FORMS = FORMS[:4]
"""The forms that every relation has, so that a wrong caption differs from the right one in what it says alone."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A scene, its caption, and a wrong caption of each kind in the same wording."""

    things: tuple[Thing, ...]
    image: Image.Image
    caption: str
    wrong: dict[str, str]


def evaluation_tasks(
    drawings: Drawings, *, seed: int = TEST_SEED, scenes: int = 1500, per_name: int = 10, image_size: int = 64
) -> list[Task]:
    """Tasks in the training styles, in the new one ("-new-style") and on combinations training never shows ("-unseen").

    - ``emoji-object``: the name of a single drawing among all names, ``per_name`` images each;
    - ``emoji-retrieval``: caption to image and back among ``scenes`` scenes (at most), no two of the same pair;
    - ``emoji-hard-negatives``: on the same scenes, the right caption or one with another name, another relation, or
      the names exchanged. Names are replaced so that the wrong pair is seen in training if the right one is;
    - ``emoji-grounding``: on the same scenes, where each of the two names is.

    The seed determines the images; none of them occurs in training. ValueError if a number is below 1.
    """
    for name, value in (("scenes", scenes), ("per_name", per_name)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    tasks: list[Task] = []
    for number, (suffix, styles, seen) in enumerate(
        (("", TRAIN_STYLES, True), ("-new-style", (NEW_STYLE,), True), ("-unseen", TRAIN_STYLES, False))
    ):
        if seen:
            random = generator(seed, 2 * number + 1)
            tasks.append(_objects(drawings, f"emoji-object{suffix}", styles, random, per_name, image_size))
        random = generator(seed, 2 * number + 2)
        questions = _questions(drawings, styles, random, seen=seen, count=scenes, image_size=image_size)
        images = [question.image for question in questions]
        captions = [[question.caption] for question in questions]
        items = [
            HardNegative(image=question.image, positive=question.caption, negatives=[wrong], kind=kind)
            for question in questions
            for kind, wrong in question.wrong.items()
        ]
        tasks.append(Retrieval(name=f"emoji-retrieval{suffix}", images=images, captions=captions))
        tasks.append(HardNegatives(name=f"emoji-hard-negatives{suffix}", items=items))
        phrases = [[thing.name for thing in question.things] for question in questions]
        gold = [partial(masks, question.things, image_size=image_size) for question in questions]
        tasks.append(Grounding(name=f"emoji-grounding{suffix}", images=images, phrases=phrases, masks=gold))
    return tasks


def _objects(
    drawings: Drawings, name: str, styles: Sequence[str], random: np.random.Generator, per_name: int, image_size: int
) -> Classification:
    """Single drawings, to be classified by name."""
    names = list(drawings[styles[0]])
    labels = [label for label in range(len(names)) for _ in range(per_name)]
    images = []
    for label in labels:
        things = place(drawings, [names[label]], styles, random, image_size=image_size)
        images.append(render(things, random, image_size=image_size))
    return Classification(name=name, images=images, labels=labels, class_names=names, templates=("{c}",))


def _questions(
    drawings: Drawings, styles: Sequence[str], random: np.random.Generator, *, seen: bool, count: int, image_size: int
) -> list[Question]:
    """Scenes of different pairs."""
    possible = pairs(list(drawings[styles[0]]), seen=seen)
    partners: dict[str, set[str]] = {}
    for a, b in possible:
        partners.setdefault(a, set()).add(b)
        partners.setdefault(b, set()).add(a)
    questions = []
    for position in random.permutation(len(possible))[:count]:
        pair = possible[position]
        ordered = pair if random.random() < 0.5 else pair[::-1]
        things = place(drawings, ordered, styles, random, image_size=image_size)
        image = render(things, random, image_size=image_size)
        others = sorted(partners[ordered[1]] - {ordered[0]})
        caption, wrong = _captions(statement_of(things), others, random)
        questions.append(Question(things=things, image=image, caption=caption, wrong=wrong))
    return questions


def _captions(said: Statement, others: Sequence[str], random: np.random.Generator) -> tuple[str, dict[str, str]]:
    """The caption of a true statement and, by kind, wrong ones in the same wording;
    others are names for its subject."""
    statements = {
        "right": said,
        "replace_rel": replace(said, relation=pick(random, tuple(r for r in INVERSE if r != said.relation))),
        "swap_obj": replace(said, subject=said.object, object=said.subject),
    }
    if others:
        statements["replace_obj"] = replace(said, subject=mention(pick(random, tuple(others))))
    wording, form = int(random.integers(2**31)), pick(random, PLAIN_FORMS)
    texts = {
        kind: write(clause(statement, np.random.default_rng(wording), form))[0]
        for kind, statement in statements.items()
    }
    return texts.pop("right"), texts
