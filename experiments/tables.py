"""Tables and plots of the results that ``run.py`` left:
rewrites the marked parts of README and docs, and their pictures.

    python experiments/tables.py

Nothing is trained and nothing is typed in: every number comes from ``experiments/results``.
"""

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curves import curves, intervals_plot
from matplotlib.figure import Figure
from scipy.stats import t as student
from studies import OWN_SCORE, OWN_SCORES, STUDIES, Study

from powerclip.files import atomic_write, read_json
from powerclip.pixels import png
from powerclip.report.plots import PANELS, Panel
from powerclip.report.tables import Cell, Spread, Table

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
CLIP_LOSS = PANELS[0]
INSTRUMENTS = (
    CLIP_LOSS,
    Panel(
        title="above the zero", names=("matched_above_zero_share", "unmatched_above_zero_share"), limits=(-0.03, 1.03)
    ),
    Panel(title="active hinges", names=("active_share_i2t", "active_share_t2i"), limits=(-0.03, 1.03)),
    Panel(title="five commonest negatives", names=("hub_share_i2t", "hub_share_t2i"), limits=(-0.03, 1.03)),
    Panel(title="gradient ratio", names=("gradient_ratio",)),
)

Results = Mapping[str, Mapping[int, dict[str, Any]]]
"""Results by config and seed."""


