"""Which samples an epoch shows, and when: a function of seed and epoch alone, so that resuming is arithmetic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.random import Generator

from powerclip.config import DataConfig
from powerclip.errors import PowerclipError

SHUFFLE_SHARDS = 16
"""Samples are shuffled among this many shards at a time, so that reads stay near each other on disk."""

GOLDEN = (math.sqrt(5) - 1) / 2
"""Multiples of it are spread evenly over the unit interval, modulo 1, however many there are."""

Positions = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of the samples of one or more sources; positions count through their shards, one after the other."""

    sources: Sequence[Sequence[int]]
    """Sample counts of the shards of each source."""
    settings: DataConfig
    """Read are ``weights`` (None treats all sources as one), ``shuffle`` (False keeps the shards' order) and
    ``resample``, which draws with replacement, among ``SHUFFLE_SHARDS`` shards at a time."""
    seed: int = 0

    def __post_init__(self) -> None:
        weights = self.settings.weights
        if weights is not None and len(weights) != len(self.sources):
            raise PowerclipError(
                f"{len(weights)} weights for {len(self.sources)} sources; give one weight per source, in order"
            )

    def epoch(self, epoch: int) -> Positions:
        """Sample positions of an epoch, counted over the shards of all sources; as many as there are samples.

        Without weights and replacement every sample occurs once. With weights each source has its share of the places
        and goes through its own samples pass after pass, across epochs, each once per pass.
        """
        if self.settings.weights is None:
            shards = [count for source in self.sources for count in source]
            return self._stream(shards, 0, (), epoch * sum(shards), sum(shards))
        sizes = [sum(source) for source in self.sources]
        shares = _quotas(self.settings.weights, sum(sizes), epoch + 1)
        before, quotas = shares[:-1].sum(axis=0).tolist(), shares[-1].tolist()
        streams = [
            self._stream(source, start, (number,), first, quota)
            for number, (source, start, first, quota) in enumerate(
                zip(self.sources, accumulate(sizes, initial=0), before, quotas, strict=False)
            )
        ]
        spread = np.concatenate([(np.arange(quota) + 0.5) / max(quota, 1) for quota in quotas])
        if self.settings.shuffle:
            spread = np.random.default_rng((self.seed, epoch, len(sizes))).random(len(spread))
        # Which source each place goes to; a source's samples keep their own order.
        places = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(spread, kind="stable")]
        order = np.empty(len(places), dtype=np.int64)
        for number, stream in enumerate(streams):
            order[places == number] = stream
        return order

    def _stream(self, shards: Sequence[int], offset: int, name: tuple[int, ...], first: int, count: int) -> Positions:
        """``count`` positions of a source's endless passes, from number ``first`` on."""
        size, parts = sum(shards), [np.empty(0, dtype=np.int64)]
        while count > 0:
            number, begin = divmod(first, size)
            part = self._pass(shards, (self.seed, number, *name))[begin : begin + count]
            parts.append(part + offset)
            first, count = first + len(part), count - len(part)
        return np.concatenate(parts)

    def _pass(self, shards: Sequence[int], seed: tuple[int, ...]) -> Positions:
        starts = np.cumsum([0, *shards])
        if not self.settings.shuffle and not self.settings.resample:
            return np.arange(starts[-1])
        return _shuffled(starts, np.random.default_rng(seed), again=self.settings.resample)


def _shuffled(starts: Positions, random: Generator, *, again: bool) -> Positions:
    """All shards in a random order, the samples of each ``SHUFFLE_SHARDS`` of them shuffled among each other.

    With ``again`` as many are drawn of them instead, with replacement, and the order starts at any of them and goes
    round: so all samples are equally likely at every place, whatever the sizes of the shards.
    """
    shards = random.permutation(len(starts) - 1)
    order = []
    for first in range(0, len(shards), SHUFFLE_SHARDS):
        window = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards[first : first + SHUFFLE_SHARDS]])
        order.append(random.choice(window, size=len(window)) if again else random.permutation(window))
    found = np.concatenate(order)
    return np.roll(found, random.integers(len(found))) if again else found


def _quotas(weights: Sequence[float], size: int, epochs: int) -> Positions:
    """(epochs, sources) places of each source in the first epochs, ``size`` in each of them, shared by weight.

    A source gets its share rounded up or down, and over the epochs exactly its share (systematic sampling: each source
    is a piece of the line from 0 to ``size``, and its places are the whole numbers on it after a shift by ``GOLDEN``
    for each epoch).
    """
    ends = np.cumsum(weights)
    ends = ends / ends[-1] * size
    shift = np.arange(1, epochs + 1)[:, None] * GOLDEN % 1
    places: Positions = np.diff(np.floor(ends - shift), prepend=np.floor(-shift)).astype(np.int64)
    return places
