"""Shards to batches, in an order that is a function of the seed and the epoch alone."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from powerclip.data.collate import EncodedSample, collate
from powerclip.data.decode import decode_image
from powerclip.data.index import count_samples, entries_of
from powerclip.data.sample import BadSampleError
from powerclip.data.shards import Entry, find_shards, probe
from powerclip.phrases import Parser, encode_caption, whole_caption_tree
from powerclip.types import Batch, PowerclipError, RunFailedError

__all__ = ["Loader", "make_loader", "probe"]

SHUFFLE_SHARDS = 16
"""Samples are shuffled among so many shards at a time: reads stay near each other on disk."""

MIN_SEEN = 100
"""The share of bad samples is not judged before so many have been seen."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """A batch on its way from a worker, with the samples that were bad."""

    batch: Batch | None
    """None where ``MIN_SEEN`` samples from all over the data were bad, one after the other."""
    bad: dict[int, str]
    """Reason by position."""
    bare: int
    """Samples that came without phrases."""


class _Samples(Dataset[_Loaded]):
    """Batches by the positions of their samples; a bad sample's place is taken by a good one.

    Substitutes are looked for in strides over all the data, so that a bad shard is left at once and the
    neighbours of a bad sample are not shown more often than others.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        counts: Sequence[int],
        *,
        transform: Callable[[Image.Image], Tensor],
        tokenizer: Any,
        context_length: int,
        patches: int,
        seed: int,
        parser: Parser | None,
    ) -> None:
        self.shards, self.parser = shards, parser
        self.starts = np.cumsum([0, *counts])
        count = len(self)
        self.stride = next(s for s in range(round(0.618 * count) or 1, 2 * count + 2) if math.gcd(s, count) == 1)
        self.transform, self.tokenizer = transform, tokenizer
        self.context_length, self.patches, self.seed = context_length, patches, seed

    def __len__(self) -> int:
        return int(self.starts[-1])

    def entry(self, place: int) -> Entry:
        """Where a sample lies.

        Raises:
            BadSampleError: its shard is no longer the one that was counted.
        """
        shard = int(np.searchsorted(self.starts, place, side="right")) - 1
        try:
            return entries_of(self.shards[shard])[place - int(self.starts[shard])]
        except (PowerclipError, IndexError) as error:
            raise BadSampleError("shard changed or cut short") from error

    def __getitem__(self, request: tuple[int, list[int]]) -> _Loaded:
        """The batch of an epoch's sample positions."""
        epoch, positions = request
        samples: list[EncodedSample] = []
        bad: dict[int, str] = {}
        count = len(self)
        self.bare = 0
        with torch.random.fork_rng(devices=[]):
            for position in positions:
                for attempt in range(min(MIN_SEEN, count)):
                    place = (position + attempt * self.stride) % count
                    try:
                        samples.append(self._encode(self.entry(place), (self.seed, epoch, position)))
                        break
                    except BadSampleError as error:
                        bad[place] = str(error)
                else:
                    return _Loaded(batch=None, bad=bad, bare=self.bare)
        return _Loaded(batch=collate(samples, patches=self.patches), bad=bad, bare=self.bare)

    def _encode(self, entry: Entry, seed: tuple[int, int, int]) -> EncodedSample:
        sample = entry.read()
        tree = sample.tree
        if tree is None and self.parser is not None:
            tree = next(iter(self.parser.parse([sample.caption])))
        if tree is None or not tree.phrases:
            tree = whole_caption_tree(sample.caption)
            self.bare += sample.tree is None
        try:
            caption = encode_caption(sample.caption, tree, self.tokenizer, context_length=self.context_length)
        except ValueError as error:
            raise BadSampleError("phrases do not fit the caption") from error
        image = decode_image(sample.image)
        # Not torch.manual_seed: it would reseed the GPU's generator too, and formats a stack trace per backend.
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        return EncodedSample(key=entry.key, image=self.transform(image), caption=caption)


