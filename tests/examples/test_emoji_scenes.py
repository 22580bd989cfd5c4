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
from powerclip.scenes.render import RGB
from powerclip.scenes.world import COLOURS, INVERSE
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


CUP = "a round cup"
WITHOUT_COLOUR = [CUP, *(name for name in NAMES if " red " not in name)]


@pytest.fixture(scope="module")
def plain_drawings():
    """Half of each drawing is dark and half light, with a transparent corner."""
    image = Image.new("RGBA", (30, 20), (40, 60, 200, 255))
    image.paste((240, 240, 230, 255), (15, 0, 30, 20))
    image.paste((0, 0, 0, 0), (0, 0, 5, 5))
    return {style: dict.fromkeys(WITHOUT_COLOUR, image) for style in emoji_world.STYLES}


@pytest.mark.parametrize("colour", COLOURS)
def test_a_printed_drawing_has_shades_of_its_colour_and_the_same_outline(plain_drawings, colour):
    drawing = plain_drawings["google"][CUP]
    printed = emoji_world.printed(drawing, colour)
    assert printed.getchannel("A").tobytes() == drawing.getchannel("A").tobytes()
    dark, light = (np.array(printed.getpixel(at)[:3], dtype=float) for at in ((10, 10), (20, 10)))
    np.testing.assert_allclose(dark, 0.65 * np.array(RGB[colour]), atol=2)  # a third of the way to black
    np.testing.assert_allclose(light, 0.65 * np.array(RGB[colour]) + 0.35 * 255, atol=2)  # and to white


def test_coloured_captions_name_what_is_shown_half_the_time(plain_drawings):
    samples = list(emoji_world.training_samples(plain_drawings, count=80, seed=3, coloured=True))
    named_colours = 0
    for sample in samples:
        things = sample.metadata["objects"]
        assert things[0]["colour"] != things[1]["colour"]
        words = sample.caption.lower().rstrip(".").split()
        said = [word for word in words if word in COLOURS]
        assert sorted(said) == sorted(set(said) & {thing["colour"] for thing in things})
        named_colours += len(said)
        for thing in things:  # its own colour stands with its name
            name, colour = thing["name"].split(" ", 1)[1], thing["colour"]
            if colour in said:
                text = sample.caption.lower().rstrip(".")
                assert f"{colour} {name}" in text or f"{name} that is {colour}" in text
        pixels = np.asarray(decode_image(sample.image)).astype(int)
        for mask, thing in zip(sample.regions.masks(), things, strict=True):
            shown = pixels[mask].mean(axis=0)
            assert min(RGB, key=lambda name: np.abs(shown - RGB[name]).sum()) == thing["colour"]
    assert 60 < named_colours < 100


def test_coloured_tasks_ask_for_colours(plain_drawings):
    made = emoji_scene_tasks.evaluation_tasks(plain_drawings, scenes=10, per_name=2, coloured=True)
    tasks = {task.name: task for task in made}
    assert all(name.startswith("coloured-emoji-") for name in tasks)
    by_name, by_both = tasks["coloured-emoji-object"], tasks["coloured-emoji-colour-object"]
    assert by_both.images is by_name.images
    assert len(set(by_both.class_names)) == len(WITHOUT_COLOUR) * len(COLOURS)
    for image, label, both in zip(by_both.images, by_name.labels, by_both.labels, strict=True):
        article, colour, name = by_both.class_names[both].split(" ", 2)
        assert name == by_name.class_names[label].split(" ", 1)[1]
        assert (article == "an") == (colour == "orange")
        assert any(np.abs(np.array(shade) - RGB[colour]).max() < 90 for shade in colours_in(image))
    negatives = tasks["coloured-emoji-hard-negatives-unseen"]
    items = {item.kind: item for item in negatives.items[:5]}
    assert set(items) == {"replace_rel", "swap_obj", "replace_obj", "replace_att", "swap_att"}
    words = {kind: (item.positive.split(), item.negatives[0].split()) for kind, item in items.items()}
    right, wrong = words["swap_att"]
    both = [word for word in right if word in COLOURS]
    assert [word for word in wrong if word in COLOURS] == both[::-1]
    others = [[word for word in side if word not in (*COLOURS, "a", "an")] for side in (right, wrong)]
    assert others[0] == others[1]
    right, wrong = words["replace_att"]
    (new,) = {word for word in wrong if word in COLOURS} - set(both)
    assert [word for word in right if word in COLOURS] == both
    assert new not in both
    assert not set(COLOURS) & {word for side in words["swap_obj"] for word in side}


def test_coloured_scenes_have_no_names_with_colours(tmp_path, plain_drawings):
    assert emoji_world.is_plain("a red cup", without=frozenset())
    assert not emoji_world.is_plain("a red cup", without=emoji_world.COLOUR_WORDS)
    folder = emoji_world.training_shards(plain_drawings, tmp_path / "train", count=3, coloured=True)
    with pytest.raises(PowerclipError, match="does not hold 3 scenes of seed 0"):
        emoji_world.training_shards(plain_drawings, folder, count=3)
