"""Captions to phrases: constituents derived from a dependency parse.

The conventions are the Penn Treebank's (Marcus et al., 1993), by these rules:

* NP: the subtree of a noun, pronoun or number; if modifiers follow the noun, its base up to the noun as well;
* PP: the subtree of a preposition, with its object; a preposition may have several words ("next to", "in front of");
  a conjunction with a clause without subject ("while waiting") is a PP too, as in the treebank;
* VP: a verb with its dependants, without its subject; again from each auxiliary on and after its negation ("is not
  riding a horse", "riding a horse");
* S: a verb with its subject; also a relative clause, an imperative, and the clause after a preposition; any other
  participial clause without subject is a VP;
* an adjective that is a subject or an object is an NP, with everything that it is coordinated with
  ("in black and white");
* a coordination is a phrase, and so is each conjunct;
* interrogative and relative pronouns ("who", "that"), the "there" of "there is", and signs without a letter or digit
  are not phrases on their own;
* a fragment without a finite verb is one NP ("people walking on a beach"); a caption without any phrase is one CAPTION;
  equal spans count once.

Words are leaves, as the parser splits them, and at "!", "?", ";" and "|" between letters; but a hyphenated word is one
leaf, and so are emoji that touch. Punctuation marks and other signs ("|", "+", "$") are not, so no phrase begins or
ends with one. Of spans that cross, the first found is kept.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import tee
from typing import Any

from powerclip.errors import PowerclipError
from powerclip.phrases.clean import EMOJI_RUN, HYPHENS, is_word, parser_text
from powerclip.phrases.tree import PhraseTree, Span, whole_caption_tree

NOMINAL = {"NOUN", "PROPN", "PRON", "NUM"}
VERBAL = {"VERB", "AUX"}
PARTICIPLES = {"VBG", "VBN"}
SUBJECTS = {"nsubj", "nsubjpass", "csubj", "csubjpass", "expl"}
AUXILIARIES = {"aux", "auxpass"}
LIKE_NOUNS = {"nsubj", "nsubjpass", "dobj", "pobj"}
"""Dependencies as which an adjective is a noun phrase."""
WITHIN_NOUN_PHRASE = {"compound", "nummod", "nmod", "quantmod", "npadvmod", "amod"}
NO_PHRASE_TAGS = {"WDT", "WP", "WP$", "EX"}
OUTSIDE = {"conj", "cc", "punct", "preconj"}
BEFORE_PREPOSITION = {"next", "close", "adjacent", "due", "because", "ahead", "instead", "outside", "inside"}
"""Words that form one preposition with the one that follows: "next to", "because of"."""
BETWEEN_WORDS = r"(?<=[^\W\d_])[!?;|]+(?=[^\W\d_])"
"""Signs that end a word though no space follows: "barked!The"; spaCy's tokenizer leaves it as one."""
WITHIN_PREPOSITION = {"front", "top", "back", "spite", "place", "addition"}
"""Nouns inside a preposition of three words: "in front of"."""