class Loader:
    """Batches of image-caption pairs, epoch after epoch; ``make_loader`` builds one."""

    def __init__(
        self,
        samples: _Samples,
        *,
        batch_size: int,
        shuffle: bool,
        workers: int,
        max_bad_share: float,
        part: tuple[int, int],
    ) -> None:
        self.samples, self.batch_size, self.shuffle = samples, batch_size, shuffle
        self.workers, self.max_bad_share = workers, max_bad_share
        self.batches_per_epoch = len(samples) // batch_size
        number, parts = part
        self._own = slice(number * batch_size // parts, (number + 1) * batch_size // parts)
        self.bad: Counter[str] = Counter()
        """Samples that could not be used, by reason."""
        self.without_phrases = 0
        """Samples shown so far that had no phrases, and no parser to find them: the whole caption stood in."""
        self._bad_places: set[int] = set()
        self._seen = 0

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on; every sample once, the incomplete last batch dropped.

        Of each batch this process's part is read, the rows it would be given of the whole one.

        Raises:
            RunFailedError: more than the allowed share of the samples is bad.
        """
        order = self._order(epoch)
        requests = [
            (epoch, order[batch * self.batch_size : (batch + 1) * self.batch_size][self._own].tolist())
            for batch in range(start_batch, self.batches_per_epoch)
        ]
        loader = DataLoader(
            self.samples,
            sampler=requests,
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator(),  # the main process's own random numbers stay untouched
        )
        for loaded in loader:
            self._count(loaded)
            assert loaded.batch is not None
            yield loaded.batch

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Sample positions of an epoch: shards shuffled, then samples among ``SHUFFLE_SHARDS`` shards at a time."""
        starts = self.samples.starts
        if not self.shuffle:
            return np.arange(starts[-1])
        random = np.random.default_rng((self.samples.seed, epoch))
        shards = random.permutation(len(starts) - 1)
        order = []
        for first in range(0, len(shards), SHUFFLE_SHARDS):
            window = [np.arange(starts[s], starts[s + 1]) for s in shards[first : first + SHUFFLE_SHARDS]]
            order.append(random.permutation(np.concatenate(window)))
        return np.concatenate(order)

    def _count(self, loaded: _Loaded) -> None:
        self._seen += len(loaded.batch or ()) + len(loaded.bad)
        for place, reason in loaded.bad.items():
            if place not in self._bad_places:
                self._bad_places.add(place)
                self.bad[reason] += 1
        if loaded.bare and not self.without_phrases:
            log.warning("samples without phrases: the whole caption is their one phrase; powerclip prepare adds them")
        self.without_phrases += loaded.bare
        seen = min(self._seen, len(self.samples))
        judged = seen >= min(MIN_SEEN, len(self.samples))
        if loaded.batch is None or (judged and self.bad.total() > self.max_bad_share * seen):
            raise RunFailedError(_too_many(self.bad, seen))


def _too_many(bad: Counter[str], seen: int) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
    return f"{bad.total()} of {seen} samples are bad: {reasons}; mend the data or raise data.max-bad-share"


def make_loader(
    data: Path | str,
    *,
    transform: Callable[[Image.Image], Tensor],
    tokenizer: Any,
    context_length: int,
    grid: tuple[int, int],
    batch_size: int,
    seed: int,
    workers: int = 0,
    shuffle: bool = True,
    max_bad_share: float = 0.1,
    parser: Parser | None = None,
    part: tuple[int, int] = (0, 1),
) -> Loader:
    """A loader of the shards at a path.

    The batches depend on the seed and the epoch, not on the number of workers. A sample without phrases has those
    the parser finds; without a parser it has one, its whole caption, and ``Loader.without_phrases`` counts it.

    Args:
        data: a folder of shards, one tar, or a pattern.
        transform: PIL image to (3, H, W) tensor; random ones draw from torch's generator, seeded for each sample.
        tokenizer: the text tower's.
        context_length: T.
        grid: rows and columns of the image tower's patch grid.
        batch_size: B, over all processes.
        seed: decides order and augmentation.
        workers: decoding processes; 0 decodes in this one.
        shuffle: False keeps the shards' order.
        max_bad_share: share of bad samples above which an epoch stops.
        parser: finds the phrases of samples that have none, each time they are shown.
        part: this process's number and how many processes share each batch.

    Raises:
        PowerclipError: no shards, a shard cut short, fewer samples than a batch, or a batch that cannot be shared.
    """
    shards = find_shards(data)
    counts = count_samples(shards)
    if sum(counts) < batch_size:
        raise PowerclipError(
            f"batch_size is {batch_size} and {data} holds {sum(counts)} samples; make the batch smaller or add data"
        )
    if batch_size % part[1]:
        raise PowerclipError(
            f"batch_size is {batch_size} and there are {part[1]} processes; make it a multiple of {part[1]}"
        )
    samples = _Samples(
        shards,
        counts,
        transform=transform,
        tokenizer=tokenizer,
        context_length=context_length,
        patches=grid[0] * grid[1],
        seed=seed,
        parser=parser,
    )
    return Loader(
        samples,
        batch_size=batch_size,
        shuffle=shuffle,
        workers=workers,
        max_bad_share=max_bad_share,
        part=part,
    )
