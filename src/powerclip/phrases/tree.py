"""The tree of a caption: its words and phrases in character offsets, and the protocol of what finds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

MAX_WORDS = 1_000
"""Of a tree without parse; a text tower reads fewer."""


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A node of the constituency tree: a label and an inclusive range of leaves."""

    label: str
    """Penn Treebank label: NP, VP, PP or S; "CAPTION" for the whole caption where the tree has no phrase."""
    first: int
    """Index of the first leaf."""
    last: int
    """Index of the last leaf, inclusive."""


@dataclass(frozen=True, kw_only=True)
class PhraseTree:
    """The words and phrases of one caption, in character offsets: independent of any tokenizer."""

    leaves: tuple[tuple[int, int], ...]
    """Character span [start, end) of each word, in order, not overlapping."""
    phrases: tuple[Phrase, ...]
    """Nested or disjoint, never crossing; equal spans once."""
    parser: str
    """What made the tree: "gold", or the name and version of the parser."""

    def to_json(self) -> dict[str, Any]:
        """The content of a ``KEY.phrases.json`` file."""
        return {
            "leaves": [list(span) for span in self.leaves],
            "phrases": [{"label": p.label, "leaves": [p.first, p.last]} for p in self.phrases],
            "parser": self.parser,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PhraseTree:
        """Read the content of a ``KEY.phrases.json`` file.

        Raises:
            ValueError: the value does not have that form; the message says where.
        """
        try:
            leaves = tuple((int(start), int(end)) for start, end in value["leaves"])
            phrases = tuple(
                Phrase(label=str(p["label"]), first=int(p["leaves"][0]), last=int(p["leaves"][1]))
                for p in value["phrases"]
            )
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise ValueError(
                "phrases.json must hold leaves [[start, end], ...] and phrases "
                f"[{{label, leaves: [first, last]}}], but reading failed with {type(error).__name__}: {error}"
            ) from error
        position = 0
        for start, end in leaves:
            if not position <= start < end:
                raise ValueError(f"leaf [{start}, {end}) is empty, out of order or overlaps the one before it")
            position = end
        for p in phrases:
            if not 0 <= p.first <= p.last < len(leaves):
                raise ValueError(f"phrase {p.label} covers leaves [{p.first}, {p.last}] of {len(leaves)}")
        return cls(leaves=leaves, phrases=phrases, parser=str(value.get("parser", "unknown")))


class Parser(Protocol):
    """Anything that finds the phrases of captions."""

    name: str

    def parse(self, captions: Iterable[str]) -> Iterator[PhraseTree]:
        """One tree a caption, in order.

        Raises:
            ValueError: a caption holds nothing but white space.
        """


def whole_caption_tree(caption: str) -> PhraseTree:
    """Words split at white space, and one phrase over all of them: for captions without a parse.

    Raises:
        ValueError: the caption holds nothing but white space.
    """
    leaves = tuple(match.span() for match in islice(re.finditer(r"\S+", caption), MAX_WORDS))
    if not leaves:
        raise ValueError("the caption is empty")
    phrases = (Phrase(label="CAPTION", first=0, last=len(leaves) - 1),)
    return PhraseTree(leaves=leaves, phrases=phrases, parser="whole caption")
