"""One shard of the job: the pairs of a chunk are read, given regions and phrases, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL.Image import Image

from powerclip.config import PrepareConfig
from powerclip.data.limits import MAX_ANNOTATION_BYTES
from powerclip.data.sample import CAPTIONS_EXTENSION, Sample
from powerclip.data.shards import write_shard
from powerclip.errors import BadSampleError, UnreadSampleError
from powerclip.phrases import Parser, load_parser
from powerclip.prepare.pairs import CUT, Chunk, Item, Loaded, UnusedFileError
from powerclip.regions import RegionAnnotation, load_proposer
from powerclip.regions.annotation import MAX_PIXELS
from powerclip.regions.masks import Proposer

PARSED_TIMES = 24
"""What JSON takes in memory, in bytes for each of its own, at most: "{}," is an object."""

EXAMPLES = 5
"""Names of skipped samples that are kept for each reason."""

MANY = 50
"""After this many reasons or makers, further ones are counted together: those of a source can be anything."""
OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to make the shard at ``path``."""

    chunk: Chunk
    path: Path
    config: PrepareConfig


@lru_cache(maxsize=2)
def parser_of(name: str) -> Parser | None:
    """A parser, loaded once in each process; None for "none"."""
    return None if name == "none" else load_parser(name)


proposer_of = lru_cache(maxsize=2)(load_proposer)


def make_shard(task: ShardTask) -> Counts:
    """Write the shard of a task, replacing an existing one; without any usable pair there is no shard.

    The bytes are a function of the task, so it makes no difference which worker does it, or if two do.
    """
    counts = Counts()
    config = task.config
    parser = parser_of(config.parser)
    proposer = proposer_of(config.regions, shape=config.regions_as, device=config.device)
    samples = annotated(task.chunk(), parser, proposer, counts)
    first = next(samples, None)
    if first is None:
        task.path.unlink(missing_ok=True)
    else:
        write_shard(chain([first], samples), task.path, replace=True)
    return counts


def annotated(
    items: Iterable[Item],
    parser: Parser | None,
    proposer: Proposer | None,
    counts: Counts,
    *,
    batch_size: int = 128,
    batch_bytes: int = 64 * 2**20,
) -> Iterator[Sample]:
    """The usable samples with phrases and regions; those that they came with are kept.

    Each image is decoded once, and as many are held decoded as the proposer takes at once, but not more than
    ``MAX_PIXELS`` and another one. Captions are parsed in batches, which are full with ``batch_size`` samples or
    ``batch_bytes`` that they take. ``counts`` is updated.
    """
    batch: list[Sample] = []
    size = 0
    for sample in _with_regions(usable(items, counts), proposer, counts):
        batch.append(sample)
        others = sum(map(len, sample.members().values())) - len(sample.image)
        size += len(sample.image) + PARSED_TIMES * others
        if len(batch) == batch_size or size >= batch_bytes:
            yield from _parsed(batch, parser, counts)
            batch, size = [], 0
    yield from _parsed(batch, parser, counts)


def usable(items: Iterable[Item], counts: Counts) -> Iterator[tuple[str, Loaded]]:
    """The names and pairs of the items that can be used; the others are counted."""
    for place, item in enumerate(items):
        try:
            yield item.name, item.load()
        except UnusedFileError as error:
            _count(counts.ignored, str(error))
        except BadSampleError as error:
            counts.skip(str(error), item.name)
            if isinstance(error, UnreadSampleError):
                counts.unread.append(place)


def can_be_read_now(chunk: Chunk, places: Collection[int]) -> bool:
    """Whether the file of one of a chunk's items, which could not be read before, can be read now."""
    for place, item in enumerate(islice(chunk(), max(places, default=-1) + 1)):
        if place in places:
            try:
                item.load()
                return True
            except UnreadSampleError:
                continue
            except BadSampleError:
                return True
    return False


def _with_regions(pairs: Iterable[tuple[str, Loaded]], proposer: Proposer | None, counts: Counts) -> Iterator[Sample]:
    """The samples with regions."""
    for group in _groups(pairs, proposer.batch_size if proposer else 1):
        bare = [image for _, (sample, image) in group if sample.regions is None and image is not None]
        found = iter(_propose(proposer, bare) if proposer and bare else ())
        for name, (sample, _) in group:
            regions = next(found) if proposer and sample.regions is None else sample.regions
            if proposer and regions is None:
                counts.skip("image refused by the region proposer", name)
                continue
            counts.keep(sample, name)
            yield replace(sample, regions=regions)


