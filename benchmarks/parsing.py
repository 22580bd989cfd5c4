"""Quality and speed of parsing: precision, recall and F1 of spans on hand-annotated captions, and captions per second.

    python benchmarks/parsing.py                     # spaCy's small English pipeline
    python benchmarks/parsing.py --parser spacy:en_core_web_trf --faults

The gold list is tests/phrases/phrases_gold.txt. A span counts as found if both ends agree,
up to punctuation and white space.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from powerclip.phrases import load_parser
from powerclip.phrases.clean import clean_caption
from powerclip.phrases.tree import PhraseTree
from powerclip.scenes import generate

GOLD = Path(__file__).parents[1] / "tests" / "phrases" / "phrases_gold.txt"

Span = tuple[str, int, int]
"""Label, and character span with the end exclusive."""


def read_gold(path: Path = GOLD) -> list[tuple[str, set[Span], str]]:
    """Caption, gold spans and heading of each annotated caption; cleaned, as captions are where they enter."""
    found, heading = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading = line.removeprefix("#").strip()
        elif line:
            found.append((*read_brackets(clean_caption(line)), heading))
    return found


def read_brackets(line: str) -> tuple[str, set[Span]]:
    """The caption of a bracketed line, and its spans."""
    caption, open_spans, spans = "", [], set()
    for piece in re.split(r"(\[[A-Z]+ |\])", line):
        if piece.startswith("["):
            open_spans.append((piece[1:-1], len(caption)))
        elif piece == "]":
            label, start = open_spans.pop()
            spans.add(trim(caption, label, start, len(caption)))
        else:
            caption += piece
    if open_spans:
        raise ValueError(f"a bracket is not closed: {line}")
    return caption, spans


def trim(caption: str, label: str, start: int, end: int) -> Span:
    """A span without white space and punctuation at its ends."""
    while start < end and not caption[start].isalnum():
        start += 1
    while end > start and not caption[end - 1].isalnum():
        end -= 1
    return label, start, end


def spans_of(caption: str, tree: PhraseTree) -> set[Span]:
    """The spans of a parsed caption."""
    return {trim(caption, p.label, tree.leaves[p.first][0], tree.leaves[p.last][1]) for p in tree.phrases}


def scores(pairs: list[tuple[set[Span], set[Span]]], *, labelled: bool) -> tuple[float, float, float]:
    """Precision, recall and F1 over all captions; found and gold spans of each."""
    if not labelled:
        pairs = [tuple({("", *span[1:]) for span in spans} for spans in pair) for pair in pairs]  # type: ignore[misc]
    right = sum(len(found & gold) for found, gold in pairs)
    found_all, gold_all = sum(len(found) for found, _ in pairs), sum(len(gold) for _, gold in pairs)
    precision, recall = right / max(found_all, 1), right / max(gold_all, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parser", default="spacy")
    arguments.add_argument("--faults", action="store_true", help="print every span that is missing or wrong")
    options = arguments.parse_args()
    parser, gold, console = load_parser(options.parser), read_gold(), Console(width=110, highlight=False)
    trees = list(parser.parse([caption for caption, _, _ in gold]))
    pairs = [(spans_of(caption, tree), spans) for (caption, spans, _), tree in zip(gold, trees, strict=True)]
    if options.faults:
        for (caption, _, _), (found, spans) in zip(gold, pairs, strict=True):
            for sign, wrong in (("missing", spans - found), ("wrong", found - spans)):
                for label, start, end in sorted(wrong):
                    console.print(f"{sign:8} {label:3} '{caption[start:end]}' in '{caption}'", markup=False)
    table = Table(title=f"{len(gold)} captions, {sum(len(s) for _, s in pairs)} gold spans")
    for heading in ("captions", "number", "precision", "recall", "F1", "labelled F1"):
        table.add_column(heading, justify="left" if heading == "captions" else "right")
    for heading, number in [*Counter(heading for _, _, heading in gold).items(), ("all", len(gold))]:
        chosen = [pair for pair, (_, _, own) in zip(pairs, gold, strict=True) if heading in (own, "all")]
        precision, recall, f1 = scores(chosen, labelled=False)
        labelled = scores(chosen, labelled=True)[2]
        table.add_row(heading, str(number), *(f"{value:.3f}" for value in (precision, recall, f1, labelled)))
    console.print(table)
    console.print(speeds(parser, [caption for caption, _, heading in gold if not heading.startswith("Three hundred")]))


def speeds(parser: Any, gold: list[str]) -> Table:
    """Captions a second in seconds of CPU time, which another program on the machine does not take part in.

    The captions are those of generated scenes, the gold list's, and three of these in a row: 20 words, as in CC12M.
    """
    joined = [" | ".join(gold[(i + k) % len(gold)] for k in range(3)) for i in range(len(gold))]
    sources = {"scenes": [sample.caption for sample in generate("train", count=2000, seed=0)]}
    sources |= {name: captions * (2000 // len(captions)) for name, captions in (("gold", gold), ("CC12M-like", joined))}
    table = Table(title="captions a second, one process")
    for heading in ("captions", "words", "spaCy alone", "cleaned and parsed", "share", "one by one"):
        table.add_column(heading, justify="left" if heading == "captions" else "right")
    for name, captions in sources.items():
        list(parser.parse(captions[:256]))
        bare = per_s(lambda: parser.nlp.pipe(captions, batch_size=parser.batch_size), len(captions))  # noqa: B023
        both = per_s(lambda: parser.parse(map(clean_caption, captions)), len(captions))  # noqa: B023
        single = per_s(lambda: (next(parser.parse([caption])) for caption in captions[:300]), 300)  # noqa: B023
        words = sum(len(caption.split()) for caption in captions) / len(captions)
        row = (f"{words:.1f}", f"{bare:.0f}", f"{both:.0f}", f"{both / bare:.0%}", f"{single:.0f}")
        table.add_row(name, *row)
    return table


def per_s(run: Callable[[], Iterable[Any]], count: int) -> float:
    """Captions per second of CPU time, the best of three runs."""
    times = []
    for _ in range(3):
        start = time.process_time()
        deque(run(), maxlen=0)
        times.append(time.process_time() - start)
    return count / min(times)


if __name__ == "__main__":
    main()
