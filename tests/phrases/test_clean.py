"""Cleaning at the door, and what a parser is given."""

import re

import open_clip
import pytest
from hypothesis import given
from hypothesis import strategies as st

from powerclip.phrases.clean import MAX_CHARACTERS, MAX_SIGNS, clean_caption, parser_text

CLIP = open_clip.SimpleTokenizer()
MARKS = [
    "&", "amp", ";", "&lt;", "&amp;", "&eacute;", "&#39;", "&#8217;", "&#1;", "&no;", "<b>", " ", "\t\n", "\xa0",
    "\ufeff", "a", "É", "İ", "caf\u00c3\u00a9", "it\u2019s", "cafe\u0301", "ﬁ", "犬", "🎂", "!", "\x07", "\u200b",
]  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("a dog", "a dog"),
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("Salt &amp pepper", "Salt & pepper"),
        ("1 &amp;lt; 2", "1 < 2"),
        ("the girl&#39;s &#x63;af&eacute;", "the girl's café"),
        ("<b>it&#8217;s</b>", "<b>it's</b>"),
        ("the caf\u00c3\u00a9", "the café"),
        ("a\t \n dog\u2003\xa0", "a dog"),
        ("\ufeffa red dog", "a red dog"),
        ("R&D, &unknown;", "R&D, &unknown;"),
        ("&#1;\ufeff&nbsp;", ""),
        ("a cat &#" + 4301 * "1" + ";", "a cat \ufffd"),
        ("a cat &#&#49;" + 4301 * "1", "a cat \ufffd"),  # a reference that unescaping makes
        ("&" + 100_000 * "amp;" + "lt; &#038;#x26;amp;gt;", "< >"),
    ],
)
def test_what_cleaning_makes_of_a_caption(caption, text):
    assert clean_caption(caption) == text


@given(st.lists(st.sampled_from(MARKS), max_size=30).map("".join) | st.text(st.characters(exclude_categories=["Cs"])))
def test_a_clean_caption_stays_as_it_is_but_for_case(caption):
    cleaned = clean_caption(caption)
    assert clean_caption(cleaned) == cleaned
    assert CLIP.clean_fn(cleaned) == cleaned.lower()


@given(
    st.lists(st.sampled_from(["a", "É", "İ", "b  ", "\t", "&amp;", "it\u2019s ", "caf\u00c3\u00a9", "犬"])).map("".join)
)
def test_cleaning_is_the_tokenizers_own(caption):
    assert clean_caption(caption).lower() == CLIP.clean_fn(caption)


@pytest.mark.parametrize("piece", ["!", "(", "🎂", "_", "&", "!(", "a ", "'s", "a"])
def test_what_a_parser_is_given_is_short_and_so_are_its_rows_of_signs(piece):
    caption = "a" + piece * 10_000
    text = parser_text(caption)
    assert len(text) == MAX_CHARACTERS <= 3_000
    assert max(map(len, re.findall(r"(?:[^\w\s]|_)*", text))) < MAX_SIGNS <= 50
    assert all(a in (b, " ") for a, b in zip(text, caption, strict=False))
    assert text.count(" ") <= caption[:MAX_CHARACTERS].count(" ") + len(text) / MAX_SIGNS
