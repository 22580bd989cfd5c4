"""Weight-space ensembles: models between two,
against what fine-tuning forgets (Wortsman et al., CVPR 2022, WiSE-FT)."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from powerclip.config import EvaluateConfig, PoolingConfig
from powerclip.errors import PowerclipError
from powerclip.evaluate import Evaluation, evaluate_model
from powerclip.evaluate.run import suites_asked_for
from powerclip.files import atomic_write
from powerclip.model import PowerCLIP, architecture, load, save
from powerclip.progress import print_line
from powerclip.report.tables import results_table, seeds_table
from powerclip.runs import require_free


def interpolate(a: PowerCLIP, b: PowerCLIP, weight: float) -> PowerCLIP:
    """A model whose weights are ``(1 - weight) * a + weight * b``, elementwise; it scores and pools as ``b`` does.

    Raises:
        PowerclipError: the two are not of one architecture, or see or pool images or texts in different ways.
        ValueError: the weight is not between 0 and 1.
    """
    _check(weight)
    before, after = architecture(a), architecture(b)
    if differing := [name for name in before | after if before.get(name) != after.get(name)]:
        values = f"{differing[0]} is {before.get(differing[0])} and {after.get(differing[0])}"
        raise PowerclipError(f"only models of the same architecture can be interpolated; of these, {values}")
    theirs = a.state_dict()
    with torch.no_grad():
        state = {name: _between(theirs[name], value, weight) for name, value in b.state_dict().items()}
    model = copy.deepcopy(b)
    model.load_state_dict(state)
    return model


def differing_settings(a: PowerCLIP, b: PowerCLIP) -> list[str]:
    """In what the pooling and scoring of regions and phrases differ between two: "region_unit is region and patch"."""
    names = [field.name for field in dataclasses.fields(PoolingConfig)]
    before, after = ({**{name: getattr(m, name) for name in names}, **vars(m.scoring)} for m in (a, b))
    return [f"{name} is {value} and {after[name]}" for name, value in before.items() if value != after[name]]


def _check(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; it must be between 0 (the first model) and 1 (the second)")


def _between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    return torch.lerp(a, b, weight) if a.is_floating_point() else b


def _named(weight: float) -> str:
    """A weight in the fewest digits that no other has: "0.5", "1"."""
    return repr(float(weight)).removesuffix(".0")


def interpolate_runs(
    a: str,
    b: str,
    *,
    weights: Sequence[float],
    output: Path,
    evaluation: EvaluateConfig | None,
    console: Console,
) -> list[Path]:
    """Save the models between two, and evaluate them side by side if asked to.

    Args:
        a: what ``powerclip.load`` takes; the first model, weight 0.
        b: the second, weight 1.
        weights: shares of the second. The model of a single one is ``output`` itself, those of several are in
            ``output/weight-SHARE``.
        output: the folder; of several weights it also gets ``interpolation.md`` and ``.csv`` if they are evaluated.
        evaluation: what to evaluate on; None evaluates nothing.
        console: where the table is printed, and in which settings for regions and phrases the two differ.

    Returns:
        The model folders.

    Raises:
        PowerclipError: as of ``interpolate``, ``load`` and ``evaluate_model``, no or equal weights are given, or
            ``output`` is not empty.
        ValueError: a weight is not between 0 and 1.
    """
    if not weights or len(set(weights)) < len(weights):
        raise PowerclipError(f"weights are {list(weights)}; name at least one, and each once")
    for weight in weights:
        _check(weight)
    require_free(output)
    if evaluation is not None:
        suites_asked_for(evaluation.suite, evaluation.data)
    first, second = load(a)[0], load(b)[0]
    if differing := differing_settings(first, second):
        print_line(console, f"Of {a} and {b}, {', '.join(differing)}; what is made here has those of {b}")
    folders = [output if len(weights) == 1 else output / f"weight-{_named(weight)}" for weight in weights]
    results: dict[str, list[Evaluation]] = {}
    for weight, folder in zip(weights, folders, strict=True):
        model = interpolate(first, second, weight)
        model.config = {**model.config, "start": f"{1 - weight:.15g} of {a} and {_named(weight)} of {b}"}
        save(model, folder)
        if evaluation is not None:
            config = dataclasses.replace(evaluation, output=folder)
            results[_named(weight)] = [evaluate_model(str(folder), config)]
    if evaluation is not None:
        table = results_table(results)
        console.print(table.rich())
        if len(weights) > 1:
            atomic_write(output / "interpolation.md", table.markdown())
            atomic_write(output / "interpolation.csv", seeds_table(results).csv())
    return folders
