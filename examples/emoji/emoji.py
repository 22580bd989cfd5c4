"""Emoji as real pairs: packages -> images and captions -> shards -> training -> evaluation.

``python examples/emoji/emoji.py`` downloads two npm packages of 64-pixel emoji, writes captions from the Unicode names,
makes shards with ``powerclip.prepare`` as for any other CSV, trains on one drawing style and evaluates on both, with a
set of profession and skin tone combinations kept from training.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from emoji_captions import vary, with_tone
from emoji_packages import STYLES, Emoji, image_path, obtain, read_emoji
from emoji_sheet import write_contact_sheet
from emoji_tasks import HELD_OUT, evaluate, evaluation_tasks, is_held_out
from rich.console import Console

import powerclip
from powerclip.compare import finish_runs
from powerclip.config import TrainConfig
from powerclip.config.values import Score
from powerclip.data.images import decode_image
from powerclip.errors import PowerclipError
from powerclip.files import write_json
from powerclip.prepare import prepare
from powerclip.recipes import recipe
from powerclip.report import read_evaluations, results_table

TRAIN_STYLE = "google"
"""The style to train on; the other one serves for evaluation only."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train on Noto emoji, test on Twemoji and on combinations never seen.

    Example: python examples/emoji/emoji.py --output runs/emoji
    """

    output: Path = Path("runs/emoji")
    """Folder for packages, images, shards, runs and results."""
    steps: int | None = None
    """Training steps; the recipe's own by default."""
    packages: Path | None = None
    """Folder with both npm packages, as tarballs or unpacked; by default npm downloads them."""
    seed: int = 0
    """Decides initial weights, data order and boxes."""
    with_clip: bool = False
    """Train plain CLIP as well, with the same seed, data order and steps, for comparison."""


def main(options: Options) -> int:
    """Run the example from packages to table; what an earlier call has finished is used again."""
    console = Console()
    packages = obtain(options.output / "packages", given=options.packages)
    emoji = read_emoji(packages)
    if not emoji:
        raise PowerclipError("the packages have no emoji in common")
    shards = {
        style: make_shards(emoji, package, style=style, output=options.output) for style, package in packages.items()
    }
    images = {
        style: {one.key: decode_image(image_path(package, style, one).read_bytes()) for one in emoji}
        for style, package in packages.items()
    }
    runs = {options.output / name: config for name, config in configs(options).items()}

    def evaluate_run(run: Path) -> None:
        """By global embeddings, and a model that learnt from regions and phrases by their score, too."""
        scores: tuple[Score, ...] = ("global", "powerset") if runs[run].objective.uses_regions else ("global",)
        evaluate(run, evaluation_tasks(emoji, images), scores=scores)

    done = finish_runs(runs, data=shards[TRAIN_STYLE]["train"], evaluate=evaluate_run, console=console)
    if not done:
        return 130
    found = read_evaluations({run.name: [run] for run in runs})
    results = {name: of_seeds[0].tasks for name, of_seeds in found.items()}
    record = {"trained_on": TRAIN_STYLE, "styles": STYLES, "held_out": HELD_OUT, "runs": results}
    write_json(options.output / "evaluation.json", record)
    model, preprocess, tokenizer = powerclip.load(options.output / "powerclip")
    sheet = options.output / "contact_sheet.png"
    write_contact_sheet(sheet, emoji, images, model=model, preprocess=preprocess, tokenizer=tokenizer)
    console.print(results_table(found).rich())
    console.print(
        f"Trained on {TRAIN_STYLE} alone, without {len(HELD_OUT)} profession and skin tone combinations; one seed. "
        f"Images: {sheet}",
        soft_wrap=True,
    )
    return 0


def configs(options: Options) -> dict[str, TrainConfig]:
    """The runs to train, by name; they differ in the objective alone."""
    base = recipe("emoji_tiny")
    base = dataclasses.replace(base, seed=options.seed, steps=options.steps or base.steps)
    plain = {"clip": base.with_objective("clip")} if options.with_clip else {}
    return {**plain, "powerclip": base}


def make_shards(emoji: Sequence[Emoji], package: Path, *, style: str, output: Path) -> dict[str, Path]:
    """Shards of one style, for training and held out: a CSV each, and then what ``powerclip prepare`` does."""
    shards = {}
    for split in ("train", "heldout"):
        chosen = [one for one in emoji if is_held_out(one) == (split == "heldout")]
        shards[split] = output / "shards" / style / split
        report = shards[split] / "report.json"
        if chosen and not (report.is_file() and json.loads(report.read_text())["unfinished_shards"] == 0):
            shutil.rmtree(shards[split], ignore_errors=True)
            table = write_table(chosen, package, style=style, path=output / "pairs" / style / f"{split}.csv")
            prepare(str(table), shards[split])
    return shards


def write_table(emoji: Sequence[Emoji], package: Path, *, style: str, path: Path) -> Path:
    """Write a folder of images and a CSV of path (from the CSV's folder) and caption."""
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "caption"))
        for one in emoji:
            target = folder / f"{one.key}.png"
            shutil.copyfile(image_path(package, style, one), target)
            caption = vary(with_tone(one.base, one.tones, key=one.key), key=one.key)
            table.writerow((target.relative_to(path.parent).as_posix(), caption))
    return path


if __name__ == "__main__":
    try:
        sys.exit(main(tyro.cli(Options)))
    except PowerclipError as error:
        print(f"emoji: {error}", file=sys.stderr)
        sys.exit(2)
