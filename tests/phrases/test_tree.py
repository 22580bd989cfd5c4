"""Trees read from files: any JSON value is a tree or a ValueError."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from powerclip.phrases.tree import PhraseTree

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
    "text", ['{"leaves": [[0, Infinity]], "phrases": []}', '{"leaves": [[0, 1e999]], "phrases": []}']
)
def test_an_infinite_offset_is_a_value_error(text):
    with pytest.raises(ValueError, match="reading failed with OverflowError"):
        PhraseTree.from_json(json.loads(text))
