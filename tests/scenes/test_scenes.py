"""Scenes: what the annotations say is what the pixels show."""

import io
import re
from itertools import combinations, islice

import numpy as np
import pytest
from PIL import Image

from powerclip.data.sample import Sample
from powerclip.scenes import generate, sample
from powerclip.scenes.captions import FORMS, Node, clause, write
from powerclip.scenes.render import RGB, object_mask
from powerclip.scenes.world import COLOURS, HELD_OUT, SHAPES, Mention, Object, Statement
from tests.support.scenes_reader import RELATION_WORDS, read_caption, true_of_objects

COUNT = 400


@pytest.fixture(scope="module")
def splits():
    return {split: list(generate(split, count=COUNT, seed=3)) for split in ("train", "test", "compositional")}


@pytest.fixture(scope="module")
def samples(splits):
    return [s for split in splits.values() for s in split]


def pixels(s: Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(s.image)).convert("RGB"), dtype=float)


def masks(s: Sample) -> list[np.ndarray]:
    return list(s.regions.masks())


def pairs(s: Sample) -> set[tuple[str, str]]:
    return {(thing["colour"], thing["shape"]) for thing in s.metadata["objects"]}


def test_a_sample_depends_on_seed_split_and_index_only():
    whole = list(generate("train", count=20, seed=5))
    assert [sample("train", i, seed=5) for i in reversed(range(20))] == whole[::-1]
    assert list(islice(generate("train", count=1000, seed=5), 20)) == whole
    assert list(generate("train", count=20, seed=6)) != whole
    assert [s.image for s in generate("test", count=20, seed=5)] != [s.image for s in whole]


def test_no_image_is_drawn_twice(samples):
    assert len({s.image for s in samples}) == len(samples)
    assert len({s.key for s in samples}) == len(samples)


def test_held_out_pairs_are_balanced():
    assert sorted(colour for colour, _ in HELD_OUT) == sorted([*COLOURS] * 8)
    assert sorted(shape for _, shape in HELD_OUT) == sorted(SHAPES)


def test_every_symbol_is_drawn_by_a_glyph_of_its_own():
    here = {"colour": "red", "size": "big", "x": 0.5, "y": 0.5}
    drawn = {object_mask(Object(shape=shape, **here), image_size=96).tobytes() for shape in SHAPES}
    assert len(drawn) == len(SHAPES) == 64  # the box of a missing glyph would be drawn for several


def test_splits_hold(splits):
    trained, tested = (set().union(*map(pairs, splits[split])) for split in ("train", "test"))
    assert trained | tested <= {(c, s) for c in COLOURS for s in SHAPES} - HELD_OUT
    assert {shape for _, shape in trained} == set(SHAPES)
    assert len(trained) > 0.6 * len(COLOURS) * len(SHAPES)
    for s in splits["compositional"]:
        assert pairs(s) & HELD_OUT
        named = {(m.get("colour"), m["shape"]) for state in s.metadata["statements"] for m in mentions(state)}
        assert named & HELD_OUT, s.caption


def mentions(statement):
    return [statement[name] for name in ("subject", "object", "also") if name in statement]


def test_scenes_are_varied(splits):
    counts = [len(s.metadata["objects"]) for s in splits["train"]]
    assert set(counts) == {1, 2, 3}
    assert len({s.caption for s in splits["train"]}) > 0.9 * COUNT
    text = " ".join(s.caption for s in splits["train"])
    for words in (*RELATION_WORDS, "that is red", "there is", "There is", "picture of", ", and"):
        assert re.search(words, text), words


