"""The job: pairs in, annotated shards out, shard by shard, so that it can stop anywhere and continue later."""

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

from powerclip.config import PrepareConfig
from powerclip.data.shards import REPORT
from powerclip.errors import PowerclipError, RunFailedError, counted
from powerclip.files import write_json
from powerclip.prepare.annotate import Counts, ShardTask, can_be_read_now, make_shard, parser_of, proposer_of
from powerclip.prepare.join import JOINED, open_join
from powerclip.prepare.output import counts_of, read_finished, reserved
from powerclip.prepare.pairs import Source
from powerclip.prepare.source import open_source
from powerclip.prepare.workers import run_local, run_ray
from powerclip.progress import print_line, progress_bar

ENOUGH = 100
"""A share of bad samples stops the job early only after this many samples."""
STAMPED = ("powerclip", "spacy", "torch", "transformers", "scikit-image", "pillow")
"""Packages whose versions are in the report."""


def prepare(
    source: str | Path, output: str | Path, config: PrepareConfig | None = None, *, console: Console | None = None
) -> dict[str, Any]:
    """Make annotated shards from images and captions; return the content of ``report.json``.

    A shard appears under its name when it is complete; the same call again skips the shards that exist, but for those
    that lack samples whose files could not be read and can be now.

    ``source`` is a folder of images with .txt captions; a folder of .tar shards, or one; a .csv, .tsv, .jsonl or
    .parquet table; a folder saved by Hugging Face's datasets; or "scenes:SPLIT"; with ``config.captions`` it is shards,
    whose images get the captions of a table. The shards and ``report.json`` go to ``output``, the progress to
    ``console``, standard error by default. PowerclipError if the source cannot be read, ``output`` is inside it, or
    ``output`` was made from another source; RunFailedError if too many pairs cannot be used (``report.json`` says
    which), or a worker died.
    """
    config, console = config or PrepareConfig(), console or Console(stderr=True)
    output = Path(output).absolute()
    joined = None if config.captions is None else open_join(Path(source).absolute(), config, output)
    pairs = joined or open_source(str(source), config)
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise PowerclipError(f"output {output} is inside the source {source}; name a folder outside of it")
    # Loaded here too: a wrong name is reported before any work begins, and the plan needs what was loaded.
    parser = parser_of(config.parser)
    proposer = proposer_of(config.regions, shape=config.regions_as, device=config.device)
    makers = {"parser": parser.name if parser else "none", "proposer": proposer.name if proposer else "none"}
    plan = {
        "source": pairs.fingerprint, "samples_per_shard": config.samples_per_shard,
        "replace_annotations": config.replace_annotations, **makers,
        **{name: True for name in ("caption_lines", "replace_regions") if getattr(config, name)},
    }  # fmt: skip
    shards = [output / f"shard-{number:06d}.tar" for number in range(pairs.count)]
    finished: dict[Path, Mapping[str, Any]] = {}
    failure: RunFailedError | None = None
    with reserved(output, plan):
        try:
            _make_shards(shards, pairs, finished, config, console)
        except RunFailedError as error:
            failure = error
        except KeyboardInterrupt:
            done = f"{len(finished)} of {len(shards)} shards are complete; the same command continues from there"
            print_line(console, done)
            raise
        total = Counts()
        for counts in filter(None, map(finished.get, shards)):  # in their order, whichever was finished first
            total.merge(counts)
        if joined is not None:
            total.remarks = Counter({**dict.fromkeys(JOINED, 0), **total.remarks})
        report = _report(str(source), pairs, total, unfinished=len(shards) - len(finished))
        write_json(output / REPORT, report)
    if failure is not None:
        raise failure
    _check(total, config.max_bad_share)
    usual = (f"phrases of {makers['parser']}", f"regions of {makers['proposer']}")
    print_line(console, "; ".join(filter(None, (*_outcome(total, report, output, usual), pairs.choice))))
    return report


