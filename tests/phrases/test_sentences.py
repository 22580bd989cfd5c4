import pytest

from powerclip.phrases import load_parser
from powerclip.phrases.sentences import sentences
from powerclip.phrases.tree import Phrase, PhraseTree


def texts(caption, tree=None):
    return [caption[start:end] for start, end in sentences(caption, tree)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog", ["a dog"]),
        ("A dog. It runs!  Is it wet? Yes...", ["A dog.", "It runs!", "Is it wet?", "Yes..."]),
        ('"Stop." She waits (a while.) 3 cars pass.', ['"Stop."', "She waits (a while.)", "3 cars pass."]),
        ("approx. two dogs", ["approx. two dogs"]),
        ("A dog in 3.5 m of water, i.e. wet.", ["A dog in 3.5 m of water, i.e. wet."]),
        ("\u72d7\u5728\u8dd1\u3002\u732b\u5728\u7761\u3002", ["\u72d7\u5728\u8dd1\u3002", "\u732b\u5728\u7761\u3002"]),
        ("A dog. ... A cat.", ["A dog. ...", "A cat."]),
        ("... !", []),
    ],
)
def test_sentences_without_phrases(caption, expected):
    assert texts(caption) == expected


def test_phrases_say_what_belongs_together():
    parser = load_parser()
    for caption, expected in {
        "Mr. Smith holds a dog. Dr. Lee looks on.": ["Mr. Smith holds a dog.", "Dr. Lee looks on."],
        "a dog runs on a beach. it is wet.": ["a dog runs on a beach.", "it is wet."],
    }.items():
        (tree,) = parser.parse([caption])
        assert texts(caption, tree) == expected


def test_a_sentence_keeps_its_words_and_phrases():
    caption = "A dog. A red cat."
    spans = [("NP", 0, 1), ("NP", 2, 4), ("X", 3, 3)]
    tree = PhraseTree.from_spans([(0, 1), (2, 5), (7, 8), (9, 12), (13, 16)], spans, parser="p")
    (first, second) = sentences(caption, tree)
    assert tree.within(*first) == PhraseTree.from_spans([(0, 1), (2, 5)], [("NP", 0, 1)], parser="p")
    assert tree.within(*second) == PhraseTree.from_spans(
        [(0, 1), (2, 5), (6, 9)], [("NP", 0, 2), ("X", 1, 1)], parser="p"
    )
    assert tree.within(5, 6) == PhraseTree(leaves=(), phrases=(), parser="p")
    across = PhraseTree(leaves=tree.leaves, phrases=(Phrase(label="X", first=0, last=2),), parser="p")
    assert texts(caption, across) == [caption]
