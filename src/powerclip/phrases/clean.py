"""How captions are cleaned, once, where they enter; what a parser is given of them, and what a word is."""

import html
import re

import ftfy

MAX_CHARACTERS = 2_500
"""A parser is given no more of a caption. A text tower of 77 tokens reads some 350 characters, one of 512 some 2300."""
MAX_SIGNS = 40
"""Signs that touch in what a parser is given: spaCy's tokenizer takes time quadratic in the length of such a row."""
MAX_PASSES = 4
"""Times a caption is cleaned at most; each pass removes two levels of HTML escaping, or three."""

ESCAPED_AGAIN = re.compile(r"&(?:(?:amp|AMP|#0*38|#[xX]0*26);)+")
"""An ampersand that was escaped again and again: ftfy takes off one level at a time."""
NO_CHARACTER = re.compile(r"&#[0-9]{1000,};?")
"""A number that no character has; Python refuses to read some of them."""
SIGNS = re.compile(rf"(?:[^\w\s]|_){{{MAX_SIGNS}}}")
EMOJI = "\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001fbff"
"""Unicode's blocks of pictographs, as a range in a regular expression; units, operators and currencies come before."""
WORD = re.compile(rf"[^\W_]|[{EMOJI}]")
EMOJI_RUN = re.compile(f"[{EMOJI}][{EMOJI}\u200d\ufe0e\ufe0f\u20e3\U000e0020-\U000e007f]*")
"""Emoji that touch, with the characters that join and vary them."""
HYPHENS = "-\u2010\u2011"
WHOLE_WORD = re.compile(rf"[^\W_]+(?:[{HYPHENS}]+[^\W_]+)*|{EMOJI_RUN.pattern}")
"""A word where no parser says what is one: letters and digits, joined by hyphens."""


def clean_caption(text: str) -> str:
    """A caption as CLIP's tokenizer cleans it, with its case kept; cleaning the result again changes nothing.

    Wrongly decoded and oddly written characters are repaired (ftfy), HTML entities replaced, control characters and a
    byte-order mark removed, and white space is collapsed. The result may be empty.
    """
    for _ in range(MAX_PASSES):
        if text.isascii() and text.isprintable() and "&" not in text:
            return " ".join(text.split())
        plain = ftfy.fix_text(ESCAPED_AGAIN.sub("&", text))
        cleaned = " ".join(_unescaped(_unescaped(plain)).split())
        if cleaned == text:
            break
        text = cleaned
    return text


def _unescaped(text: str) -> str:
    return html.unescape(NO_CHARACTER.sub("\ufffd", text))


def parser_text(caption: str) -> str:
    """What a parser is given of a caption: its beginning, with a space in long rows of signs; offsets stay the same.

    ValueError if the caption holds nothing but white space.
    """
    if not caption.strip():
        raise ValueError("the caption is empty")
    return SIGNS.sub(lambda row: row.group()[:-1] + " ", caption[:MAX_CHARACTERS])


def is_word(token: str) -> bool:
    """Whether a token has a letter, a digit or an emoji; punctuation marks and other signs are not words."""
    return WORD.search(token) is not None
