"""Shards to batches: data are opened once, then read in an order that is a function of seed and epoch alone."""

import hashlib
import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from powerclip.config import DataConfig
from powerclip.config.values import RegionSource
from powerclip.cores import available_cores
from powerclip.data.collate import equally_wide
from powerclip.data.dataset import MIN_SEEN, LoadedBatch, Request, ShardDataset, TowerInputs
from powerclip.data.index import ShardSummary, open_index, summarize
from powerclip.data.look import look_at_sample, look_at_texts, read_some, read_texts, sample_places
from powerclip.data.published import GRID as PUBLISHED_GRID
from powerclip.data.remote import Shard, ShardCache, find_remote, is_remote
from powerclip.data.sample import CAPTION_EXTENSION, CAPTIONS_EXTENSION, IMAGE_EXTENSIONS, REGION_FILES
from powerclip.data.sampler import Order
from powerclip.data.shards import find_shards, is_unfinished
from powerclip.data.worker import outlast_first_signal, worker_death_as_error
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError, counted, printable
from powerclip.types import Batch, DataProvenance

Data = Path | str | Sequence[Path | str]
"""A folder of shards, one tar, a pattern or a URL; or several of them."""

DEFAULT_CACHE = ShardCache()

PROBED = 100
"""Samples of each source that are looked at when it is opened."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The shards of one source."""

    location: str
    """As it was given: an absolute path or pattern, or a URL."""
    shards: tuple[Shard, ...]
    summaries: tuple[ShardSummary, ...]
    probed: Shard
    """The first shard that holds a sample."""
    extensions: frozenset[str]
    """Of the files of its first samples."""

    @property
    def counts(self) -> list[int]:
        """Samples of each shard."""
        return [summary.samples for summary in self.summaries]


@dataclass(frozen=True, kw_only=True)
class OpenedData:
    """Data that were found, counted and probed, once for all processes and for whatever reads them afterwards."""

    sources: tuple[DataSource, ...]

    @property
    def shards(self) -> list[Shard]:
        """Those of all sources, one after the other."""
        return [shard for source in self.sources for shard in source.shards]

    @property
    def counts(self) -> list[int]:
        """Samples of each shard."""
        return [samples for source in self.sources for samples in source.counts]

    @property
    def samples(self) -> int:
        """Samples of all sources."""
        return sum(self.counts)

    @property
    def digest(self) -> str:
        """Hash of the shards' names, counts and indexes: the same for the same shards, wherever they are stored."""
        summaries = [summary for source in self.sources for summary in source.summaries]
        known = [(shard.name, s.samples, s.digest) for shard, s in zip(self.shards, summaries, strict=True)]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]

    @property
    def content(self) -> str:
        """Hash of what some samples of each shard hold; empty if the index of one does not say."""
        contents = [summary.content for source in self.sources for summary in source.summaries]
        return hashlib.sha256("".join(contents).encode()).hexdigest()[:32] if all(contents) else ""

    @property
    def provenance(self) -> DataProvenance:
        """What a run's ``data.json`` says."""
        locations = tuple(source.location for source in self.sources)
        return DataProvenance(
            sources=locations,
            samples=self.samples,
            shards=len(self.shards),
            digest=self.digest,
            content=self.content,
        )

    @property
    def identity(self) -> dict[str, int]:
        """What a checkpoint keeps of the data: with other numbers, its place in them would mean other samples."""
        names, counts = [shard.name for shard in self.shards], [source.counts for source in self.sources]
        digest = hashlib.sha256(json.dumps([names, counts]).encode()).digest()
        return {"samples": self.samples, "shards": len(names), "digest": int.from_bytes(digest[:6])}

    def check_present(self) -> None:
        """Check that this machine, too, has the shards that another has opened; PowerclipError if one is missing."""
        for shard in self.shards:
            if shard.cache is None and not shard.path().is_file():
                raise PowerclipError(f"{shard} is missing on this node; all nodes need the same data at the same paths")

    def check_caption_sources(self, named: Set[str]) -> None:
        """Log which sources that are to be drawn from the first samples do not have, and which they have besides."""
        seen: set[str] = set()
        for place in (place for source in self.sources for place in islice(open_index(source.probed), PROBED)):
            with suppress(BadSampleError):
                seen |= {caption.source for caption in place.read(without=REGION_FILES).captions}
        for names, what in (
            (named - seen, "in data.caption-weights that the first samples do not have"),
            (seen - named, "of the first samples that data.caption-weights leaves out"),
        ):
            if names:
                log.warning("caption sources %s: %s", what, ", ".join(sorted(names)))

    def check_regions(self, *, grid: tuple[int, int], whole_images: bool) -> None:
        """Check that each source stores regions that the model and its transform can use; PowerclipError if not."""
        for source in self.sources:
            published = "samlens.npy" in source.extensions
            if not published and "regions.json" not in source.extensions:
                raise PowerclipError(
                    f"no regions in the first samples of {source.probed}; make them with powerclip prepare "
                    "--regions superpixels or sam, or train with --objective.region-source boxes"
                )
            if published and grid != PUBLISHED_GRID:
                raise PowerclipError(
                    f"{source.probed} holds regions on a {PUBLISHED_GRID[0]} x {PUBLISHED_GRID[1]} patch grid and the "
                    f"model's is {grid[0]} x {grid[1]}; use a model of 16-pixel patches at 224 pixels, or prepare masks"
                )
            if published and not whole_images:
                raise PowerclipError(
                    f"{source.probed} holds regions on a fixed patch grid, which cannot follow a crop or flip; add "
                    "--data.crop none --data.flip 0"
                )


