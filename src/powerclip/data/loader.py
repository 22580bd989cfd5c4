"""Shards to batches, in an order that is a function of the seed and the epoch alone."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from powerclip.data.collate import equally_wide
from powerclip.data.dataset import MIN_SEEN, Loaded, Request, Samples
from powerclip.data.index import count_remote, count_samples, find_directory
from powerclip.data.published import GRID as PUBLISHED_GRID
from powerclip.data.remote import Copies, RemoteShard, find_remote, is_remote, local
from powerclip.data.sampler import Order
from powerclip.data.shards import Entry, check_members, find_shards
from powerclip.data.worker import deaths_told, outlast_first_signal
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.phrases import Parser
from powerclip.types import Batch

__all__ = ["Data", "Loader", "count_data", "make_loader", "probe_data"]

Data = Path | str | Sequence[Path | str]
"""A folder of shards, one tar, a pattern or a URL; or several of them."""

PROBED = 100
"""Samples of each source that are looked at before the first step."""

DEFAULT_COPIES = Copies(folder=Path.home() / ".cache" / "powerclip" / "shards")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Requests:
    """What is asked for from one batch on, made as it is asked for: of each batch this process's part, in pieces."""

    order: Order
    batches_per_epoch: int
    epochs: Iterable[int]
    start_batch: int
    """Of the first of the epochs."""
    pieces: Sequence[slice]
    """Places in a batch."""
    batch_size: int

    def __iter__(self) -> Iterator[Request]:
        first = self.start_batch
        # Where a sample may come more than once an epoch, its place tells the times apart.
        repeats = self.order.resample or self.order.weights is not None
        for epoch in self.epochs:
            order = self.order.epoch(epoch)
            for batch in range(first, self.batches_per_epoch):
                for piece in self.pieces:
                    places = range(batch * self.batch_size, (batch + 1) * self.batch_size)[piece]
                    positions = order[places.start : places.stop].tolist()
                    seeds: list[tuple[int, ...]] = [
                        (epoch, position, place) if repeats else (epoch, position)
                        for position, place in zip(positions, places, strict=True)
                    ]
                    yield Request(positions=positions, seeds=seeds)
            first = 0


