"""The published shards' own forms: regions on a grid, phrases as positions of CLIP's tokens;
the files are made by hand."""

import io
import json
import logging
import re

import numpy as np
import open_clip
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from powerclip.data import published
from powerclip.data.published import read_phrases
from powerclip.data.sample import Sample
from powerclip.errors import BadSampleError
from powerclip.phrases import encode_caption
from powerclip.phrases.clean import clean_caption
from tests.support.images import one_colour
from tests.support.tars import damaged, npy

CLIP = open_clip.SimpleTokenizer()
CAPTION = "A xylophonist plays, loudly"
"""Tokens: start-of-text, a, xy, lo, ph, onist, plays, a comma, loudly, end-of-text."""
PHRASES = [[1, 2, 3, 4, 5], [6, 8]]
"""As positions with start-of-text at 0: "A xylophonist", and "plays loudly" without the comma between."""


def njson(phrases, form=lambda lengths, positions: {"lens": lengths, "cat": positions}):
    return json.dumps(form([len(p) for p in phrases], [i for p in phrases for i in p])).encode()


def texts(caption, tree):
    return [caption[tree.leaves[p.first][0] : tree.leaves[p.last][1]] for p in tree.phrases]


@pytest.fixture(autouse=True)
def fresh_log(monkeypatch):
    monkeypatch.setattr(published, "logged", set())


@pytest.mark.parametrize(
    "form",
    [
        lambda lengths, positions: {"lens": lengths, "cat": positions},
        lambda lengths, positions: {"indices": positions, "lengths": lengths, "version": 2},
        lambda lengths, positions: [lengths, positions],
        lambda lengths, positions: [positions, lengths],
    ],
)
@pytest.mark.parametrize("shift", [0, 1])
def test_positions_become_phrases_over_tokens(form, shift):
    """Position 0 named (shift 1) tells that start-of-text is not counted."""
    phrases = [[i - shift for i in phrase] for phrase in PHRASES]
    tree = read_phrases(njson(phrases, form), CAPTION)
    assert [CAPTION[a:b] for a, b in tree.leaves] == ["A", "xy", "lo", "ph", "onist", "plays", "loudly"]
    assert texts(CAPTION, tree) == ["A xylophonist", "plays, loudly"]
    assert {p.label for p in tree.phrases} == {"X"}
    encoded = encode_caption(CAPTION, tree, CLIP, context_length=12)
    assert encoded.leaf_of_token.tolist() == [-1, 0, 1, 2, 3, 4, 5, -1, 6, -1, -1, -1]
    assert encoded.phrase_spans.tolist() == [[0, 4], [5, 6]]


@given(
    st.lists(st.sampled_from(["a", "İstanbul", "犬", "🎂", "\U0001f468\u200d\U0001f469", "it's", "x" * 30]), min_size=1)
)
def test_every_token_is_a_leaf_in_its_characters(words):
    caption = clean_caption(" ".join(words))
    count = min(len(CLIP.encode(caption)), 75)
    tree = read_phrases(njson([[i + 1] for i in range(count)]), caption)
    encoded = encode_caption(caption, tree, CLIP, context_length=77)
    leaf_of_token = encoded.leaf_of_token[1 : count + 1].tolist()
    assert leaf_of_token == sorted(leaf_of_token)
    assert set(leaf_of_token) == set(range(len(tree.leaves)))  # tokens within one character share its leaf
    assert (
        "".join(caption[a:b] for a, b in tree.leaves) == caption.replace(" ", "")[: sum(b - a for a, b in tree.leaves)]
    )


def test_a_phrase_with_a_gap_is_skipped_and_reported_once(caplog):
    phrases = [[1, 2, 3, 4, 5], [6, 8], [7, 8], [1, 6]]  # the third makes the comma a leaf: the second has a gap now
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert texts(CAPTION, read_phrases(njson(phrases), CAPTION)) == ["A xylophonist", ", loudly"]
    assert [record.message for record in caplog.records] == [
        "njson: phrases that leave out tokens between their own are skipped",
        "njson read: lengths in 'lens' and positions in 'cat', token positions counted from start-of-text",
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"caption": "a dog", "parse": "(NP a dog)"}', "expected two lists of integers.*keys: caption, parse"),
        (b'{"lens": [2], "cat": [1, 2, 3]}', "expected two lists"),
        (b'{"lens": [2.0], "cat": [1, 2]}', "expected two lists"),
        (b'{"lens": [true, true], "cat": [1, 2]}', "expected two lists"),
        (b'{"lens": [], "cat": []}', "expected two lists"),
        (b'{"lens": [1], "cat": [-1]}', "expected two lists"),
        (b"7", r"expected two lists of integers.*keys: none"),
        (b'{"lens": [2], "cat": [8, 9]}', "positions that the caption does not have .among 8 tokens"),
        (b'{"lens": [2], "cat": [0, 8]}', "positions that the caption does not have"),
    ],
)
def test_other_njson_is_skipped_with_what_was_expected(data, message, caplog):
    with caplog.at_level(logging.WARNING):
        assert read_phrases(data, CAPTION) is None
    (record,) = caplog.records
    assert re.search(message, record.message)


