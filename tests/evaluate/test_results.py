"""evaluation.json: what it keeps, what replaces what, and files of earlier versions."""

import json

import numpy as np
import pytest

from powerclip.evaluate.averages import averages
from powerclip.evaluate.datasets.images import FileImage, ShardImage
from powerclip.evaluate.metrics import Estimate
from powerclip.evaluate.results import Evaluation, Origin, origin_of, read_evaluation
from powerclip.tasks import (
    Classification,
    Grounding,
    HardNegative,
    HardNegatives,
    MultiLabel,
    Quadruple,
    Quadruples,
    Retrieval,
)
from tests.support.colours import square


def origin(fingerprint, suite="pairs", n=2):
    return Origin(suite=suite, data="/data", fingerprint=fingerprint, n=n)


def test_a_file_holds_everything_and_is_read_back(tmp_path):
    evaluation = Evaluation(
        tasks={}, absent={"dtd": "https://example.org"}, pending=["c", "b"], model="/runs/x", weights="abc"
    )
    evaluation = evaluation.with_result("a", {"acc@1": 0.5}, origin("1", "scenes"))
    estimate = Estimate(0.25, n=12, standard_error=0.125, chance=0.1)
    evaluation = evaluation.with_result("b", {"acc@1": estimate, "other": 0.5}, origin("2", "scenes"))
    evaluation.write(tmp_path / "new")
    found = read_evaluation(tmp_path / "new")
    assert found == evaluation
    assert vars(found.tasks["b"]["acc@1"]) == {"n": 12, "standard_error": 0.125, "chance": 0.1}
    assert not hasattr(found.tasks["b"]["other"], "n")
    value = json.loads((tmp_path / "new" / "evaluation.json").read_text())
    assert value["suite"] == "scenes"
    over = [["a", "acc@1"], ["b", "acc@1"]]
    assert value["averages"] == {"classification": {"value": 0.375, "measured": 2, "expected": 2, "over": over}}
    assert value["pending"] == ["c"]
    assert value["tasks"]["b"] == {"acc@1": 0.25, "other": 0.5}  # numbers, as before there were estimates
    assert value["estimates"] == {"b": {"acc@1": {"n": 12, "standard_error": 0.125, "chance": 0.1}}}
    assert value["measured_on"]["a"] == {"suite": "scenes", "data": "/data", "fingerprint": "1", "n": 2}
    assert read_evaluation(tmp_path) is None


def test_the_latest_data_have_the_name_and_none_is_lost():
    evaluation = Evaluation(tasks={"t": {"x": 0.1}})  # a file of before data were recorded
    for value, data in ((0.2, "aaaaaaaaaa"), (0.3, "bbbbbbbbbb"), (0.4, "bbbbbbbbbb"), (0.5, "aaaaaaaaaa")):
        evaluation = evaluation.with_result("t", {"x": value}, origin(data))
    assert evaluation.tasks == {"t#earlier": {"x": 0.1}, "t#bbbbbbbb": {"x": 0.4}, "t": {"x": 0.5}}
    assert {name: o.fingerprint for name, o in evaluation.measured_on.items()} == {
        "t#bbbbbbbb": "bbbbbbbbbb",
        "t": "aaaaaaaaaa",
    }


def test_results_on_earlier_data_are_in_no_average():
    evaluation = Evaluation(tasks={})
    for name, data in (("a", "1"), ("C#", "1"), ("a", "2")):
        evaluation = evaluation.with_result(name, {"acc@1": float(data) / 4}, origin(data, "scenes"))
    assert list(evaluation.tasks) == ["C#", "a#1", "a"]
    assert evaluation.averages["classification"].value == (0.5 + 0.25) / 2


def test_files_of_earlier_versions_are_read(tmp_path):
    (tmp_path / "evaluation.json").write_text(
        json.dumps({"suite": "scenes", "tasks": {"a": {"acc@1": 1}}, "averages": {}, "absent": {"b": "there"}})
    )
    found = read_evaluation(tmp_path)
    assert found == Evaluation(suite="scenes", tasks={"a": {"acc@1": 1.0}}, absent={"b": "there"}, pending=[])
    (tmp_path / "evaluation.json").write_text(json.dumps({"tasks": {"a": {"acc@1": 1}, "b": {"acc@1": 0}}}))
    assert read_evaluation(tmp_path).averages["classification"].value == 0.5


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"tasks": {"a": {"acc@1": "high"}}}', '{"tasks": 3}', '{"tasks": {}}', '{"other": {}}']
)
def test_a_damaged_file_holds_no_results(content, tmp_path):
    (tmp_path / "evaluation.json").write_text(content)
    assert read_evaluation(tmp_path) is None


