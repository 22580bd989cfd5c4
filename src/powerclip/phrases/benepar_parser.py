"""Phrases from benepar (Kitaev et al., ACL 2019), a neural constituency parser that runs within a spaCy pipeline."""

from typing import Any

from powerclip.errors import PowerclipError, needs_extra
from powerclip.phrases.spacy_parser import SpacyParser
from powerclip.phrases.tree import Span

LABELS = {
    "NP": "NP", "NX": "NP", "WHNP": "NP", "NML": "NP", "VP": "VP", "PP": "PP", "WHPP": "PP",
    "S": "S", "SBAR": "S", "SQ": "S", "SINV": "S", "SBARQ": "S",
}  # fmt: skip
"""The treebank's labels that are phrases here; other constituents (ADJP, ...) are left out, what they hold is kept."""


class BeneparParser(SpacyParser):
    """The constituents that a benepar model finds; spaCy splits captions into sentences and words."""

    batch_size = 64

    def __init__(self, model: str, *, spacy_pipeline: str) -> None:
        """Load a model by name ("benepar_en3", fetched beforehand with ``benepar.download``) or from a folder.

        PowerclipError if benepar, the model or the spaCy pipeline is not installed.
        """
        with needs_extra("the parser benepar", "benepar", otherwise=", or use --parser spacy"):
            import benepar  # noqa: F401 (it registers its component with spaCy)
        super().__init__(spacy_pipeline)
        try:
            self.nlp.add_pipe("benepar", config={"model": model})
        except (LookupError, OSError, ValueError) as error:
            raise PowerclipError(
                f"there is no benepar model {model!r}; "
                f"fetch it with python -c \"import benepar; benepar.download('{model}')\""
            ) from error
        self.name = f"benepar:{model}"

    def spans_of(self, sentence: Any) -> list[Span]:
        """The constituents of a sentence, in token indices, the outer before the inner;
        one may carry several labels."""
        labelled = ((label.split("-")[0], part) for part in sentence._.constituents for label in part._.labels)
        return [(LABELS[label], part.start, part.end - 1) for label, part in labelled if label in LABELS]
