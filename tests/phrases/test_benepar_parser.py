"""The benepar option, with a stand-in for its spaCy component, since its models are not on the package index."""

import sys
import types

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Span

from powerclip.errors import PowerclipError
from powerclip.phrases import load_parser

CAPTION = "a caf\u00e9 & (a bar). Nice!"
PARTS = [(0, 8), (0, 2), (3, 7), (4, 6), (0, 1), (8, 10)]
"""First and last token, exclusive, of what the stand-in finds in it,
each sentence itself among them, the outer first."""
LABELS = {
    (0, 8): ("S", "NP"),
    (0, 2): ("NP",),
    (3, 7): ("PRN",),
    (4, 6): ("NP-TMP", "NX"),
    (0, 1): (),
    (8, 10): ("INTJ",),
}


@pytest.fixture
def benepar(monkeypatch):
    """Its spaCy extensions, as its documentation describes them, with a fixed parse."""
    monkeypatch.setitem(sys.modules, "benepar", types.ModuleType("benepar"))

    @Language.factory("benepar", default_config={"model": ""})
    def make(nlp, name, model):
        if model == "absent":
            raise LookupError(model)
        return lambda document: document

    def constituents(sentence):
        document = sentence.doc
        return (document[a:b] for a, b in PARTS if sentence.start <= a and b <= sentence.end)

    Span.set_extension("constituents", getter=constituents, force=True)
    Span.set_extension("labels", getter=lambda span: LABELS[span.start, span.end], force=True)
    yield
    Span.remove_extension("constituents")
    Span.remove_extension("labels")


def test_its_constituents_become_phrases_over_the_same_leaves_as_spacys(benepar):
    tree = next(load_parser("benepar:mine").parse([CAPTION]))
    assert [CAPTION[start:end] for start, end in tree.leaves] == ["a", "caf\u00e9", "a", "bar", "Nice"]
    assert [(p.label, p.first, p.last) for p in tree.phrases] == [("S", 0, 3), ("NP", 0, 1), ("NP", 2, 3)]
    assert tree.parser == "benepar:mine"


def test_a_caption_without_a_constituent_of_interest_is_one_phrase(benepar, monkeypatch):
    monkeypatch.setitem(LABELS, (0, 8), ("FRAG",))
    for part in PARTS[1:]:
        monkeypatch.setitem(LABELS, part, ())
    tree = next(load_parser("benepar:mine").parse([CAPTION]))
    assert [(p.label, p.first, p.last) for p in tree.phrases] == [("CAPTION", 0, 4)]


def test_a_model_that_is_not_there_is_one_clear_line(benepar):
    with pytest.raises(PowerclipError, match="there is no benepar model 'absent'; fetch it"):
        load_parser("benepar:absent")


def test_without_benepar_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "benepar", None)
    with pytest.raises(PowerclipError, match=r"powerclip\[benepar\]"):
        load_parser("benepar")
    assert spacy.__version__