def _outcome(total: Counts, report: Mapping[str, Any], output: Path, usual: Collection[str]) -> Iterator[str]:
    """What became of the source; annotations that it came with are named unless they are the ``usual`` ones."""
    reasons = f" ({counted(total.skipped)})" if total.skipped else ""
    yield f"{total.samples} samples in {output}, {total.skipped.total()} skipped{reasons}"
    if damaged := total.damaged():
        yield damaged
    yield (
        f"{report['phrases_per_caption']:.1f} phrases per caption, "
        f"{report['regions_per_image']:.1f} stored regions per image"
    )
    if total.captions.total() > total.samples:
        yield f"captions: {counted(total.captions)}"
    if total.remarks:
        yield counted(total.remarks)
    if kept := [f"{what} ({number})" for what, number in total.kept.most_common() if what not in usual]:
        yield f"kept from the source: {', '.join(kept)}"
    if report["ignored"]:
        yield f"other files in the source: {counted(report['ignored'])}"


def _make_shards(
    shards: Sequence[Path],
    pairs: Source,
    finished: dict[Path, Mapping[str, Any]],
    config: PrepareConfig,
    console: Console,
) -> None:
    """Make the missing shards, with a progress bar; fill ``finished`` with the counts of all shards."""
    total = Counts()

    def add(shard: Path, counts: Mapping[str, Any]) -> None:
        finished[shard] = counts
        total.merge(counts)
        if len(finished) < len(shards) and total.samples + total.skipped.total() >= ENOUGH:
            _check(total, config.max_bad_share, "samples so far")

    gaps: dict[Path, Mapping[str, Any]] = {}
    for shard in shards:
        if (counts := read_finished(shard)) is None:
            continue
        if counts.get("unread"):
            gaps[shard] = counts
        else:
            add(shard, counts)

    def tasks() -> Iterator[ShardTask]:
        for shard, chunk in zip(shards, pairs.chunks, strict=False):
            if shard in gaps and not can_be_read_now(chunk, set(gaps[shard]["unread"])):
                add(shard, gaps[shard])
            elif shard not in finished:
                yield ShardTask(chunk=chunk, path=shard, config=config)

    if config.ray is None:
        results = run_local(make_shard, tasks(), workers=config.workers)
    else:
        gpus = config.gpu_share if config.regions.startswith("sam") else 0.0
        results = run_ray(make_shard, tasks(), address=config.ray, gpus=gpus)
    start, samples_at_start = time.monotonic(), total.samples
    bar = progress_bar("prepare", steps=len(shards), done=len(finished), unit="shards", console=console)
    with closing(results), bar as show:
        for task, made in results:
            write_json(counts_of(task.path), vars(made))
            add(task.path, vars(made))
            samples_per_s = (total.samples - samples_at_start) / max(1e-9, time.monotonic() - start)
            show(len(finished), f"{samples_per_s:.0f} samples/s, {total.skipped.total()} skipped")


def _check(total: Counts, max_bad_share: float, samples: str = "samples") -> None:
    """Raise if too many samples cannot be used; ``samples`` says of which."""
    skipped = total.skipped.total()
    if skipped > max_bad_share * (total.samples + skipped):
        reasons = (f"{n} {reason} (e.g. {total.examples[reason][0]})" for reason, n in total.skipped.most_common())
        raise RunFailedError(
            f"{skipped} of {total.samples + skipped} {samples} cannot be used: {', '.join(reasons)}; "
            "fix them or raise --max-bad-share"
        )


def _report(source: str, pairs: Source, total: Counts, *, unfinished: int) -> dict[str, Any]:
    versions = {}
    for package in STAMPED:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "source": source,
        "samples": total.samples,
        "unfinished_shards": unfinished,
        "skipped": dict(total.skipped.most_common()),
        "examples": total.examples,
        "ignored": {**pairs.ignored, **(total.ignored + Counter(pairs.ignored))},
        "captions": dict(total.captions.most_common()),
        "remarks": dict(total.remarks.most_common()),
        "phrases_per_caption": total.phrases / max(1, total.captions.total()),
        "regions_per_image": total.regions / max(1, total.samples),
        "parser": dict(total.parsers.most_common()),
        "proposer": dict(total.proposers.most_common()),
        "source_hash": pairs.fingerprint,
        "versions": versions,
    }
