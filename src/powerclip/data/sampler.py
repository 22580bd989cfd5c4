"""Which samples an epoch shows, and when: a function of seed and epoch alone, so that resuming is arithmetic."""

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

Positions = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of the samples of one or more sources; positions count through their shards, one after the other."""

    sources: Sequence[Sequence[int]]
    """Sample counts of the shards of each source."""
    settings: DataConfig
    """Read are ``weights`` (None treats all sources as one), ``shuffle`` (False keeps the shards' order) and
    ``resample``, which draws shards by their size, then samples among ``SHUFFLE_SHARDS`` of them."""
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
        quotas = _quotas(self.settings.weights, sum(sizes))
        streams = [
            self._stream(source, start, (number,), epoch * quota, quota)
            for number, (source, start, quota) in enumerate(
                zip(self.sources, accumulate(sizes, initial=0), quotas, strict=False)
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
        random = np.random.default_rng(seed)
        return _resampled(starts, random) if self.settings.resample else _shuffled(starts, random)


def _shuffled(starts: Positions, random: Generator) -> Positions:
    shards = random.permutation(len(starts) - 1)
    order = []
    for first in range(0, len(shards), SHUFFLE_SHARDS):
        window = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + SHUFFLE_SHARDS]]
        order.append(random.permutation(np.concatenate(window)))
    return np.concatenate(order)


def _resampled(starts: Positions, random: Generator) -> Positions:
    """As many draws as there are samples, each equally likely at every place."""
    size, counts = int(starts[-1]), np.diff(starts)
    order: list[Positions] = []
    found = 0
    while found < size:
        window = random.choice(len(counts), size=SHUFFLE_SHARDS, p=counts / size)
        shards = random.choice(window, size=int(counts[window].sum()))
        order.append(starts[shards] + (random.random(len(shards)) * counts[shards]).astype(np.int64))
        found += len(shards)
    return np.concatenate(order)[:size]


def _quotas(weights: Sequence[float], size: int) -> list[int]:
    """``size`` places shared by weight, in integers, the largest remainders rounded up."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * size
    quotas = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: size - int(quotas.sum())]] += 1
    return [int(quota) for quota in quotas]
