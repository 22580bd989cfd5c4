"""Constituency trees in the Penn Treebank's bracketed form: read onto a caption's characters, and written for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from powerclip.phrases.clean import is_word
from powerclip.phrases.tree import Node, PhraseTree, flatten

LABELS = {
    "NP": "NP", "NX": "NP", "WHNP": "NP", "NML": "NP", "VP": "VP", "PP": "PP", "WHPP": "PP",
    "S": "S", "SBAR": "S", "SQ": "S", "SINV": "S", "SBARQ": "S",
}  # fmt: skip
"""The treebank's labels that are phrases here; other nodes (words' tags, ADJP, ...) are left out, their children kept."""

ESCAPES = {
    "-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}", "``": '"', "''": '"',
}  # fmt: skip
MAX_DEPTH = 200
"""Brackets may be nested this deep; no sentence is deeper."""


def parse_brackets(text: str) -> list[Node | str]:
    """The trees of a bracketed text, in order.

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
                raise ValueError("a bracket is closed that was not opened")
            label, children = open_nodes.pop()
            if label != "-NONE-":  # the treebank's mark for something left out
                (open_nodes[-1][1] if open_nodes else trees).append(Node(label, children))
        elif open_nodes:
            open_nodes[-1][1].append(ESCAPES.get(piece, piece.replace("\\/", "/")))
        else:
            raise ValueError(f"{piece[:40]!r} is outside the brackets")
    if open_nodes:
        raise ValueError(f"{len(open_nodes)} brackets are not closed")
    if not trees:
        raise ValueError("there is no bracket; expected (S (NP (DT a) (NN dog)) ...)")
    return trees


def tree_of_nodes(nodes: Sequence[Node | str], caption: str, *, parser: str) -> PhraseTree:
    """The phrases of a parsed caption: its words are found in the caption one after the other.

    Args:
        nodes: one tree, or one for each sentence.
        caption: the parsed text; white space may differ.
        parser: what made the trees.

    Raises:
        ValueError: a word is not in the caption where it should be, or there is none.
    """
    words, spans = flatten(nodes)
    leaves: list[tuple[int, int]] = []
    position = 0
    for word in words:
        start, position = _find(word, caption, position)
        if is_word(word):
            leaves.append((start, position))
    if not leaves:
        raise ValueError("the tree has no word")
    known = ((LABELS.get(re.split("[-=|]", label)[0]), first, last) for label, first, last in spans)
    return PhraseTree.from_spans(leaves, ((s[0], *s[1:]) for s in known if s[0]), parser=parser)


def _find(word: str, caption: str, position: int) -> tuple[int, int]:
    """The span of a word from a position on; only white space and punctuation may come before it."""
    start = caption.find(word, position)
    if start >= 0 and not any(c.isalnum() for c in caption[position:start]):
        return start, start + len(word)
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
