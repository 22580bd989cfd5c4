"""The job: pairs in, annotated shards out, shard by shard, so that it can stop anywhere and continue later."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from powerclip.config import PrepareConfig
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.files import write_json
from powerclip.prepare.annotate import EXAMPLES, ShardTask, make_shard, parser_of, proposer_of
from powerclip.prepare.output import REPORT, counts_of, read_finished, reserved
from powerclip.prepare.pairs import Source
from powerclip.prepare.source import open_source
from powerclip.prepare.workers import run_local, run_ray

ENOUGH = 100
"""A share of bad samples stops the job early only after this many samples."""
NOTE_EVERY_S = 60.0
"""Seconds between lines of progress if there is no terminal to show a bar."""
STAMPED = ("powerclip", "spacy", "torch", "transformers", "scikit-image", "pillow")
"""Packages whose versions are in the report."""


def prepare(
    source: str | Path, output: str | Path, config: PrepareConfig | None = None, *, console: Console | None = None
) -> dict[str, Any]:
    """Make annotated shards from images and captions.

    A shard appears under its name when it is complete; the same call again skips the shards that exist.

    Args:
        source: a folder of images with .txt captions; a folder of .tar shards, or one; a .csv, .tsv, .jsonl or
            .parquet table; a folder saved by Hugging Face's datasets; or "scenes:SPLIT".
        output: folder for the shards and ``report.json``.
        config: all settings; the defaults if None.
        console: where progress is printed; standard error by default.

    Returns:
        The content of ``report.json``.

    Raises:
        PowerclipError: the source cannot be read, ``output`` is inside it, or ``output`` was made from another source.
        RunFailedError: too many pairs cannot be used (``report.json`` says which), or a worker died.
    """
    config, console = config or PrepareConfig(), console or Console(stderr=True)
    pairs = open_source(str(source), config)
    output = Path(output).absolute()
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise PowerclipError(f"output {output} is inside the source {source}; name a folder outside of it")
    # Loaded here too: a wrong name is reported before any work begins, and the plan needs what was loaded.
    parser, proposer = parser_of(config.parser), proposer_of(config.regions, device=config.device)
    makers = {"parser": parser.name if parser else "none", "proposer": proposer.name if proposer else "none"}
    plan = {
        "source": pairs.fingerprint, "samples_per_shard": config.samples_per_shard,
        "replace_annotations": config.replace_annotations, **makers,
    }  # fmt: skip
    progress = _Progress(shards=pairs.count, max_bad_share=config.max_bad_share)
    with reserved(output, plan):
        try:
            _run(pairs, output, config, progress, console)
            progress.check()
        except RunFailedError:
            write_json(output / REPORT, progress.report(str(source), pairs))
            raise
        report = progress.report(str(source), pairs)
        write_json(output / REPORT, report)
    console.print(_summary(report, output, progress.kept(makers)), highlight=False, soft_wrap=True)
    return report


def _run(pairs: Source, output: Path, config: PrepareConfig, progress: _Progress, console: Console) -> None:
    """Make the shards that do not exist yet."""
    shards = [output / f"shard-{number:06d}.tar" for number in range(pairs.count)]
    for number, shard in enumerate(shards):
        counts = read_finished(shard)
        if counts is not None:
            progress.add(number, counts)
    tasks = (
        ShardTask(number=number, chunk=chunk, path=shards[number], config=config)
        for number, chunk in enumerate(pairs.chunks)
        if number not in progress.finished
    )
    if config.ray is None:
        results = run_local(make_shard, tasks, workers=config.workers)
    else:
        gpus = config.gpu_share if config.regions.startswith("sam") else 0.0
        results = run_ray(make_shard, tasks, address=config.ray, gpus=gpus)
    with closing(results), _shown(console, progress) as show:
        for task, counts in results:
            write_json(counts_of(task.path), counts)
            progress.add(task.number, counts)
            show()


def _summary(report: dict[str, Any], output: Path, kept: list[str]) -> str:
    ignored = [f"{number} {kind}" for kind, number in report["ignored"].items()]
    return (
        f"{report['samples']} samples in {output}, {sum(report['skipped'].values())} skipped; "
        f"{report['phrases_per_caption']:.1f} phrases per caption, "
        f"{report['regions_per_image']:.1f} stored regions per image"
        + (f"; kept from the source: {', '.join(kept)}" if kept else "")
        + (f"; other files in the source: {', '.join(ignored)}" if ignored else "")
    )


class _Progress:
    """The counts of the finished shards; too many bad samples stop the job."""

    def __init__(self, *, shards: int, max_bad_share: float) -> None:
        self.max_bad_share, self.shards = max_bad_share, shards
        self.finished: dict[int, dict[str, Any]] = {}
        self.samples = self.skipped = 0

    def add(self, number: int, counts: dict[str, Any]) -> None:
        self.finished[number] = counts
        self.samples += counts["samples"]
        self.skipped += sum(counts["skipped"].values())
        if self.samples + self.skipped >= ENOUGH:
            self.check()

    def check(self) -> None:
        seen = self.samples + self.skipped
        if self.skipped > self.max_bad_share * seen:
            skipped, examples = self.sum("skipped"), self._examples()
            reasons = ", ".join(f"{n} {reason} (e.g. {examples[reason][0]})" for reason, n in skipped.items())
            raise RunFailedError(
                f"{self.skipped} of {seen} samples cannot be used: {reasons}; fix them or raise --max-bad-share"
            )

    def sum(self, name: str) -> dict[str, int]:
        """A counter of all shards together, the most frequent first."""
        total: Counter[str] = Counter()
        for _, counts in sorted(self.finished.items()):
            total.update(counts[name])
        return dict(total.most_common())

    def _examples(self) -> dict[str, list[str]]:
        """The first names of skipped samples by reason, in the order of the shards."""
        examples: dict[str, list[str]] = {}
        for _, counts in sorted(self.finished.items()):
            for reason, names in counts["examples"].items():
                examples[reason] = (examples.get(reason, []) + names)[:EXAMPLES]
        return examples

    def kept(self, makers: dict[str, str]) -> list[str]:
        """The annotations that came with the source from other makers than the job's own."""
        usual = (f"phrases of {makers['parser']}", f"regions of {makers['proposer']}")
        return [f"{what} ({number})" for what, number in self.sum("kept").items() if what not in usual]

    def report(self, source: str, pairs: Source) -> dict[str, Any]:
        total = {name: sum(counts.get(name, 0) for counts in self.finished.values()) for name in ("phrases", "regions")}
        return {
            "source": source,
            "samples": self.samples,
            "unfinished_shards": self.shards - len(self.finished),
            "skipped": self.sum("skipped"),
            "examples": self._examples(),
            "ignored": dict(pairs.ignored),
            "phrases_per_caption": total["phrases"] / max(1, self.samples),
            "regions_per_image": total["regions"] / max(1, self.samples),
            "parser": self.sum("parsers"),
            "proposer": self.sum("proposers"),
            "source_hash": pairs.fingerprint,
            "versions": _versions(),
        }


@contextmanager
def _shown(console: Console, progress: _Progress) -> Iterator[Callable[[], None]]:
    """Shows the progress: a bar on a terminal, otherwise a line per minute. Yields a function to call after each shard."""
    total = progress.shards
    start, samples_at_start, last = time.monotonic(), progress.samples, time.monotonic()
    bar = Progress(
        TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    line = bar.add_task("", total=total, completed=len(progress.finished), rate="")

    def show() -> None:
        nonlocal last
        samples_per_s = (progress.samples - samples_at_start) / max(1e-9, time.monotonic() - start)
        rate = f"{samples_per_s:.0f} samples/s, {progress.skipped} skipped"
        bar.update(line, completed=len(progress.finished), rate=rate)
        if not console.is_terminal and time.monotonic() - last > NOTE_EVERY_S:
            last = time.monotonic()
            console.print(f"{len(progress.finished)} of {total} shards, {rate}", highlight=False, soft_wrap=True)

    try:
        with bar:
            yield show
    except KeyboardInterrupt:
        console.print(
            f"{len(progress.finished)} of {total} shards are complete; the same command continues from there",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        raise


def _versions() -> dict[str, str]:
    """Versions of the packages that shape the annotations."""
    versions = {}
    for package in STAMPED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