def test_positions_beyond_the_context_do_not_fit():
    caption = "a " * 100 + "dog"
    assert texts(caption, read_phrases(njson([[74, 75]]), caption)) == ["a a"]
    assert read_phrases(njson([[75, 76]]), caption) is None


def test_a_published_sample_has_its_phrases_on_the_cleaned_caption():
    files = {"png": one_colour(), "txt": b"Fish &amp; CHIPS", "njson": njson([[1, 2, 3], [3]])}
    sample = Sample.from_members("k", files)
    assert sample.caption == "Fish & CHIPS"
    assert texts(sample.caption, sample.tree) == ["Fish & CHIPS", "CHIPS"]
    ours = {**files, "phrases.json": b'{"leaves": [[0, 4]], "phrases": [], "parser": "p"}'}
    assert Sample.from_members("k", ours).tree.parser == "p"
    with pytest.raises(BadSampleError, match="malformed njson"):
        Sample.from_members("k", {**files, "njson": b"{"})
    with pytest.raises(BadSampleError, match="no caption"):
        Sample.from_members("k", {"png": one_colour(), "njson": files["njson"]})


values = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 90) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
csr = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), max_size=5).map(njson)


@given(values.map(lambda value: json.dumps(value).encode()) | csr | st.binary(max_size=40))
@example(b"[" * 100_000)
def test_no_njson_breaks_the_reader(data):
    try:
        tree = read_phrases(data, CAPTION)
    except BadSampleError:
        return
    assert tree is None or (tree.phrases and not tree.crossing and type(tree).from_json(tree.to_json()) == tree)


def zipped(values):
    buffer = io.BytesIO()
    np.savez(buffer, a=values)
    return buffer.getvalue()


CLAIMED = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
CLAIMED += b"{'descr': '<i8', 'fortran_order': False, 'shape': (100000000000000,), }".ljust(117) + b"\n" + b"\0" * 80


@pytest.mark.parametrize(
    "lengths",
    [
        zipped([1]), CLAIMED, CLAIMED.replace(b"(1", b"(-1"), CLAIMED.replace(b"<i8", b"|O8"), npy([1.0]), npy(["a"]),
        b"", CLAIMED.replace(b"{'descr'", b"(" * 8), npy([1])[:-1], b"\x93NUMPY\x09\x00", npy([[2**62]] * 4),
        npy([-1, 2]), npy([196]), npy([1.5]), b"junk", npy([None]),
        npy(np.zeros(20_000, np.int64)),
    ],
)  # fmt: skip
def test_region_files_that_are_no_list_of_integers(lengths):
    files = {"png": one_colour(), "txt": b"a dog", "samlens.npy": lengths, "samcat.npy": npy([5])}
    with pytest.raises(
        BadSampleError, match="malformed samlens.npy|do not fit the 14 x 14 grid|more than 10000 regions"
    ):
        Sample.from_members("k", files)
    with pytest.raises(BadSampleError, match=r"malformed samcat.npy|do not fit the 14 x 14 grid|samlens.npy"):
        Sample.from_members("k", {**files, "samlens.npy": npy([1]), "samcat.npy": lengths})


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, ">i4"])
def test_published_regions_of_any_integers_are_read(dtype):
    files = {
        "png": one_colour(),
        "txt": b"a dog",
        "samlens.npy": npy(np.array([2, 0, 1], dtype)),
        "samcat.npy": npy(np.array([[5, 6, 195]], dtype)),
    }
    assert Sample.from_members("k", files).patch_regions == ((5, 6), (), (195,))


@given(st.data())
def test_no_bytes_break_the_readers_of_published_regions(data):
    draw = data.draw
    kind = draw(st.sampled_from([np.int64, np.uint8, np.float32, np.bool_, "U3", "datetime64[s]", object]))
    lengths = damaged(npy(np.array([1, 2]).astype(kind)), draw) if kind is not object else damaged(npy([None]), draw)
    files = {"png": one_colour(), "txt": b"a dog", "samlens.npy": lengths, "samcat.npy": damaged(npy([5, 6, 7]), draw)}
    try:
        sample = Sample.from_members("k", files)
    except BadSampleError:
        return
    assert all(0 <= patch < 196 for region in sample.patch_regions for patch in region)
