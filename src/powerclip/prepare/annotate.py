"""One shard of the job: the pairs of a chunk are read, given regions and phrases, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from powerclip.config import PrepareConfig
from powerclip.data.sample import Sample
from powerclip.data.shards import write_shard
from powerclip.errors import BadSampleError
from powerclip.phrases import Parser, load_parser
from powerclip.prepare.pairs import Chunk, Item
from powerclip.regions import load_proposer
from powerclip.regions.masks import Proposer

EXAMPLES = 5
"""Names of skipped samples that are kept for each reason."""

BATCH = 128
"""Captions that are parsed together."""

BATCH_BYTES = 64 * 2**20
"""A batch whose images take this many bytes is full, however few they are."""

MANY = 50
"""After this many reasons or makers, further ones are counted together: those of a source can be anything."""
OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to make one shard."""

    number: int
    chunk: Chunk
    path: Path
    """The shard to write."""
    config: PrepareConfig


@lru_cache(maxsize=2)
def parser_of(name: str) -> Parser | None:
    """A parser, loaded once in each process; None for "none"."""
    return None if name == "none" else load_parser(name)


proposer_of = lru_cache(maxsize=2)(load_proposer)


def make_shard(task: ShardTask) -> dict[str, Any]:
    """Write the shard of a task, replacing an existing one; without any usable pair there is no shard.

    The bytes are a function of the task, so it makes no difference which worker does it, or if two do.

    Returns:
        The fields of ``Counts``.
    """
    counts = Counts()
    parser, proposer = parser_of(task.config.parser), proposer_of(task.config.regions, device=task.config.device)
    samples = annotated(task.chunk(), parser, proposer, counts)
    first = next(samples, None)
    if first is None:
        task.path.unlink(missing_ok=True)
    else:
        write_shard(chain([first], samples), task.path, replace=True)
    return vars(counts)


def annotated(
    items: Iterable[Item],
    parser: Parser | None,
    proposer: Proposer | None,
    counts: Counts,
    *,
    batch_size: int = BATCH,
    batch_bytes: int = BATCH_BYTES,
) -> Iterator[Sample]:
    """The usable samples with phrases and regions; those that they came with are kept.

    Each image is decoded once, and only one at a time is held decoded.

    Args:
        items: the pairs.
        parser: None leaves the phrases out.
        proposer: None leaves the regions out.
        counts: is updated.
        batch_size: captions that are parsed together, at most.
        batch_bytes: bytes of the images of a batch, beyond which it takes no more.
    """
    batch: list[Sample] = []
    size = 0
    for item in items:
        try:
            sample, image = item.load()
        except BadSampleError as error:
            counts.skip(str(error), item.name)
            continue
        came_with = sample
        if proposer is not None and sample.regions is None:
            try:
                sample = replace(sample, regions=proposer.propose(image))
            except ValueError:
                counts.skip("image refused by the region proposer", item.name)
                continue
        counts.keep(came_with)
        batch.append(sample)
        size += len(sample.image)
        if len(batch) == batch_size or size >= batch_bytes:
            yield from _parsed(batch, parser, counts)
            batch, size = [], 0
    yield from _parsed(batch, parser, counts)


def _parsed(samples: list[Sample], parser: Parser | None, counts: Counts) -> Iterator[Sample]:
    bare = [sample for sample in samples if sample.tree is None]
    trees = iter(list(parser.parse(sample.caption for sample in bare))) if parser is not None else None
    for sample in samples:
        if trees is not None and sample.tree is None:
            sample = replace(sample, tree=next(trees))
        counts.add(sample)
        yield sample


@dataclass
class Counts:
    """What became of a chunk's items."""

    samples: int = 0
    phrases: int = 0
    """Phrases of all samples."""
    regions: int = 0
    """Regions of all samples."""
    parsers: Counter[str] = field(default_factory=Counter)
    """Samples by parser, "none" among them."""
    proposers: Counter[str] = field(default_factory=Counter)
    """Samples by proposer, "none" among them."""
    kept: Counter[str] = field(default_factory=Counter)
    """Samples by the annotations that they came with."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Items that cannot be used, by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Names of some of them, by reason."""

    def keep(self, sample: Sample) -> None:
        """Count the annotations that a sample came with."""
        if sample.tree is not None:
            _count(self.kept, f"phrases of {sample.tree.parser}")
        if sample.regions is not None:
            _count(self.kept, f"regions of {sample.regions.proposer}")

    def add(self, sample: Sample) -> None:
        """Count an annotated sample."""
        self.samples += 1
        self.phrases += len(sample.tree.phrases) if sample.tree else 0
        self.regions += len(sample.regions.rles) if sample.regions else 0
        _count(self.parsers, sample.tree.parser if sample.tree else "none")
        _count(self.proposers, sample.regions.proposer if sample.regions else "none")

    def skip(self, reason: str, name: str) -> None:
        """Count an item that cannot be used."""
        reason = _count(self.skipped, reason)
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)


def _count(counter: Counter[str], name: str) -> str:
    """Count under a name, or with the others if there are many already; returns the name it was counted under."""
    name = name[:200] if name[:200] in counter or len(counter) < MANY else OTHERS
    counter[name] += 1
    return name
