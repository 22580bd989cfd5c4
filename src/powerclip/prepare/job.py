"""The shard job: pairs in, annotated shards out, shard by shard, so that it can stop anywhere and go on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from powerclip.data.decode import decode_image
from powerclip.data.sample import BadSampleError, Sample
from powerclip.data.shards import write_shard
from powerclip.phrases import Parser, load_parser
from powerclip.prepare.sources import Item, open_source
from powerclip.regions.proposers import Proposer, load_proposer
from powerclip.types import PowerclipError, RunFailedError

REPORT = "report.json"
PLAN = ".source.json"
EXAMPLES = 5


def prepare(
    source: str | Path,
    output: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    parser: str = "spacy",
    regions: str = "boxes",
    device: str = "auto",
    samples_per_shard: int = 1000,
    max_bad_share: float = 0.1,
    count: int = 8192,
    seed: int = 0,
    console: Console | None = None,
) -> dict[str, Any]:
    """Make annotated shards out of images and captions.

    A shard appears under its name when it is whole; the same call again skips the shards that are there.

    Args:
        source: a folder of images with .txt captions, a .csv, .tsv or .jsonl table, or "scenes:SPLIT".
        output: folder for the shards and ``report.json``.
        image_column: column of the image path, relative to the table; guessed by default.
        caption_column: column of the caption; guessed by default.
        parser: "spacy", "spacy:PIPELINE", or "none" for no phrases.
        regions: "boxes" (drawn in training, nothing is stored), "superpixels", "sam" or "sam:MODEL".
        device: where SAM runs; "auto" takes a GPU where there is one.
        samples_per_shard: pairs of the source in one shard.
        max_bad_share: share of unusable pairs above which the job stops.
        count: scenes to generate.
        seed: seed of the scenes.
        console: where progress goes; standard error by default.

    Returns:
        What ``report.json`` holds.

    Raises:
        PowerclipError: the source cannot be read, or ``output`` was made from another.
        RunFailedError: too many pairs cannot be used.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard}; it must be at least 1")
    console = console or Console(stderr=True)
    found = open_source(str(source), image_column=image_column, caption_column=caption_column, count=count, seed=seed)
    phrases = None if parser == "none" else load_parser(parser)
    proposer = load_proposer(regions, device=device)
    plan = {"source": found.fingerprint, "samples_per_shard": samples_per_shard, "parser": parser}
    if proposer is not None:
        plan["regions"] = proposer.name
    _claim(output, plan)
    state = _State(max_bad_share=max_bad_share, total=len(found.items))
    shards = range(0, len(found.items), samples_per_shard)
    steps = track(shards, description="shards", console=console, disable=not console.is_terminal)
    for number, first in enumerate(steps):
        shard = output / f"shard-{number:06d}.tar"
        counted = output / f".shard-{number:06d}.json"
        if shard.exists() and counted.exists():
            state.add(json.loads(counted.read_text(encoding="utf-8")))
            continue
        shard.unlink(missing_ok=True)
        samples, counts = _read(found.items[first : first + samples_per_shard])
        samples = _propose(_parse(samples, phrases), proposer)
        counts["phrases"] = sum(len(sample.tree.phrases) for sample in samples if sample.tree)
        counts["regions"] = sum(len(sample.regions["masks"]) for sample in samples if sample.regions)
        state.add(counts)
        if samples:
            write_shard(samples, shard)
        _write_json(counted, counts)
    report = state.report(
        str(source), parser=phrases.name if phrases else "none", proposer=proposer.name if proposer else "none"
    )
    _write_json(output / REPORT, report)
    skipped = sum(report["skipped"].values())
    console.print(
        f"{report['samples']} samples in {output}, {skipped} skipped; "
        f"{report['phrases_per_caption']:.1f} phrases a caption, {report['regions_per_image']:.1f} stored regions an image",
        highlight=False,
        soft_wrap=True,
    )
    return report


def _claim(output: Path, plan: dict[str, Any]) -> None:
    """Mark a folder as this job's, or see that it is."""
    mark = output / PLAN
    if mark.exists():
        if json.loads(mark.read_text(encoding="utf-8")) != plan:
            raise PowerclipError(
                f"{output} holds shards of another source or with other settings; name an empty folder"
            )
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise PowerclipError(f"output {output} is not empty and was not made by this command; name an empty folder")
    output.mkdir(parents=True, exist_ok=True)
    _write_json(mark, plan)


def _read(items: Sequence[Item]) -> tuple[list[Sample], dict[str, Any]]:
    """The usable samples, and the others by reason with some of their names."""
    samples: list[Sample] = []
    skipped: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for item in items:
        try:
            samples.append(item.load())
        except BadSampleError as error:
            reason = str(error)
            skipped[reason] += 1
            if len(examples.setdefault(reason, [])) < EXAMPLES:
                examples[reason].append(item.name)
    return samples, {"samples": len(samples), "skipped": dict(skipped), "examples": examples}


def _parse(samples: list[Sample], parser: Parser | None) -> list[Sample]:
    """The samples with their phrases; one that has them (a scene) keeps its own."""
    if parser is None:
        return samples
    bare = [sample for sample in samples if sample.tree is None]
    trees = dict(zip((sample.key for sample in bare), parser.parse(sample.caption for sample in bare), strict=True))
    return [replace(sample, tree=trees.get(sample.key, sample.tree)) for sample in samples]


def _propose(samples: list[Sample], proposer: Proposer | None) -> list[Sample]:
    """The samples with their regions; one that has them (a scene) keeps its own."""
    if proposer is None:
        return samples
    done = []
    for sample in samples:
        if sample.regions is None:
            (annotation,) = proposer.propose([decode_image(sample.image)])
            sample = replace(sample, regions=annotation.to_json())
        done.append(sample)
    return done


class _State:
    """Running totals; adding too many bad samples stops the job."""

    def __init__(self, *, max_bad_share: float, total: int) -> None:
        self.max_bad_share, self.total = max_bad_share, total
        self.samples = self.phrases = self.regions = 0
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, counts: dict[str, Any]) -> None:
        self.samples += counts["samples"]
        self.phrases += counts["phrases"]
        self.regions += counts.get("regions", 0)
        self.skipped.update(counts["skipped"])
        for reason, names in counts["examples"].items():
            self.examples[reason] = (self.examples.get(reason, []) + names)[:EXAMPLES]
        bad, seen = self.skipped.total(), self.samples + self.skipped.total()
        if bad > self.max_bad_share * seen and seen >= min(100, self.total):
            reasons = ", ".join(
                f"{n} {reason} (e.g. {self.examples[reason][0]})" for reason, n in self.skipped.most_common()
            )
            raise RunFailedError(
                f"{bad} of {seen} samples cannot be used: {reasons}; mend them or raise --max-bad-share"
            )

    def report(self, source: str, *, parser: str, proposer: str) -> dict[str, Any]:
        return {
            "source": source,
            "samples": self.samples,
            "skipped": dict(self.skipped),
            "examples": self.examples,
            "phrases_per_caption": self.phrases / max(1, self.samples),
            "regions_per_image": self.regions / max(1, self.samples),
            "parser": parser,
            "proposer": proposer,
            "powerclip": version("powerclip"),
        }


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
