"""The shard job: pairs in, annotated shards out, shard by shard, so that it can stop anywhere and go on."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from powerclip.errors import PowerclipError, RunFailedError
from powerclip.prepare.annotate import EXAMPLES, ShardTask, make_shard, parser_of, proposer_of
from powerclip.prepare.output import REPORT, counts_of, read_finished, reserved, write_json
from powerclip.prepare.sources import SourceOptions, open_source
from powerclip.prepare.workers import run_local, run_ray

SURE = 100
"""Samples seen before a share of bad ones can stop the job in the middle."""
NOTE_EVERY_S = 60.0
"""Between lines of progress where no terminal shows a bar."""
STAMPED = ("powerclip", "spacy", "torch", "transformers", "scikit-image", "pillow")


def prepare(
    source: str | Path,
    output: Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption_key: str | None = None,
    parser: str = "spacy",
    regions: str = "boxes",
    replace_annotations: bool = False,
    device: str = "auto",
    samples_per_shard: int = 1000,
    max_bad_share: float = 0.1,
    count: int = 8192,
    seed: int = 0,
    workers: int = 1,
    ray: str | None = None,
    gpu_share: float = 0.25,
    console: Console | None = None,
) -> dict[str, Any]:
    """Make annotated shards out of images and captions.

    A shard appears under its name when it is whole; the same call again skips the shards that are there.

    Args:
        source: a folder of images with .txt captions; a folder of .tar shards, or one; a .csv, .tsv, .jsonl or
            .parquet table; a folder that Hugging Face's datasets saved; or "scenes:SPLIT".
        output: folder for the shards and ``report.json``.
        image_column: column of the image (a path relative to the table, a URL whose file was fetched, or the bytes);
            guessed by default.
        caption_column: column of the caption; guessed by default.
        caption_key: where tars hold the caption: an extension, or "json:KEY"; found by default.
        parser: "spacy", "spacy:PIPELINE", "benepar", "benepar:MODEL", or "none" for no phrases.
        regions: "boxes" (drawn in training, nothing is stored), "superpixels", "sam" or "sam:MODEL".
        replace_annotations: make phrases and regions anew where the source brings its own, which are kept by default.
        device: where SAM runs; "auto" takes a GPU where there is one.
        samples_per_shard: pairs of the source in one shard; of a source of tars, each becomes one shard.
        max_bad_share: share of unusable pairs above which the job stops.
        count: scenes to generate.
        seed: seed of the scenes.
        workers: processes that make shards side by side.
        ray: run on a Ray cluster instead: its address, or "auto". The paths must be the same on every node.
        gpu_share: share of a GPU that each of Ray's workers takes for SAM.
        console: where progress goes; standard error by default.

    Returns:
        What ``report.json`` holds.

    Raises:
        PowerclipError: the source cannot be read, ``output`` lies in it, or ``output`` was made from another.
        RunFailedError: too many pairs cannot be used (``report.json`` tells which), or a worker died.
    """
    if samples_per_shard < 1 or workers < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard} and workers {workers}; both must be at least 1")
    if not 0 <= max_bad_share <= 1:
        raise ValueError(f"max_bad_share is {max_bad_share}; it is a share, from 0 to 1")
    console = console or Console(stderr=True)
    options = SourceOptions(
        samples_per_shard=samples_per_shard, image_column=image_column, caption_column=caption_column,
        caption_key=caption_key, replace_annotations=replace_annotations, count=count, seed=seed,
    )  # fmt: skip
    found = open_source(str(source), options)
    output = output.absolute()
    _refuse_inside(Path(source), output)
    # Loaded here too: a wrong name is told before any work begins, and the stamp needs what was loaded.
    phrases, proposer = parser_of(parser), proposer_of(regions, device=device)
    makers = {"parser": phrases.name if phrases else "none", "proposer": proposer.name if proposer else "none"}
    plan = {
        "source": found.fingerprint, "samples_per_shard": samples_per_shard,
        "replace_annotations": replace_annotations, **makers,
    }  # fmt: skip
    with reserved(output, plan):
        tasks = [
            ShardTask(
                number=number, chunk=chunk, path=output / f"shard-{number:06d}.tar", parser=parser, regions=regions,
                device=device,
            )
            for number, chunk in enumerate(found.chunks)
        ]  # fmt: skip
        state = _State(max_bad_share=max_bad_share, shards=len(tasks))
        failed = None
        try:
            _run(tasks, state, console, workers=workers, ray=ray, gpus=gpu_share if regions.startswith("sam") else 0.0)
        except RunFailedError as error:
            failed = error
        report = state.report(str(source), source_hash=found.fingerprint, versions=_versions())
        write_json(output / REPORT, report)
        if failed is not None:
            raise failed
    usual = (f"phrases of {makers['parser']}", f"regions of {makers['proposer']}")
    kept = [f"{what} ({number})" for what, number in state.sum("kept").items() if what not in usual]
    console.print(_told(report, output, kept), highlight=False, soft_wrap=True)
    return report


def _refuse_inside(source: Path, output: Path) -> None:
    """Raise where the output would become part of the source."""
    if source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise PowerclipError(f"output {output} lies in the source {source}; name a folder outside of it")


def _run(
    tasks: Sequence[ShardTask], state: _State, console: Console, *, workers: int, ray: str | None, gpus: float
) -> None:
    """Make the shards that are not there."""
    missing = []
    for task in tasks:
        done = read_finished(task.path)
        if done is None:
            missing.append(task)
        else:
            state.add(task.number, done)
    if ray is None:
        results = run_local(make_shard, missing, workers=workers)
    else:
        results = run_ray(make_shard, missing, address=ray, gpus=gpus)
    with closing(results), _progress(console, state) as tell:
        for i, counts in results:
            write_json(counts_of(missing[i].path), counts)
            state.add(missing[i].number, counts)
            tell()
    state.check()


def _told(report: dict[str, Any], output: Path, kept: list[str]) -> str:
    """A line on what was made."""
    return (
        f"{report['samples']} samples in {output}, {sum(report['skipped'].values())} skipped; "
        f"{report['phrases_per_caption']:.1f} phrases a caption, "
        f"{report['regions_per_image']:.1f} stored regions an image"
        + (f"; kept as they came: {', '.join(kept)}" if kept else "")
    )


class _State:
    """What is done; too many bad samples stop the job."""

    def __init__(self, *, max_bad_share: float, shards: int) -> None:
        self.max_bad_share, self.shards = max_bad_share, shards
        self.counts: dict[int, dict[str, Any]] = {}
        self.samples = self.skipped = 0

    def add(self, number: int, counts: dict[str, Any]) -> None:
        self.counts[number] = counts
        self.samples += counts["samples"]
        self.skipped += sum(counts["skipped"].values())
        if self.samples + self.skipped >= SURE:
            self.check()

    def check(self) -> None:
        seen = self.samples + self.skipped
        if self.skipped > self.max_bad_share * seen:
            skipped, examples = self._skipped()
            reasons = ", ".join(f"{n} {reason} (e.g. {examples[reason][0]})" for reason, n in skipped.most_common())
            raise RunFailedError(
                f"{self.skipped} of {seen} samples cannot be used: {reasons}; mend them or raise --max-bad-share"
            )

    def _skipped(self) -> tuple[Counter[str], dict[str, list[str]]]:
        """Number and first names of the skipped samples by reason, in the order of the shards."""
        skipped: Counter[str] = Counter()
        examples: dict[str, list[str]] = {}
        for _, counts in sorted(self.counts.items()):
            skipped.update(counts["skipped"])
            for reason, names in counts["examples"].items():
                examples[reason] = (examples.get(reason, []) + names)[:EXAMPLES]
        return skipped, examples

    def sum(self, name: str) -> dict[str, int]:
        """Samples by what annotated them, or by what they came with."""
        found: Counter[str] = Counter()
        for _, counts in sorted(self.counts.items()):
            found.update(counts[name])
        return dict(found.most_common())

    def report(self, source: str, **stamps: Any) -> dict[str, Any]:
        skipped, examples = self._skipped()
        total = {name: sum(counts.get(name, 0) for counts in self.counts.values()) for name in ("phrases", "regions")}
        return {
            "source": source,
            "samples": self.samples,
            "unfinished_shards": self.shards - len(self.counts),
            "skipped": dict(skipped),
            "examples": examples,
            "phrases_per_caption": total["phrases"] / max(1, self.samples),
            "regions_per_image": total["regions"] / max(1, self.samples),
            "parser": self.sum("parsers"),
            "proposer": self.sum("proposers"),
            **stamps,
        }


@contextmanager
def _progress(console: Console, state: _State) -> Iterator[Any]:
    """Shows how far the job is: a bar on a terminal, else a line a minute."""
    total = state.shards
    begun, had, last = time.monotonic(), state.samples, time.monotonic()
    bar = Progress(
        TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    line = bar.add_task("", total=total, completed=len(state.counts), rate="")

    def tell() -> None:
        nonlocal last
        rate = f"{(state.samples - had) / max(1e-9, time.monotonic() - begun):.0f} samples/s, {state.skipped} skipped"
        bar.update(line, completed=len(state.counts), rate=rate)
        if not console.is_terminal and time.monotonic() - last > NOTE_EVERY_S:
            last = time.monotonic()
            console.print(f"{len(state.counts)} of {total} shards, {rate}", highlight=False, soft_wrap=True)

    try:
        with bar:
            yield tell
    except KeyboardInterrupt:
        console.print(
            f"{len(state.counts)} of {total} shards are whole; the same command goes on from there",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        raise


def _versions() -> dict[str, str]:
    """Versions of what shapes the annotations."""
    found = {}
    for package in STAMPED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
