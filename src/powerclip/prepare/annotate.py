"""One shard of the job: a chunk's pairs are read, parsed, given regions, and written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from powerclip.data.images import decode_image
from powerclip.data.sample import Sample
from powerclip.data.shards import write_shard
from powerclip.errors import BadSampleError
from powerclip.phrases import Parser, load_parser
from powerclip.prepare.source import Chunk, Item
from powerclip.regions import load_proposer
from powerclip.regions.masks import Proposer

EXAMPLES = 5
"""Names kept of the samples skipped for a reason."""

BATCH, BATCH_BYTES = 128, 64 * 2**20
"""Samples held at once, and bytes of their files: whichever is reached first."""

MANY = 50
"""Reasons and makers that are counted apart: those that come with a source can be anything."""
OTHERS = "others"


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
        "samples", "phrases", "regions": their numbers; "skipped": how many for which reason; "examples": their names;
        "parsers", "proposers": the samples annotated by each, "none" among them; "kept": how many came with what.
    """
    counts = _Counts()
    parser, proposer = parser_of(task.parser), proposer_of(task.regions, device=task.device)
    samples = _annotated(_read(task.chunk.items(), counts), parser, proposer, counts)
    first = next(samples, None)
    if first is None:
        task.path.unlink(missing_ok=True)
    else:
        write_shard(chain([first], samples), task.path, replace=True)
    return counts.to_json()


def _read(items: Iterable[Item], counts: _Counts) -> Iterator[list[Sample]]:
    """The usable samples in batches; the others are counted by reason."""
    batch: list[Sample] = []
    size = 0
    for item in items:
        try:
            sample = item.load()
            size += sum(map(len, sample.members().values()))
        except BadSampleError as error:
            counts.skip(str(error), item.name)
            continue
        counts.keep(sample)
        batch.append(sample)
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def _annotated(
    batches: Iterable[list[Sample]], parser: Parser | None, proposer: Proposer | None, counts: _Counts
) -> Iterator[Sample]:
    for batch in batches:
        for sample in _propose(_parse(batch, parser), proposer, counts):
            counts.add(sample)
            yield sample


def _parse(samples: Sequence[Sample], parser: Parser | None) -> Sequence[Sample]:
    """The samples with their phrases; one that has them (a scene) keeps its own."""
    if parser is None:
        return samples
    bare = [sample for sample in samples if sample.tree is None]
    trees = iter(list(parser.parse(sample.caption for sample in bare)))
    return [replace(sample, tree=next(trees)) if sample.tree is None else sample for sample in samples]


def _propose(samples: Iterable[Sample], proposer: Proposer | None, counts: _Counts) -> Iterator[Sample]:
    """The samples with their regions; one that has them (a scene) keeps its own."""
    for sample in samples:
        if proposer is not None and sample.regions is None:
            try:  # image by image: of one that fails in a row, those behind it would be lost
                regions = proposer.propose(decode_image(sample.image))
            except ValueError:
                counts.skip("image that the regions' proposer refuses", sample.key)
                continue
            sample = replace(sample, regions=regions)
        yield sample


class _Counts:
    """What became of a chunk's items."""

    def __init__(self) -> None:
        self.samples = self.phrases = self.regions = 0
        self.parsers: Counter[str] = Counter()
        self.proposers: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def keep(self, sample: Sample) -> None:
        """Count what a sample brings along."""
        if sample.tree is not None:
            _count(self.kept, f"phrases of {sample.tree.parser}")
        if sample.regions is not None:
            _count(self.kept, f"regions of {sample.regions.proposer}")

    def add(self, sample: Sample) -> None:
        self.samples += 1
        self.phrases += len(sample.tree.phrases) if sample.tree else 0
        self.regions += len(sample.regions.rles) if sample.regions else 0
        _count(self.parsers, sample.tree.parser if sample.tree else "none")
        _count(self.proposers, sample.regions.proposer if sample.regions else "none")

    def skip(self, reason: str, name: str) -> None:
        reason = _count(self.skipped, reason)
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def _count(counter: Counter[str], name: str) -> str:
    """Count under a name, or among the others where there are many already; the name it was counted under."""
    name = name[:200] if name[:200] in counter or len(counter) < MANY else OTHERS
    counter[name] += 1
    return name
