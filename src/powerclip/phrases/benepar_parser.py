"""Phrases from benepar (Kitaev et al., ACL 2019), a neural constituency parser that runs within a spaCy pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

from powerclip.errors import PowerclipError
from powerclip.phrases.clean import parser_text
from powerclip.phrases.spacy_parser import tree_of
from powerclip.phrases.tree import PhraseTree, Span

LABELS = {
    "NP": "NP", "NX": "NP", "WHNP": "NP", "NML": "NP", "VP": "VP", "PP": "PP", "WHPP": "PP",
    "S": "S", "SBAR": "S", "SQ": "S", "SINV": "S", "SBARQ": "S",
}  # fmt: skip
"""The treebank's labels that are phrases here; other constituents (ADJP, ...) are left out, what they hold is kept."""


class BeneparParser:
    """The constituents that a benepar model finds."""

    def __init__(self, model: str, *, spacy_pipeline: str) -> None:
        """Load a model by name (fetched beforehand with ``benepar.download``) or from a folder.

        Args:
            model: benepar's name ("benepar_en3") or a folder.
            spacy_pipeline: splits captions into sentences and words.

        Raises:
            PowerclipError: benepar or the model is not installed.
        """
        import spacy

        try:
            import benepar  # noqa: F401 (it registers its component with spaCy)
        except ImportError as error:
            raise PowerclipError(
                "the parser benepar is not installed; pip install 'powerclip[benepar]', or use --parser spacy"
            ) from error
        self._nlp = spacy.load(spacy_pipeline, exclude=["ner", "lemmatizer"])
        try:
            self._nlp.add_pipe("benepar", config={"model": model})
        except (LookupError, OSError, ValueError) as error:
            raise PowerclipError(
                f"there is no benepar model {model!r}; fetch it with python -c \"import benepar; benepar.download('{model}')\""
            ) from error
        self.name = f"benepar:{model}"

    def parse(self, captions: Iterable[str]) -> Iterator[PhraseTree]:
        """One tree for each caption, in order; captions go through spaCy in batches."""
        kept, given = tee(captions)
        documents = self._nlp.pipe(map(parser_text, given), batch_size=64)
        for document, caption in zip(documents, kept, strict=True):
            yield tree_of(document, caption, _sentence_spans, parser=self.name)


def _sentence_spans(sentence: Any) -> list[Span]:
    """The constituents of a sentence, in token indices, the outer before the inner; one may carry several labels."""
    labelled = ((label.split("-")[0], part) for part in sentence._.constituents for label in part._.labels)
    return [(LABELS[label], part.start, part.end - 1) for label, part in labelled if label in LABELS]
