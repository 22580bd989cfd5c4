"""The door: captions are cleaned where they enter, and those that came with a tree keep the text that it refers to."""

import json
import math
from dataclasses import replace

import open_clip
import pytest
import torch

from powerclip.data.collate import annotate
from powerclip.data.sample import Sample
from powerclip.data.shards import read_shards, write_shards
from powerclip.errors import BadSampleError
from powerclip.phrases import encode_caption, load_parser
from powerclip.prepare.pairs import make_pair
from tests.support.images import one_colour
from tests.support.tars import write_tar

CLIP = open_clip.SimpleTokenizer()
OLD = "Fish &amp; CHIPS  at \t the caf\u00c3\u00a9, it\u2019s&nbsp;a  Caf&eacute; \n"
"""A caption as shards made before captions were cleaned hold it."""
OLD_WORDS = ["Fish", "&amp;", "CHIPS", "at", "the", "caf\u00c3\u00a9", "it", "\u2019s", "a", "Caf&eacute;"]


@pytest.mark.parametrize(
    ("text", "caption", "original"),
    [
        ("a dog", "a dog", None),
        (" a dog\n", "a dog", None),  # white space at the ends is no part of a caption
        ("Salt &amp;  pepper", "Salt & pepper", "Salt &amp;  pepper"),
        ("\ufeffa red dog", "a red dog", "\ufeffa red dog"),
    ],
)
def test_a_caption_without_a_tree_is_cleaned(text, caption, original, tmp_path):
    read = Sample.from_members("k", {"png": one_colour(), "txt": text.encode()})
    made, _ = make_pair("k", one_colour(), text)
    write_shards([made], tmp_path)
    (again,) = read_shards(tmp_path)
    for sample in (read, made, again):
        assert sample.caption == caption
        assert sample.metadata == ({} if original is None else {"caption_original": original})


def test_the_first_original_is_kept_among_the_metadata():
    files = {
        "png": one_colour(),
        "txt": b"salt  &amp; pepper",
        "json": b'{"url": "x", "caption_original": "&amp;amp;"}',
    }
    sample = Sample.from_members("k", files)
    assert sample.caption == "salt & pepper"
    assert sample.metadata == {"url": "x", "caption_original": "&amp;amp;"}


@pytest.mark.parametrize("text", ["", " \n", "\ufeff", "&nbsp;\u3000", "&#1;"])
def test_nothing_left_of_a_caption_is_an_empty_one(text):
    with pytest.raises(BadSampleError, match="empty caption"):
        make_pair("k", one_colour(), text)
    with pytest.raises(BadSampleError, match="empty caption"):
        Sample.from_members("k", {"png": one_colour(), "txt": text.encode()})


@pytest.mark.parametrize(
    ("text", "reason"), [(b"a" * 2**20 + b"b", "too large"), (b"\xff", "not UTF-8"), (b"a\0", "NUL")]
)
def test_captions_that_cannot_be_used(text, reason):
    with pytest.raises(BadSampleError, match=reason):
        make_pair("k", one_colour(), text)


def test_a_shard_made_before_keeps_its_caption_and_every_word_finds_its_tokens(tmp_path):
    leaves, position = [], 0
    for word in OLD_WORDS:
        start = OLD.index(word, position)
        position = start + len(word)
        leaves.append([start, position])
    tree = {"leaves": leaves, "phrases": [{"label": "NP", "leaves": [0, 2]}], "parser": "spacy:x"}
    files = {"png": one_colour(), "txt": OLD.encode(), "phrases.json": json.dumps(tree).encode()}
    write_tar(tmp_path / "old.tar", [(f"k.{extension}", data) for extension, data in files.items()])
    (sample,) = read_shards(tmp_path)
    assert sample.caption == OLD
    assert sample.metadata == {}
    encoded = encode_caption(sample.caption, sample.tree, CLIP, context_length=30)
    assert torch.equal(encoded.tokens, CLIP([OLD], 30)[0])
    own = [encoded.tokens[encoded.leaf_of_token == leaf].tolist() for leaf in range(len(leaves))]
    words = [CLIP.decode(tokens).replace(" ", "") for tokens in own]
    assert words == ["fish", "&", "chips", "at", "the", "caf\u00e9", "it", "'s", "a", "caf\u00e9"]
    assert encoded.phrase_spans.tolist() == [[0, 2]]


def test_another_trainers_captions_are_cleaned_before_they_are_parsed():
    sizes = {"parser": load_parser(), "tokenizer": CLIP, "context_length": 16, "region_masks": torch.zeros(2, 1, 4)}
    raw = annotate(torch.zeros(2, 3, 8, 8), ["Salt  &amp;amp; pepper", "the girl&#39;s caf\u00c3\u00a9"], **sizes)
    clean = annotate(torch.zeros(2, 3, 8, 8), ["Salt & pepper", "the girl's caf\u00e9"], **sizes)
    for name in ("tokens", "leaf_of_token", "phrase_spans"):
        assert torch.equal(getattr(raw, name), getattr(clean, name)), name
    assert (raw.phrase_spans[0] >= 0).all(dim=1).sum() == 3  # both nouns, and the two together


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": b"a dog"}, "no image"),
        ({"png": one_colour()}, "no caption"),
        ({"png": one_colour(), "txt": b" \n"}, "empty caption"),
        ({"png": one_colour(), "txt": b"\xff"}, "caption not UTF-8"),
        ({"png": one_colour(), "txt": b"a dog", "phrases.json": b"{}"}, "malformed phrases.json"),
    ],
)
def test_a_sample_that_cannot_be_used_has_a_reason(files, reason):
    with pytest.raises(BadSampleError, match=reason):
        Sample.from_members("x", files)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_number_that_json_lacks_is_null_in_metadata(number):
    files = {"png": one_colour(), "txt": b"a dog", "json": b'{"a": [%s, 1.5]}' % number}
    sample = Sample.from_members("x", files)
    assert sample.metadata == {"a": [None, 1.5]}
    assert sample.members()["json"] == b'{"a":[null,1.5]}'


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_lacks_is_not_written(number):
    sample = Sample(key="a", image=one_colour(), image_extension="png", caption="a", metadata={"x": number, "y": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        sample.members()
    assert Sample.from_members("a", replace(sample, metadata={"y": 0.5}).members()).metadata == {"y": 0.5}