class Loader:
    """Batches of image-caption pairs, epoch after epoch; ``make_loader`` builds one."""

    def __init__(
        self,
        samples: Samples,
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
        self._part = part
        self.bad: Counter[str] = Counter()
        """Samples that could not be used, by reason."""
        self.without_phrases = 0
        """Samples shown so far that had no phrases, and no parser to find them: the whole caption stood in."""
        self._bad_places: set[int] = set()
        self._seen = 0

    @property
    def identity(self) -> dict[str, int]:
        """What tells these data from others, as far as places in them go: a run can only be resumed on the same."""
        names = [shard.name for shard in self.samples.shards]
        known = json.dumps([names, [list(source) for source in self.order.sources]]).encode()
        return {
            "samples": len(self.samples),
            "shards": len(names),
            "digest": int.from_bytes(hashlib.sha256(known).digest()[:6]),
        }

    def epoch(self, epoch: int, *, start_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from ``start_batch`` on, in ``Order``'s order, the incomplete last batch dropped.

        Of each batch this process's part is read, the rows it would be given of the whole one.

        Raises:
            RunFailedError: more than the allowed share of the samples is bad, a remote store is gone, or a decoding
                process died.
        """
        return self._read((epoch,), start_batch=start_batch, pieces=1)

    def steps(self, step: int, *, pieces: int = 1) -> Iterator[list[Batch]]:
        """Epoch after epoch without end, from a step on: this process's part of each batch, in nearly equal pieces.

        Decoding processes read a piece at a time and go on over the epochs' ends.

        Raises:
            RunFailedError: as ``epoch``.
        """
        epoch, start = divmod(step, self.batches_per_epoch)
        batches = self._read(count(epoch), start_batch=start, pieces=pieces)
        while True:
            yield equally_wide(list(islice(batches, pieces)))

    def _read(self, epochs: Iterable[int], *, start_batch: int, pieces: int) -> Iterator[Batch]:
        number, parts = self._part
        first, size = number * self.batch_size // parts, self.batch_size // parts
        bounds = [first + round(piece * size / pieces) for piece in range(pieces + 1)]
        requests = _Requests(
            order=self.order,
            batches_per_epoch=self.batches_per_epoch,
            epochs=epochs,
            start_batch=start_batch,
            pieces=[slice(start, stop) for start, stop in pairwise(bounds)],
            batch_size=self.batch_size,
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
            batches: Any = iter(loader)
        try:
            while True:
                with deaths_told():
                    loaded: Loaded | None = next(batches, None)
                if loaded is None:
                    return
                if loaded.failure is not None:
                    raise RunFailedError(loaded.failure)
                self._count(loaded)
                assert loaded.batch is not None
                yield loaded.batch
        finally:
            if self.workers:  # now: the traceback of an error would keep them
                batches._shutdown_workers()

    def _count(self, loaded: Loaded) -> None:
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
    counted: Sequence[int] | None = None,
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
        counted: what ``count_data`` has found, on this process or another; None counts here.

    Raises:
        PowerclipError: no shards, a shard cut short, fewer samples than a batch, a batch that cannot be shared, or no
            regions where there should be some.
    """
    sources = _find(data, copies)
    counts = [_count_source(shards) for shards in sources] if counted is None else _by_source(sources, counted)
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
    samples = Samples(
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
        shard = _first_filled(shards)
        entries = _first_entries(shard)
        if not entries:
            raise PowerclipError(
                f"{shard} holds no sample, nor does any other; expected KEY.jpg, .png or .webp with KEY.txt"
            )
        check_members(str(shard), entries)


def count_data(data: Data, *, copies: Copies = DEFAULT_COPIES) -> list[int]:
    """The number of samples of each shard, source after source; the next who asks on this machine finds an index."""
    return [count for shards in _find(data, copies) for count in _count_source(shards)]


def _find(data: Data, copies: Copies) -> list[Sequence[Path | RemoteShard]]:
    sources = [data] if isinstance(data, str | Path) else data
    return [find_remote(str(source), copies) if is_remote(source) else find_shards(Path(source)) for source in sources]


def _first_filled(shards: Sequence[Path | RemoteShard]) -> Path | RemoteShard:
    """The first shard with a sample in it; the first where none has any."""
    return next((shard for shard in shards if len(find_directory(shard))), shards[0])


def _first_entries(shard: Path | RemoteShard) -> list[Entry]:
    directory = find_directory(shard)
    return [directory[i] for i in range(min(PROBED, len(directory)))]


def _count_source(shards: Sequence[Path | RemoteShard]) -> list[int]:
    remote = [shard for shard in shards if isinstance(shard, RemoteShard)]
    return count_remote(remote) if remote else count_samples([local(shard) for shard in shards])


def _by_source(sources: Sequence[Sequence[object]], counted: Sequence[int]) -> list[list[int]]:
    if len(counted) != sum(map(len, sources)):
        raise PowerclipError(
            f"this process finds {sum(map(len, sources))} shards and the first one {len(counted)}; see to it that all nodes "
            "have the same data"
        )
    counts = iter(counted)
    return [list(islice(counts, len(shards))) for shards in sources]


def _name(data: Data) -> str:
    return str(data) if isinstance(data, str | Path) else ", ".join(map(str, data))


def _probe_regions(
    sources: Sequence[Sequence[Path | RemoteShard]], *, grid: tuple[int, int], whole_images: bool
) -> None:
    """See that the stored regions are there, and that those on a fixed grid are used as they can be."""
    for shards in sources:
        first = _first_filled(shards)
        entries = _first_entries(first)
        published = any("samlens.npy" in entry.members for entry in entries)
        if not published and not any("regions.json" in entry.members for entry in entries):
            raise PowerclipError(
                f"no regions in the first {len(entries)} samples of {first}; make them with powerclip prepare "
                "--regions superpixels or sam, or train with --objective.region-source boxes"
            )
        if published and grid != PUBLISHED_GRID:
            raise PowerclipError(
                f"{first} holds regions on a {PUBLISHED_GRID[0]} x {PUBLISHED_GRID[1]} patch grid and the model's "
                f"is {grid[0]} x {grid[1]}; use a model of 16-pixel patches at 224 pixels, or prepare masks"
            )
        if published and not whole_images:
            raise PowerclipError(
                f"{first} holds regions on a fixed patch grid, which cannot follow a crop or flip; add "
                "--data.crop none --data.flip 0"
            )