class SpacyParser:
    """Phrases from a spaCy pipeline's dependency parse."""

    batch_size = 256
    """Captions that spaCy parses at once."""

    def __init__(self, pipeline: str) -> None:
        """Load an installed pipeline by name, or one from a folder; PowerclipError if spaCy has no such pipeline."""
        import spacy

        try:
            self.nlp: Any = spacy.load(pipeline, exclude=["ner", "lemmatizer"])
        except (OSError, ValueError) as error:
            raise PowerclipError(
                f"spaCy has no pipeline {pipeline!r}; install it, or name another with spacy:NAME"
            ) from error
        if "parser" not in self.nlp.pipe_names:
            raise PowerclipError(f"the spaCy pipeline {pipeline!r} has no dependency parser; name another")
        infixes = getattr(getattr(self.nlp.tokenizer, "infix_finditer", None), "__self__", None)
        if isinstance(infixes, re.Pattern):  # some languages have tokenizers of another kind
            infixes = re.compile(f"{infixes.pattern}|{BETWEEN_WORDS}", infixes.flags)
            self.nlp.tokenizer.infix_finditer = infixes.finditer
        self.name = f"spacy:{pipeline}-{self.nlp.meta.get('version', '?')}"

    def parse(self, captions: Iterable[str]) -> Iterator[PhraseTree]:
        """One tree for each caption, in order; captions go through spaCy in batches."""
        if isinstance(captions, str):
            raise TypeError("parse takes a list of captions, not one; put it in brackets: parse([caption])")
        kept, given = tee(captions)
        documents = self.nlp.pipe(map(parser_text, given), batch_size=self.batch_size)
        for document, caption in zip(documents, kept, strict=True):
            yield self._tree(document, caption)

    def _tree(self, document: Any, caption: str) -> PhraseTree:
        """The phrases of a parsed caption, without the punctuation at their ends."""
        words = [token for token in document if is_word(token.text)]
        if not words:
            return replace(whole_caption_tree(caption), parser=self.name)
        leaves, leaf_of = _leaves(words, caption)
        found = (span for sentence in document.sents for span in self.spans_of(sentence))
        inside = ((label, [leaf_of[i] for i in range(first, last + 1) if i in leaf_of]) for label, first, last in found)
        return PhraseTree.from_spans(
            leaves, ((label, own[0], own[-1]) for label, own in inside if own), parser=self.name
        )

    def spans_of(self, sentence: Any) -> list[Span]:
        """The phrases of a sentence, in token indices, those of the larger rule first."""
        found: list[Span] = []
        tokens = [token for token in sentence if is_word(token.text)]
        if len(tokens) > 1 and not any(token.pos_ in VERBAL for token in tokens):
            found.append(("NP", tokens[0].i, tokens[-1].i))
        for token in sentence:
            if token.pos_ in VERBAL and token.dep_ not in AUXILIARIES and token.dep_ not in {"amod", "compound"}:
                found += _verb_spans(token)
            elif token.pos_ in NOMINAL and token.dep_ not in WITHIN_NOUN_PHRASE and not _no_phrase(token):
                found += _noun_spans(token)
            elif token.pos_ == "ADJ" and token.dep_ in LIKE_NOUNS:
                found.append(("NP", *_extent(token, {"punct"})))
            elif token.dep_ in {"prep", "agent", "dative"} and token.pos_ in {"ADP", "SCONJ"} and token.n_rights:
                found += _preposition_spans(token)
        lettered = {token.i for token in tokens if any(c.isalnum() for c in token.text)}
        return [span for span in found if any(span[1] <= i <= span[2] for i in lettered)]


def _leaves(words: Iterable[Any], caption: str) -> tuple[list[tuple[int, int]], dict[int, int]]:
    """Character spans of the leaves (hyphens, and touching emoji, join words), and each word's leaf by token index."""
    leaves: list[tuple[int, int]] = []
    leaf_of: dict[int, int] = {}
    for word in words:
        start, end = word.idx, word.idx + len(word.text)
        emoji = EMOJI_RUN.match(caption, start)
        end = max(end, emoji.end()) if emoji else end
        before, last_end = leaves[-1] if leaves else (0, 0)
        between = caption[last_end:start]
        if leaves and (start < last_end or (between and not between.strip(HYPHENS))):
            leaves[-1] = (before, max(end, last_end))
        else:
            leaves.append((start, end))
        leaf_of[word.i] = len(leaves) - 1
    return leaves, leaf_of


def _no_phrase(token: Any) -> bool:
    """Whether a nominal is not a phrase of its own."""
    if token.tag_ in NO_PHRASE_TAGS and not token.n_lefts and not token.n_rights:
        return True
    return _within_preposition(token) or (token.dep_ == "poss" and token.pos_ == "PRON")


def _within_preposition(noun: Any) -> bool:
    """Whether this is "front" in "in front of a house"."""
    return (
        noun.lower_ in WITHIN_PREPOSITION
        and noun.dep_ == "pobj"
        and noun.head.i == noun.i - 1
        and any(child.lower_ == "of" and child.i == noun.i + 1 for child in noun.rights)
    )