SUMMARY_ROWS = {
    "scenes": (
        ("name of one symbol", "scenes-object", "acc@1"),
        ("name of one symbol, by S", f"scenes-object{OWN_SCORE}", "acc@1"),
        ("colour and name", "scenes-colour-object", "acc@1"),
        ("colour and name, combinations never seen", "scenes-colour-object-unseen", "acc@1"),
        ("image to text R@1", "scenes-retrieval", "i2t_R@1"),
        ("text to image R@1", "scenes-retrieval", "t2i_R@1"),
        ("image to text R@1, by S", f"scenes-retrieval{OWN_SCORE}", "i2t_R@1"),
        ("text to image R@1, by S", f"scenes-retrieval{OWN_SCORE}", "t2i_R@1"),
        ("hard negatives (chance 50)", "scenes-hard-negatives", "macro"),
        ("hard negatives, by S", f"scenes-hard-negatives{OWN_SCORE}", "macro"),
        ("of these, exchanged attributes, by S", f"scenes-hard-negatives{OWN_SCORE}", "swap_att"),
        ("two images, two captions, by S (chance 17)", f"scenes-quadruples{OWN_SCORE}", "group"),
        ("most is added by a patch of the object (chance 8)", "scenes-grounding", "contribution"),
        ("the same, asked by the last word", "scenes-grounding", "contribution_last"),
        ("best patch lies in the object (chance 8)", "scenes-grounding", "patch"),
        ("best box is the object's (chance 6)", "scenes-grounding", "region"),
    ),
    "emoji": (
        ("name of one emoji", "emoji-object", "acc@1"),
        ("name of one emoji, by S", f"emoji-object{OWN_SCORE}", "acc@1"),
        ("name of one emoji, drawn in another style", "emoji-object-new-style", "acc@1"),
        ("image to text R@1", "emoji-retrieval", "i2t_R@1"),
        ("text to image R@1", "emoji-retrieval", "t2i_R@1"),
        ("image to text R@1, by S", f"emoji-retrieval{OWN_SCORE}", "i2t_R@1"),
        ("text to image R@1, by S", f"emoji-retrieval{OWN_SCORE}", "t2i_R@1"),
        ("image to text R@1, combinations never seen, by S", f"emoji-retrieval-unseen{OWN_SCORE}", "i2t_R@1"),
        ("hard negatives (chance 50)", "emoji-hard-negatives", "macro"),
        ("hard negatives, by S", f"emoji-hard-negatives{OWN_SCORE}", "macro"),
        ("most is added by a patch of the emoji (chance 10)", "emoji-grounding", "contribution"),
        ("the same, asked by the last word", "emoji-grounding", "contribution_last"),
        ("best patch lies in the emoji (chance 10)", "emoji-grounding", "patch"),
        ("best box is the emoji's (chance 7)", "emoji-grounding", "region"),
    ),
    "emoji-coloured": (
        ("name of one emoji", "coloured-emoji-object", "acc@1"),
        ("name of one emoji, by S", f"coloured-emoji-object{OWN_SCORE}", "acc@1"),
        ("colour and name", "coloured-emoji-colour-object", "acc@1"),
        ("colour and name, by S", f"coloured-emoji-colour-object{OWN_SCORE}", "acc@1"),
        ("name of one emoji, drawn in another style", "coloured-emoji-object-new-style", "acc@1"),
        ("image to text R@1", "coloured-emoji-retrieval", "i2t_R@1"),
        ("text to image R@1", "coloured-emoji-retrieval", "t2i_R@1"),
        ("image to text R@1, by S", f"coloured-emoji-retrieval{OWN_SCORE}", "i2t_R@1"),
        ("text to image R@1, by S", f"coloured-emoji-retrieval{OWN_SCORE}", "t2i_R@1"),
        ("hard negatives (chance 50)", "coloured-emoji-hard-negatives", "macro"),
        ("hard negatives, by S", f"coloured-emoji-hard-negatives{OWN_SCORE}", "macro"),
        ("of these, exchanged colours, by S", f"coloured-emoji-hard-negatives{OWN_SCORE}", "swap_att"),
        (
            "exchanged colours, another style, by S",
            f"coloured-emoji-hard-negatives-new-style{OWN_SCORE}",
            "swap_att",
        ),
        ("of these, another relation, by S", f"coloured-emoji-hard-negatives{OWN_SCORE}", "replace_rel"),
        ("most is added by a patch of the emoji (chance 9)", "coloured-emoji-grounding", "contribution"),
        ("the same, asked by the last word", "coloured-emoji-grounding", "contribution_last"),
        ("best patch lies in the emoji (chance 9)", "coloured-emoji-grounding", "patch"),
    ),
}
"""What README and the page show of a study: a label, and a metric."""
IN_ANSWER = {
    *("name of one symbol", "image to text R@1", "image to text R@1, by S", "hard negatives, by S"),
    *("of these, exchanged attributes, by S", "most is added by a patch of the object (chance 8)"),
    *("name of one symbol, by S", "name of one emoji, by S", "name of one emoji, drawn in another style"),
    *("name of one emoji", "most is added by a patch of the emoji (chance 10)", "of these, exchanged colours, by S"),
    *("most is added by a patch of the emoji (chance 9)", "the same, asked by the last word"),
}
"""The rows of these that the answer has, in README and on the first page of the evidence."""
WORLDS = {"scenes": "symbols", "emoji": "emoji", "emoji-coloured": "emoji in colours"}
"""What the studies' data show."""
SHOWN = {
    **{"clip": "CLIP", "clip-tower": "CLIP's own pooling", "superpixels-32": "PowerCLIP"},
    **{"superpixels-32-both": "words too", "superpixels": "10 segments", "patches": "patches"},
}
"""The configs of the summaries: CLIP's, the demo's recipe, and what differs from it in one thing."""
NEAREST = {"filip": "FILIP"}
"""And the nearest relative, in the answer."""
IN_DETAILS_ALONE = {"superpixels", "patches"}
"""What the answer leaves out."""
DIFFERENCES = (
    *(("superpixels-32", "clip"), ("superpixels-32", "clip-tower"), ("superpixels-32", "superpixels")),
    ("superpixels-32-both", "superpixels-32"),
)
"""Of these configs, paired by seed."""


