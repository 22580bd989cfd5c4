"""The report of one or more runs as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import yaml
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.files import atomic_write
from powerclip.model import PowerCLIP, load
from powerclip.report.pictures import ground, picture
from powerclip.report.plots import curves, png
from powerclip.report.tables import averages, best, rows
from powerclip.runs import RunFolder
from powerclip.scenes import generate

EXAMPLES = 6
EXAMPLE_SEED = 7

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>powerclip report</title><style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #8884; text-align: left; }
td.n, th.n { text-align: right; } td.best { font-weight: 700; }
img { max-width: 100%; background: white; border-radius: 6px; margin: .5rem 0; }
.wide { overflow-x: auto; } summary { cursor: pointer; }
.note { opacity: .75; } code { font-size: .9em; }
</style></head><body>
<h1>powerclip report</h1>
$body
</body></html>
""")


def write_report(runs: Mapping[str, Path], output: Path) -> Path:
    """Write a page on runs: results, curves, grounding pictures, settings. What a run lacks is said.

    Args:
        runs: run folders by the name to show.
        output: the HTML file; it appears whole.

    Raises:
        PowerclipError: a folder is not there.
    """
    for name, run in runs.items():
        if not run.is_dir():
            raise PowerclipError(f"run {name} is to be in {run}, and there is no such folder; train it first")
    body = "\n".join((_results(runs), _curves(runs), _groundings(runs), _settings(runs)))
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, PAGE.substitute(body=body))
    return output


def _results(runs: Mapping[str, Path]) -> str:
    results = {name: RunFolder(run).results() for name, run in runs.items()}
    parts = ["<h2>Zero-shot results</h2>"]
    missing = [name for name, tasks in results.items() if not tasks]
    if missing:
        parts.append(f"<p class=note>Not evaluated: {escape(', '.join(missing))} (powerclip evaluate RUN).</p>")
    found = rows(results) + averages(results)
    if found:
        head = "".join(f"<th class=n>{escape(name)}</th>" for name in results)
        lines = [f"<tr><th>task</th><th>metric</th>{head}</tr>"]
        for task, metric, values in found:
            top = best(values)
            cells = "".join(
                f'<td class="n{" best" if value is not None and value == top else ""}">'
                f"{'-' if value is None else f'{100 * value:.1f}'}</td>"
                for value in values
            )
            lines.append(f"<tr><td>{escape(task)}</td><td>{escape(metric)}</td>{cells}</tr>")
        parts.append(f"<div class=wide><table>{''.join(lines)}</table></div>")
        parts.append(
            "<p class=note>Percent, higher is better. One run and one seed each: a few points may be chance.</p>"
        )
    return "\n".join(parts)


def _curves(runs: Mapping[str, Path]) -> str:
    metrics = {name: lines for name, run in runs.items() if (lines := RunFolder(run).metrics())}
    if not metrics:
        return "<h2>Training</h2><p class=note>No metrics yet.</p>"
    ends = "".join(
        f"<li>{escape(name)}: {lines[-1].get('step', '?')} steps, {lines[-1].get('samples_seen', '?')} samples, "
        f"loss {next((line['loss'] for line in reversed(lines) if line.get('loss') is not None), math.nan):.3f}</li>"
        for name, lines in metrics.items()
    )
    return f"<h2>Training</h2>{_image(png(curves(metrics)), 'training curves')}<ul>{ends}</ul>"


def _groundings(runs: Mapping[str, Path]) -> str:
    models: dict[str, PowerCLIP] = {}
    missing = []
    for name, run in runs.items():
        try:
            models[name] = load(run)[0]
        except PowerclipError:
            missing.append(name)
    note = f"<p class=note>No whole model yet: {escape(', '.join(missing))}.</p>" if missing else ""
    if not models:
        return f"<h2>What the phrases are grounded in</h2>{note}"
    size = next(iter(models.values())).image_size[0]
    figures = []
    for sample in generate("test", count=EXAMPLES, seed=EXAMPLE_SEED, image_size=size):
        image = Image.open(io.BytesIO(sample.image)).convert("RGB")
        assert sample.tree is not None
        found = {name: ground(model, image, sample.caption, sample.tree) for name, model in models.items()}
        figures.append(_image(png(picture(image, sample.caption, found)), sample.caption))
    return (
        "<h2>What the phrases are grounded in</h2><p>For each phrase of a caption, the set of boxes that maximises "
        "the alignment, {m : s > 0}, laid over the image by its similarity. Test scenes, boxes of two fixed sizes; "
        "under the words, how many boxes are in the set and their summed similarity.</p>" + note + "\n".join(figures)
    )


def _settings(runs: Mapping[str, Path]) -> str:
    """One row a setting, one column a run; the settings that differ first and marked."""
    settings = {name: _read_settings(run / "config.yaml") for name, run in runs.items()}
    missing = [name for name, values in settings.items() if not values]
    note = f"<p class=note>No readable config.yaml: {escape(', '.join(missing))}.</p>" if missing else ""
    names = dict.fromkeys(name for values in settings.values() for name in values)
    table = {name: [values.get(name, "-") for values in settings.values()] for name in names}
    differing = {name: row for name, row in table.items() if len(set(row)) > 1}
    alike = {name: row for name, row in table.items() if name not in differing}
    head = "".join(f"<th>{escape(name)}</th>" for name in runs)
    parts = ["<h2>Settings</h2>", note]
    for title, part in (("What differs", differing), ("All the same" if len(runs) > 1 else "All", alike)):
        if part:
            body = "".join(
                f"<tr><td>{escape(name)}</td>{''.join(f'<td><code>{escape(v)}</code></td>' for v in row)}</tr>"
                for name, row in part.items()
            )
            table_html = f"<div class=wide><table><tr><th>setting</th>{head}</tr>{body}</table></div>"
            opened = " open" if part is differing else ""
            parts.append(f"<details{opened}><summary>{title} ({len(part)})</summary>{table_html}</details>")
    return "\n".join(parts)


def _read_settings(path: Path) -> dict[str, str]:
    """A run's settings by dotted name, none where the file is missing or no mapping."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return _flat(value) if isinstance(value, dict) else {}


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            found |= _flat(inner, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = str(inner)
    return found


def _image(data: bytes, text: str) -> str:
    return f'<img alt="{escape(text, quote=True)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
