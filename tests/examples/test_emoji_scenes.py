"""Scenes of two emoji from drawings made here: what is shown, what is said, what is held out."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from powerclip.data.images import decode_image
from powerclip.data.shards import read_shards, tars_in
from powerclip.errors import PowerclipError
from powerclip.scenes.world import INVERSE
from powerclip.tasks import Classification, HardNegatives, Retrieval

EXAMPLE = Path(__file__).parents[2] / "examples" / "emoji"
sys.path.insert(0, str(EXAMPLE))

import emoji_scene_tasks  # noqa: E402 (beside the example, found by the line above)
import emoji_world  # noqa: E402

NOUNS = (
    *(f"{what} {where}" for what in ("red", "old") for where in ("cup", "oak", "ant", "eel", "hat")),
    "owl",
    "bell",
)
NAMES = [f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in NOUNS]
WORDS = {
    "left": ("left of", "precedes", "followed by"),
    "right": ("right of", "follows", "preceded by"),
    "above": ("above", "over", "overlooks"),
    "below": ("below", "under", "overlooked by"),
}


@pytest.fixture(scope="module")
def drawings():
    """Half transparent rectangles of one colour for each name and style, wide or high."""
    made = {}
    for s, style in enumerate(emoji_world.STYLES):
        made[style] = {}
        for n, name in enumerate(NAMES):
            colour = (20 * n, 100 * s, 60, 255)
            made[style][name] = Image.new("RGBA", (30, 20) if n % 2 else (20, 30), colour)
    return made


def said_relation(caption):
    """The relation that a caption states, by its words; the longest match counts: "overlooked" is not "over"."""
    found = [(len(word), relation) for relation, words in WORDS.items() for word in words if f" {word} " in caption]
    return max(found)[1]


def named(caption):
    """The names in a caption, in order."""
    text = f" {caption.lower().rstrip('.')} "
    return sorted((name for name in NAMES if f" {name} " in text), key=lambda name: text.index(f" {name} "))


def test_every_pair_is_either_seen_or_not(drawings):
    seen, unseen = (set(emoji_world.pairs(NAMES, seen=flag)) for flag in (True, False))
    assert not seen & unseen
    assert seen | unseen == set(itertools.combinations(NAMES, 2))
    names = [f"a {i}" for i in range(240)]
    partners = [sum(name in pair for pair in emoji_world.pairs(names, seen=True)) for name in names]
    assert set(partners) == {24}


def test_training_says_what_it_shows(drawings):
    samples = list(emoji_world.training_samples(drawings, count=60, seed=3))
    seen = {frozenset(pair) for pair in emoji_world.pairs(NAMES, seen=True)}
    relations, captions = set(), set()
    for sample in samples:
        first, second = sample.metadata["objects"]
        (statement,) = sample.metadata["statements"]
        assert frozenset((first["name"], second["name"])) in seen
        assert {first["style"], second["style"]} <= set(emoji_world.TRAIN_STYLES)
        assert named(sample.caption) == [statement["subject"], statement["object"]] == [first["name"], second["name"]]
        assert said_relation(f" {sample.caption} ") == statement["relation"]
        (ax, ay), (bx, by) = (centre(thing["box"]) for thing in (first, second))
        expected = {"left": ax < bx, "right": ax > bx, "above": ay < by, "below": ay > by}
        assert expected[statement["relation"]]
        phrases = {
            sample.caption[sample.tree.leaves[p.first][0] : sample.tree.leaves[p.last][1]].lower()
            for p in sample.tree.phrases
            if p.label == "NP"
        }
        assert {first["name"], second["name"]} <= phrases
        relations.add(statement["relation"])
        captions.add(sample.caption.replace(first["name"], "X").replace(second["name"], "Y"))
    assert relations == set(INVERSE)
    assert len(captions) > 15


def centre(box):
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def test_gold_masks_are_the_pixels_of_the_drawing(drawings):
    for sample in emoji_world.training_samples(drawings, count=8, seed=0):
        pixels = np.asarray(decode_image(sample.image)).astype(int)
        masks = sample.regions.masks()
        assert not (masks[0] & masks[1]).any()
        for mask, thing in zip(masks, sample.metadata["objects"], strict=True):
            colour = drawings[thing["style"]][thing["name"]].getpixel((0, 0))[:3]
            np.testing.assert_array_equal(mask, (pixels == colour).all(axis=2))
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box == list(thing["box"])


def test_shards_depend_on_the_seed_alone_and_continue_where_they_stopped(drawings, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_world, "SAMPLES_PER_SHARD", 4)
    whole = emoji_world.training_shards(drawings, tmp_path / "whole", count=30, seed=1)
    real, made = emoji_world.sample, []

    def stop_at_nine(*args, **kwargs):
        made.append(args[2])
        if len(made) == 9:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(emoji_world, "sample", stop_at_nine)
    with pytest.raises(KeyboardInterrupt):
        emoji_world.training_shards(drawings, tmp_path / "again", count=30, seed=1)
    assert not (tmp_path / "again").exists()
    again = emoji_world.training_shards(drawings, tmp_path / "again", count=30, seed=1)
    assert made[9:] == list(range(8, 30))
    assert [path.read_bytes() for path in tars_in(whole)] == [path.read_bytes() for path in tars_in(again)]
    assert len(list(read_shards(again))) == 30
    emoji_world.training_shards(drawings, whole, count=30, seed=1)
    with pytest.raises(PowerclipError, match="does not hold 30 scenes of seed 2; name another folder"):
        emoji_world.training_shards(drawings, whole, count=30, seed=2)
    other = emoji_world.training_shards(drawings, tmp_path / "other", count=30, seed=2)
    assert [path.read_bytes() for path in tars_in(whole)] != [path.read_bytes() for path in tars_in(other)]


@pytest.fixture(scope="module")
def tasks(drawings):
    return {task.name: task for task in emoji_scene_tasks.evaluation_tasks(drawings, scenes=40, per_name=2)}


def colours_in(image):
    return {colour for _, colour in image.getcolors(64 * 64)}


def colour_of(drawings, style, name):
    return drawings[style][name].getpixel((0, 0))[:3]


@pytest.mark.parametrize(
    ("suffix", "styles", "seen"),
    [
        ("", emoji_world.TRAIN_STYLES, True),
        ("-new-style", (emoji_world.NEW_STYLE,), True),
        ("-unseen", emoji_world.TRAIN_STYLES, False),
    ],
)
def test_tasks_show_the_styles_and_pairs_they_say(drawings, tasks, suffix, styles, seen):
    known = {frozenset(pair) for pair in emoji_world.pairs(NAMES, seen=seen)}
    retrieval, negatives = tasks[f"emoji-retrieval{suffix}"], tasks[f"emoji-hard-negatives{suffix}"]
    assert isinstance(retrieval, Retrieval)
    assert isinstance(negatives, HardNegatives)
    shown = [frozenset(named(caption)) for (caption,) in retrieval.captions]
    assert len(set(shown)) == len(shown) == min(40, len(known))
    assert set(shown) <= known
    for image, names in zip(retrieval.images, shown, strict=True):
        colours = colours_in(image)
        assert all(any(colour_of(drawings, style, name) in colours for style in styles) for name in names)
    grounding = tasks[f"emoji-grounding{suffix}"]
    assert grounding.images is retrieval.images
    for image, names, open_masks, both in zip(grounding.images, grounding.phrases, grounding.masks, shown, strict=True):
        assert set(names) == both
        pixels = np.asarray(image)
        for name, mask in zip(names, open_masks(), strict=True):
            found = [(pixels == colour_of(drawings, style, name)).all(axis=2) for style in styles]
            assert any(np.array_equal(mask, one) for one in found)
    kinds = set()
    for item in negatives.items:
        right, wrong = named(item.positive), named(item.negatives[0])
        assert any(item.image is image for image in retrieval.images)
        kinds.add(item.kind)
        if item.kind == "swap_obj":
            assert wrong == right[::-1]
            assert said_relation(item.negatives[0]) == said_relation(item.positive)
        elif item.kind == "replace_obj":
            assert wrong[1] == right[1]
            assert wrong[0] not in right
            assert frozenset(wrong) in known
            assert item.positive.replace(*right[:1], "") == item.negatives[0].replace(*wrong[:1], "")
        else:
            assert wrong == right
            assert said_relation(item.negatives[0]) != said_relation(item.positive)
    assert kinds == {"replace_obj", "replace_rel", "swap_obj"}


def test_single_drawings_are_labelled_with_their_names(drawings, tasks):
    assert {name for name, task in tasks.items() if isinstance(task, Classification)} == {
        "emoji-object",
        "emoji-object-new-style",
    }
    task = tasks["emoji-object-new-style"]
    assert len(task.images) == 2 * len(NAMES)
    for image, label in zip(task.images, task.labels, strict=True):
        assert colour_of(drawings, emoji_world.NEW_STYLE, task.class_names[label]) in colours_in(image)


def test_tasks_are_determined_by_the_seed(drawings, tasks):
    again = emoji_scene_tasks.evaluation_tasks(drawings, scenes=40, per_name=2)
    other = emoji_scene_tasks.evaluation_tasks(drawings, scenes=40, per_name=2, seed=emoji_scene_tasks.VALIDATION_SEED)
    first = tasks["emoji-retrieval"]
    assert again[1].captions == first.captions
    assert [image.tobytes() for image in again[1].images] == [image.tobytes() for image in first.images]
    assert other[1].captions != first.captions
    with pytest.raises(ValueError, match="scenes is 0; it must be at least 1"):
        emoji_scene_tasks.evaluation_tasks(drawings, scenes=0)
