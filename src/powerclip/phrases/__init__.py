"""Phrases of a caption: cleaning, constituency parsing, and their spans over a tokenizer's pieces."""

from powerclip.errors import PowerclipError
from powerclip.phrases.benepar_parser import BeneparParser
from powerclip.phrases.clean import clean_caption
from powerclip.phrases.english import english_model
from powerclip.phrases.spacy_parser import SpacyParser
from powerclip.phrases.tokens import encode_caption, encode_captions
from powerclip.phrases.tree import Parser, Phrase, PhraseTree, tree_or_whole, whole_caption_tree

__all__ = [
    "Parser",
    "Phrase",
    "PhraseTree",
    "clean_caption",
    "encode_caption",
    "encode_captions",
    "load_parser",
    "tree_or_whole",
    "whole_caption_tree",
]


def load_parser(name: str = "spacy") -> Parser:
    """A parser by name: "spacy" (its small English model), "spacy:PIPELINE", "benepar" or "benepar:MODEL".

    PowerclipError if the name or its pipeline is unknown.
    """
    kind, _, pipeline = name.partition(":")
    if kind == "benepar":
        return BeneparParser(pipeline or "benepar_en3", spacy_pipeline=english_model())
    if kind != "spacy":
        raise PowerclipError(f"unknown parser {name!r}; use spacy, spacy:PIPELINE for any spaCy pipeline, or benepar")
    return SpacyParser(pipeline or english_model())
