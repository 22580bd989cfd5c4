"""``powerclip prepare --check``: are these shards valid, and what do they hold? With a contact sheet of samples."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from textwrap import wrap
from typing import Any
from unicodedata import east_asian_width

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from powerclip.data.look import from_all_over, look_at_sample, look_at_texts, read_some, read_texts, sample_places
from powerclip.data.published import CONTEXT, patch_masks
from powerclip.data.published import GRID as PUBLISHED_GRID
from powerclip.data.sample import Sample
from powerclip.data.shards import REPORT, SamplePlace, find_shards, index_shard, is_unfinished
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError, counted, printable
from powerclip.files import atomic_write, read_json, write_json
from powerclip.phrases.tokens import clip_tokenizer
from powerclip.pixels import png
from powerclip.prepare.annotate import Counts
from powerclip.prepare.pairs import Pair, decoded
from powerclip.prepare.workers import run_local
from powerclip.progress import print_line
from powerclip.regions.masks import masks_at_size, shrink_to

SHEET = "contact_sheet.png"
RESULT = "check.json"
SHOWN = 16
"""Samples on the contact sheet."""
MEASURES = ("captions", "words", "phrases", "regions", "width", "height", "kilobytes")
COLUMNS = 4
LONGEST_SIDE = 320
"""Images on the contact sheet have at most this many pixels on their longer side."""
CHARACTERS, LINES = 44, 5
"""Characters in a line under an image, and lines."""
OPACITY = 0.45


def check(path: Path, *, workers: int = 1, console: Console | None = None, look: bool = True) -> dict[str, Any]:
    """Read every sample of some shards (``find_shards``), print what they hold, and draw 16 of them.

    ``check.json``, with the statistics, and ``contact_sheet.png`` are written next to the (first) shard; the table goes
    to ``console``, standard output by default; ``workers`` processes read. With ``look``, some samples are printed as
    CLIP's tokenizer reads them, with what it cuts of the captions, and warnings (``powerclip.data.look``).

    Returns "shards", "samples", "bad" (number by reason), "examples" (their names), "broken" (shards that are not
    complete tars), "missing" (samples that ``report.json`` counts and the shards do not hold), "phrases" (number by
    label), and in "measures" for each its "mean", "median", "min" and "max" over the samples. PowerclipError if there
    are no shards; RunFailedError if a shard is broken or missing, or a sample cannot be used, when everything has been
    printed and written.
    """
    console, shards = console or Console(), find_shards(path)
    folder = path if path.is_dir() else shards[0].parent
    quiet = not console.is_terminal
    with closing(run_local(check_shard, shards, workers=workers)) as steps:
        bar = track(steps, "checking", len(shards), console=console, transient=True, disable=quiet)
        results = dict(bar)
    result = _summary([results[shard] for shard in shards])
    result["missing"] = max(0, _reported(path) - result["samples"] - sum(result["bad"].values()))
    _print(result, console, title=str(path))
    places = list(sample_places(shards, index_shard))
    for line in _look(places) if look else ():
        print_line(console, line)
    try:
        write_json(folder / RESULT, result)
        examples = [pair for _, pair in islice(_valid(from_all_over(places, SHOWN), Counts()), SHOWN)]
        if examples:
            atomic_write(folder / SHEET, png(contact_sheet(examples), dpi=110))
            print_line(console, f"Drew {len(examples)} samples: {folder / SHEET}")
    except OSError as error:
        print_line(console, f"Nothing written to {folder}: {error}")
    _raise_if_wrong(result, path)
    return result


def _look(places: Sequence[SamplePlace]) -> Iterator[str]:
    """Some samples and the texts of many, as CLIP's tokenizer reads them."""
    text = {"tokenizer": clip_tokenizer(), "context_length": CONTEXT}
    yield from look_at_texts(list(read_texts(places)), **text)
    for sample, image in read_some(places):
        stored = len(sample.regions.rles if sample.regions else sample.patch_regions or ())
        size = image.height, image.width
        yield from look_at_sample(sample, **text, size=size, regions=f"{stored} stored regions")