def main(docs: Path = DOCS, readme: Path = HERE.parent / "README.md") -> int:
    """Rewrite the pages, and their pictures beside them."""
    found = {name: read(study, HERE / "results" / name) for name, study in STUDIES.items()}
    for path in (readme, docs / "evidence.md"):
        atomic_write(path, replaced(path.read_text(encoding="utf-8"), "answer", answer(found).markdown()))
    atomic_write(docs / "evidence-answer.png", png(answer_plot(found)))
    for name, rows in SUMMARY_ROWS.items():
        path = docs / STUDIES[name].page
        body = summary(found[name], rows).markdown()
        atomic_write(path, replaced(path.read_text(encoding="utf-8"), f"{name}-summary", body))
    for name, study in STUDIES.items():
        path = docs / study.page
        page = path.read_text(encoding="utf-8")
        results = found[name]
        if name == "scenes":
            page = replaced(page, f"{name}-validation", validation(study, results).markdown())
            page = replaced(page, "choice", choice(found).markdown())
        for part in study.parts:
            shown = {config: results[config] for config in part.configs if results[config]}
            missing = [config for config in part.configs if config not in shown]
            if set(shown) <= set(part.against):  # nothing to compare
                page = replaced(page, f"{name}-{part.name}", f"Not run yet: {', '.join(missing)}.\n")
                continue
            body = [means(shown, study.metrics).markdown(), f"Seeds: {counts(shown)}.\n"]
            body += [f"Not run yet: {', '.join(missing)}.\n"] if missing else []
            body += [paired(shown, study.metrics, against=base).markdown() for base in part.against if base in shown]
            body.append(costs(shown).markdown())
            page = replaced(page, f"{name}-{part.name}", "\n".join(body))
            drawn = {config: lines(shown[config]) for config in part.drawn if config in shown}
            if drawn:
                atomic_write(docs / f"evidence-{name}-{part.name}-curves.png", png(curves(drawn, INSTRUMENTS)))
        atomic_write(path, page)
    return 0


def read(study: Study, folder: Path) -> Results:
    """The results of a study that are there."""
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in study.configs}
    for name in study.configs:
        for seed in study.seeds:
            if (path := folder / f"{name}-seed-{seed}.json").exists():
                found[name][seed] = read_json(path)
    return found


def value(result: Mapping[str, Any], metric: tuple[str, str], *, of: str = "tasks") -> float | None:
    """A metric of a run, by task and name; None if the run has none. A task's name may end with ``OWN_SCORE``."""
    task, name = metric
    if task.endswith(OWN_SCORE):
        own = OWN_SCORES.get(result["config"]["objective"]["name"])
        task = task.removesuffix(OWN_SCORE) + (f"-{own}" if own else "")
    found = result[of].get(task, {}).get(name)
    return None if found is None else float(found)


def values(seeds: Mapping[int, dict[str, Any]], metric: tuple[str, str]) -> dict[int, float]:
    """A metric of the runs that have it, by seed."""
    found = {seed: value(result, metric) for seed, result in seeds.items()}
    return {seed: v for seed, v in found.items() if v is not None}


def spread(seeds: Mapping[int, dict[str, Any]], metric: tuple[str, str]) -> Spread | None:
    """Its mean and deviation; None unless every run has it: the seeds stand below the table."""
    found = values(seeds, metric)
    return Spread(values=tuple(found.values())) if found and len(found) == len(seeds) else None


def differences(
    one: Mapping[int, dict[str, Any]], other: Mapping[int, dict[str, Any]], metric: tuple[str, str]
) -> list[float]:
    """The paired differences, in points, of the seeds that both have."""
    a, b = values(one, metric), values(other, metric)
    return [100 * (a[seed] - b[seed]) for seed in sorted(a.keys() & b.keys())]


def means(results: Results, metrics: Sequence[tuple[str, str]]) -> Table:
    """Mean and standard deviation over seeds, in percent."""
    rows = tuple(
        (metric[0].removeprefix("scenes-"), metric[1], *(spread(seeds, metric) for seeds in results.values()))
        for metric in metrics
    )
    return Table(columns=("task", "metric", *results), rows=rows)


