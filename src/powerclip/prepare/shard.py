"""One shard of the job: a chunk's pairs are read, parsed, given regions, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

from powerclip.data.decode import decode_image
from powerclip.data.sample import BadSampleError, Sample
from powerclip.data.shards import write_shard
from powerclip.phrases import Parser, load_parser
from powerclip.prepare.items import Chunk, Item
from powerclip.regions.proposers import Proposer, load_proposer

EXAMPLES = 5
"""Names kept of the samples skipped for a reason."""

BATCH = 128
"""Samples held at once."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to make one shard."""

    number: int
    chunk: Chunk
    path: Path
    """The shard to write."""
    parser: str
    regions: str
    device: str


def parser_of(name: str) -> Parser | None:
    """A parser, loaded once a process."""
    return None if name == "none" else _parser(name)


_parser = lru_cache(maxsize=2)(load_parser)
proposer_of = lru_cache(maxsize=2)(load_proposer)


def make_shard(task: ShardTask) -> dict[str, Any]:
    """Write the shard of a task, over one that is there; none where no pair can be used.

    The bytes are a function of the task, so that it makes no difference which worker does it, or if two do.

    Returns:
        "samples", "phrases", "regions": their numbers; "skipped": how many for which reason; "examples": their names.
    """
    counts = _Counts()
    parser, proposer = parser_of(task.parser), proposer_of(task.regions, device=task.device)
    samples = _samples(task.chunk.items(), parser, proposer, counts)
    first = next(samples, None)
    if first is None:
        task.path.unlink(missing_ok=True)
    else:
        write_shard(chain([first], samples), task.path, replace=True)
    return counts.to_json()


def _samples(
    items: Iterator[Item], parser: Parser | None, proposer: Proposer | None, counts: _Counts
) -> Iterator[Sample]:
    while batch := list(islice(items, BATCH)):
        for sample in _propose(_parse(_read(batch, counts), parser), proposer):
            counts.samples += 1
            counts.phrases += len(sample.tree.phrases) if sample.tree else 0
            counts.regions += len(sample.regions["masks"]) if sample.regions else 0
            yield sample


def _read(items: Iterable[Item], counts: _Counts) -> list[Sample]:
    """The usable samples; the others are counted by reason."""
    samples: list[Sample] = []
    for item in items:
        try:
            samples.append(item.load())
        except BadSampleError as error:
            counts.skip(str(error), item.name)
    return samples


def _parse(samples: Sequence[Sample], parser: Parser | None) -> Sequence[Sample]:
    """The samples with their phrases; one that has them (a scene) keeps its own."""
    if parser is None:
        return samples
    bare = [sample for sample in samples if sample.tree is None]
    trees = iter(list(parser.parse(sample.caption for sample in bare)))
    return [replace(sample, tree=next(trees)) if sample.tree is None else sample for sample in samples]


def _propose(samples: Sequence[Sample], proposer: Proposer | None) -> Iterator[Sample]:
    """The samples with their regions; one that has them (a scene) keeps its own."""
    for sample in samples:
        if proposer is not None and sample.regions is None:
            (annotation,) = proposer.propose([decode_image(sample.image)])
            sample = replace(sample, regions=annotation.to_json())
        yield sample


class _Counts:
    """What became of a chunk's items."""

    def __init__(self) -> None:
        self.samples = self.phrases = self.regions = 0
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def skip(self, reason: str, name: str) -> None:
        self.skipped[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "skipped": dict(self.skipped)}
