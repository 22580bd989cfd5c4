"""evaluation.json: what it keeps, what replaces what, and files of earlier versions."""

import json
from dataclasses import replace

import numpy as np
import pytest

from powerclip.errors import PowerclipError
from powerclip.evaluate.averages import averages, without_score
from powerclip.evaluate.datasets.images import START_BYTES, FileImage, ShardImage, TableImage, stamps
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
    Region,
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
    def task(folder, size=3, content=b"image"):
        folder.mkdir(exist_ok=True)
        for name in ("a.png", "b.parquet"):
            (folder / name).write_bytes(content)
        images = [FileImage(folder / "a.png"), TableImage(folder / "b.parquet", 0, 0, "image")]
        images.append(ShardImage(folder / "0.tar", "k", "png", (512, size)))
        return origin_of(Retrieval(name="r", images=images, captions=[("a",)] * 3), suite="s", data=str(folder))

    one = task(tmp_path / "x")
    assert one.fingerprint == task(tmp_path / "y").fingerprint
    assert one.fingerprint != task(tmp_path / "x", size=4).fingerprint
    assert one.fingerprint != task(tmp_path / "x", content=b"another").fingerprint


def test_a_file_is_its_size_and_its_start_where_that_is_asked_for(tmp_path):
    place = tmp_path / "a.png"
    place.write_bytes(b"one")
    image, own = FileImage(place), FileImage(place, by_content=True)
    before = stamps([image]), stamps([own])
    place.write_bytes(b"two")
    assert stamps([image]) == before[0]
    assert stamps([own]) != before[1]
    place.write_bytes(b"three")
    assert stamps([image]) != before[0]
    place.write_bytes(bytes(START_BYTES) + b"end")
    before = stamps([own])
    place.write_bytes(bytes(START_BYTES) + b"END")
    assert stamps([own]) == before  # the rest is not read
    place.unlink()
    with pytest.raises(PowerclipError, match=r"a\.png cannot be read \(.*; download it again"):
        stamps([image])


def test_a_file_of_many_images_is_looked_at_once(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"rows")
    rows = [TableImage(tmp_path / "a.parquet", 0, row, "image") for row in range(3)]
    assert stamps([Region(image=rows[0], box=(0, 0, 1, 1)), *rows]) == ["4"]


def test_an_interrupted_evaluation_is_continued_with_data_at_the_same_place():
    evaluation = Evaluation(tasks={}, pending=["b"]).with_result("a", {"acc@1": 0.5}, origin("1"))
    evaluation = replace(evaluation, pending=["b"])
    assert evaluation.kept({"a": origin("1"), "b": origin("2")}) == ["a"]
    assert evaluation.kept({"a": replace(origin("1"), data="/elsewhere"), "b": origin("2")}) == []
    of_two = replace(evaluation, pending=["b", "of another"])
    assert of_two.kept({"a": origin("1"), "b": origin("2")}) == ["a"]
    assert of_two.kept({"a": origin("1")}) == []


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
        "retrieval, powerset score": (0.2, 2, 6),
        "retrieval, late interaction": (0.4, 2, 6),
    }
    assert found["classification, other tasks"].over == (("scenes-object", "acc@1"), ("scenes-colour-object", "acc@1"))
    assert averages((), results)["classification"].value == 0.5


def test_an_average_of_another_score_is_over_the_same_tasks_and_metrics():
    of_task = {
        "cifar10": {"acc@1": 0.9},
        "imagenet-a": {"acc@1": 0.1},
        "imagenet1k": {"acc@1": 0.6},
        "winoground": {"text": 0.2, "image": 0.1, "group": 0.05},
        "sugarcrepe": {"micro": 0.5, "macro": 0.6},
        "cola": {"text": 0.3, "image": 0.3, "group": 0.1},
        "whatsup": {"macro": 0.4},
    }
    suites = ("classification", "robustness", "imagenet", "compositionality", "fine-grained")
    plain = averages(suites, of_task)
    found = averages(suites, {f"{task}{end}": of_task[task] for end in ("", "-late") for task in of_task})
    assert found == plain | {
        f"{name}, late interaction": replace(mean, over=tuple((f"{task}-late", metric) for task, metric in mean.over))
        for name, mean in plain.items()
        if mean.measured
    }


def test_data_of_your_own_may_be_called_like_a_score():
    evaluation = Evaluation(tasks={})
    for name, score in (("classes:a-late", "global"), ("classes:b", "global"), ("classes:a-late-late", "late")):
        evaluation = evaluation.with_result(name, {"acc@1": 0.5}, replace(origin("1"), score=score))
    over = evaluation.averages["classification"].over
    assert over == (("classes:a-late", "acc@1"), ("classes:b", "acc@1"))
    assert without_score("a-late-powerset") == "a-late"
    assert without_score("a-late", "global") == "a-late"
