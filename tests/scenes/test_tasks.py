"""Evaluation tasks made of scenes: true captions, false negatives, unseen images."""

import hashlib
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from powerclip.scenes import evaluation_tasks, generate
from powerclip.scenes.grounding import distinct_scene
from powerclip.scenes.render import RGB
from powerclip.scenes.tasks import KINDS, _same_wording, contrasts, exchange
from powerclip.scenes.world import COLOURS, HELD_OUT, SHAPES, generator
from tests.support.scenes_reader import read_caption, true_of_objects

SIZE = 70


@pytest.fixture(scope="module")
def tasks():
    return {task.name: task for task in evaluation_tasks(seed=0, size=SIZE)}


def images_of(task):
    if hasattr(task, "images"):
        return list(task.images)
    return [image for item in task.items for image in getattr(item, "images", None) or (item.image,)]


def digest(image):
    return hashlib.sha256(np.asarray(image.convert("RGB")).tobytes()).digest()


def is_true(caption, scene):
    objects = [vars(thing) for thing in scene]
    return all(true_of_objects(statement, objects) for statement in read_caption(caption))


def test_names_and_sizes(tasks):
    assert list(tasks) == [
        "scenes-object",
        "scenes-colour-object",
        "scenes-colour-object-unseen",
        "scenes-retrieval",
        "scenes-retrieval-unseen",
        "scenes-hard-negatives",
        "scenes-quadruples",
        "scenes-grounding",
    ]
    for name, task in tasks.items():
        assert len(images_of(task)) == SIZE * {"scenes-quadruples": 2, "scenes-hard-negatives": len(KINDS)}.get(name, 1)


def test_the_same_seed_gives_the_same_tasks(tasks):
    again = {task.name: task for task in evaluation_tasks(seed=0, size=SIZE)}
    other = {task.name: task for task in evaluation_tasks(seed=1, size=SIZE)}
    for name, task in tasks.items():
        drawn = [digest(image) for image in images_of(task)]
        assert drawn == [digest(image) for image in images_of(again[name])]
        assert drawn != [digest(image) for image in images_of(other[name])]
    assert tasks["scenes-retrieval"].captions == again["scenes-retrieval"].captions
    texts = [[(i.positive, i.negatives) for i in t["scenes-hard-negatives"].items] for t in (tasks, again)]
    assert texts[0] == texts[1]


def test_no_image_occurs_in_training(tasks):
    trained = {digest(Image.open(io.BytesIO(s.image))) for s in generate("train", count=1500, seed=0)}
    for task in tasks.values():
        assert trained.isdisjoint(map(digest, images_of(task)))


def test_classes_fit_their_splits(tasks):
    seen, unseen = tasks["scenes-colour-object"], tasks["scenes-colour-object-unseen"]
    assert tasks["scenes-object"].class_names == SHAPES
    assert len(set(seen.class_names)) == len(COLOURS) * len(SHAPES)
    held_out = {f"{colour} {shape}" for colour, shape in HELD_OUT}
    assert held_out.isdisjoint(seen.class_names[label] for label in seen.labels)
    assert held_out.issuperset(unseen.class_names[label] for label in unseen.labels)
    assert len(set(tasks["scenes-object"].labels)) > SIZE / 3


def test_five_different_captions_an_image(tasks):
    for name in ("scenes-retrieval", "scenes-retrieval-unseen"):
        assert all(len(set(captions)) == len(captions) == 5 for captions in tasks[name].captions)


def test_each_image_has_hard_negatives_of_seven_kinds(tasks):
    items = tasks["scenes-hard-negatives"].items
    assert Counter(item.kind for item in items) == dict.fromkeys(KINDS, SIZE)
    assert all([item.positive] != item.negatives for item in items)


@pytest.mark.parametrize("kind", KINDS)
def test_positives_are_true_and_negatives_false(kind):
    for seed in range(150):
        random = np.random.default_rng(seed)
        scene, pairs = contrasts(random)
        positive, negative = pairs[kind]
        right, wrong = _same_wording(positive, negative, random)
        assert is_true(right, scene), (seed, right)
        assert not is_true(wrong, scene), (seed, wrong)
        assert_minimal(kind, right.split(), wrong.split())
        named = {(m.get("colour"), m["shape"]) for state in read_caption(wrong) for m in state["mentions"]}
        assert named.isdisjoint(HELD_OUT)


def assert_minimal(kind, right, wrong):
    """The two captions are of one grammar and differ in no more than the kind says."""
    articles = {"a", "an"}
    before, after = Counter(w for w in right if w not in articles), Counter(w for w in wrong if w not in articles)
    gone, new = sum((before - after).values()), sum((after - before).values())
    if kind.startswith("replace"):
        assert (gone, new) == (1, 1)
    elif kind.startswith("swap"):
        assert (gone, new) == (0, 0)
        assert right != wrong
    elif kind == "add_att":
        assert (gone, new) == (0, 1)  # "small"
    else:
        assert gone == 0
        assert new >= 3  # "and", a colour, a shape


@pytest.mark.parametrize("attributes", [True, False])
def test_caption_i_is_true_of_image_i_only(attributes):
    for seed in range(150):
        scenes, captions = exchange(np.random.default_rng(seed), attributes=attributes)
        assert sorted(captions[0].split()) == sorted(captions[1].split())
        truth = [[is_true(caption, scene) for caption in captions] for scene in scenes]
        assert truth == [[True, False], [False, True]], (seed, captions)
        assert not any((o.colour, o.shape) in HELD_OUT for scene in scenes for o in scene)


def test_every_phrase_names_one_object_which_its_mask_shows(tasks):
    task, drawn = tasks["scenes-grounding"], 0
    for index, (image, phrases, open_masks) in enumerate(zip(task.images, task.phrases, task.masks, strict=True)):
        scene = distinct_scene(generator(0, "test", index, stream=6))
        masks, pixels = open_masks(), np.asarray(image).astype(int)
        assert 2 <= len(phrases) == len(masks) == len(scene) <= 3
        for k, (phrase, mask) in enumerate(zip(phrases, masks, strict=True)):
            (statement,) = read_caption(phrase)
            truth = [true_of_objects(statement, [vars(thing)]) for thing in scene]
            assert truth == [i == k for i in range(len(scene))]
            near = np.abs(pixels[mask] - RGB[scene[k].colour]).max(axis=1) < 8
            drawn += near.mean() > 0.6  # beyond the edge's half-covered pixels, if lines are thick
    assert drawn > SIZE / 2


def test_bad_size():
    with pytest.raises(ValueError, match="size is 0; it must be at least 1"):
        evaluation_tasks(seed=0, size=0)