def grounded(phrase, row):
    """A task of a phrase for a row of pixels."""
    mask = np.arange(4)[None, :, None].repeat(4, axis=2) == row
    return Grounding(name="g", images=[square("red")], phrases=[[phrase]], masks=[lambda: mask])


def variants():
    """Pairs of tasks that ask something else."""
    red, blue = square("red"), square("blue")
    texts = {"class_names": ["a"], "templates": ["{c}"]}

    def negative(**changes):
        item = {"image": red, "positive": "a", "negatives": ["b"], "kind": "k", **changes}
        return HardNegatives(name="h", items=[HardNegative(**item)])

    return [
        (
            Retrieval(name="r", images=[red, blue], captions=[("a",), ("b",)]),
            Retrieval(name="r", images=[red, red], captions=[("a",), ("b",)]),
        ),
        (
            Retrieval(name="r", images=[red, blue], captions=[("a", "b"), ("c",)]),
            Retrieval(name="r", images=[red, blue], captions=[("a",), ("b", "c")]),
        ),
        (
            Classification(name="c", images=[red], labels=[0], **texts),
            Classification(name="c", images=[red], labels=[1], **texts),
        ),
        (
            MultiLabel(name="m", images=[red], targets=[[0, 1]], **texts),
            MultiLabel(name="m", images=[red], targets=[[1, 1]], **texts),
        ),
        (negative(), negative(negatives=["b", "c"])),
        (negative(), negative(kind="l")),
        (
            Quadruples(name="q", items=[Quadruple(images=(red, blue), captions=("a", "b"))]),
            Quadruples(name="q", items=[Quadruple(images=(blue, red), captions=("a", "b"))]),
        ),
        (grounded("a", 0), grounded("b", 0)),
        (grounded("a", 0), grounded("a", 1)),
    ]


@pytest.mark.parametrize(("one", "other"), variants())
def test_a_fingerprint_is_of_everything_a_task_asks(one, other):
    first, second = (origin_of(task, suite="s", data="d") for task in (one, other))
    assert first.n == second.n > 0
    assert first.fingerprint != second.fingerprint
    assert origin_of(one, suite="t", data="e").fingerprint == first.fingerprint


def test_a_fingerprint_does_not_depend_on_where_the_data_are(tmp_path):
    def task(folder, size=3):
        images = [FileImage(folder / "a.png"), ShardImage(folder / "0.tar", "k", "png", (512, size))]
        return origin_of(Retrieval(name="r", images=images, captions=[("a",), ("b",)]), suite="s", data=str(folder))

    assert task(tmp_path / "x").fingerprint == task(tmp_path / "y").fingerprint
    assert task(tmp_path / "x").fingerprint != task(tmp_path / "x", size=4).fingerprint


def test_averages_are_of_public_suites_and_of_families():
    results = {
        "food101": {"acc@1": 0.5, "mean_per_class": 0.1},
        "pets": {"acc@1": 0.7, "mean_per_class": 0.9},
        "flickr8k": {"i2t_R@1": 0.2, "t2i_R@1": 0.4, "i2t_R@5": 1.0},
        "flickr8k-all-captions": {"i2t_R@1": 1.0, "t2i_R@1": 1.0},
        "flickr8k-powerset": {"i2t_R@1": 0.1, "t2i_R@1": 0.3},
        "flickr8k-all-captions-powerset": {"i2t_R@1": 1.0, "t2i_R@1": 1.0},
        "flickr8k-late": {"i2t_R@1": 0.3, "t2i_R@1": 0.5},
        "scenes-object": {"acc@1": 0.25},
        "scenes-object-late": {"acc@1": 1.0},
        "scenes-colour-object": {"acc@1": 0.75},
        "scenes-quadruples": {"group": 0.5},
    }
    found = averages(["scenes", "classification", "retrieval"], results)
    assert {name: (pytest.approx(a.value), a.measured, a.expected) for name, a in found.items()} == {
        "classification": (0.6, 2, 17),
        "classification, CLIP's metrics": (0.7, 2, 17),
        "retrieval": (0.3, 2, 6),
        "classification, other tasks": (0.5, 2, 2),
        "retrieval, powerset score": (0.2, 2, 2),
        "retrieval, late interaction": (0.4, 2, 2),
    }
    assert found["classification, other tasks"].over == (("scenes-object", "acc@1"), ("scenes-colour-object", "acc@1"))
    assert averages((), results)["classification"].value == 0.5
