"""Trees read from files (any JSON value is a tree or a ValueError) and from spans."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from powerclip.phrases.tree import Phrase, PhraseTree

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner), max_leaves=8
)
spans = st.lists(st.integers(-1, 9) | values, max_size=3) | values
phrases = st.fixed_dictionaries({}, optional={"label": st.just("NP") | values, "leaves": spans}) | values
trees = st.fixed_dictionaries(
    {},
    optional={
        "leaves": st.lists(spans, max_size=4) | values,
        "phrases": st.lists(phrases, max_size=4) | values,
        "parser": values,
    },
)


@given(trees | values)
@example({"leaves": [[0, 1], [1, 3]], "phrases": [{"label": "NP", "leaves": [0, 1]}]})
@example({"leaves": [[0, float("nan")]], "phrases": []})
@example({"leaves": [["0", "9" * 5000]], "phrases": []})
def test_any_json_is_a_tree_or_a_value_error(value):
    try:
        tree = PhraseTree.from_json(json.loads(json.dumps(value)))
    except ValueError:
        return
    assert PhraseTree.from_json(tree.to_json()) == tree
    position = 0
    for start, end in tree.leaves:
        assert position <= start < end
        position = end
    assert all(0 <= p.first <= p.last < len(tree.leaves) for p in tree.phrases)


@pytest.mark.parametrize(
    "text",
    [
        *(f'{{"leaves": [[0, {end}]], "phrases": []}}' for end in ("Infinity", "1e999", "3.0", "true", '"3"', "null")),
        '{"leaves": [[0, 3]], "phrases": [{"label": "NP", "leaves": [false, 0]}]}',
    ],
)
def test_only_integers_are_offsets(text):
    with pytest.raises(ValueError, match="reading failed with TypeError: a place that is not an integer"):
        PhraseTree.from_json(json.loads(text))


def spans_of(tree):
    return [(p.label, p.first, p.last) for p in tree.phrases]


def test_spans_are_sorted_and_the_first_of_those_that_disagree_is_kept():
    leaves = [(0, 1), (2, 3), (4, 5), (6, 7)]
    given = [("PP", 2, 3), ("NP", 0, 1), ("S", 0, 3), ("VP", 0, 3), ("NP", 1, 2), ("NP", 2, 2)]
    tree = PhraseTree.from_spans(iter(leaves), iter(given), parser="x")
    assert spans_of(tree) == [("S", 0, 3), ("NP", 0, 1), ("PP", 2, 3), ("NP", 2, 2)]
    assert (tree.leaves, tree.parser) == (tuple(leaves), "x")
    assert spans_of(PhraseTree.from_spans(leaves, [], parser="x")) == [("CAPTION", 0, 3)]
    assert spans_of(PhraseTree.from_spans([], [], parser="x")) == []


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted), max_size=8))
def test_crossing_is_what_from_spans_leaves_out(spans):
    phrases = tuple(Phrase(label="NP", first=a, last=b) for a, b in spans)
    leaves = tuple((i, i + 1) for i in range(7))
    tree = PhraseTree(leaves=leaves, phrases=phrases, parser="x")
    assert tree.crossing == any(a < c <= b < d for a, b in spans for c, d in spans)
    nested = PhraseTree.from_spans(leaves, [("NP", a, b) for a, b in spans], parser="x")
    assert not nested.crossing
    assert tree.crossing or not spans or {(p.first, p.last) for p in nested.phrases} == {(a, b) for a, b in spans}


def test_a_tree_is_written_in_brackets():
    caption = "A dog  is on the chair."
    leaves = [(0, 1), (2, 5), (7, 9), (10, 12), (13, 16), (17, 22)]
    spans = [("NP", 4, 5), ("PP", 3, 5), ("VP", 2, 5), ("NP", 0, 1), ("S", 0, 5)]
    tree = PhraseTree.from_spans(leaves, spans, parser="x")
    assert tree.to_brackets(caption) == "[S [NP A dog]  [VP is [PP on [NP the chair]]]]."
