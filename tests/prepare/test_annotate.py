"""From items to annotated samples: what is decoded how often, and what a failure costs."""

import json
from collections import Counter
from types import SimpleNamespace

import pytest
from PIL import Image

from powerclip.data.shards import read_shards
from powerclip.phrases.tree import PhraseTree
from powerclip.prepare.annotate import Counts, annotated
from powerclip.prepare.pairs import Item, make_pair
from powerclip.regions import RegionAnnotation
from tests.support.sources import FULL, WHOLE, picture, prepared
from tests.support.tars import write_tar

SIZE = {"height": 9, "width": 12}


def items(*images):
    return [Item(name=f"item {i}", load=lambda i=i, x=x: make_pair(f"{i}", x, "a dog")) for i, x in enumerate(images)]


@pytest.fixture
def opened(monkeypatch):
    """Every image that Pillow opens."""
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(1) or real(*args, **options))
    return opened


def test_an_image_is_decoded_once(opened, tmp_path):
    """Whether its regions come with it, are proposed, or neither, and whatever its format."""
    regions = json.dumps({**WHOLE, "masks": [FULL]}).encode()
    write_tar(tmp_path / "in.tar", [
        ("a.jpg", picture()), ("a.txt", b"a dog"), ("a.regions.json", regions),
        ("b.jpg", picture()), ("b.txt", b"a dog"),
        ("c.gif", picture(kind="GIF")), ("c.txt", b"a dog"),
    ])  # fmt: skip
    report = prepared(tmp_path / "in.tar", tmp_path / "out", parser="spacy", regions="superpixels")
    assert report["proposer"] == {"superpixels:felzenszwalb-100-300-1000": 2, "unknown": 1}
    assert len(opened) == 3
    assert [sample.image_extension for sample in read_shards(tmp_path / "out")] == ["jpg", "jpg", "png"]


@pytest.mark.parametrize(("batch_size", "at_once"), [(1, [1, 1, 1]), (2, [1, 2, 2]), (9, [1, 1, 1])])
def test_an_image_that_the_proposer_refuses_costs_itself(batch_size, at_once):
    def propose(images):
        if any(image.width == 7 for image in images):
            raise ValueError("Size must contain 'height'")
        return [RegionAnnotation(**SIZE, rles=(), scores=(), proposer=f"{len(images)} at once") for _ in images]

    counts = Counts()
    proposer = SimpleNamespace(name="x", propose=propose, batch_size=batch_size)
    samples = list(annotated(items(picture(), picture(size=(7, 500)), picture(), picture()), None, proposer, counts))
    assert [sample.key for sample in samples] == ["0", "2", "3"]
    assert [int(sample.regions.proposer[0]) for sample in samples] == at_once
    assert counts.skipped == {"image refused by the region proposer": 1}
    assert counts.examples == {"image refused by the region proposer": ["item 1"]}
    assert counts.samples == 3


def test_captions_are_parsed_in_batches_bounded_by_number_and_bytes():
    batches = []

    def parse(captions):
        captions = list(captions)
        batches.append(len(captions))
        return [PhraseTree(leaves=((0, 1),), phrases=(), parser="x") for _ in captions]

    def parsed(**bounds):
        batches.clear()
        samples = annotated(items(*[picture()] * 6), SimpleNamespace(name="x", parse=parse), None, Counts(), **bounds)
        assert [sample.tree.parser for sample in samples] == ["x"] * 6
        return [number for number in batches if number]

    assert parsed() == [6]
    assert parsed(batch_size=4) == [4, 2]
    assert parsed(batch_bytes=2 * len(picture()) - 1) == [2, 2, 2]


def test_counts_of_several_shards_are_added_up_in_order():
    one, two, total = Counts(samples=3, kept=Counter(x=1)), Counts(samples=4, kept=Counter(x=2)), Counts()
    for i in range(4):
        one.skip("bad", f"a{i}")
        two.skip("bad", f"b{i}")
    two.skip("worse", "c")
    for counts in (one, two):
        total.merge(vars(counts))
    assert (total.samples, total.kept, total.skipped) == (7, {"x": 3}, {"bad": 8, "worse": 1})
    assert total.examples == {"bad": ["a0", "a1", "a2", "a3", "b0"], "worse": ["c"]}
    assert len(one.examples["bad"]) == 4
