"""Shards to batches, in an order that is a function of the seed and the epoch alone."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from powerclip.data.collate import EncodedSample, collate
from powerclip.data.decode import decode_image
from powerclip.data.decoding import deaths_told, outlast_first_signal
from powerclip.data.index import count_remote, count_samples, entries_of
from powerclip.data.masks import transform_with_regions
from powerclip.data.order import Order
from powerclip.data.remote import Copies, RemoteShard, find_remote, is_remote, local
from powerclip.data.sample import PUBLISHED_GRID, REGION_FILES, BadSampleError, Sample
from powerclip.data.shards import Entry, find_shards, index_shard, probe
from powerclip.phrases import Parser, encode_caption, whole_caption_tree
from powerclip.types import Batch, PowerclipError, RunFailedError

__all__ = ["Data", "Loader", "count_data", "make_loader", "probe_data"]

Data = Path | str | Sequence[Path | str]
"""A folder of shards, one tar, a pattern or a URL; or several of them."""

PROBED = 100
"""Samples of each source that are looked at before the first step."""

DEFAULT_COPIES = Copies(folder=Path.home() / ".cache" / "powerclip" / "shards")

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
    failure: str | None = None
    """Why no more can be read at all."""

    def pin_memory(self) -> _Loaded:
        """The same in page-locked memory, from where a GPU copies while it computes; DataLoader calls it."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class _Samples(Dataset[_Loaded]):
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
        count = len(self)
        self.stride = next(s for s in range(round(0.618 * count) or 1, 2 * count + 2) if math.gcd(s, count) == 1)
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
            return entries_of(local(self.shards[shard]))[place - int(self.starts[shard])]
        except RunFailedError:
            raise
        except (PowerclipError, IndexError) as error:
            raise BadSampleError("shard changed or cut short") from error

    def __getitem__(self, request: _Request) -> _Loaded:
        """The batch of some of an epoch's samples."""
        samples: list[EncodedSample] = []
        bad: dict[int, str] = {}
        count = len(self)
        self.bare = 0
        with torch.random.fork_rng(devices=[]):
            for position, seed in zip(request.positions, request.seeds, strict=True):
                for attempt in range(min(MIN_SEEN, count)):
                    place = (position + attempt * self.stride) % count
                    try:
                        samples.append(self._encode(place, (self.seed, *seed)))
                        break
                    except RunFailedError as error:
                        return _Loaded(batch=None, bad=bad, bare=self.bare, failure=str(error))
                    except BadSampleError as error:
                        bad[place] = str(error)
                else:
                    return _Loaded(batch=None, bad=bad, bare=self.bare)
        return _Loaded(batch=self._collate(samples), bad=bad, bare=self.bare)

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


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The samples of a batch, and what seeds the augmentation of each beside the run's seed."""

    positions: list[int]
    seeds: list[tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class _Requests:
    """An epoch's batches from one on, made as they are asked for."""

    order: np.ndarray[Any, np.dtype[np.int64]]
    epoch: int
    batches: range
    batch_size: int
    own: slice
    repeats: bool
    """Whether a sample may come more than once an epoch; its place then tells the times apart."""

    def __iter__(self) -> Iterator[_Request]:
        for batch in self.batches:
            places = range(batch * self.batch_size, (batch + 1) * self.batch_size)[self.own]
            positions = self.order[places.start : places.stop].tolist()
            seeds: list[tuple[int, ...]] = [
                (self.epoch, position, place) if self.repeats else (self.epoch, position)
                for position, place in zip(positions, places, strict=True)
            ]
            yield _Request(positions=positions, seeds=seeds)


class Loader:
    """Batches of image-caption pairs, epoch after epoch; ``make_loader`` builds one."""

    def __init__(
        self,
        samples: _Samples,
        order: Order,
        *,
        batch_size: int,
        workers: int,
        max_bad_share: float,
        part: tuple[int, int],
    ) -> None:
        self.samples, self.order, self.batch_size = samples, order, batch_size
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
        """The batches of an epoch from ``start_batch`` on, in ``Order``'s order, the incomplete last batch dropped.

        Of each batch this process's part is read, the rows it would be given of the whole one.

        Raises:
            RunFailedError: more than the allowed share of the samples is bad, a remote store is gone, or a decoding process died.
        """
        requests = _Requests(
            order=self.order.epoch(epoch),
            epoch=epoch,
            batches=range(start_batch, self.batches_per_epoch),
            batch_size=self.batch_size,
            own=self._own,
            repeats=self.order.resample or self.order.weights is not None,
        )
        loader = DataLoader(
            self.samples,
            sampler=requests,
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator(),  # the main process's own random numbers stay untouched
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlast_first_signal,
        )
        with deaths_told():
            batches = iter(loader)
        while True:
            with deaths_told():
                loaded = next(batches, None)
            if loaded is None:
                return
            if loaded.failure is not None:
                raise RunFailedError(loaded.failure)
            self._count(loaded)
            assert loaded.batch is not None
            yield loaded.batch

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
    data: Data,
    *,
    transform: Callable[..., Any],
    tokenizer: Any,
    context_length: int,
    grid: tuple[int, int],
    batch_size: int,
    seed: int,
    workers: int = 0,
    shuffle: bool = True,
    weights: Sequence[float] | None = None,
    resample: bool = False,
    regions: int = 0,
    whole_images: bool = False,
    max_bad_share: float = 0.1,
    parser: Parser | None = None,
    part: tuple[int, int] = (0, 1),
    copies: Copies = DEFAULT_COPIES,
) -> Loader:
    """A loader of the shards at a path.

    The batches depend on the seed and the epoch, not on the number of workers. A sample without phrases has those
    the parser finds; without a parser it has one, its whole caption, and ``Loader.without_phrases`` counts it.

    Args:
        data: a folder of shards, one tar, a pattern or a URL; or several of them.
        transform: PIL image to (3, H, W) tensor, and, with ``regions``, of torchvision's v2; random ones draw from
            torch's generator, seeded for each sample.
        tokenizer: the text tower's.
        context_length: T.
        grid: rows and columns of the image tower's patch grid.
        batch_size: B, over all processes.
        seed: decides order and augmentation.
        workers: decoding processes; 0 decodes in this one.
        shuffle: False keeps the shards' order.
        weights: share of each of several sources in a batch, on average; None takes them as one.
        resample: draw samples with replacement.
        regions: M: how many of the stored regions a sample shows at most; 0 leaves them unread.
        whole_images: the transform neither crops nor flips.
        max_bad_share: share of bad samples above which an epoch stops.
        parser: finds the phrases of samples that have none, each time they are shown.
        part: this process's number and how many processes share each batch.
        copies: where shards behind URLs are kept.

    Raises:
        PowerclipError: no shards, a shard cut short, fewer samples than a batch, a batch that cannot be shared, or no
            regions where there should be some.
    """
    sources = _find(data, copies)
    counts = [_count_source(shards) for shards in sources]
    total = sum(map(sum, counts))
    if total < batch_size:
        raise PowerclipError(
            f"batch_size is {batch_size} and {_name(data)} holds {total} samples; make the batch smaller or add data"
        )
    if batch_size % part[1]:
        raise PowerclipError(
            f"batch_size is {batch_size} and there are {part[1]} processes; make it a multiple of {part[1]}"
        )
    if regions:
        _probe_regions(sources, grid=grid, whole_images=whole_images)
    samples = _Samples(
        [shard for shards in sources for shard in shards],
        [count for shards in counts for count in shards],
        transform=transform,
        tokenizer=tokenizer,
        context_length=context_length,
        grid=grid,
        regions=regions,
        seed=seed,
        parser=parser,
    )
    order = Order(sources=counts, weights=weights, shuffle=shuffle, resample=resample, seed=seed)
    return Loader(samples, order, batch_size=batch_size, workers=workers, max_bad_share=max_bad_share, part=part)


