import importlib.util
import re
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerclip.errors import PowerclipError
from powerclip.phrases import load_parser, whole_caption_tree
from powerclip.phrases.clean import MAX_CHARACTERS, MAX_SIGNS, clean_caption
from powerclip.phrases.tree import MAX_WORDS, Phrase, PhraseTree

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
    "a cat next to a laptop": {"a cat next to a laptop", "a cat", "next to a laptop", "a laptop"},
    "a sign in front of a building": {
        "a sign in front of a building", "a sign", "in front of a building", "a building",
    },
    "a woman who wears a hat": {"a woman who wears a hat", "a woman", "who wears a hat", "wears a hat", "a hat"},
    "knives, forks and spoons": {"knives, forks and spoons", "knives", "forks", "spoons"},
    "a man is sitting and reading": {
        "a man is sitting and reading", "a man", "is sitting and reading", "sitting and reading", "sitting", "reading",
    },
    "look at the dog!": {"look at the dog", "at the dog", "the dog"},
    "a man reads a book while waiting for the train": {
        "a man reads a book while waiting for the train", "a man", "reads a book while waiting for the train", "a book",
        "while waiting for the train", "waiting for the train", "for the train", "the train",
    },
    "\U0001f382 \U0001f382": {"\U0001f382 \U0001f382"},
}  # fmt: skip

LABELLED = [
    "[NP [NP A dog] [VP isolated [PP on [NP white]]]]",
    "[NP [NP A portrait] [PP in [NP black and white]]]",
    "[S [NP A bride] [VP is [VP wearing [NP white]]]].",
    "[S [NP The young] [VP are [VP dancing]]]",
    "[S [NP The man] [VP is not [VP wearing [NP a helmet]]]].",
    "[S [NP Children] [VP don't [VP like [NP the soup]]]].",
    "[S [NP The bridge] [VP has not [VP been [VP painted]]]].",
    "[S [NP A man] [VP is not [VP [VP sitting] and [VP reading]]]].",
    "[S Is [NP the dog] not [VP barking]]?",
    "[NP [NP People] [VP not [VP wearing [NP masks]]]]",
    "[NP [NP Dogs] [VP walking [PP on [NP a beach]]]]",
    "[NP [NP Snow] [VP [VP sitting [PP on [NP a bench]]] and [VP reading]]]",
    "[S [NP Dogs] [VP are [VP walking [PP on [NP a beach]]]]].",
    "| [NP Red dress] |",
    "[NP [NP A burger] + [NP a drink]] +",
    "[NP [NP Salt] & [NP pepper]]",
    "[NP [NP The girl's] red bicycle]",
    "[NP [NP Café] [PP in [NP Paris]]]",
    "[NP AT&T store] ©",
    "[S [NP The dog] [VP barked]]!![S [NP The cat] [VP ran away]].",
    "[CAPTION Beautiful]!",
]
"""As it is written for people, with the labels."""


@pytest.fixture(scope="session")
def parser():
    return load_parser()


def texts(caption, tree):
    return {caption[tree.leaves[p.first][0] : tree.leaves[p.last][1]] for p in tree.phrases}


def test_one_string_is_not_taken_for_captions_of_one_letter(parser):
    with pytest.raises(TypeError, match=r"a list of captions, not one; put it in brackets: parse\(\[caption\]\)"):
        list(parser.parse("a cat"))


def test_canonical_sentences(parser):
    for (caption, expected), tree in zip(EXACT.items(), parser.parse(EXACT), strict=True):
        assert texts(caption, tree) == expected, caption


@pytest.mark.parametrize("bracketed", LABELLED)
def test_labels_and_signs(parser, bracketed):
    caption = re.sub(r"\[[A-Z]+ |\]", "", bracketed)
    assert clean_caption(caption) == caption
    assert next(parser.parse([caption])).to_brackets(caption) == bracketed


@pytest.mark.parametrize(
    "caption",
    ["\x00a dog\x00", "\U0001f600 caf\u00e9", "!!!", "un perro en la mesa", "dog " * 5000, "&#1;", "&nbsp;", "$ | +"],
)
def test_odd_captions_give_valid_trees(parser, caption):
    tree = next(parser.parse([caption]))
    assert PhraseTree.from_json(tree.to_json()) == tree
    spans = [(p.first, p.last) for p in tree.phrases]
    assert spans
    assert len(set(spans)) == len(spans)
    assert not any(a < c <= b < d for a, b in spans for c, d in spans)


