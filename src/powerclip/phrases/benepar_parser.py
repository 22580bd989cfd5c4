"""Phrases from benepar (Kitaev et al., ACL 2019), a neural constituency parser that runs within a spaCy pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee

from powerclip.errors import PowerclipError
from powerclip.phrases.brackets import parse_brackets, tree_of_nodes
from powerclip.phrases.clean import parser_text
from powerclip.phrases.tree import PhraseTree, whole_caption_tree


class BeneparParser:
    """The trees of a benepar model, unchanged."""

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
        """One tree for each caption, in order; the complete caption is one phrase where its parse does not fit it."""
        kept, given = tee(captions)
        documents = self._nlp.pipe(map(parser_text, given), batch_size=64)
        for document, caption in zip(documents, kept, strict=True):
            try:
                nodes = [node for sentence in document.sents for node in parse_brackets(sentence._.parse_string)]
                yield tree_of_nodes(nodes, caption, parser=self.name)
            except ValueError:
                yield whole_caption_tree(caption)