def open_data(data: Data, *, cache: ShardCache = DEFAULT_CACHE) -> OpenedData:
    """Find the shards of all sources, count their samples and look at the first of them.

    ``cache`` holds copies of shards behind URLs. The next run on the same data finds the shards' indexes on disk and
    reads no tar headers. PowerclipError if a source has no shards or no samples, a shard is truncated, or none of the
    first samples has an image and a caption; RunFailedError if a store does not answer.
    """
    given = [data] if isinstance(data, str | Path) else data
    found = [
        find_remote(str(s), cache) if is_remote(s) else [Shard(location=str(path)) for path in find_shards(s)]
        for s in given
    ]
    summaries = iter(summarize([shard for shards in found for shard in shards]))
    for one in given:
        if not is_remote(str(one)) and is_unfinished(Path(one)):
            warnings.warn(
                f"the prepare that makes {printable(str(one))} has not come to its end; this takes what it has made so "
                "far: run the same prepare again for all",
                stacklevel=2,
            )
    sources = [_probe(s, shards, list(islice(summaries, len(shards)))) for s, shards in zip(given, found, strict=True)]
    return OpenedData(sources=tuple(sources))


def _probe(given: Path | str, shards: Sequence[Shard], summaries: Sequence[ShardSummary]) -> DataSource:
    """A source whose first samples have images and captions."""
    shards = [
        shard if shard.cache is None else replace(shard, expected=summary)
        for shard, summary in zip(shards, summaries, strict=True)
    ]
    probed = next((shard for shard, summary in zip(shards, summaries, strict=True) if summary.samples), None)
    if probed is None:
        raise PowerclipError(f"{given} holds no sample; expected KEY.jpg, .png or .webp with KEY.txt")
    files = [set(place.members) for place in islice(open_index(probed), PROBED)]
    extensions = frozenset().union(*files)
    wanted = ""
    if not extensions & set(IMAGE_EXTENSIONS):
        wanted = f"no image under {', '.join(IMAGE_EXTENSIONS)}"
    elif not extensions & {CAPTION_EXTENSION, CAPTIONS_EXTENSION}:
        wanted = f"no caption under {CAPTION_EXTENSION}"
    if wanted:
        seen = ", ".join(sorted(extensions))
        raise PowerclipError(f"{wanted} in the first {len(files)} samples of {probed}; keys seen: {seen}")
    location = str(given) if is_remote(given) else str(Path(given).absolute())
    return DataSource(
        location=location, shards=tuple(shards), summaries=tuple(summaries), probed=probed, extensions=extensions
    )


