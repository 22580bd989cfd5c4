import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerclip.phrases.brackets import parse_brackets, tree_of_nodes
from powerclip.phrases.clean import MAX_CHARACTERS, MAX_SIGNS, plain_copy
from powerclip.phrases.tree import Phrase, PhraseTree

MARKS = [
    "&",
    "amp",
    ";",
    "&lt;",
    "&amp;",
    "&eacute;",
    "&#39;",
    "&#1;",
    "&no;",
    " ",
    "\t\n",
    "\xa0",
    "a",
    "犬",
    "🎂",
    "!",
]


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("a dog", "a dog"),
        ("Salt &amp; pepper", "Salt & pepper"),
        ("Salt &amp pepper", "Salt & pepper"),
        ("1 &amp;lt; 2", "1 < 2"),
        ("the girl&#39;s &#x63;af&eacute;", "the girl's café"),
        ("a\t \n dog\u2003\xa0", "a dog "),
        ("R&D, &unknown;", "R&D, &unknown;"),
        ("&#1;", ""),
    ],
)
def test_what_a_parser_reads(caption, text):
    assert plain_copy(caption).text == text


@given(st.lists(st.sampled_from(MARKS), min_size=1, max_size=200).map("".join).filter(str.strip))
def test_every_character_of_a_copy_has_its_place(caption):
    copy = plain_copy(caption)
    assert len(copy.text) == len(copy.places)
    before = (0, 0)
    for character, (start, end) in zip(copy.text, copy.places, strict=True):
        assert (start, end) == before or before[1] <= start <= end <= len(caption)  # an entity's characters share it
        written = caption[start:end]
        assert character == written or (character == " " and not written.strip()) or written.startswith("&")
        before = start, end


@pytest.mark.parametrize("piece", ["!", "(", "🎂", "_", "&", "&amp;", "!(", "a ", "'s", "a", "&#1;"])
def test_a_copy_is_short_and_so_are_its_rows_of_signs(piece):
    text = plain_copy("a" + piece * 10_000).text
    assert len(text) <= MAX_CHARACTERS <= 3_000
    assert max(map(len, re.findall(r"(?:[^\w\s]|_)*", text))) <= MAX_SIGNS <= 50


def test_white_space_counts_once_towards_the_limit():
    caption = "a" + " " * 10 * MAX_CHARACTERS + "dog"
    copy = plain_copy(caption)
    assert copy.text == "a dog"
    assert copy.span(2, 5) == (len(caption) - 3, len(caption))


def test_a_tree_of_the_copy_becomes_one_of_the_caption():
    copy = plain_copy("the caf&eacute; &amp;  bar")
    assert copy.text == "the café & bar"
    tree = copy.restored(
        tree_of_nodes(parse_brackets("(NP (DT the) (NN café) (CC &) (NN bar))"), copy.text, parser="x")
    )
    assert [copy.caption[start:end] for start, end in tree.leaves] == ["the", "caf&eacute;", "bar"]
    assert tree.phrases == (Phrase(label="NP", first=0, last=2),)


def test_two_words_of_one_entity_are_refused():
    copy = plain_copy("&ampere;")
    assert copy.text == "&ere;"
    with pytest.raises(ValueError, match="two words come from one HTML entity"):
        copy.restored(PhraseTree(leaves=((1, 2), (2, 4)), phrases=(), parser="x"))


def test_the_treebanks_marks_are_no_leaves_but_emoji_are():
    caption = "a | + 。 ★ 🎂 犬"
    tree = tree_of_nodes(
        parse_brackets(f"(NP {' '.join(f'(X {word})' for word in caption.split())})"), caption, parser="x"
    )
    assert [caption[start:end] for start, end in tree.leaves] == ["a", "★", "🎂", "犬"]
