import pytest

from powerclip.phrases import load_parser, whole_caption_tree
from powerclip.types import PhraseTree, PowerclipError

EXACT = {
    "a red cube on a blue ball": {"a red cube on a blue ball", "a red cube", "on a blue ball", "a blue ball"},
    "a dog is riding a horse": {
        "a dog is riding a horse", "a dog", "is riding a horse", "riding a horse", "a horse",
    },
    "two men and a woman stand behind the table": {
        "two men and a woman stand behind the table", "two men and a woman", "two men", "a woman",
        "stand behind the table", "behind the table", "the table",
    },
    "the man's hat": {"the man's hat", "the man's"},
    "a boy throws a ball and catches it.": {
        "a boy throws a ball and catches it", "a boy", "throws a ball and catches it", "throws a ball", "a ball",
        "catches it", "it",
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def parser():
    return load_parser()


def texts(caption, tree):
    return {caption[tree.leaves[p.first][0] : tree.leaves[p.last][1]] for p in tree.phrases}


def test_canonical_sentences(parser):
    for (caption, expected), tree in zip(EXACT.items(), parser.parse(EXACT), strict=True):
        assert texts(caption, tree) == expected, caption


@pytest.mark.parametrize(
    "caption", ["\x00a dog\x00", "\U0001f600 caf\u00e9", "!!!", "un perro en la mesa", "dog " * 5000]
)
def test_odd_captions_give_valid_trees(parser, caption):
    tree = next(parser.parse([caption]))
    assert PhraseTree.from_json(tree.to_json()) == tree
    spans = [(p.first, p.last) for p in tree.phrases]
    assert spans
    assert len(set(spans)) == len(spans)
    assert not any(a < c <= b < d for a, b in spans for c, d in spans)


def test_a_hyphenated_word_is_one_leaf(parser):
    caption = "a black-and-white photo"
    tree = next(parser.parse([caption]))
    assert [caption[a:b] for a, b in tree.leaves] == ["a", "black-and-white", "photo"]


def test_an_empty_caption_is_refused(parser):
    for parse in (lambda c: next(parser.parse([c])), whole_caption_tree):
        with pytest.raises(ValueError, match="the caption is empty"):
            parse(" \n")


@pytest.mark.parametrize("name", ["spacy:no_such_pipeline", "other"])
def test_an_unknown_parser_is_one_clear_line(name):
    with pytest.raises(PowerclipError, match="spacy:(NAME|PIPELINE)"):
        load_parser(name)
