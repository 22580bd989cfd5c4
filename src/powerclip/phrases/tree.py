"""The tree of a caption: its words and phrases in character offsets, how it is built, and the protocol of parsers."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

from powerclip.phrases.clean import WHOLE_WORD

MAX_WORDS = 1_000
"""A tree without a parse has no more leaves; a text tower reads fewer."""

Span = tuple[str, int, int]
"""A phrase before it is in a tree: label, first and last leaf, inclusive."""


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A node of the constituency tree: a label and an inclusive range of leaves."""

    label: str
    """Penn Treebank label: NP, VP, PP, S; X where it is not known; "CAPTION" for a caption without any phrase."""
    first: int
    last: int
    """Indices of the first and last leaf, inclusive."""


@dataclass(frozen=True, kw_only=True)
class PhraseTree:
    """The words and phrases of one caption, in character offsets: independent of any tokenizer."""

    leaves: tuple[tuple[int, int], ...]
    """Character span [start, end) of each word, in order, not overlapping."""
    phrases: tuple[Phrase, ...]
    """Nested or disjoint, never crossing; equal spans once."""
    parser: str
    """What made the tree: "gold", or the name and version of the parser."""

    @classmethod
    def from_spans(cls, leaves: Iterable[tuple[int, int]], spans: Iterable[Span], *, parser: str) -> PhraseTree:
        """A tree of labelled spans in any order: larger phrases first, or one CAPTION over all leaves without any span.

        Of equal spans, and of spans that cross, the one given first is kept.
        """
        leaves = tuple(leaves)
        kept: dict[tuple[int, int], str] = {}
        for label, first, last in spans:
            if (first, last) not in kept and not any(a < first <= b < last or first < a <= last < b for a, b in kept):
                kept[first, last] = label
        if leaves and not kept:
            kept[0, len(leaves) - 1] = "CAPTION"
        ordered = sorted(kept.items(), key=lambda item: (item[0][0], -item[0][1]))
        phrases = tuple(Phrase(label=label, first=first, last=last) for (first, last), label in ordered)
        return cls(leaves=leaves, phrases=phrases, parser=parser)

    def over_words(self, caption: str) -> PhraseTree:
        """The same phrases over whole words (``WHOLE_WORD``), of a tree whose leaves are parts of words.

        A phrase holds every word that it holds a part of; one without any is left out.
        """
        words = [match.span() for match in WHOLE_WORD.finditer(caption)]
        starts, ends = [start for start, _ in words], [end for _, end in words]
        spans = (
            (p.label, bisect_right(ends, self.leaves[p.first][0]), bisect_left(starts, self.leaves[p.last][1]) - 1)
            for p in self.phrases
        )
        return PhraseTree.from_spans(words, (span for span in spans if span[1] <= span[2]), parser=self.parser)

    @property
    def crossing(self) -> bool:
        """Whether two phrases overlap without one holding the other."""
        open_ends: list[int] = []
        for first, last in sorted({(p.first, p.last) for p in self.phrases}, key=lambda span: (span[0], -span[1])):
            while open_ends and open_ends[-1] < first:
                open_ends.pop()
            if open_ends and last > open_ends[-1]:
                return True
            open_ends.append(last)
        return False

    def within(self, start: int, end: int) -> PhraseTree:
        """The words and phrases that lie in the characters [start, end) of the caption, with offsets from ``start``."""
        inside = [i for i, (first, last) in enumerate(self.leaves) if start <= first and last <= end]
        first, last = (inside[0], inside[-1]) if inside else (0, -1)
        return PhraseTree(
            leaves=tuple((a - start, b - start) for a, b in self.leaves[first : last + 1]),
            phrases=tuple(
                Phrase(label=p.label, first=p.first - first, last=p.last - first)
                for p in self.phrases
                if first <= p.first and p.last <= last
            ),
            parser=self.parser,
        )

    def to_brackets(self, caption: str) -> str:
        """The caption with its phrases in square brackets: "[NP a cat [PP on [NP a chair]]]"."""
        opened = ["" for _ in self.leaves]
        closed = opened.copy()
        for phrase in sorted(self.phrases, key=lambda p: (p.first, -p.last)):
            opened[phrase.first] += f"[{phrase.label} "
            closed[phrase.last] += "]"
        parts, position = [], 0
        for (start, end), before, after in zip(self.leaves, opened, closed, strict=True):
            parts.append(caption[position:start] + before + caption[start:end] + after)
            position = end
        return "".join(parts) + caption[position:]

    def to_json(self) -> dict[str, Any]:
        """The content of a ``KEY.phrases.json`` file."""
        return {
            "leaves": [list(span) for span in self.leaves],
            "phrases": [{"label": p.label, "leaves": [p.first, p.last]} for p in self.phrases],
            "parser": self.parser,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PhraseTree:
        """Read the content of a ``KEY.phrases.json`` file; ValueError says where it does not have that form."""
        try:
            leaves = tuple((start, end) for start, end in value["leaves"])
            phrases = tuple(
                Phrase(label=str(p["label"]), first=p["leaves"][0], last=p["leaves"][1]) for p in value["phrases"]
            )
            places = chain(chain.from_iterable(leaves), *((p.first, p.last) for p in phrases))
            if any(type(place) is not int for place in places):
                raise TypeError("a place that is not an integer")
        except (KeyError, TypeError, IndexError, ValueError) as error:
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
    """The name and version that its trees carry."""

    def parse(self, captions: Iterable[str]) -> Iterator[PhraseTree]:
        """One tree for each caption, in order; captions are expected clean (``powerclip.phrases.clean``).

        ValueError if a caption holds nothing but white space.
        """


def whole_caption_tree(caption: str) -> PhraseTree:
    """Words split at white space and one phrase over all, for a caption without a parse; ValueError if it is blank."""
    leaves = [match.span() for match in islice(re.finditer(r"\S+", caption), MAX_WORDS)]
    if not leaves:
        raise ValueError("the caption is empty")
    return PhraseTree.from_spans(leaves, [], parser="whole caption")


def tree_or_whole(caption: str, tree: PhraseTree | None) -> PhraseTree:
    """A caption's tree; the complete caption as one phrase if there is none, or it has no phrase."""
    return tree if tree is not None and tree.phrases else whole_caption_tree(caption)
