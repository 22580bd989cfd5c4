"""Which of an image's captions a step shows."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from powerclip.data.sample import Caption
from powerclip.errors import BadSampleError
from powerclip.phrases.sentences import sentences


@dataclass(frozen=True, kw_only=True)
class CaptionDraw:
    """How captions are drawn; the settings are those of ``DataConfig``."""

    count: int = 1
    """n: captions of each image in a step."""
    weights: Mapping[str, float] | None = None
    """How often each source is drawn, its share divided among the image's captions of it; None draws all alike."""
    sentences: float = 0.0
    """Probability that a caption is cut to one of its sentences."""

    def __call__(self, captions: Sequence[Caption], seed: tuple[int, ...]) -> list[Caption]:
        """``count`` of an image's captions, a function of the seed.

        None occurs twice before all have occurred, and likewise the sentences of one. BadSampleError if none is from a
        source with a weight.
        """
        if len(captions) == self.count == 1 and self.weights is None and not self.sentences:
            return list(captions)
        share = self._shares(captions)
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))  # not the augmentation's numbers
        drawn: list[int] = []
        while len(drawn) < self.count:
            most = min(self.count - len(drawn), int(np.count_nonzero(share)))
            drawn += random.choice(len(captions), size=most, replace=False, p=share).tolist()
        shown, left = [], dict[int, list[tuple[int, int]]]()
        for number in drawn:
            caption = captions[number]
            if random.random() < self.sentences:
                if not left.get(number):
                    spans = sentences(caption.text, caption.tree)
                    left[number] = [spans[i] for i in random.permutation(len(spans))] or [(0, len(caption.text))]
                start, end = left[number].pop()
                tree = None if caption.tree is None else caption.tree.within(start, end)
                caption = replace(caption, text=caption.text[start:end], tree=tree)
            shown.append(caption)
        return shown

    def _shares(self, captions: Sequence[Caption]) -> NDArray[np.float64]:
        """The probability of each caption."""
        if self.weights is None:
            return np.full(len(captions), 1 / len(captions))
        of_source = Counter(caption.source for caption in captions)
        share = np.array([self.weights.get(c.source, 0.0) / of_source[c.source] for c in captions])
        if not share.any():
            raise BadSampleError("no caption of a source in data.caption-weights")
        shares: NDArray[np.float64] = share / share.sum()
        return shares


ONE_CAPTION = CaptionDraw()
