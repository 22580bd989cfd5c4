"""The benepar option, with a stand-in of its spaCy component: no model can be fetched here."""

import sys
import types

import pytest
import spacy
from spacy.language import Language
from spacy.tokens import Span

from powerclip.errors import PowerclipError
from powerclip.phrases import load_parser


@pytest.fixture
def benepar(monkeypatch):
    monkeypatch.setitem(sys.modules, "benepar", types.ModuleType("benepar"))
    if not Span.has_extension("parse_string"):
        Span.set_extension("parse_string", default="")

    @Language.factory("benepar", default_config={"model": ""})
    def make(nlp, name, model):
        if model == "absent":
            raise LookupError(model)

        def parse(document):
            for sentence in document.sents:
                texts = (
                    token.text.replace("odd", "even").replace("(", "-LRB-").replace(")", "-RRB-") for token in sentence
                )
                words = " ".join(f"(X {text})" for text in texts)
                sentence._.parse_string = f"(S (NP {words}))"
            return document

        return parse

    yield
    Language.factories  # noqa: B018 (the registry stays; the next load brings its own)


def test_its_trees_become_phrases(benepar):
    trees = list(load_parser("benepar:mine").parse(["a dog runs.", "an odd one"]))
    assert [(p.label, p.first, p.last) for p in trees[0].phrases] == [("S", 0, 2)]
    assert trees[0].parser == "benepar:mine"
    assert trees[1].phrases[0].label == "CAPTION"


def test_signs_are_not_leaves(benepar):
    caption = "a caf\u00e9 & (a bar)"
    tree = next(load_parser("benepar:mine").parse([caption]))
    assert [caption[start:end] for start, end in tree.leaves] == ["a", "caf\u00e9", "a", "bar"]
    assert [(p.label, p.first, p.last) for p in tree.phrases] == [("S", 0, 3)]


def test_a_model_that_is_not_there_is_one_clear_line(benepar):
    with pytest.raises(PowerclipError, match="there is no benepar model 'absent'; fetch it"):
        load_parser("benepar:absent")


def test_without_benepar_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "benepar", None)
    with pytest.raises(PowerclipError, match=r"powerclip\[benepar\]"):
        load_parser("benepar")
    assert spacy.__version__