def _preposition_spans(preposition: Any) -> list[Span]:
    head = preposition.head
    if preposition.lower_ == "of" and _within_preposition(head):
        return []
    if head.i == preposition.i - 1 and head.lower_ in BEFORE_PREPOSITION and not head.n_lefts:
        return [("PP", head.i, _extent(preposition, OUTSIDE)[1])]
    return _coordinated("PP", preposition)


def _noun_spans(noun: Any) -> list[Span]:
    spans = _coordinated("NP", noun)
    if any(child.dep_ not in {*OUTSIDE, "case"} for child in noun.rights):
        first = min([noun.i, *(child.left_edge.i for child in noun.lefts if child.dep_ not in OUTSIDE)])
        spans.append(("NP", first, noun.i))
    return spans


def _verb_spans(verb: Any) -> list[Span]:
    subject = any(child.dep_ in SUBJECTS for child in verb.children)
    shared = [child for child in verb.conjuncts if not any(c.dep_ in SUBJECTS for c in child.children)]
    imperative = verb.dep_ == "ROOT" and verb.tag_ == "VB"
    first, last = _extent(verb, OUTSIDE)
    left_out = [c for c in verb.lefts if c.dep_ in SUBJECTS or c.dep_ in {"mark", *OUTSIDE} or c.tag_ == "WRB"]
    start = max([first, *(child.right_edge.i + 1 for child in left_out)])
    auxiliaries = [child.i for child in verb.lefts if child.dep_ in AUXILIARIES]
    bare = max([start, *(child.i + 1 for child in verb.lefts if child.dep_ in {*AUXILIARIES, "neg"})])
    if auxiliaries and auxiliaries[0] < start:
        start = bare  # a question: in "is the dog not [barking]", "not barking" is not a phrase
    spans: list[Span] = []
    if subject or imperative or verb.dep_ == "relcl":
        label = "NP" if _fragment(verb) else "S"
        spans += [(label, first, _extent(verb, {"punct"})[1])] if shared else _coordinated(label, verb)
    elif verb.dep_ == "advcl" and any(child.dep_ == "mark" for child in left_out):
        spans += [("PP", first, last), ("S", start, last)]
    elif verb.dep_ == "pcomp":
        spans.append(("S", start, last))
    if shared and verb.dep_ != "conj":
        coordination = max(last, *(child.right_edge.i for child in shared))
        spans.append(("VP", start, coordination))
        if auxiliaries and not any(c.dep_ in AUXILIARIES for child in shared for c in child.lefts):
            # The conjuncts share the auxiliaries: "is [[standing] and [looking]]".
            return [
                *spans,
                *(("VP", i, coordination) for i in auxiliaries),
                ("VP", bare, coordination),
                ("VP", bare, last),
            ]
    return [*spans, ("VP", start, last), *(("VP", i, last) for i in auxiliaries), ("VP", bare, last)]


def _fragment(verb: Any) -> bool:
    """Whether a verb with a subject forms a fragment, not a sentence: "people walking on a beach"."""
    head = verb
    while head.dep_ == "conj":
        head = head.head
    finite = verb.tag_ not in PARTICIPLES or any(child.dep_ in AUXILIARIES for child in verb.lefts)
    return head.dep_ == "ROOT" and not finite


def _coordinated(label: str, head: Any) -> list[Span]:
    """The coordination that a head opens, if any, and its own conjunct."""
    own = (label, *_extent(head, OUTSIDE))
    if head.dep_ != "conj" and any(child.dep_ == "conj" for child in head.children):
        return [(label, *_extent(head, {"punct"})), own]
    return [own]


def _extent(head: Any, without: set[str]) -> tuple[int, int]:
    """First and last token of a head and its dependants, without some kinds of children."""
    kept = [child for child in head.children if child.dep_ not in without]
    first = min([head.i, *(child.left_edge.i for child in kept)])
    return first, max([head.i, *(child.right_edge.i for child in kept)])
