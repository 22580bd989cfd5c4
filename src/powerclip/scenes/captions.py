"""A small grammar of captions: statements become constituency trees, and trees become text with gold spans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from powerclip.phrases.tree import PhraseTree, Span
from powerclip.scenes.world import HELD_OUT, INVERSE, Mention, Object, Scene, Statement, pick, relation_of

PLACES = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
ACTIVE = {"above": "overlooks", "left": "precedes", "right": "follows"}
"""Verbs for the relations that have one: what overlooks is above; what precedes is to the left, as in reading."""
PASSIVE = {"below": "overlooked", "right": "preceded", "left": "followed"}
VERBS = ("sits", "lies", "floats")
PARTICIPLES = ("placed", "drawn", "painted")
NAMED = (0.5, 0.1)
"""Shares of mentions that name the colour and the size. If nearly all named the colour,
captions could be told apart by colours alone, and small models would not learn shapes (docs/LOG.md)."""


@dataclass(frozen=True)
class Node:
    """A constituent; a child is a node or words, and words may begin with a comma, which belongs to no phrase."""

    label: str
    children: tuple[Node | str, ...]


def np_of(mention: Mention, random: np.random.Generator) -> Node:
    """A mention as a noun phrase, its attributes before or after the noun."""
    words: list[str] = [word for word in (mention.size, mention.colour) if word]
    after = None
    if mention.colour and random.random() < 0.2:
        words.remove(mention.colour)
        after = Node("S", ("that", Node("VP", ("is", mention.colour))))
    words.append(mention.shape)
    base = Node("NP", ("an" if words[0][0] in "aeiou" else "a", *words))
    return Node("NP", (base, after)) if after else base


def pp_of(place: str, target: Node) -> Node:
    """A preposition, of one or more words, over its object."""
    words = place.split()
    if words[0] == "to":
        return Node("PP", ("to", Node("NP", (Node("NP", ("the", words[2])), Node("PP", ("of", target))))))
    for word in reversed(words):
        target = Node("PP", (word, target))
    return target


SENTENCES = ("copula", "active verb", "passive participle", "transitive", "passive")
FORMS = ("fragment", *SENTENCES)


def clause(statement: Statement, random: np.random.Generator, form: str) -> Node:
    """A statement in one of the ``FORMS``; a form that the relation does not have becomes a copula."""
    subject = np_of(statement.subject, random)
    if statement.object is None or statement.relation is None:
        return _existence(_with(subject, statement, random), random, form)
    target, relation = np_of(statement.object, random), statement.relation
    if form == "transitive" and relation in ACTIVE:
        return Node("S", (subject, Node("VP", (ACTIVE[relation], _with(target, statement, random)))))
    if form == "passive" and relation in PASSIVE:
        agent = Node("PP", ("by", _with(target, statement, random)))
        return Node("S", (subject, Node("VP", ("is", Node("VP", (PASSIVE[relation], agent))))))
    verb, participle, place = (pick(random, words) for words in (VERBS, PARTICIPLES, PLACES[relation]))
    where = pp_of(place, _with(target, statement, random))
    if form == "fragment":
        return Node("NP", (subject, where))
    if form == "passive participle":
        where = Node("VP", (participle, where))
    return Node("S", (subject, Node("VP", (verb if form == "active verb" else "is", where))))


def _with(phrase: Node, statement: Statement, random: np.random.Generator) -> Node:
    """The phrase, coordinated with the further object that the statement names."""
    return phrase if statement.also is None else Node("NP", (phrase, "and", np_of(statement.also, random)))


def _existence(phrase: Node, random: np.random.Generator, form: str) -> Node:
    if form == "fragment":
        if random.random() < 0.5:
            return phrase
        head = Node("NP", ("a", pick(random, ("picture", "drawing"))))
        return Node("NP", (head, Node("PP", ("of", phrase))))
    if form in ("passive participle", "passive"):
        verb = "are" if "and" in phrase.children else "is"
        inner = Node("VP", (pick(random, ("seen", "shown")), Node("PP", ("in", Node("NP", ("this", "picture"))))))
        return Node("S", (phrase, Node("VP", (verb, inner))))
    return Node("S", ("there", Node("VP", ("is", phrase))))


def write(tree: Node, *, sentence: bool = False) -> tuple[str, PhraseTree]:
    """A tree as text, with gold words and phrases in character offsets; a sentence gets a capital and a full stop."""
    text = ""
    leaves: list[tuple[int, int]] = []
    spans: list[Span] = []

    def visit(node: Node) -> None:
        nonlocal text
        first = len(leaves)
        for child in node.children:
            if isinstance(child, Node):
                visit(child)
                continue
            for word in child.split():
                if word == ",":
                    text += ","
                    continue
                text += " " if text else ""
                leaves.append((len(text), len(text) + len(word)))
                text += word
        spans.append((node.label, first, len(leaves) - 1))

    visit(tree)
    if sentence:
        text = text[0].upper() + text[1:] + "."
    return text, PhraseTree.from_spans(leaves, spans, parser="gold")


def mention(thing: Object, random: np.random.Generator) -> Mention:
    """A mention of an object, with the attributes that ``NAMED`` draws, and with its colour if its pair is held out."""
    colour, size = random.random(2) < NAMED
    colour = colour or (thing.colour, thing.shape) in HELD_OUT
    return Mention(
        shape=thing.shape,
        colour=thing.colour if colour else None,
        size=thing.size if size else None,
    )


def describe(scene: Scene, random: np.random.Generator) -> tuple[str, PhraseTree, list[Statement]]:
    """A true caption of up to two clauses, its gold phrases, and what it states; held-out pairs are always named."""
    order = [scene[i] for i in random.permutation(len(scene))]
    order.sort(key=lambda thing: (thing.colour, thing.shape) not in HELD_OUT)
    statements = [_statement(order[:2], random)]
    if len(order) > 2 and random.random() < 0.7:
        statements.append(_statement(order[2:4], random))
    form = pick(random, FORMS)
    tree = clause(statements[0], random, form)
    if len(statements) == 2:
        second = clause(statements[1], random, form if form == "fragment" else pick(random, SENTENCES))
        tree = Node(tree.label, (tree, ", and", second))
    text, gold = write(tree, sentence=tree.label == "S" and random.random() < 0.5)
    return text, gold, statements


def _statement(things: list[Object], random: np.random.Generator) -> Statement:
    subject = mention(things[0], random)
    if len(things) == 1:
        return Statement(subject=subject)
    relation = relation_of(things[0], things[1])
    target = mention(things[1], random)
    if relation is None:
        return Statement(subject=subject, also=target)
    if random.random() < 0.5:
        return Statement(subject=target, relation=INVERSE[relation], object=subject)
    return Statement(subject=subject, relation=relation, object=target)
