"""Weight-space ensembles: models between two,
against what fine-tuning forgets (Wortsman et al., CVPR 2022, WiSE-FT)."""

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from powerclip.config import EvaluateConfig, PoolingConfig
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_model, read_evaluation
from powerclip.evaluate.asked import require_data, suites_asked_for
from powerclip.evaluate.suites import benchmarks_of
from powerclip.files import atomic_folder, atomic_write, make_folder, read_json, write_json
from powerclip.model import PowerCLIP, architecture, load, make_tokenizer, save
from powerclip.model.digest import digest_of
from powerclip.model.tokenizer import vocabulary
from powerclip.progress import print_line
from powerclip.report.tables import read_evaluations, results_table, seeds_table
from powerclip.runs import require_free

PLAN = "interpolation.json"
"""What a folder was made of, and how it is evaluated."""

LOGIT_BIAS = "shape of backbone.logit_bias"
"""What the loss of SigLIP adds to an architecture."""


def interpolate(a: PowerCLIP, b: PowerCLIP, weight: float) -> PowerCLIP:
    """A model whose weights are ``(1 - weight) * a + weight * b``, elementwise; it scores and pools as ``b`` does.

    A bias of the logits, which is in no embedding, is taken as it is from the model that has one if the other has none.

    Raises:
        PowerclipError: the two are not of one architecture, or see, pool or tokenize images or texts in different ways.
        ValueError: the weight is not between 0 and 1.
    """
    _check(weight)
    _check_architectures(a, b)
    model = copy.deepcopy(b)
    if b.logit_bias is None and a.logit_bias is not None:
        model.backbone.logit_bias = copy.deepcopy(a.logit_bias)
        model.config["model"]["init_logit_bias"] = 0.0
    theirs = a.state_dict()
    with torch.no_grad():
        state = {name: _between(theirs.get(name, v), v, weight) for name, v in model.state_dict().items()}
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


def _check_architectures(a: PowerCLIP, b: PowerCLIP) -> None:
    before, after = architecture(a), architecture(b)
    if None in (a.logit_bias, b.logit_bias):
        before.pop(LOGIT_BIAS, None)
        after.pop(LOGIT_BIAS, None)
    if differing := [name for name in before | after if before.get(name) != after.get(name)]:
        values = f"{differing[0]} is {before.get(differing[0])} and {after.get(differing[0])}"
        raise PowerclipError(f"only models of the same architecture can be interpolated; of these, {values}")
    first, second = (model.config.get("model", {}).get("text_cfg", {}).get("hf_tokenizer_name") for model in (a, b))
    if first != second and vocabulary(make_tokenizer(a)) != vocabulary(make_tokenizer(b)):
        raise PowerclipError(
            "only models of the same vocabulary can be interpolated; the tokenizers of these, "
            f"{first or 'of CLIP'} and {second or 'of CLIP'}, have different ones"
        )


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

    A second call on the same folder skips what is finished.

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
        PowerclipError: as of ``interpolate`` and ``load``, or the evaluation's data are not there, before anything is
            written; weights are missing or equal; or ``output`` holds something else, or what was made of other models,
            with other weights or for another evaluation. As of ``evaluate_model``, when the data are read.
        ValueError: a weight is not between 0 and 1.
    """
    if not weights or len(set(weights)) < len(weights):
        raise PowerclipError(f"weights are {list(weights)}; name at least one, and each once")
    for weight in weights:
        _check(weight)
    started = (output / PLAN).exists()
    if not started:
        require_free(output)
        if evaluation is not None:
            require_data(evaluation.suite, evaluation.data)
    suites = suites_asked_for(evaluation.suite, evaluation.data) if evaluation is not None else []
    first, second = load(a)[0], load(b)[0]
    _check_architectures(first, second)
    if differing := differing_settings(first, second):
        print_line(console, f"Of {a} and {b}, {', '.join(differing)}; what is made here has those of {b}")
    folders = {weight: output if len(weights) == 1 else output / f"weight-{_named(weight)}" for weight in weights}
    plan = _plan(first, second, weights=weights, evaluation=evaluation)
    if started:
        _check_plan(output, plan)
    elif len(weights) > 1:
        make_folder(output)
        write_json(output / PLAN, plan)
    for weight, folder in folders.items():
        if not (started and folder.is_dir()):
            model = interpolate(first, second, weight)
            model.config = {**model.config, "start": f"{1 - weight:.15g} of {a} and {_named(weight)} of {b}"}
            with atomic_folder(folder) as made:
                save(model, made)
                if folder == output:  # the plan comes with the model
                    write_json(made / PLAN, plan)
        if evaluation is not None and not _is_evaluated(folder, suites):
            evaluate_model(str(folder), dataclasses.replace(evaluation, output=folder))
    if evaluation is not None:
        results = read_evaluations({_named(weight): [folder] for weight, folder in folders.items()})
        table = results_table(results)
        console.print(table.rich())
        if len(weights) > 1:
            atomic_write(output / "interpolation.md", table.markdown())
            atomic_write(output / "interpolation.csv", seeds_table(results).csv())
    return [*folders.values()]


def _plan(a: PowerCLIP, b: PowerCLIP, *, weights: Sequence[float], evaluation: EvaluateConfig | None) -> dict[str, Any]:
    """What decides the models and their results, as JSON has it."""
    asked = {} if evaluation is None else dataclasses.asdict(evaluation)
    decisive = {name: asked[name] for name in asked if name in ("suite", "data", "size", "scores", "pixels", "regions")}
    plan = {"models": [digest_of(a), digest_of(b)], "weights": [*weights], "evaluation": decisive}
    return dict(json.loads(json.dumps(plan, default=str)))


def _check_plan(output: Path, plan: dict[str, Any]) -> None:
    """Refuse a folder that was made to another plan."""
    before = read_json(output / PLAN)
    words = {"models": "of other models", "weights": "with other weights", "evaluation": "for another evaluation"}
    if changed := [said for name, said in words.items() if plan[name] != before.get(name)]:
        raise PowerclipError(f"{output} was made {' and '.join(changed)}; name another --output")


def _is_evaluated(folder: Path, suites: Sequence[str]) -> bool:
    """Whether nothing is left to measure; a suite all of whose data sets are absent has no result."""
    found = read_evaluation(folder)
    if found is None or found.pending:
        return False
    left = {*suites} - {*found.suite.split()}
    return all({b.name for b in benchmarks_of(name)} or {name} <= found.absent.keys() for name in left)
