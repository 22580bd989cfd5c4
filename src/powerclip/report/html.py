"""The report on one or more runs: one HTML page that needs no other file."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from powerclip.distributed import process_group
from powerclip.errors import PowerclipError
from powerclip.evaluate.encode import Encoder
from powerclip.files import atomic_write, require_writable
from powerclip.model import PowerCLIP, load, make_tokenizer, make_transforms
from powerclip.progress import wait
from powerclip.report.examples import POOL, Images, hard_negatives, retrieval
from powerclip.report.grounding import Grounding, ground, regions_of, rows
from powerclip.report.plots import PANELS, Panel, evaluation_panels, instruments, series
from powerclip.report.samples import own_pairs, scene_pairs, task_to_show
from powerclip.report.summary import facts, headlines, read_settings, suite_tables, verdicts, with_leads
from powerclip.report.tables import TEMPLATES, Table, cut_captions, read_evaluations
from powerclip.runs import RunFolder, read_metrics
from powerclip.tasks import HardNegatives, Retrieval

EXAMPLES = 6
"""Image-caption pairs whose grounding is shown."""

GROUNDED_SIDE = 400
"""Pixels of the longer side of their images."""

START_BYTES = 2**16
"""How much of a file is looked at to tell whether it is a report, and what is in it then."""

TITLE = b"powerclip report</title>"


def watch(
    runs: Mapping[str, Path], output: Path, *, every_s: float = 30.0, progress: Callable[[str], None] | None = None
) -> None:
    """Write the page again whenever a run has new metrics, results or weights, until it is interrupted.

    The page loads itself again in the browser. PowerclipError as ``write_report``.
    """
    before: list[int] = []
    while True:
        files = [
            file for run in map(RunFolder, runs.values()) for file in (run.metrics_file, run.evaluation_file, run.model)
        ]
        now = [file.stat().st_mtime_ns if file.exists() else 0 for file in files]
        if now != before:
            write_report(runs, output, reload_s=every_s, progress=progress)
            if progress and not before:
                progress(f"{output} is written; waiting for changes, Ctrl-C ends this")
            before = now
        wait(every_s)


def write_report(
    runs: Mapping[str, Path],
    output: Path,
    *,
    reload_s: float | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write an HTML page on runs, by the name to show: summary, results, curves, examples. It says what a run lacks.

    The write is atomic and creates the file's folder. The models run on a GPU if there is one; ``progress`` is called
    with each thing that takes time. A browser loads the page again every ``reload_s`` seconds, if given, as long as
    nobody uses it. PowerclipError if a run's folder does not exist or holds nothing of a run, or if ``output`` is
    another file than a report.
    """
    for name, run in runs.items():
        if not run.is_dir():
            raise PowerclipError(f"run {name}: there is no folder {run}; train it first, or check the path")
        if not RunFolder(run).holds_something():
            inside = ", ".join(sorted(str(file.parent) for file in run.glob("*/config.yaml")))
            raise PowerclipError(
                f"run {name}: {run} is no run: it holds no config.yaml, metrics.jsonl, evaluation.json or model; "
                f"name {f'those in it: {inside}' if inside else 'the folder of a run'}"
            )
    require_writable(output, folder=False)
    _require_report(output)
    found = read_evaluations({name: [run] for name, run in runs.items()})
    evaluations = {name: seeds for name, seeds in found.items() if seeds}
    say, images = progress or (lambda text: None), Images()
    unreadable = [name for name, run in runs.items() if not found[name] and RunFolder(run).evaluation_file.exists()]
    for name in unreadable:
        file = RunFolder(runs[name]).evaluation_file
        say(f"run {name}: no result can be read in {file} (move it away and evaluate again); going on without it")
    headline = headlines(evaluations)
    metrics = {name: lines for name, run in runs.items() if (lines := read_metrics(RunFolder(run).metrics_file))}
    with process_group() as device:
        models: dict[str, PowerCLIP] = {}
        damaged: dict[str, str] = {}
        for name, run in runs.items():
            try:
                models[name] = load(run, device=device)[0]
            except PowerclipError as error:
                if any(RunFolder(run).model.glob("*")) or any(run.glob("*config.json")):
                    damaged[name] = str(error)
                    say(f"run {name}: {error}; going on without its model")
        content: dict[str, Any] = {
            "runs": list(runs),
            "facts": facts(runs, metrics, models),
            "verdicts": verdicts(headline),
            "headlines": with_leads(headline),
            "suites": suite_tables(evaluations),
            "cut": {name: cut for name, (one,) in evaluations.items() if (cut := cut_captions(one))},
            "evaluated": list(evaluations),
            "unreadable": unreadable,
            "measured": list(metrics),
            "loaded": list(models),
            "damaged": damaged,
            "settings": _settings(runs),
        }
        subsets = {name: read_settings(RunFolder(run).config_file).get(SUBSETS, "all") for name, run in runs.items()}
        curves = _curves(metrics, subsets)
        grounding, masks = _grounding(runs, models, images, say)
        content |= {"curves": curves, "grounding": grounding, **_examples(runs, models, evaluations, images, say)}
    drawn = [group["panels"] for group in curves]
    data = {"runs": list(runs), "images": images.sources, "curves": drawn, "masks": masks}
    page = render(TEMPLATES.get_template("page.html.jinja"), data, reload_s=reload_s, **content)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, page)
    return output