def probe_data(data: Data, *, copies: Copies = DEFAULT_COPIES) -> None:
    """Look at the first samples of each source before anything is done with them.

    Raises:
        PowerclipError: no shards, or none of the first samples of one has an image and a caption.
    """
    for shards in _find(data, copies):
        probe(local(shards[0]), samples=PROBED)


def count_data(data: Data, *, copies: Copies = DEFAULT_COPIES) -> None:
    """Count the samples of all shards, so that the next who asks finds an index."""
    for shards in _find(data, copies):
        _count_source(shards)


def _find(data: Data, copies: Copies) -> list[Sequence[Path | RemoteShard]]:
    sources = [data] if isinstance(data, str | Path) else data
    return [find_remote(str(source), copies) if is_remote(source) else find_shards(Path(source)) for source in sources]


def _count_source(shards: Sequence[Path | RemoteShard]) -> list[int]:
    remote = [shard for shard in shards if isinstance(shard, RemoteShard)]
    return count_remote(remote) if remote else count_samples([local(shard) for shard in shards])


def _name(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else ", ".join(map(str, data))


def _probe_regions(
    sources: Sequence[Sequence[Path | RemoteShard]], *, grid: tuple[int, int], whole_images: bool
) -> None:
    """See that the stored regions are there, and that those on a fixed grid are used as they can be."""
    for shards in sources:
        entries = index_shard(local(shards[0]))[:PROBED]
        published = any("samlens.npy" in entry.members for entry in entries)
        if not published and not any("regions.json" in entry.members for entry in entries):
            raise PowerclipError(
                f"no regions in the first {len(entries)} samples of {shards[0]}; make them with powerclip prepare "
                "--regions superpixels or sam, or train with --objective.region-source boxes"
            )
        if published and grid != PUBLISHED_GRID:
            raise PowerclipError(
                f"{shards[0]} holds regions on a {PUBLISHED_GRID[0]} x {PUBLISHED_GRID[1]} patch grid and the model's "
                f"is {grid[0]} x {grid[1]}; use a model of 16-pixel patches at 224 pixels, or prepare masks"
            )
        if published and not whole_images:
            raise PowerclipError(
                f"{shards[0]} holds regions on a fixed patch grid, which cannot follow a crop or flip; add "
                "--data.crop none --data.flip 0"
            )