def paired(results: Results, metrics: Sequence[tuple[str, str]], *, against: str) -> Table:
    """Differences to one config, seed by seed: mean and 95 % interval (Student's t), in points; "*" excludes 0."""
    others = [name for name in results if name != against]
    rows = tuple(
        (
            metric[0].removeprefix("scenes-"),
            metric[1],
            *(interval(differences(results[name], results[against], metric)) for name in others),
        )
        for metric in metrics
    )
    columns = ("task", "metric", *(f"{name} less {against}" for name in others))
    return Table(columns=columns, rows=rows, title=f"Paired differences to {against}, points, 95 % interval")


def summary(results: Results, metrics: Sequence[tuple[str, str, str]]) -> Table:
    """What is shown of CLIP and of PowerCLIP, and the paired differences."""
    configs = [config for config in SHOWN if results.get(config)]
    pairs = [pair for pair in DIFFERENCES if set(pair) <= set(configs)]
    rows: list[tuple[Cell, ...]] = []
    for label, task, name in metrics:
        metric = (task, name)
        spreads = (spread(results[config], metric) for config in configs)
        compared = (interval(differences(results[one], results[other], metric)) for one, other in pairs)
        rows.append((label, *spreads, *compared))
    less = [f"{SHOWN[one]} less {SHOWN[other]}" for one, other in pairs]
    seeds = counts({SHOWN[config]: results[config] for config in configs})
    return Table(
        columns=("", *(SHOWN[config] for config in configs), *less), rows=tuple(rows), title=f"%; seeds: {seeds}"
    )


ANSWER_DIFFERENCES = {
    "PowerCLIP less CLIP": ("superpixels-32", "clip"),
    "PowerCLIP less CLIP's own pooling": ("superpixels-32", "clip-tower"),
    "words too less PowerCLIP": ("superpixels-32-both", "superpixels-32"),
}


def answer(found: Mapping[str, Results]) -> Table:
    """The summaries' main rows, of all worlds."""
    configs = {name: label for name, label in (SHOWN | NEAREST).items() if name not in IN_DETAILS_ALONE}
    rows: list[tuple[Cell, ...]] = []
    for world, label, results, metric in answer_rows(found):
        spreads = (spread(results[name], metric) for name in configs)
        compared = (interval(values) for values in answer_differences(results, metric).values())
        rows.append((world, label, *spreads, *compared))
    shown = {world: {configs[name]: found[study][name] for name in configs} for study, world in WORLDS.items()}
    seeds = "; ".join(f"{world}: {counts(of_world)}" for world, of_world in shown.items())
    columns = ("world", "task", *configs.values(), *ANSWER_DIFFERENCES)
    return Table(columns=columns, rows=tuple(rows), title=f"%; seeds: {seeds}")


def answer_rows(found: Mapping[str, Results]) -> Iterator[tuple[str, str, Results, tuple[str, str]]]:
    """World, label, the world's results, and the metric."""
    for study, world in WORLDS.items():
        for label, task, name in SUMMARY_ROWS[study]:
            if label in IN_ANSWER:
                yield world, label, found[study], (task, name)


def answer_differences(results: Results, metric: tuple[str, str]) -> dict[str, list[float]]:
    """The paired differences that the answer shows, by what is compared."""
    return {
        name: differences(results[one], results[other], metric) for name, (one, other) in ANSWER_DIFFERENCES.items()
    }


def answer_plot(found: Mapping[str, Results]) -> Figure:
    """The answer's differences with their intervals."""
    return intervals_plot(
        {
            f"{world}: {label}": {
                name: mean_and_half(values) for name, values in answer_differences(results, metric).items() if values
            }
            for world, label, results, metric in answer_rows(found)
        }
    )