def _groups(pairs: Iterable[tuple[str, Loaded]], size: int) -> Iterator[list[tuple[str, Loaded]]]:
    """Pairs, ``size`` at a time, or fewer if their images are large."""
    group: list[tuple[str, Loaded]] = []
    for name, pair in pairs:
        group.append((name, pair))
        if len(group) == size or sum(image.width * image.height for _, (_, image) in group if image) > MAX_PIXELS:
            yield group
            group = []
    if group:
        yield group


def _propose(proposer: Proposer, images: Sequence[Image]) -> list[RegionAnnotation | None]:
    """The regions of each image, None where the proposer refuses it."""
    try:
        return [*proposer.propose(images)]
    except ValueError:
        return [None] if len(images) == 1 else [found for image in images for found in _propose(proposer, [image])]


def _parsed(samples: list[Sample], parser: Parser | None, counts: Counts) -> Iterator[Sample]:
    bare = [caption.text for sample in samples for caption in sample.captions if caption.tree is None]
    trees = iter(() if parser is None else list(parser.parse(bare)))
    for sample in samples:
        if parser is not None:
            captions = [c if c.tree is not None else replace(c, tree=next(trees)) for c in sample.captions]
            sample = sample.with_captions(captions)
        if sample.more_captions and len(sample.members()[CAPTIONS_EXTENSION]) > MAX_ANNOTATION_BYTES:
            counts.skip("captions and phrases too large", sample.key)  # they could not be read again
            continue
        counts.add(sample)
        yield sample


@dataclass
class Counts:
    """What became of some items: those of a shard, or of several together."""

    samples: int = 0
    phrases: int = 0
    regions: int = 0
    parsers: Counter[str] = field(default_factory=Counter)
    proposers: Counter[str] = field(default_factory=Counter)
    """Samples by parser and by proposer, "none" among them."""
    captions: Counter[str] = field(default_factory=Counter)
    """Captions by source."""
    remarks: Counter[str] = field(default_factory=Counter)
    """Samples by what else is to be said of them, such as why a further caption is not used."""
    kept: Counter[str] = field(default_factory=Counter)
    """Samples by the annotations that they came with."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Items that cannot be used, by reason."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Files that are no part of a pair, by kind."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Names of some of them, by reason."""
    unread: list[int] = field(default_factory=list)
    """Of one shard: the places in its chunk of the items whose files could not be read."""

    def keep(self, sample: Sample, name: str) -> None:
        """Count the annotations and remarks that a sample came with."""
        for remark in sample.remarks:
            self._keep_names(_count(self.remarks, remark), [name])
        if sample.tree is not None:
            _count(self.kept, f"phrases of {sample.tree.parser}")
        if sample.regions is not None:
            _count(self.kept, f"regions of {sample.regions.proposer}")

    def add(self, sample: Sample) -> None:
        """Count an annotated sample."""
        self.samples += 1
        for caption in sample.captions:
            self.phrases += len(caption.tree.phrases) if caption.tree else 0
            _count(self.captions, caption.source)
        self.regions += len(sample.regions.rles) if sample.regions else 0
        _count(self.parsers, sample.tree.parser if sample.tree else "none")
        _count(self.proposers, sample.regions.proposer if sample.regions else "none")

    def skip(self, reason: str, name: str) -> None:
        """Count an item that cannot be used."""
        self._keep_names(_count(self.skipped, reason), [name])

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add the counts of other items, given as the fields of their ``Counts``."""
        for name in ("samples", "phrases", "regions"):
            setattr(self, name, getattr(self, name) + other.get(name, 0))
        for name in ("parsers", "proposers", "kept", "skipped"):
            getattr(self, name).update(other[name])
        for name in ("ignored", "captions", "remarks"):  # earlier versions did not count them
            getattr(self, name).update(other.get(name, {}))
        for reason, names in other["examples"].items():
            self._keep_names(reason, names)

    def damaged(self) -> str:
        """Which tars are damaged or truncated, in words; empty if none is."""
        if CUT not in self.skipped:
            return ""
        return f"damaged or truncated: {', '.join(self.examples[CUT])}{', ...' * (self.skipped[CUT] > EXAMPLES)}"

    def _keep_names(self, reason: str, names: list[str]) -> None:
        known = self.examples.setdefault(reason, [])
        known += names[: EXAMPLES - len(known)]


def _count(counter: Counter[str], name: str) -> str:
    """Count under a name, or with the others if there are many already; returns the name it was counted under."""
    name = name[:200] if name[:200] in counter or len(counter) < MANY else OTHERS
    counter[name] += 1
    return name