class Loader:
    """Batches of image-caption pairs, epoch after epoch: a function of the data, the seed and the epoch.

    The number of workers and processes is irrelevant. A sample without phrases has one, its caption, and
    ``without_phrases`` counts it.
    """

    def __init__(
        self,
        data: OpenedData,
        towers: TowerInputs,
        settings: DataConfig,
        *,
        batch_size: int,
        seed: int,
        regions: int = 0,
        region_source: RegionSource = "boxes",
        part: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare to read opened data.

        ``batch_size`` (B) is over all processes; ``part`` is this one's number and how many there are. The seed decides
        order, augmentation and boxes. ``regions`` (M) of a sample, fewer if fewer are stored, are random boxes or a
        random choice of the stored masks; 0 gives batches without regions. PowerclipError if there are fewer samples
        than a batch, a batch cannot be shared, stored regions are missing or unfit, or there is not one weight per
        source.
        """
        if data.samples < batch_size:
            names = ", ".join(source.location for source in data.sources)
            raise PowerclipError(
                f"batch_size is {batch_size} and {names} holds {data.samples} samples; reduce batch_size or add data"
            )
        if batch_size % part[1]:
            raise PowerclipError(
                f"batch_size is {batch_size} and there are {part[1]} processes; make it a multiple of {part[1]}"
            )
        if regions and region_source == "stored":
            data.check_regions(grid=towers.grid, whole_images=settings.crop == "none" and settings.flip == 0)
        if settings.caption_weights is not None:
            data.check_caption_sources(settings.caption_weights.keys())
        self.dataset = ShardDataset(
            data.shards, data.counts, towers, settings, seed=seed, regions=regions, region_source=region_source
        )
        self.order = Order(sources=[source.counts for source in data.sources], settings=settings, seed=seed)
        self.settings, self.batch_size = settings, batch_size
        self.batches_per_epoch = data.samples // batch_size
        self.bad: Counter[str] = Counter()
        """Samples that could not be used, by reason."""
        self.without_phrases = 0
        self._part = part
        self._bad_places: set[int] = set()
        self._seen = 0

    def steps(self, step: int, *, pieces: int = 1) -> Iterator[list[Batch]]:
        """Batches without end, from a step on: this process's part of each, in nearly equal pieces.

        An epoch's are in ``Order``'s order, without the incomplete last one. Decoding processes read a piece at a time
        and continue over the ends of epochs. RunFailedError if more than the allowed share of the samples is bad, a
        remote store is gone, or a decoding process died.
        """
        workers, cores = self.settings.workers, available_cores()
        if workers > cores:
            log.warning("data.workers is %d and there are %d CPU cores; more than these hardly help", workers, cores)
        with warnings.catch_warnings(), worker_death_as_error():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # torch's, twice
            loader = DataLoader(
                self.dataset,
                sampler=self._requests(step, pieces),
                batch_size=None,
                num_workers=workers,
                generator=torch.Generator(),  # the main process's own random numbers stay untouched
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=outlast_first_signal,
            )
            batches: Any = iter(loader)
        try:
            while True:
                yield equally_wide([self._next(batches) for _ in range(pieces)])
        finally:
            if self.settings.workers:  # now: the traceback of an error would keep them
                batches._shutdown_workers()

    def look(self) -> list[str]:
        """Lines on what a model sees of the data before the first step: three samples, and the texts of many."""
        data = self.dataset
        near = [shard for shard in data.shards if shard.cache is None] or data.shards[:1]  # others are not fetched yet
        places = list(sample_places(near, open_index))
        text = {"tokenizer": data.towers.tokenizer, "context_length": data.towers.context_length}
        lines = look_at_texts(list(read_texts(places)), **text)
        for sample, image in read_some(places, without=() if data.stored else REGION_FILES):
            with torch.random.fork_rng(devices=[]):
                _, height, width = data.towers.transform(image).shape
            stored = len(sample.regions.rles if sample.regions else sample.patch_regions or ())
            drawn = (
                f"{min(stored, data.regions)} of {stored} stored regions" if data.stored else f"{data.regions} boxes"
            )
            regions = f"seen as {width} x {height}" + f" with {drawn}" * bool(data.regions)
            lines += look_at_sample(sample, **text, size=(image.height, image.width), regions=regions)
        return lines

    def _next(self, batches: Iterator[LoadedBatch]) -> Batch:
        with worker_death_as_error():
            loaded = next(batches)
        if loaded.failure is not None:
            raise RunFailedError(loaded.failure)
        self._count(loaded)
        assert loaded.batch is not None
        return loaded.batch

    def _requests(self, step: int, pieces: int) -> Iterator[Request]:
        """What is read: this process's part of each batch, in pieces."""
        number, parts = self._part
        first, size = number * self.batch_size // parts, self.batch_size // parts
        bounds = [first + round(piece * size / pieces) for piece in range(pieces + 1)]
        # If a sample may come several times in an epoch, its place distinguishes them.
        repeats = self.settings.resample or self.settings.weights is not None
        first_epoch, batch = divmod(step, self.batches_per_epoch)
        for epoch in count(first_epoch):
            order = self.order.epoch(epoch)
            for start in range(batch * self.batch_size, len(order) - self.batch_size + 1, self.batch_size):
                for low, high in pairwise(bounds):
                    positions = order[start + low : start + high].tolist()
                    yield [
                        (position, (epoch, position, place) if repeats else (epoch, position))
                        for place, position in enumerate(positions, start + low)
                    ]
            batch = 0

    def _count(self, loaded: LoadedBatch) -> None:
        self._seen += len(loaded.batch or ()) + len(loaded.bad)
        for place, reason in loaded.bad.items():
            if place not in self._bad_places:
                self._bad_places.add(place)
                self.bad[reason] += 1
        if loaded.without_phrases and not self.without_phrases:
            log.warning("samples without phrases: the caption is their only phrase; powerclip prepare adds phrases")
        self.without_phrases += loaded.without_phrases
        seen = min(self._seen, len(self.dataset))
        judged = seen >= min(MIN_SEEN, len(self.dataset))
        if loaded.batch is None or (judged and self.bad.total() > self.settings.max_bad_share * seen):
            raise RunFailedError(
                f"{self.bad.total()} of {seen} samples are bad: {counted(self.bad)}; fix the data or raise "
                "data.max-bad-share"
            )