def validation(study: Study, results: Results) -> Table:
    """What settings are ranked by with seed 0, the best first."""
    found = {name: chosen_by for name, seeds in results.items() if (chosen_by := validated(study, seeds.get(0)))}
    ranked = sorted(found, key=lambda name: statistics.fmean(found[name]), reverse=True)
    rows = tuple((name, *(f"{100 * v:.1f}" for v in (statistics.fmean(found[name]), *found[name]))) for name in ranked)
    return Table(columns=("config", "mean", *study.chosen_by), rows=rows, title="Validation scenes, seed 0, %")


def validated(study: Study, run: Mapping[str, Any] | None) -> list[float]:
    """The metrics that a setting is chosen by, of one run; none if it has not been validated."""
    if not run or "validation" not in run:
        return []
    values = [value(run, metric, of="validation") for metric in study.chosen_by.values()]
    known = [v for v in values if v is not None]
    assert len(known) == len(values), f"{run['config']['recipe']} lacks a metric of the validation scenes"
    return known


def choice(found: Mapping[str, Results]) -> Table:
    """The mean of what settings are chosen by, over seeds, for those that were validated in all worlds."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for name in found["scenes"]:
        worlds = [
            [statistics.fmean(v) for run in found[world][name].values() if (v := validated(STUDIES[world], run))]
            for world in WORLDS
        ]
        if all(worlds):
            mean = statistics.fmean(statistics.fmean(seeds) for seeds in worlds)
            cells = (f"{100 * statistics.fmean(seeds):.1f} ({len(seeds)})" for seeds in worlds)
            rows.append((mean, (name, f"{100 * mean:.1f}", *cells)))
    columns = ("config", "mean", *WORLDS.values())
    ranked = tuple(cells for _, cells in sorted(rows, reverse=True))
    return Table(columns=columns, rows=ranked, title="Validation scenes, means of the same four metrics, % (seeds)")


def interval(differences: Sequence[float]) -> str:
    """Mean and 95 % interval of a mean; "*" if that excludes zero."""
    if not differences:
        return "-"
    mean, half = mean_and_half(differences)
    if len(differences) < 3:  # an interval of two seeds says nothing, and one in twenty excludes zero by chance
        return f"{mean:+.1f} ({('one seed', 'two seeds')[len(differences) - 1]})"
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]{'*' if abs(mean) > half else ''}"


def mean_and_half(differences: Sequence[float]) -> tuple[float, float]:
    """Mean, and the half-width of its 95 % interval (Student's t); infinite below three."""
    mean, n = statistics.fmean(differences), len(differences)
    if n < 3:
        return mean, math.inf
    return mean, float(student.ppf(0.975, n - 1)) * statistics.stdev(differences) / math.sqrt(n)


def costs(results: Results) -> Table:
    """Samples of a run, and the median speed over its steps and seeds."""
    rows: list[tuple[Cell, ...]] = []
    for name, seeds in results.items():
        samples = {run["config"]["steps"] * run["config"]["batch_size"] for run in seeds.values()}
        speeds = [speed for run in seeds.values() for speed in run["curves"]["samples_per_s"]]
        rows.append((name, " ".join(f"{n:,}" for n in sorted(samples)), f"{statistics.median(speeds):.0f}"))
    return Table(columns=("config", "samples seen", "samples a second"), rows=tuple(rows))


def counts(results: Results) -> str:
    """How many seeds each config has."""
    numbers = {name: len(seeds) for name, seeds in results.items()}
    if len(set(numbers.values())) == 1:
        return f"{next(iter(numbers.values()))} each"
    return ", ".join(f"{name} {n}" for name, n in numbers.items())


def lines(seeds: Mapping[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of the first seed, a mapping for each point."""
    columns = seeds[min(seeds)]["curves"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def replaced(page: str, name: str, body: str) -> str:
    """The page with another body between the marks of a part."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in page or end not in page:
        sys.exit(f"the page has no {begin} ... {end}; write them where the tables are to stand")
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n\n{body}\n{end}", page, flags=re.DOTALL
    )


if __name__ == "__main__":
    argparse.ArgumentParser(description=main.__doc__).parse_args()  # there are no options
    sys.exit(main())
