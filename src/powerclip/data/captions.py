"""Which of an image's captions a step shows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from powerclip.config import DataConfig
from powerclip.data.sample import Caption
from powerclip.errors import BadSampleError
from powerclip.phrases.sentences import sentences


def draw_captions(captions: Sequence[Caption], settings: DataConfig, seed: tuple[int, ...]) -> list[Caption]:
    """``settings.captions`` of an image's captions, or of their sentences, a function of the seed.

    None occurs twice before all have occurred, and likewise the sentences of one. BadSampleError if none is from a
    source with a weight.
    """
    count, weights = settings.captions, settings.caption_weights
    if len(captions) == count == 1 and weights is None and not settings.sentences:
        return list(captions)
    share = _shares(captions, weights)
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))  # not the augmentation's numbers
    drawn: list[int] = []
    while len(drawn) < count:
        most = min(count - len(drawn), int(np.count_nonzero(share)))
        drawn += random.choice(len(captions), size=most, replace=False, p=share).tolist()
    shown, left = [], dict[int, list[tuple[int, int]]]()
    for number in drawn:
        caption = captions[number]
        if random.random() < settings.sentences:
            if not left.get(number):
                spans = sentences(caption.text, caption.tree)
                left[number] = [spans[i] for i in random.permutation(len(spans))] or [(0, len(caption.text))]
            start, end = left[number].pop()
            tree = None if caption.tree is None else caption.tree.within(start, end)
            caption = replace(caption, text=caption.text[start:end], tree=tree)
        shown.append(caption)
    return shown


def _shares(captions: Sequence[Caption], weights: Mapping[str, float] | None) -> NDArray[np.float64]:
    """The probability of each caption: its source's weight, divided among the image's captions of that source."""
    if weights is None:
        return np.full(len(captions), 1 / len(captions))
    of_source = Counter(caption.source for caption in captions)
    share = np.array([weights.get(c.source, 0.0) / of_source[c.source] for c in captions])
    if not share.any():
        raise BadSampleError("no caption of a source in data.caption-weights")
    shares: NDArray[np.float64] = share / share.sum()
    return shares
