"""ARO's order tasks (Yuksekgonul et al., 2023): a caption against four shufflings of its own words.

The release holds no files for them: the shufflings are drawn when they are needed, here from a fixed seed with spaCy's
words and tags, so that every model sees the same ones; the authors' code takes nltk's words for two of the four. A
shuffling that gives the caption back is left out, which counts as right where all do, as by the authors.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from powerclip.phrases.english import english_model
from powerclip.tasks import HardNegative, HardNegatives, Retrieval

NOUNS = {"NN", "NNS", "NNP", "NNPS"}
ADJECTIVES = {"JJ", "JJR", "JJS"}
SEED = 1

MAX_WORDS = 30
"""Longer captions are cut, as by the authors."""


def order_task(name: str, captions: Retrieval) -> HardNegatives:
    """Every caption of a retrieval task against its shufflings; PowerclipError without spaCy's English model."""
    import spacy

    random = np.random.default_rng(SEED)
    tagger: Any = spacy.load(english_model(), exclude=["ner", "lemmatizer", "parser"])
    pairs = [(image, text) for image, texts in zip(captions.images, captions.captions, strict=True) for text in texts]
    items = []
    for (image, text), document in zip(
        pairs, tagger.pipe((clean(text) for _, text in pairs), batch_size=256), strict=True
    ):
        words, tags = [word.text for word in document], [word.tag_ for word in document]
        wrong = [shuffled for shuffled in shufflings(words, tags, random) if shuffled != " ".join(words)]
        items.append(HardNegative(image=image, positive=clean(text), negatives=wrong, kind="order"))
    return HardNegatives(name=name, items=items)


def clean(caption: str) -> str:
    """The first 30 words in lower case, without the punctuation that ARO strips:
    commas, question marks and hyphens stay."""
    return " ".join(re.sub(r"[.!\"()*#:;~]", " ", caption.lower()).split()[:MAX_WORDS])


def shufflings(words: Sequence[str], tags: Sequence[str], random: np.random.Generator) -> list[str]:
    """Nouns among nouns and adjectives among adjectives; all the others; within each trigram; the trigrams."""
    nouns = [i for i, tag in enumerate(tags) if tag in NOUNS]
    adjectives = [i for i, tag in enumerate(tags) if tag in ADJECTIVES]
    others = sorted(set(range(len(words))) - set(nouns) - set(adjectives))
    trigrams = [list(range(start, min(start + 3, len(words)))) for start in range(0, len(words), 3)]
    within = list(words)
    for trigram in trigrams:
        within = _permuted(within, trigram, random)
    return [
        " ".join(_permuted(_permuted(words, nouns, random), adjectives, random)),
        " ".join(_permuted(words, others, random)),
        " ".join(within),
        " ".join(words[i] for number in random.permutation(len(trigrams)) for i in trigrams[number]),
    ]


def _permuted(words: Sequence[str], places: Sequence[int], random: np.random.Generator) -> list[str]:
    """The words with those at some places exchanged among these places."""
    result = list(words)
    for place, source in zip(places, random.permutation(len(places)), strict=True):
        result[place] = words[places[source]]
    return result
