"""The shard job: pairs in, annotated shards out, shard by shard, so that it can stop anywhere and go on."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from powerclip.prepare.shard import EXAMPLES, ShardTask, make_shard, parser_of, proposer_of
from powerclip.prepare.sources import SourceOptions, open_source
from powerclip.prepare.workers import run_local, run_ray
from powerclip.types import PowerclipError, RunFailedError

REPORT = "report.json"
PLAN = ".source.json"
LOCK = ".lock"
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
        image_column: column of the image (a path relative to the table, or the bytes); guessed by default.
        caption_column: column of the caption; guessed by default.
        caption_key: where tars hold the caption: an extension, or "json:KEY"; found by default.
        parser: "spacy", "spacy:PIPELINE", "benepar", "benepar:MODEL", or "none" for no phrases.
        regions: "boxes" (drawn in training, nothing is stored), "superpixels", "sam" or "sam:MODEL".
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
        PowerclipError: the source cannot be read, or ``output`` was made from another.
        RunFailedError: too many pairs cannot be used, or a worker died.
    """
    if samples_per_shard < 1 or workers < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard} and workers {workers}; both must be at least 1")
    console = console or Console(stderr=True)
    options = SourceOptions(
        samples_per_shard=samples_per_shard, image_column=image_column, caption_column=caption_column,
        caption_key=caption_key, count=count, seed=seed,
    )  # fmt: skip
    found = open_source(str(source), options)
    output = output.absolute()
    # Loaded here too: a wrong name is told before any work begins, and the stamp needs what was loaded.
    phrases, proposer = parser_of(parser), proposer_of(regions, device=device)
    plan = {"source": found.fingerprint, "samples_per_shard": samples_per_shard, "parser": parser}
    if proposer is not None:
        plan["regions"] = proposer.name
    _claim(output, plan)
    with _locked(output):
        state = _State(max_bad_share=max_bad_share)
        tasks = []
        for number, chunk in enumerate(found.chunks):
            path = output / f"shard-{number:06d}.tar"
            done = _finished(path)
            if done is not None:
                state.add(number, done)
                continue
            tasks.append(
                ShardTask(number=number, chunk=chunk, path=path, parser=parser, regions=regions, device=device)
            )
        if ray is None:
            results = run_local(make_shard, tasks, workers=workers)
        else:
            results = run_ray(make_shard, tasks, address=ray, gpus=gpu_share if regions.startswith("sam") else 0.0)
        with _progress(console, state, total=len(found.chunks)) as tell:
            for i, counts in results:
                _write_json(_counted(tasks[i].path), counts)
                state.add(tasks[i].number, counts)
                tell()
        state.check()
        names = {"parser": phrases.name if phrases else "none", "proposer": proposer.name if proposer else "none"}
        report = state.report(str(source), **names, source_hash=found.fingerprint, versions=_versions())
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


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep a second job out of the folder, and clear what a killed one left half written."""
    try:
        with FileLock(output / LOCK, timeout=0):
            for path in output.glob(".shard-*.tmp"):
                path.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise PowerclipError(f"another powerclip prepare is writing to {output}; wait for it, or end it") from error


def _counted(shard: Path) -> Path:
    """Where the counts of a shard stand; written after the shard, they say that it is finished."""
    return shard.with_name(f".{shard.stem}.json")


def _finished(shard: Path) -> dict[str, Any] | None:
    """The counts of a shard that is there, or that is known to hold nothing; None where it has to be made."""
    try:
        counts: dict[str, Any] = json.loads(_counted(shard).read_text(encoding="utf-8"))
        return counts if shard.exists() or counts["samples"] == 0 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _State:
    """What is done; too many bad samples stop the job."""

    def __init__(self, *, max_bad_share: float) -> None:
        self.max_bad_share = max_bad_share
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

    def report(self, source: str, **stamps: Any) -> dict[str, Any]:
        skipped, examples = self._skipped()
        total = {name: sum(counts.get(name, 0) for counts in self.counts.values()) for name in ("phrases", "regions")}
        return {
            "source": source,
            "samples": self.samples,
            "skipped": dict(skipped),
            "examples": examples,
            "phrases_per_caption": total["phrases"] / max(1, self.samples),
            "regions_per_image": total["regions"] / max(1, self.samples),
            **stamps,
        }


@contextmanager
def _progress(console: Console, state: _State, *, total: int) -> Iterator[Any]:
    """Shows how far the job is: a bar on a terminal, else a line a minute."""
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


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    temporary.replace(path)