def _require_report(output: Path) -> None:
    """PowerclipError if there is a file with something else than a report, which would be lost."""
    if output.exists():
        with output.open("rb") as file:
            start = file.read(START_BYTES).lower()
        if start and not (start.startswith(b"<!doctype html>") and TITLE in start):
            raise PowerclipError(f"output {output} is not a report but another file, which would be lost; name another")


def render(template: Template, data: Mapping[str, Any], *, style: str = "", script: str = "", **content: Any) -> str:
    """A page with the report's style and script, others after them, and as JSON the data that the scripts read."""
    # All of it is ours, so that it needs no escaping, but for what could end the element that holds the data.
    script = _part("page.js") + script
    return template.render(
        **content,
        data=Markup(json.dumps(data).replace("<", "\\u003c")),
        style=Markup(_part("page.css") + style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _curves(metrics: Mapping[str, list[dict[str, Any]]], subsets: Mapping[str, str]) -> list[dict[str, Any]]:
    """The groups of panels that a run has numbers for: a question, its panels' data, and how to read them."""
    groups: dict[str, Sequence[Panel]] = {"": PANELS, "How good is it while it trains?": evaluation_panels(metrics)}
    groups |= instruments(metrics, subsets)
    shown = {question: [panel for panel in group if panel.in_any(metrics)] for question, group in groups.items()}
    return [
        {"question": question, "panels": series(metrics, group), "readings": [p for p in group if p.reading]}
        for question, group in shown.items()
        if group
    ]


def _grounding(
    runs: Mapping[str, Path], models: Mapping[str, PowerCLIP], images: Images, say: Callable[[str], None]
) -> tuple[dict[str, Any], list[list[list[str]]]]:
    """The pairs with their trees, and the masks of each pair and run as strings of 0 and 1."""
    pairs, notes = own_pairs({name: runs[name] for name in models}, count=EXAMPLES)
    are_own = bool(pairs)
    if models and not are_own:
        pairs = scene_pairs(count=EXAMPLES, image_size=next(iter(models.values())).image_size[0])
    patches = sorted(name for name, model in models.items() if model.region_unit == "patch")
    stored = {
        name
        for name in models.keys() - set(patches)
        if read_settings(RunFolder(runs[name]).config_file).get(SOURCE) == "stored"
    }
    shown, masks = [], []
    for number, pair in enumerate(pairs):
        say(f"grounding, image {number + 1} of {len(pairs)}")
        found = {
            name: ground(
                model,
                pair.image,
                pair.caption,
                pair.tree,
                masks=regions_of(model, pair.regions) if name in stored else None,
            )
            for name, model in models.items()
        }
        most = scales(found)
        seen = {name: images.add(one.image, pair.caption, side=GROUNDED_SIDE).number for name, one in found.items()}
        shown.append({"caption": pair.caption, "rows": rows(found), "found": found, "seen": seen, "most": most})
        masks.append([one.mask_texts for one in found.values()])
    single = [name for name, model in models.items() if model.scoring.subsets == "single"]
    return {
        "samples": shown,
        "are_own": are_own,
        "notes": notes,
        "stored": sorted(stored),
        "patches": patches,
        "single": single,
        "subsets": sorted({model.scoring.subsets for model in models.values()}),
    }, masks


def scales(found: Mapping[str, Grounding]) -> dict[str, float]:
    """What the longest bar of each run stands for:
    one number for the runs whose scores are sums, one for the others."""
    return {name: max(one.best for one in found.values() if one.single == own.single) for name, own in found.items()}


SUBSETS = "objective.subsets"
"""The setting of a run that says whether sets of regions are scored."""

SOURCE = "objective.region_source"
"""The setting of a run that says which regions it was trained on."""


def _examples(
    runs: Mapping[str, Path],
    models: Mapping[str, PowerCLIP],
    evaluations: Mapping[str, Any],
    images: Images,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Retrieval and hard negatives of the runs with a model."""
    if not models:
        return {"retrieval": None, "hard_negatives": None}
    encoders = {
        name: Encoder(
            model, make_transforms(model)[1], make_tokenizer(model), device=model.logit_scale.device, batch_size=32
        )
        for name, model in models.items()
    }
    read = [one for seeds in evaluations.values() for one in seeds]
    options: dict[str, Any] = {"size": POOL, "image_size": next(iter(models.values())).image_size[0]}
    say("reading what to retrieve")
    task, origin = task_to_show(Retrieval, runs, read, **options)
    say(f"retrieval among up to {POOL} images")
    found: dict[str, Any] = {"retrieval": {"directions": retrieval(task, encoders, images), "origin": origin}}
    say(f"up to {POOL} hard negatives")
    negatives, origin = task_to_show(HardNegatives, runs, read, **options)
    items, wrong, asked = hard_negatives(negatives, encoders, images)
    return found | {"hard_negatives": {"shown": items, "wrong": wrong, "asked": asked, "origin": origin}}


def _settings(runs: Mapping[str, Path]) -> dict[str, Any]:
    """One row per setting and one column per run: those that differ, and those that are the same."""
    settings = {name: read_settings(RunFolder(run).config_file) for name, run in runs.items()}
    names = dict.fromkeys(name for values in settings.values() for name in values)
    rows = [(name, *(values.get(name, "-") for values in settings.values())) for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    equal = [row for row in rows if row not in differing]
    parts = {"Different": differing, "The same in all runs" if len(runs) > 1 else "All": equal}
    tables = {title: Table(columns=("setting", *runs), rows=tuple(part)) for title, part in parts.items() if part}
    return {"found": [name for name, values in settings.items() if values], "tables": tables}
