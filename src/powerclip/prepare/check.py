"""``powerclip prepare --check``: are these shards what training expects, and what is in them?"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from powerclip.data.images import decode_image
from powerclip.data.sample import Sample
from powerclip.data.shards import SamplePlace, find_shards, index_shard
from powerclip.data.validate import check_annotations
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError
from powerclip.prepare.output import REPORT, write_json
from powerclip.prepare.sheet import contact_sheet
from powerclip.prepare.workers import run_local

SHEET = "contact_sheet.png"
RESULT = "check.json"
SHOWN = 16
MEASURES = ("words", "phrases", "regions", "width", "height", "kilobytes")


def check(path: Path, *, workers: int = 1, console: Console | None = None) -> dict[str, Any]:
    """Read every sample of some shards, print what they hold, and draw 16 of them.

    Beside the shards, or the first of them, go ``check.json``, with the statistics, and ``contact_sheet.png``.

    Args:
        path: folder of shards, one tar, or a pattern.
        workers: processes that read side by side.
        console: where the table goes; standard output by default.

    Returns:
        "shards", "samples", "bad" (number by reason), "examples" (their names), "broken" (shards that are no whole
        tars), "missing" (samples that ``report.json`` tells of and that are not there), "phrases" (number by label),
        and for each measure its "mean", "median", "min" and "max" over the samples.

    Raises:
        PowerclipError: there are no shards.
        RunFailedError: a shard is broken or missing, or a sample cannot be used; everything has been printed and
            written by then.
    """
    console = console or Console()
    shards = find_shards(path)
    folder = path if path.is_dir() else shards[0].parent
    results: dict[int, dict[str, Any]] = {}
    with closing(run_local(check_shard, shards, workers=workers)) as steps:
        for i, result in track(
            steps,
            total=len(shards),
            description="checking",
            transient=True,
            console=console,
            disable=not console.is_terminal,
        ):
            results[i] = result
    found = _summary([results[i] for i in range(len(shards))])
    found["missing"] = _missing(path, found)
    _print(found, console, title=str(path))
    _write(folder, found, _shown(shards, found), console)
    _judge(found, path)
    return found


def _missing(path: Path, found: dict[str, Any]) -> int:
    """Samples that the report of a folder tells of beyond those that were found in whole shards."""
    try:
        told = json.loads((path / REPORT).read_text(encoding="utf-8"))["samples"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    there = found["samples"] + sum(found["bad"].values())
    return max(0, told - there) if isinstance(told, int) else 0


def _write(folder: Path, found: dict[str, Any], samples: list[Sample], console: Console) -> None:
    try:
        write_json(folder / RESULT, found)
        if samples:
            contact_sheet(samples).savefig(folder / SHEET, dpi=110)
            console.print(f"Drew {len(samples)} samples: {folder / SHEET}", highlight=False, soft_wrap=True)
    except OSError as error:
        console.print(f"Nothing written to {folder}: {error}", highlight=False, soft_wrap=True)


def _judge(found: dict[str, Any], path: Path) -> None:
    """Raise where something is wrong, the worst first."""
    bad = sum(found["bad"].values())
    if found["broken"]:
        raise RunFailedError(f"{len(found['broken'])} of {found['shards']} shards are broken: {found['broken'][0]}")
    if found["missing"]:
        raise RunFailedError(
            f"{found['missing']} of the {found['missing'] + found['samples'] + bad} samples that "
            f"{path / REPORT} tells of are missing; the command that made them makes their shards anew"
        )
    if bad:
        reason, number = max(found["bad"].items(), key=lambda item: item[1])
        raise RunFailedError(
            f"{bad} of {bad + found['samples']} samples cannot be used; most often: {reason} ({number}, e.g. "
            f"{found['examples'][reason][0]})"
        )


def check_shard(shard: Path) -> dict[str, Any]:
    """What one shard holds: the measures of each sound sample, and the others by reason."""
    result: dict[str, Any] = {"broken": None, "bad": Counter(), "examples": {}, "labels": Counter(), "measures": []}
    try:
        entries = index_shard(shard)
    except PowerclipError as error:
        return {**result, "broken": str(error)}
    for entry in entries:
        try:
            sample = entry.read()
            result["measures"].append(_measures(sample, entry))
            result["labels"].update(phrase.label for phrase in sample.tree.phrases) if sample.tree else None
        except BadSampleError as error:
            result["bad"][str(error)] += 1
            result["examples"].setdefault(str(error), []).append(f"{shard.name}/{entry.key}")
    return result


def _measures(sample: Sample, entry: SamplePlace) -> tuple[float, ...]:
    """The numbers of ``MEASURES``.

    Raises:
        BadSampleError: the image, the phrases or the regions are not sound.
    """
    image = decode_image(sample.image)
    check_annotations(sample, (image.height, image.width))
    words = len(sample.tree.leaves if sample.tree is not None else sample.caption.split())
    regions = len(sample.regions.rles if sample.regions is not None else sample.patch_regions or ())
    phrases = len(sample.tree.phrases) if sample.tree else 0
    kilobytes = sum(size for _, size in entry.members.values()) / 1000
    return words, phrases, regions, image.width, image.height, kilobytes


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    bad: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for result in results:
        bad.update(result["bad"])
        labels.update(result["labels"])
        for reason, names in result["examples"].items():
            examples[reason] = (examples.get(reason, []) + names)[:5]
    table = np.array([row for result in results for row in result["measures"]], dtype=np.float64).reshape(
        -1, len(MEASURES)
    )
    spread = {
        name: {"mean": float(v.mean()), "median": float(np.median(v)), "min": float(v.min()), "max": float(v.max())}
        for name, v in zip(MEASURES, table.T, strict=True)
        if len(v)
    }
    return {
        "shards": len(results),
        "samples": len(table),
        "bad": dict(bad.most_common()),
        "examples": examples,
        "broken": [result["broken"] for result in results if result["broken"]],
        "phrases": dict(labels.most_common()),
        "without_phrases": int((table[:, 1] == 0).sum()),
        "without_regions": int((table[:, 2] == 0).sum()),
        "measures": spread,
    }


def _print(found: dict[str, Any], console: Console, *, title: str) -> None:
    console.print(
        f"{title}: {found['samples']} samples in {found['shards']} shards, {sum(found['bad'].values())} bad, "
        f"{len(found['broken'])} shards broken, {found['missing']} samples missing; "
        f"{found['without_phrases']} samples without phrases, {found['without_regions']} without regions",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    table = Table()
    for heading in ("a sample", "mean", "median", "min", "max"):
        table.add_column(heading, justify="left" if heading == "a sample" else "right")
    for name, spread in found["measures"].items():
        table.add_row(
            name, *(f"{spread[key]:.{1 if key == 'mean' else 0}f}" for key in ("mean", "median", "min", "max"))
        )
    console.print(table)
    if found["phrases"]:
        console.print("phrases: " + ", ".join(f"{n} {label}" for label, n in found["phrases"].items()), highlight=False)
    for reason, number in found["bad"].items():
        names = ", ".join(found["examples"][reason])
        console.print(f"bad: {number} {reason} (e.g. {names})", highlight=False, soft_wrap=True, markup=False)
    for message in found["broken"]:
        console.print(f"broken: {message}", highlight=False, soft_wrap=True, markup=False)


def _shown(shards: list[Path], found: dict[str, Any]) -> list[Sample]:
    """Sound samples spread over the shards."""
    samples: list[Sample] = []
    picked = [shards[i * len(shards) // SHOWN] for i in range(SHOWN)]
    for shard, number in Counter(picked).items():
        try:
            entries = index_shard(shard)
        except PowerclipError:
            continue
        kept = 0
        for i in sorted(range(len(entries)), key=lambda i: (i * number % len(entries) >= number, i)):
            if kept == number:
                break
            try:
                sample = entries[i].read()
                _measures(sample, entries[i])
            except BadSampleError:
                continue
            samples.append(sample)
            kept += 1
    return samples
