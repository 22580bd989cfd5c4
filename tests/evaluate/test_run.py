import csv
import json

import pytest
import torch

from powerclip import create_model
from powerclip.cli import main
from powerclip.errors import PowerclipError
from powerclip.evaluate import CLASSIFICATION, SUITES, evaluate_model, read_evaluation, write_evaluation
from powerclip.evaluate.suites import CLIP_METRICS, average, averages
from powerclip.model import save
from tests.support.layouts import picture, webdataset, write_json

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return save(create_model("tiny"), tmp_path_factory.mktemp("run") / "model")


def colours(folder):
    return webdataset(folder, [(name, str(i).encode()) for i, name in enumerate(NAMES)], "cls")


def test_the_seventeen_data_sets_are_those_of_the_paper_s_family():
    names = (
        "food101 cifar10 cifar100 sun397 cars voc2007 fgvc_aircraft dtd pets caltech101 flowers stl10 eurosat resisc45"
    )
    assert [b.name for b in CLASSIFICATION] == [*names.split(), "gtsrb", "country211", "pcam"]
    assert {b.metrics for b in CLASSIFICATION} == {((b.name, "acc@1"),) for b in CLASSIFICATION}
    assert [n for n, m in CLIP_METRICS.items() if m != "acc@1"] == ["fgvc_aircraft", "pets", "caltech101", "flowers"]
    assert sum(len(b.metrics) for b in SUITES["retrieval"]) == 6


def test_what_is_absent_is_said_and_no_part_of_the_average(model, tmp_path, capsys):
    data = tmp_path / "data"
    colours(data / "wds_food101")
    colours(data / "vtab" / "pets")
    assert main(["evaluate", str(model), "--suite", "classification", "--data", str(data)]) == 0
    found = json.loads((model / "evaluation.json").read_text())
    assert set(found["tasks"]) == {"food101", "pets"}
    assert set(found["absent"]) == {b.name for b in CLASSIFICATION} - {"food101", "pets"}
    assert found["absent"]["dtd"] == "https://huggingface.co/datasets/clip-benchmark/wds_vtab-dtd"
    top1 = [found["tasks"][name]["acc@1"] for name in ("food101", "pets")]
    assert found["averages"]["classification"] == {
        "value": sum(top1) / 2,
        "measured": 2,
        "expected": 17,
        "over": [["food101", "acc@1"], ["pets", "acc@1"]],
    }
    one = json.loads((model / "evaluation" / "pets.json").read_text())
    assert one == {"task": "pets", "metrics": found["tasks"]["pets"]}
    table = capsys.readouterr().out
    assert "mean of 2 of 17" in table
    assert "absent: dtd: https://huggingface.co/datasets/clip-benchmark/wds_vtab-dtd\n" in table
    assert "| classification | mean of 2 of 17 |" in (model / "evaluation.md").read_text()
    lines = list(csv.DictReader((model / "evaluation.csv").read_text().splitlines()))
    assert float(lines[0]["value"]) == found["tasks"]["food101"]["acc@1"]
    assert {"task": "dtd", "metric": "absent", "value": ""} in lines


def test_several_suites_in_one_call(model, tmp_path):
    data = tmp_path / "data"
    webdataset(data / "flickr8k", [("red", b"red\na red"), ("blue", b"blue")], "txt", kind="retrieval")
    picture(data / "winoground" / "images" / "a.png", "red")
    line = {"image_0": "a", "image_1": "a", "caption_0": "red", "caption_1": "blue"}
    write_json(data / "winoground" / "examples.jsonl", line)
    found = evaluate_model(
        str(model), suite=["scenes", "retrieval", "compositionality"], data=data, size=2, output=tmp_path / "out"
    )
    assert {"scenes-object", "flickr8k", "winoground"} <= set(found.tasks)
    assert found.averages["retrieval"].measured == 2
    assert found.averages["compositionality"].expected == 9
    assert found.tasks["winoground"] == {"text": 0, "image": 0, "group": 0}  # the same image twice: all ties
    assert (tmp_path / "out" / "evaluation" / "winoground.json").is_file()


def test_an_order_task_is_made_of_a_retrieval_set(model, tmp_path):
    captions = b"a red dog and a blue cat\na big red square"
    webdataset(tmp_path / "flickr30k", [("red", captions), ("blue", b"a blue one")], "txt", kind="retrieval")
    found = evaluate_model(str(model), suite="compositionality", data=tmp_path, output=tmp_path / "out")
    assert set(found.tasks) == {"aro-flickr30k-order"}
    assert "aro-coco-order" in found.absent


@pytest.mark.parametrize(
    ("suite", "with_data", "message"),
    [
        ("zoo", True, "unknown suite 'zoo'; suites: scenes, pairs, classification"),
        ("retrieval", False, "the retrieval suite needs data; add --data DIR"),
        ("robustness", True, "holds no data set of the robustness suite; expected folders named imagenetv2"),
    ],
)
def test_wrong_suites_are_named_before_anything_is_written(suite, with_data, message, model, tmp_path):
    with pytest.raises(PowerclipError, match=message):
        evaluate_model(str(model), suite=suite, data=tmp_path if with_data else None, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_release_s_own_folder_where_only_clip_benchmark_s_is_read(model, tmp_path):
    (tmp_path / "food101").mkdir()
    with pytest.raises(PowerclipError, match="is not in clip_benchmark's layout"):
        evaluate_model(str(model), suite="classification", data=tmp_path)


def test_tasks_outside_the_public_suites_are_averaged_by_family():
    one = {"x": {"acc@1": 0.5}, "y": {"acc@1": 0.7}, "r": {"i2t_R@1": 0.2, "t2i_R@1": 0.4}, "q": {"group": 0.1}}
    assert {label: mean.value for label, mean in averages((), one).items()} == {
        "classification": pytest.approx(0.6),
        "retrieval": pytest.approx(0.3),
    }
    one |= {"food101": {"acc@1": 0.9}, "r-powerset": {"i2t_R@1": 0.6, "t2i_R@1": 0.8}}
    found = averages(["classification"], one)
    assert (found["classification"].value, found["classification"].measured) == (0.9, 1)
    assert found["classification, other tasks"].over == (("x", "acc@1"), ("y", "acc@1"))
    assert found["retrieval, powerset score"].value == pytest.approx(0.7)


def test_results_are_read_back_as_they_were_written(tmp_path):
    tasks = {"x": {"acc@1": 0.5}, "y": {"acc@1": 0.7}}
    written = write_evaluation(tmp_path / "evaluation.json", tasks, suite="emoji")
    assert read_evaluation(tmp_path) == written
    (tmp_path / "evaluation.json").write_text(json.dumps({"tasks": tasks}))  # as earlier versions wrote it
    assert read_evaluation(tmp_path).averages == written.averages
    for text in ("", "[]", '{"tasks": []}', '{"tasks": {"x": {"acc@1": "high"}}}', '{"tasks": {}}'):
        (tmp_path / "evaluation.json").write_text(text)
        assert read_evaluation(tmp_path) is None


def test_an_average_of_nothing_is_none():
    assert average("robustness", {})["robustness"].value is None