@pytest.mark.parametrize("image_size", [48, 64, 97, 224])
def test_the_dominant_colour_within_a_mask_is_the_stated_one(image_size):
    for s in generate("train", count=60, seed=1, image_size=image_size):
        image = pixels(s)
        assert image.shape == (image_size, image_size, 3)
        for thing, mask in zip(s.metadata["objects"], masks(s), strict=True):
            # Lines are thinner than a pixel of a small image and blend with the light background: the darkest pixels
            # show the colour best, by its hue.
            darkest = image[mask][np.argsort(image[mask].sum(axis=1))[: max(1, mask.sum() // 10)]].mean(axis=0)
            away = {name: np.abs(darkest - rgb).max() for name, rgb in RGB.items()}
            assert min(away, key=away.get) == thing["colour"], (s.key, thing)


def test_masks_are_whole_disjoint_and_within_their_boxes(samples):
    for s in samples:
        found = masks(s)
        assert s.regions.proposer == "gold"
        assert len(found) == len(s.metadata["objects"])
        assert not any((a & b).any() for a, b in combinations(found, 2))
        for thing, mask in zip(s.metadata["objects"], found, strict=True):
            left, top, right, bottom = thing["box"]
            assert mask.sum() == mask[top:bottom, left:right].sum() > 20
            assert (right - left) == {"small": 23, "big": 29}[thing["size"]]


def test_the_background_is_light_and_outside_every_mask(samples):
    for s in samples[:100]:
        outside = np.ones((64, 64), dtype=bool)
        for thing in s.metadata["objects"]:
            left, top, right, bottom = thing["box"]
            outside[top:bottom, left:right] = False
        assert pixels(s)[outside].min() >= 215


def test_captions_are_true(samples):
    read = 0
    for s in samples:
        objects = []
        for thing, mask in zip(s.metadata["objects"], masks(s), strict=True):
            y, x = np.argwhere(mask).mean(axis=0)
            objects.append({**thing, "x": x, "y": y})
        for statement in read_caption(s.caption):
            read += 1
            assert true_of_objects(statement, objects), (s.key, s.caption)
    assert read >= len(samples)


def test_captions_say_what_the_statements_say(samples):
    for s in samples:
        stated = [[m["shape"] for m in mentions(statement)] for statement in s.metadata["statements"]]
        assert [[m["shape"] for m in statement["mentions"]] for statement in read_caption(s.caption)] == stated


def test_gold_phrases_are_well_formed(samples):
    for s in samples:
        leaves, phrases = s.tree.leaves, s.tree.phrases
        assert s.tree.parser == "gold"
        assert [s.caption[a:b] for a, b in leaves] == re.findall(r"[A-Za-z]+", s.caption)
        spans = [(p.first, p.last) for p in phrases]
        assert len(set(spans)) == len(spans)
        assert (0, len(leaves) - 1) in spans
        assert {p.label for p in phrases} <= {"NP", "VP", "PP", "S"}
        for (a, b), (c, d) in combinations(spans, 2):
            assert b < c or d < a or (a <= c and d <= b) or (c <= a and b <= d)
        assert s.tree.from_json(s.tree.to_json()) == s.tree


def text_of(caption, tree, phrase):
    return caption[tree.leaves[phrase.first][0] : tree.leaves[phrase.last][1]]


def test_gold_phrases_of_known_captions():
    base = Node("NP", ("a", "red", "cube"))
    blue = Node("NP", (Node("NP", ("a", "ball")), Node("S", ("that", Node("VP", ("is", "blue"))))))
    tree = Node("S", (base, Node("VP", ("is", Node("VP", ("followed", Node("PP", ("by", blue))))))))
    caption, gold = write(tree, sentence=True)
    assert caption == "A red cube is followed by a ball that is blue."
    assert [(p.label, text_of(caption, gold, p)) for p in gold.phrases] == [
        ("S", "A red cube is followed by a ball that is blue"),
        ("NP", "A red cube"),
        ("VP", "is followed by a ball that is blue"),
        ("VP", "followed by a ball that is blue"),
        ("PP", "by a ball that is blue"),
        ("NP", "a ball that is blue"),
        ("NP", "a ball"),
        ("S", "that is blue"),
        ("VP", "is blue"),
    ]


@pytest.mark.parametrize("relation", ["left", "right", "above", "below"])
@pytest.mark.parametrize("form", FORMS)
def test_every_wording_reads_back_as_its_statement(form, relation):
    statement = Statement(subject=Mention(shape="cube"), relation=relation, object=Mention(shape="ball"))
    for seed in range(20):
        caption, _ = write(clause(statement, np.random.default_rng(seed), form))
        (read,) = read_caption(caption)
        assert read["relation"] == relation, caption
        assert [m["shape"] for m in read["mentions"]] == ["cube", "ball"], caption


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid", "count": 1, "seed": 0}, "split is 'valid'; it must be one of train, test, compositional"),
        ({"split": "train", "count": -1, "seed": 0}, "count is -1; it must be 0 or more"),
        ({"split": "train", "count": 1, "seed": 0, "image_size": 16}, "image_size is 16; it must be at least 32"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(arguments.pop("split"), **arguments)
