"""The copy of a caption that a parser reads, and the way back to the caption's own characters; what a word is."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html.entities import html5
from itertools import pairwise

from powerclip.phrases.tree import PhraseTree

MAX_CHARACTERS = 2_500
"""Of a copy. A text tower of 77 tokens reads some 350 characters, one of 512 tokens some 2300."""
MAX_SIGNS = 40
"""In a row, in a copy: of more, spaCy's tokenizer takes one off and reads all others anew, in quadratic time."""

BARE = "|".join(sorted((name for name in html5 if not name.endswith(";")), key=len, reverse=True))
ENTITY = re.compile(rf"&(?:amp;)*(?:#[0-9]{{1,32}};?|#[xX][0-9a-fA-F]{{1,32}};?|\w{{1,32}};|{BARE})")
"""An HTML entity, written with or without its semicolon as HTML allows it; "&amp;lt;" is one too."""
CHANGED = re.compile(rf"{ENTITY.pattern}|\s{{2,}}|[^\S ]")
SIGNS = re.compile(rf"(?:[^\w\s]|_){{{MAX_SIGNS}}}")
EMOJI = "\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001fbff"
"""Unicode's blocks of pictures, as the range of a regular expression; units, operators and currencies lie before."""
WORD = re.compile(rf"[^\W_]|[{EMOJI}]")
EMOJI_RUN = re.compile(f"[{EMOJI}][{EMOJI}\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]*")
"""Emoji that touch, with the characters that join and vary them."""


@dataclass(frozen=True, kw_only=True)
class PlainCopy:
    """A caption without HTML entities, odd white space and long rows of signs."""

    caption: str
    """As it is stored."""
    text: str
    """What a parser reads; empty where the caption's entities stand for nothing."""
    places: Sequence[tuple[int, int]]
    """Where in the caption each character of the text comes from, end exclusive."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Where in the caption the characters [start, end) of the text come from."""
        return self.places[start][0], self.places[end - 1][1]

    def restored(self, tree: PhraseTree) -> PhraseTree:
        """A tree of the text as one of the caption.

        Raises:
            ValueError: two of its words come from one entity.
        """
        leaves = tuple(self.span(*leaf) for leaf in tree.leaves)
        if any(before[1] > after[0] for before, after in pairwise(leaves)):
            raise ValueError("two words come from one HTML entity")
        return replace(tree, leaves=leaves)


def plain_copy(caption: str) -> PlainCopy:
    """What a parser reads of a caption.

    Raises:
        ValueError: the caption holds nothing but white space.
    """
    if not caption.strip():
        raise ValueError("the caption is empty")
    text, position = "", 0
    places: list[tuple[int, int]] = []
    for match in CHANGED.finditer(caption):
        if len(text) + match.start() - position >= MAX_CHARACTERS:
            break
        new = unescaped(match.group()) if match.group().startswith("&") else " "
        text += caption[position : match.start()] + new
        places += [(i, i + 1) for i in range(position, match.start())]
        places += [match.span()] * len(new)
        position = match.end()
    rest = caption[position : position + max(MAX_CHARACTERS - len(text), 0)]
    text += rest
    places += [(i, i + 1) for i in range(position, position + len(rest))]
    for end in reversed([match.end() for match in SIGNS.finditer(text)]):
        text = f"{text[:end]} {text[end:]}"  # a space of no width parts the row
        places.insert(end, (places[end - 1][1],) * 2)
    return PlainCopy(caption=caption, text=text[:MAX_CHARACTERS], places=places[:MAX_CHARACTERS])


def unescaped(entity: str) -> str:
    """What an HTML entity stands for; twice, as tokenizers do it: captions from the web are often escaped twice."""
    return html.unescape(html.unescape(entity))


def is_word(token: str) -> bool:
    """Whether a token has a letter, a digit or an emoji; punctuation marks and other signs are no words."""
    return WORD.search(token) is not None
