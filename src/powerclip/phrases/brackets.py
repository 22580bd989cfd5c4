"""Constituency trees in the Penn Treebank's bracketed form: read onto a caption's characters, and written for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from powerclip.phrases.clean import is_word
from powerclip.phrases.tree import Phrase, PhraseTree

LABELS = {
    "NP": "NP", "NX": "NP", "WHNP": "NP", "NML": "NP", "VP": "VP", "PP": "PP", "WHPP": "PP",
    "S": "S", "SBAR": "S", "SQ": "S", "SINV": "S", "SBARQ": "S",
}  # fmt: skip
"""Labels of the treebank that are phrases here; other nodes (words' tags, ADJP, ...) pass on their children."""

ESCAPES = {
    "-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"',
}  # fmt: skip
MAX_DEPTH = 200
"""Of nested brackets; deeper ones are no sentence."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node of a tree; a child that is a string is a word."""

    label: str
    children: Sequence[Node | str]


def parse_brackets(text: str) -> list[Node | str]:
    """The trees of a bracketed text, one after the other.

    Raises:
        ValueError: brackets do not match, or there are none.
    """
    trees: list[Node | str] = []
    open_nodes: list[tuple[str, list[Node | str]]] = []
    for match in re.finditer(r"\(\s*([^\s()]*)|\)|[^\s()]+", text):
        piece = match.group()
        if piece.startswith("("):
            if len(open_nodes) >= MAX_DEPTH:
                raise ValueError(f"brackets are nested more than {MAX_DEPTH} deep")
            open_nodes.append((match.group(1), []))
        elif piece == ")":
            if not open_nodes:
                raise ValueError("a bracket closes that none opened")
            label, children = open_nodes.pop()
            (open_nodes[-1][1] if open_nodes else trees).append(Node(label=label, children=children))
        elif open_nodes:
            open_nodes[-1][1].append(piece)
        else:
            raise ValueError(f"{piece[:40]!r} stands outside of the brackets")
    if open_nodes:
        raise ValueError(f"{len(open_nodes)} brackets stay open")
    if not trees:
        raise ValueError("there is no bracket; expected (S (NP (DT a) (NN dog)) ...)")
    return trees


def tree_of_nodes(nodes: Sequence[Node | str], caption: str, *, parser: str) -> PhraseTree:
    """The phrases of a parsed caption: its words are found in the caption one after the other.

    Args:
        nodes: one tree, or one a sentence.
        caption: the text they are of; white space may differ.
        parser: the tree's name for what made it.

    Raises:
        ValueError: a word is not in the caption where it should be.
    """
    leaves: list[tuple[int, int]] = []
    found: list[tuple[str, int, int]] = []
    position = 0
    # Depth first without recursion; a node is met again, with the place it began at, when its children are done.
    stack: list[tuple[Node | str, int | None]] = [(node, None) for node in reversed(nodes)]
    while stack:
        node, began = stack.pop()
        if isinstance(node, str):
            start, position = _find(node, caption, position)
            if is_word(node):
                leaves.append((start, position))
        elif began is None:
            stack.append((node, len(leaves)))
            stack += [(child, None) for child in reversed(node.children) if not _trace(child)]
        elif len(leaves) > began and (label := LABELS.get(re.split("[-=|]", node.label.strip())[0])):
            found.append((label, began, len(leaves) - 1))
    if not leaves:
        raise ValueError("the tree has no word")
    spans = {(first, last): label for label, first, last in found}  # of equal spans the outer, which ends later
    phrases = [Phrase(label=label, first=first, last=last) for (first, last), label in spans.items()]
    phrases.sort(key=lambda p: (p.first, -p.last))
    if not phrases:
        phrases = [Phrase(label="CAPTION", first=0, last=len(leaves) - 1)]
    return PhraseTree(leaves=tuple(leaves), phrases=tuple(phrases), parser=parser)


def _trace(child: Node | str) -> bool:
    """Whether a node stands for something left out, as the treebank marks it."""
    return isinstance(child, Node) and child.label == "-NONE-"


def _find(word: str, caption: str, position: int) -> tuple[int, int]:
    """Where a word stands, from a position on: nothing but white space and punctuation may lie between."""
    for form in dict.fromkeys((word, ESCAPES.get(word, word), word.replace("\\/", "/"))):
        start = caption.find(form, position)
        if start >= 0 and not any(c.isalnum() for c in caption[position:start]):
            return start, start + len(form)
    if not any(c.isalnum() for c in word):
        return position, position  # a mark that the caption writes otherwise
    raise ValueError(f"the tree's word {word[:40]!r} is not in the caption at {caption[position : position + 40]!r}")


def write_brackets(caption: str, tree: PhraseTree) -> str:
    """The caption with its phrases in square brackets: "[NP a cat [PP on [NP a chair]]]"."""
    return "".join(_pieces(caption, tree))


def _pieces(caption: str, tree: PhraseTree) -> Iterator[str]:
    position = 0
    ordered = sorted(tree.phrases, key=lambda p: (p.first, -p.last))
    for leaf, (start, end) in enumerate(tree.leaves):
        yield caption[position:start]
        yield from (f"[{phrase.label} " for phrase in ordered if phrase.first == leaf)
        yield caption[start:end] + "]" * sum(phrase.last == leaf for phrase in ordered)
        position = end
    yield caption[position:]
