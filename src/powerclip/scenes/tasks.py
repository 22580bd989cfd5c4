"""Evaluation tasks made of scenes; none of their images occurs in training."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from powerclip.scenes.captions import FORMS, clause, describe, write
from powerclip.scenes.grounding import grounding_task
from powerclip.scenes.render import render
from powerclip.scenes.world import (
    COLOURS,
    HELD_OUT,
    INVERSE,
    SHAPES,
    SIZES,
    Mention,
    Scene,
    Split,
    Statement,
    generator,
    pick,
    random_scene,
    related_pair,
)
from powerclip.tasks import Classification, HardNegative, HardNegatives, Quadruple, Quadruples, Retrieval, Task

TEMPLATES = ("a {c}", "a picture of a {c}", "there is a {c}")
CAPTIONS_PER_IMAGE = 5
KINDS = ("replace_obj", "replace_att", "replace_rel", "swap_obj", "swap_att", "add_obj", "add_att")


def evaluation_tasks(*, seed: int, size: int, image_size: int = 64) -> list[Task]:
    """All tasks on scenes, of ``size`` images each (the quadruples: pairs of images) of ``image_size`` pixels a side.

    The seed determines the images; the training splits never draw from these streams. ValueError if size is below 1.
    """
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    classes = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
    return [
        _objects("scenes-object", "test", SHAPES, seed, size, image_size),
        _objects("scenes-colour-object", "test", classes, seed, size, image_size),
        _objects("scenes-colour-object-unseen", "compositional", classes, seed, size, image_size),
        _retrieval("scenes-retrieval", "test", seed, size, image_size),
        _retrieval("scenes-retrieval-unseen", "compositional", seed, size, image_size),
        HardNegatives(name="scenes-hard-negatives", items=hard_negatives(seed, size, image_size)),
        Quadruples(name="scenes-quadruples", items=quadruples(seed, size, image_size)),
        grounding_task(seed=seed, size=size, image_size=image_size),
    ]


def _objects(
    name: str, split: Split, classes: tuple[str, ...], seed: int, size: int, image_size: int
) -> Classification:
    """Images of one object, to be classified by shape, or by colour and shape."""
    images, labels = [], []
    for index in range(size):
        random = generator(seed, split, index, stream=1 if classes == SHAPES else 2)
        (thing,) = scene = random_scene(random, split, objects=1)
        images.append(render(scene, image_size=image_size, random=random))
        labels.append(classes.index(thing.shape if classes == SHAPES else f"{thing.colour} {thing.shape}"))
    return Classification(name=name, images=images, labels=labels, class_names=classes, templates=TEMPLATES)


def _retrieval(name: str, split: Split, seed: int, size: int, image_size: int) -> Retrieval:
    images, captions = [], []
    for index in range(size):
        random = generator(seed, split, index, stream=3)
        scene = random_scene(random, split, objects=int(random.integers(2, 4)))
        images.append(render(scene, image_size=image_size, random=random))
        texts: dict[str, None] = {}
        while len(texts) < CAPTIONS_PER_IMAGE:
            texts[describe(scene, random)[0]] = None
        captions.append(list(texts))
    return Retrieval(name=name, images=images, captions=captions)


def hard_negatives(seed: int, size: int, image_size: int) -> Sequence[HardNegative]:
    """Images, each with seven true captions and as many false ones that differ in a word or two, one of each kind."""
    items = []
    for index in range(size):
        random = generator(seed, "test", index, stream=4)
        scene, pairs = contrasts(random)
        image = render(scene, image_size=image_size, random=random)
        for kind, (positive, negative) in pairs.items():
            texts = _same_wording(positive, negative, random)
            items.append(HardNegative(image=image, positive=texts[0], negatives=[texts[1]], kind=kind))
    return items


def contrasts(random: np.random.Generator) -> tuple[Scene, dict[str, tuple[Statement, Statement]]]:
    """A scene and, for each kind, a statement that is true of it and a false one that differs as the kind says."""
    while True:
        scene, statement = related_pair(random)
        pairs = {}
        for kind in KINDS:
            negative = _edit(kind, statement, scene, random)
            positive = statement
            if kind == "swap_obj":
                positive = replace(statement, subject=negative.object, object=negative.subject)  # type: ignore[arg-type]
            pairs[kind] = (positive, negative)
        if all(
            true.true_of(scene) and not false.true_of(scene) and not _unseen(false) for true, false in pairs.values()
        ):
            return scene, pairs


def _unseen(statement: Statement) -> bool:
    """Whether it names a held-out pair: that alone must not give a wrong caption away."""
    mentions = (statement.subject, statement.object, statement.also)
    return any(m is not None and (m.colour, m.shape) in HELD_OUT for m in mentions)


def _other(random: np.random.Generator, values: tuple[str, ...], but: set[str | None]) -> str:
    return pick(random, tuple(value for value in values if value not in but))


def _edit(kind: str, statement: Statement, scene: Scene, random: np.random.Generator) -> Statement:
    """A statement that differs from a true one as the kind says."""
    a, b = statement.subject, statement.object
    assert b is not None
    if kind == "replace_obj":
        return replace(statement, subject=replace(a, shape=_other(random, SHAPES, {a.shape, b.shape})))
    if kind == "replace_att":
        return replace(statement, subject=replace(a, colour=_other(random, COLOURS, {a.colour, b.colour})))
    if kind == "replace_rel":
        return replace(statement, relation=INVERSE[statement.relation or ""])
    if kind == "swap_obj":
        return replace(statement, subject=Mention(shape=b.shape), object=Mention(shape=a.shape))
    if kind == "swap_att":
        return replace(statement, subject=replace(a, colour=b.colour), object=replace(b, colour=a.colour))
    if kind == "add_obj":
        shape, colour = _other(random, SHAPES, {a.shape, b.shape}), _other(random, COLOURS, {a.colour, b.colour})
        return replace(statement, also=Mention(shape=shape, colour=colour))
    return replace(statement, subject=replace(a, size=_other(random, SIZES, {scene[0].size})))


def _same_wording(first: Statement, second: Statement, random: np.random.Generator) -> tuple[str, str]:
    """Two statements in the same wording, so that they differ only in what they say."""
    seed, form = int(random.integers(2**31)), pick(random, FORMS[:4])
    texts = [write(clause(s, np.random.default_rng(seed), form))[0] for s in (first, second)]
    return texts[0], texts[1]


def quadruples(seed: int, size: int, image_size: int) -> Sequence[Quadruple]:
    """Pairs of scenes and captions of the same words, with attributes or places exchanged."""
    items = []
    for index in range(size):
        random = generator(seed, "test", index, stream=5)
        scenes, captions = exchange(random, attributes=index % 2 == 0)
        first, second = (render(s, image_size=image_size, random=random) for s in scenes)
        items.append(Quadruple(images=(first, second), captions=captions))
    return items


def exchange(random: np.random.Generator, *, attributes: bool) -> tuple[tuple[Scene, Scene], tuple[str, str]]:
    """Two scenes and two captions of the same words; caption i is true of scene i only.

    The second scene is the first with the two objects' colours, or else their places, exchanged.
    """
    while True:
        scene, statement = related_pair(random)
        a, b = scene
        if attributes:
            swapped = (replace(a, colour=b.colour), replace(b, colour=a.colour))
            other = _edit("swap_att", statement, scene, random)
        else:
            swapped = (replace(a, x=b.x, y=b.y, size=b.size), replace(b, x=a.x, y=a.y, size=a.size))
            other = replace(statement, subject=statement.object, object=statement.subject)  # type: ignore[arg-type]
        scenes = (scene, swapped)
        captions = _same_wording(statement, other, random)
        same_words = sorted(captions[0].split()) == sorted(captions[1].split())
        truth = [[s.true_of(which) for s in (statement, other)] for which in scenes]
        if same_words and not _unseen(other) and truth == [[True, False], [False, True]]:
            return scenes, captions