WORDS = [
    "a",
    "the",
    "red",
    "dog",
    "who",
    "is",
    "riding",
    "and,",
    "or",
    "(in)",
    "front",
    "of",
    "next",
    "to",
    "🎂",
    "café",
    "don't",
    "x-y",
    "3",
    "犬",
    "#tag",
    "said",
    "that",
    "!",
    ".",
]


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=25).map(" ".join) | st.text(min_size=1, max_size=60))
def test_phrases_of_any_text_are_nested_and_words_apart(parser, caption):
    if not caption.strip():
        return
    tree = next(parser.parse([caption]))
    assert PhraseTree.from_json(tree.to_json()) == tree
    assert tree.phrases and not tree.crossing
    assert len({(p.first, p.last) for p in tree.phrases}) == len(tree.phrases)
    assert tree.leaves[-1][1] <= len(caption)


def test_the_gold_list_is_met(parser):
    path = Path(__file__).parents[2] / "benchmarks" / "parsing.py"
    spec = importlib.util.spec_from_file_location("parsing_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    gold = benchmark.read_gold()
    trees = parser.parse([caption for caption, _, _ in gold])
    pairs = [(benchmark.spans_of(c, tree), spans) for (c, spans, _), tree in zip(gold, trees, strict=True)]
    assert len(gold) >= 89
    assert benchmark.scores(pairs, labelled=False)[2] > 0.965
    assert benchmark.scores(pairs, labelled=True)[2] > 0.96


@pytest.mark.parametrize(
    ("caption", "leaves"),
    [
        ("a black-and-white photo", "a|black-and-white|photo"),
        (
            "cake 🎂🎂 👍🏽 ❤️ \U0001f468\u200d\U0001f469\u200d\U0001f467 🇩🇪",
            "cake|🎂🎂|👍🏽|❤️|\U0001f468\u200d\U0001f469\u200d\U0001f467|🇩🇪",
        ),
        ("a $5 burger + fries = 50% off...", "a|5|burger|fries|50|off"),
        ('AT&T & the café♥"', "AT&T|the|café|♥"),
        ("a\t \n dog", "a|dog"),
        ("red|cat?yes;a http://a.com/x?y=z;w 5;6", "red|cat|yes|a|http://a.com/x?y=z;w|5;6"),
        ("犬が好き。", "犬が好き"),
    ],
)
def test_what_a_leaf_is(parser, caption, leaves):
    tree = next(parser.parse([caption]))
    assert [caption[a:b] for a, b in tree.leaves] == leaves.split("|")


@pytest.mark.parametrize("piece", ["!", "(", "🎂", "&amp;", "'s", "犬"])
def test_little_of_a_hostile_caption_goes_to_the_parser(parser, monkeypatch, piece):
    handed = []
    pipe = parser.nlp.pipe

    def record(texts, **settings):
        for document in pipe(texts, **settings):
            handed.append(document)
            yield document

    monkeypatch.setattr(parser, "nlp", types.SimpleNamespace(pipe=record))
    tree = next(parser.parse([piece * 10_000]))
    (document,) = handed
    assert len(document) <= len(document.text) <= MAX_CHARACTERS
    rows = re.findall(r"[^\w\s]+", document.text)
    assert max(map(len, rows), default=0) <= (1 if piece == "'s" else MAX_SIGNS)
    assert tree.phrases


def test_a_caption_without_a_parse_is_one_phrase_over_its_words():
    tree = whole_caption_tree(" a  red\tdog ")
    assert tree.leaves == ((1, 2), (4, 7), (8, 11))
    assert tree.phrases == (Phrase(label="CAPTION", first=0, last=2),)
    assert len(whole_caption_tree("dog " * 2 * MAX_WORDS).leaves) == MAX_WORDS


def test_an_empty_caption_is_refused(parser):
    for parse in (lambda c: next(parser.parse([c])), whole_caption_tree):
        with pytest.raises(ValueError, match="the caption is empty"):
            parse(" \n")


@pytest.mark.parametrize("name", ["spacy:no_such_pipeline", "other"])
def test_an_unknown_parser_is_one_clear_line(name):
    with pytest.raises(PowerclipError, match="spacy:(NAME|PIPELINE)"):
        load_parser(name)
