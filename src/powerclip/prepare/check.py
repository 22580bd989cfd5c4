"""``powerclip prepare --check``: are these shards what training expects, and what is in them?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from powerclip.data.decode import decode_image
from powerclip.data.sample import BadSampleError, Sample
from powerclip.data.shards import Entry, find_shards, index_shard
from powerclip.phrases.spans import crossing
from powerclip.prepare.sheet import contact_sheet
from powerclip.prepare.workers import run_local
from powerclip.regions import RegionAnnotation
from powerclip.types import PhraseTree, PowerclipError, RunFailedError

SHEET = "contact_sheet.png"
RESULT = "check.json"
SHOWN = 16
MEASURES = ("words", "phrases", "regions", "width", "height", "kilobytes")


def check(path: Path, *, workers: int = 1, console: Console | None = None) -> dict[str, Any]:
    """Read every sample of some shards, print what they hold, and draw 16 of them.

    Beside the shards go ``check.json``, with the statistics, and ``contact_sheet.png``.

    Args:
        path: folder of shards, one tar, or a pattern.
        workers: processes that read side by side.
        console: where the table goes; standard output by default.

    Returns:
        "shards", "samples", "bad" (number by reason), "examples" (their names), "broken" (shards that are no whole
        tars), "phrases" (number by label), and for each measure its "mean", "median", "min" and "max" over the samples.

    Raises:
        PowerclipError: there are no shards.
        RunFailedError: a shard is broken, or a sample cannot be used; everything has been printed and written by then.
    """
    console = console or Console()
    shards = find_shards(path)
    folder = path if path.is_dir() else path.parent
    results: dict[int, dict[str, Any]] = {}
    steps = run_local(check_shard, shards, workers=workers)
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
    text = json.dumps(found, indent=2, ensure_ascii=False)
    (folder / RESULT).write_text(text + "\n", encoding="utf-8", errors="replace")
    _print(found, console, title=str(path))
    samples = _shown(shards, found)
    if samples:
        contact_sheet(samples).savefig(folder / SHEET, dpi=110)
        console.print(f"Drew {len(samples)} samples: {folder / SHEET}", highlight=False, soft_wrap=True)
    bad = sum(found["bad"].values())
    if found["broken"]:
        raise RunFailedError(f"{len(found['broken'])} of {len(shards)} shards are broken: {found['broken'][0]}")
    if bad:
        reason, number = max(found["bad"].items(), key=lambda item: item[1])
        raise RunFailedError(
            f"{bad} of {bad + found['samples']} samples cannot be used; most often: {reason} ({number}, e.g. "
            f"{found['examples'][reason][0]})"
        )
    return found


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


def _measures(sample: Sample, entry: Entry) -> tuple[float, ...]:
    """The numbers of ``MEASURES``.

    Raises:
        BadSampleError: the image, the phrases or the regions are not sound.
    """
    image = decode_image(sample.image)
    words = len(sample.caption.split())
    if sample.tree is not None:
        _check_tree(sample.tree, sample.caption)
        words = len(sample.tree.leaves)
    regions = len(sample.patch_regions or ())
    if sample.regions is not None:
        try:
            annotation = RegionAnnotation.from_json(sample.regions)
        except (ValueError, OverflowError, MemoryError) as error:
            raise BadSampleError("malformed regions.json") from error
        if annotation.masks.shape[1:] != (image.height, image.width):
            raise BadSampleError("regions of another size than the image")
        regions = len(annotation.masks)
    phrases = len(sample.tree.phrases) if sample.tree else 0
    kilobytes = sum(size for _, size in entry.members.values()) / 1000
    return words, phrases, regions, image.width, image.height, kilobytes


def _check_tree(tree: PhraseTree, caption: str) -> None:
    if tree.leaves and tree.leaves[-1][1] > len(caption):
        raise BadSampleError("phrases reach beyond the caption")
    if crossing(tree):
        raise BadSampleError("phrases cross")


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
        f"{len(found['broken'])} shards broken; {found['without_phrases']} samples without phrases, "
        f"{found['without_regions']} without regions",
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
