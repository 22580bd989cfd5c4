"""The report on one or more runs: one HTML page that needs no other file."""

import base64
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from powerclip.config import read_yaml
from powerclip.errors import PowerclipError
from powerclip.files import atomic_write
from powerclip.model import PowerCLIP, load
from powerclip.report.pictures import Grounding, ground, picture, shown_phrases
from powerclip.report.plots import INSTRUMENTS, PANELS, Panel, curves, is_number, png
from powerclip.report.samples import own_pairs, scene_pairs
from powerclip.report.tables import TEMPLATES, Table, read_evaluations, results_table
from powerclip.runs import RunFolder, read_metrics

EXAMPLES = 6
"""Image-caption pairs whose grounding is shown."""


def write_report(runs: Mapping[str, Path], output: Path) -> Path:
    """Write an HTML page on runs, by the name to show: results, curves, grounding, settings. It says what a run lacks.

    The write is atomic and creates the file's folder. PowerclipError if a run's folder does not exist.
    """
    for name, run in runs.items():
        if not run.is_dir():
            raise PowerclipError(f"run {name}: there is no folder {run}; train it first, or check the path")
    evaluations = read_evaluations({name: [run] for name, run in runs.items()})
    page = TEMPLATES.get_template("page.html.jinja").render(
        runs=list(runs),
        results=results_table({name: found for name, found in evaluations.items() if found}),
        training=_training(runs),
        grounding=_grounding(runs),
        settings=_settings(runs),
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, page)
    return output


def _training(runs: Mapping[str, Path]) -> dict[str, Any]:
    metrics = {name: lines for name, run in runs.items() if (lines := read_metrics(RunFolder(run).metrics_file))}
    ends = []
    for name, lines in metrics.items():
        loss = next((line["loss"] for line in reversed(lines) if is_number(line.get("loss"))), None)
        ends.append({"name": name, "step": lines[-1]["step"], "samples": lines[-1].get("samples_seen"), "loss": loss})
    instruments = {}
    for question, group in INSTRUMENTS.items():
        if panels := [panel for panel in group if panel.in_any(metrics)]:
            instruments[question] = {"curves": _curves(metrics, panels), "panels": panels}
    shown = _curves(metrics, PANELS) if metrics else None
    return {"found": metrics, "curves": shown, "ends": ends, "instruments": instruments}


def _curves(metrics: Mapping[str, list[dict[str, Any]]], panels: Sequence[Panel]) -> dict[str, str]:
    titles = ", ".join(panel.title for panel in panels)
    return _image(curves(metrics, panels), f"Curves of {titles} over the training steps of {', '.join(metrics)}")


def _grounding(runs: Mapping[str, Path]) -> dict[str, Any]:
    models: dict[str, PowerCLIP] = {}
    for name, run in runs.items():
        with suppress(PowerclipError):
            models[name] = load(run)[0]
    pairs, notes = own_pairs({name: runs[name] for name in models}, count=EXAMPLES)
    are_own = bool(pairs)
    if models and not are_own:
        pairs = scene_pairs(count=EXAMPLES, image_size=next(iter(models.values())).image_size[0])
    images = []
    for pair in pairs:
        found = {name: ground(model, pair.image, pair.caption, pair.tree) for name, model in models.items()}
        images.append(_image(picture(found), _described(found), caption=pair.caption))
    return {"found": models, "images": images, "are_own": are_own, "notes": notes}


def _described(groundings: Mapping[str, Grounding]) -> str:
    """The phrases that are shown and the numbers below them, as text."""
    models = []
    for name, found in groundings.items():
        phrases = [f"{p.text} ({p.regions} regions, {p.score:.2f})" for p in shown_phrases(found.phrases)]
        models.append(f"{name}: {', '.join(phrases) or 'no phrase'}")
    return f"Where the model sees each phrase. {'; '.join(models)}."


def _settings(runs: Mapping[str, Path]) -> dict[str, Any]:
    """One row per setting and one column per run: those that differ, and those that are the same."""
    settings = {name: _read_settings(RunFolder(run).config_file) for name, run in runs.items()}
    names = dict.fromkeys(name for values in settings.values() for name in values)
    rows = [(name, *(values.get(name, "-") for values in settings.values())) for name in names]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    equal = [row for row in rows if row not in differing]
    parts = {"Different": differing, "The same in all runs" if len(runs) > 1 else "All": equal}
    tables = {title: Table(columns=("setting", *runs), rows=tuple(part)) for title, part in parts.items() if part}
    return {"found": [name for name, values in settings.items() if values], "tables": tables}


def _read_settings(path: Path) -> dict[str, str]:
    """A run's settings by dotted name; empty if the file is missing or not a mapping."""
    with suppress(ValueError):
        if isinstance(value := read_yaml(path), dict):
            return _flat(value)
    return {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        is_group = isinstance(value, dict) and value
        flat |= _flat(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": str(value)}
    return flat


def _image(figure: Figure, text: str, *, caption: str = "") -> dict[str, str]:
    """An image on the page: a data URI, its description for readers who cannot see it, and what is shown above it."""
    source = f"data:image/png;base64,{base64.b64encode(png(figure)).decode()}"
    return {"source": source, "text": text, "caption": caption}
