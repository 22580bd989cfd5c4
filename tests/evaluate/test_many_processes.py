"""Evaluation on two processes equals evaluation on one, to the last bit."""

import contextlib
import io
import json
import warnings
from pathlib import Path

import pytest
import torch

from powerclip import create_model
from powerclip.cli import main
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.encode import Encoder
from powerclip.model import make_tokenizer, make_transforms, save
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Classification, LinearProbe, Retrieval
from tests.support.colours import NAMES, ColourModel, preprocess, square, tokenizer
from tests.support.processes import run_on_processes


def tiny():
    torch.manual_seed(0)
    return create_model("tiny")


ONE_OF_EACH_KIND = {f"scenes-{kind}" for kind in ("object", "retrieval", "hard-negatives", "quadruples", "grounding")}


def evaluate(process, size, batch_size):
    model = tiny()
    arguments = (model, make_transforms(model)[1], make_tokenizer(model))
    tasks = [task for task in evaluation_tasks(seed=3, size=7) if task.name in ONE_OF_EACH_KIND]
    found = evaluate_tasks(*arguments, tasks, batch_size=batch_size)
    for score in ("powerset", "late"):
        found |= evaluate_tasks(*arguments, tasks, batch_size=batch_size, score=score)
    encoder = Encoder(*arguments, device="cpu", batch_size=batch_size)
    with torch.inference_mode():
        images = encoder.images(tasks[0].images)
    return found, images


def colours(process, size):
    images = [square(NAMES[i % 3]) for i in range(7)]
    tasks = [
        Classification(name="c", images=images, labels=[0, 1, 2, 0, 0, 0, 0], class_names=NAMES, templates=("a {c}",)),
        Retrieval(name="r", images=images[:3], captions=[(name, f"a {name}") for name in NAMES]),
        Retrieval(name="one", images=images[:1], captions=[("red",)]),
        LinearProbe(name="p", images=images, labels=[0, 1, 2, 0, 1, 2, 0], counts=(4, 1, 2), classes=3),
    ]
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # the probe's search ends at its end
        return evaluate_tasks(ColourModel(), preprocess, tokenizer, tasks, batch_size=2)


def test_two_processes_share_the_batches(tmp_path):
    expected = colours(0, 1)
    assert expected["c"]["acc@1"] == pytest.approx(5 / 7)
    for found in run_on_processes(2, colours, tmp_path):
        assert found == expected
        assert vars(found["c"]["acc@1"]) == vars(expected["c"]["acc@1"])


def said_by(process, size, command):
    """What a process of the command prints."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(command) == 0
    return said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize(("size", "batch_size"), [(2, 3), (2, 64), (3, 4)])
def test_every_process_gets_the_results_of_one(size, batch_size, tmp_path):
    expected, images = evaluate(0, 1, batch_size)
    for found, embedded in run_on_processes(size, evaluate, tmp_path, batch_size):
        assert found == expected
        assert torch.equal(embedded, images)


@pytest.mark.slow
def test_the_command_on_two_processes_writes_what_one_process_writes(tmp_path, capsys):
    save(tiny(), tmp_path / "model")
    command = ["evaluate", str(tmp_path / "model"), "--size", "40", "--batch-size", "32", "--output"]
    assert main([*command, str(tmp_path / "one")]) == 0
    table = capsys.readouterr().out
    assert run_on_processes(2, said_by, tmp_path, [*command, str(tmp_path / "two")]) == [table, ""]
    written = [json.loads(Path(tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two")]
    assert written[0] == written[1]