def _reported(path: Path) -> int:
    """Samples that the report of a folder counts; 0 if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_json(path / REPORT)["samples"])
    return 0


def _raise_if_wrong(result: dict[str, Any], path: Path) -> None:
    """Raise if something is wrong, the worst first."""
    total = result["samples"] + sum(result["bad"].values())
    if result["broken"]:
        raise RunFailedError(f"{len(result['broken'])} of {result['shards']} shards are broken: {result['broken'][0]}")
    if result["missing"]:
        raise RunFailedError(
            f"{result['missing']} of the {result['missing'] + total} samples that {path / REPORT} counts are missing; "
            "the command that made them re-creates their shards"
        )
    if is_unfinished(path):
        raise RunFailedError(
            f"the prepare that makes {path} has not come to its end, and shards are missing; run the same command again"
        )
    if result["bad"]:
        reason, number = next(iter(result["bad"].items()))  # the most frequent
        raise RunFailedError(
            f"{total - result['samples']} of {total} samples cannot be used; most often: {reason} ({number}, e.g. "
            f"{result['examples'][reason][0]})"
        )


def check_shard(shard: Path) -> dict[str, Any]:
    """What one shard holds: the measures of each valid sample, and the others by reason."""
    counts, labels = Counts(), Counter[str]()
    measures: list[tuple[float, ...]] = []
    broken: str | None = None
    try:
        places = index_shard(shard, counts.ignored)
    except PowerclipError as error:
        places, broken = [], str(error)
    for place, (sample, image) in _valid(places, counts):
        words = len(sample.tree.leaves if sample.tree is not None else sample.caption.split())
        regions = len(sample.regions.rles if sample.regions is not None else sample.patch_regions or ())
        phrases = sample.tree.phrases if sample.tree is not None else ()
        kilobytes = sum(size for _, size in place.members.values()) / 1000
        labels.update(phrase.label for phrase in phrases)
        measures.append((len(sample.captions), words, len(phrases), regions, image.width, image.height, kilobytes))
    return {"broken": broken, "counts": counts, "labels": labels, "measures": measures}


def _valid(places: Iterable[SamplePlace], counts: Counts) -> Iterator[tuple[SamplePlace, Pair]]:
    """The samples that can be used; the others are counted."""
    for place in places:
        try:
            pair = decoded(place.read())
        except BadSampleError as error:
            counts.skip(str(error), f"{place.shard.name}/{place.key}")
            continue
        yield place, pair


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    total, labels = Counts(), Counter[str]()
    for result in results:
        total.merge(vars(result["counts"]))
        labels.update(result["labels"])
    rows = [row for result in results for row in result["measures"]]
    table = np.array(rows, dtype=np.float64).reshape(-1, len(MEASURES))
    spread = {
        name: {"mean": float(v.mean()), "median": float(np.median(v)), "min": float(v.min()), "max": float(v.max())}
        for name, v in zip(MEASURES, table.T, strict=True)
        if len(v)
    }
    return {
        "shards": len(results),
        "samples": len(table),
        "bad": dict(total.skipped.most_common()),
        "examples": total.examples,
        "ignored": dict(total.ignored),
        "broken": [result["broken"] for result in results if result["broken"]],
        "phrases": dict(labels.most_common()),
        "without_phrases": int((table[:, MEASURES.index("phrases")] == 0).sum()),
        "without_regions": int((table[:, MEASURES.index("regions")] == 0).sum()),
        "measures": spread,
    }


def _print(result: dict[str, Any], console: Console, *, title: str) -> None:
    print_line(
        console,
        f"{title}: {result['samples']} samples in {result['shards']} shards, {sum(result['bad'].values())} bad, "
        f"{len(result['broken'])} shards broken, {result['missing']} samples missing; "
        f"{result['without_phrases']} samples without phrases, {result['without_regions']} without regions",
    )
    table = Table("per sample", *(Column(name, justify="right") for name in ("mean", "median", "min", "max")))
    for name, spread in result["measures"].items():
        table.add_row(name, f"{spread['mean']:.1f}", *(f"{spread[key]:.0f}" for key in ("median", "min", "max")))
    console.print(table)
    lines = [f"bad: {n} {reason} (e.g. {', '.join(result['examples'][reason])})" for reason, n in result["bad"].items()]
    if result["ignored"]:
        lines.insert(0, f"other files: {counted(result['ignored'])}")
    if result["phrases"]:
        lines.insert(0, f"phrases: {counted(result['phrases'])}")
    for line in (*lines, *(f"broken: {message}" for message in result["broken"])):
        print_line(console, line)


def contact_sheet(pairs: Sequence[Pair]) -> Figure:
    """Images of some samples: masks in colours, the largest first, and the caption with its phrases in brackets."""
    rows = -(-len(pairs) // COLUMNS)
    figure = Figure(figsize=(3.2 * COLUMNS, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, (sample, image) in zip(panels, pairs, strict=False):
        small = shrink_to(image, LONGEST_SIDE)
        masks = [masks_at_size(mask[None], small)[0] for mask in _masks(sample)]
        axes.imshow(_painted(small, masks))
        text = sample.tree.to_brackets(sample.caption) if sample.tree else sample.caption
        is_wide = any(east_asian_width(character) in "WF" for character in text)
        width = CHARACTERS // 2 if is_wide else CHARACTERS
        shown = "\n".join(wrap(printable(text), width, max_lines=LINES, placeholder=" …"))
        axes.set_title(f"{printable(sample.key[:40])}, {len(masks)} regions", fontsize=7, parse_math=False)
        axes.text(
            0, -0.02, shown, transform=axes.transAxes, fontsize=6.5, va="top", parse_math=False, family="monospace"
        )
    return figure


def _masks(sample: Sample) -> Iterable[NDArray[np.bool_]]:
    """(H, W) each, in the pixels of the image or on the grid of published regions."""
    if sample.regions is not None:
        return sample.regions.each()
    return patch_masks(sample.patch_regions or ()).reshape(-1, *PUBLISHED_GRID)


def _painted(image: Image.Image, masks: Sequence[NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """(H, W, 3) pixels with masks, (H, W) each, each in its own colour with an opaque edge."""
    pixels = np.asarray(image, dtype=np.float32)
    colours = matplotlib.colormaps["hsv"]
    order = sorted(range(len(masks)), key=lambda m: -int(masks[m].sum()))
    for position, m in enumerate(order):
        colour = np.array(colours(position * 0.618 % 1)[:3], dtype=np.float32) * 255
        neighbours = [np.roll(masks[m], shift, axis) for shift in (1, -1) for axis in (0, 1)]
        edge = masks[m] & ~np.logical_and.reduce(neighbours)
        opacity = np.where(edge, 1.0, OPACITY if position else OPACITY / 2)[..., None]
        pixels = np.where(masks[m][..., None], (1 - opacity) * pixels + opacity * colour, pixels)
    return pixels.astype(np.uint8)
