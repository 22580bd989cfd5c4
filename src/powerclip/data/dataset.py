"""Positions to batches: samples are found, read, decoded and encoded; a bad one's place is taken by a good one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from powerclip.data.collate import EncodedSample, collate
from powerclip.data.images import decode_image
from powerclip.data.index import find_directory
from powerclip.data.masks import transform_with_regions
from powerclip.data.remote import RemoteShard
from powerclip.data.sample import REGION_FILES, Sample
from powerclip.data.shards import Entry
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError
from powerclip.phrases import Parser, encode_caption, whole_caption_tree
from powerclip.types import Batch

MIN_SEEN = 100
"""The share of bad samples is not judged before so many have been seen."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Samples that are read together, and what seeds the augmentation of each beside the run's seed."""

    positions: list[int]
    seeds: list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A batch on its way from a worker, with the samples that were bad."""

    batch: Batch | None
    """None where ``MIN_SEEN`` samples from all over the data were bad, one after the other."""
    bad: dict[int, str]
    """Reason by position."""
    bare: int
    """Samples that came without phrases."""
    failure: str | None = None
    """Why no more can be read at all."""

    def pin_memory(self) -> Loaded:
        """The same in page-locked memory, from where a GPU copies while it computes; DataLoader calls it."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class Samples(Dataset[Loaded]):
    """Batches by the positions of their samples; a bad sample's place is taken by a good one.

    Substitutes are looked for in strides over all the data, so that a bad shard is left at once and the
    neighbours of a bad sample are not shown more often than others.
    """

    def __init__(
        self,
        shards: Sequence[Path | RemoteShard],
        counts: Sequence[int],
        *,
        transform: Callable[..., Any],
        tokenizer: Any,
        context_length: int,
        grid: tuple[int, int],
        regions: int,
        seed: int,
        parser: Parser | None,
    ) -> None:
        self.shards, self.parser = shards, parser
        self.starts = np.cumsum([0, *counts])
        size = len(self)
        self.stride = next(s for s in range(round(0.618 * size) or 1, 2 * size + 2) if math.gcd(s, size) == 1)
        self.transform, self.tokenizer = transform, tokenizer
        self.context_length, self.seed = context_length, seed
        self.grid, self.regions = grid, regions

    def __len__(self) -> int:
        return int(self.starts[-1])

    def entry(self, place: int) -> Entry:
        """Where a sample lies.

        Raises:
            BadSampleError: its shard is no longer the one that was counted.
        """
        shard = int(np.searchsorted(self.starts, place, side="right")) - 1
        try:
            return find_directory(self.shards[shard])[place - int(self.starts[shard])]
        except RunFailedError:
            raise
        except (PowerclipError, IndexError, OSError) as error:
            raise BadSampleError("shard changed or cut short") from error

    def __getitem__(self, request: Request) -> Loaded:
        """The batch of some of an epoch's samples."""
        samples: list[EncodedSample] = []
        bad: dict[int, str] = {}
        size = len(self)
        self.bare = 0
        with torch.random.fork_rng(devices=[]):
            for position, seed in zip(request.positions, request.seeds, strict=True):
                for attempt in range(min(MIN_SEEN, size)):
                    place = (position + attempt * self.stride) % size
                    try:
                        samples.append(self._encode(place, (self.seed, *seed)))
                        break
                    except RunFailedError as error:
                        return Loaded(batch=None, bad=bad, bare=self.bare, failure=str(error))
                    except BadSampleError as error:
                        bad[place] = str(error)
                else:
                    return Loaded(batch=None, bad=bad, bare=self.bare)
        return Loaded(batch=self._collate(samples), bad=bad, bare=self.bare)

    def _collate(self, samples: Sequence[EncodedSample]) -> Batch:
        return collate(samples, patches=self.grid[0] * self.grid[1], regions=self.regions)

    def _read(self, place: int) -> Sample:
        entry = self.entry(place)
        without = () if self.regions else REGION_FILES
        try:
            return entry.read(without=without)
        except BadSampleError:
            if entry.shard.exists():
                raise
        return self.entry(place).read(without=without)  # another process made room in the folder of copies

    def _encode(self, place: int, seed: tuple[int, ...]) -> EncodedSample:
        sample = self._read(place)
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
        regions = None
        if self.regions:
            pixels, regions = transform_with_regions(sample, image, self.transform, count=self.regions, grid=self.grid)
        else:
            pixels = self.transform(image)
        return EncodedSample(key=sample.key, image=pixels, caption=caption, regions=regions)
