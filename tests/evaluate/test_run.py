import csv
import dataclasses
import io
import json
import os
import shutil
import warnings
from threading import Thread

import open_clip
import pytest
import torch
from PIL import Image

from powerclip import create_model
from powerclip.cli import main
from powerclip.config import EvaluateConfig
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.evaluate import (
    CLASSIFICATION,
    SUITES,
    Evaluation,
    Origin,
    as_metrics,
    evaluate_model,
    evaluate_tasks,
    light_suite,
    read_evaluation,
    task_again,
)
from powerclip.evaluate.asked import SCENES_SEED
from powerclip.evaluate.averages import averages
from powerclip.evaluate.datasets.clip_benchmark import read_webdataset
from powerclip.evaluate.stored import add_result, lock, write_evaluation
from powerclip.evaluate.suites import CLIP_METRICS
from powerclip.model import load, load_any, save
from powerclip.model.digest import digest_of, digest_of_weights
from powerclip.report.tables import results_table
from powerclip.scenes import evaluation_tasks, generate
from powerclip.tasks import Retrieval
from tests.support.colours import ColourModel, preprocess, tokenizer
from tests.support.images import encoded
from tests.support.layouts import picture, webdataset, write_json
from tests.support.runs import own_data
from tests.support.tars import npy, write_tar

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    return save(create_model("tiny"), tmp_path_factory.mktemp("run") / "model")


def colours(folder):
    return webdataset(folder, [(name, str(i).encode()) for i, name in enumerate(NAMES)], "cls")


def evaluate(model, suite, data, output=None):
    return evaluate_model(str(model), EvaluateConfig(suite=(suite,), data=data, output=output))


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
    origin = found["measured_on"]["pets"]
    results = {"metrics": found["tasks"]["pets"], "estimates": found["estimates"]["pets"]}
    assert one == {"task": "pets", "weights": found["weights"], **origin, **results}
    assert found["measured_on"]["pets"]["data"] == str(data / "vtab" / "pets")
    assert found["measured_on"]["pets"]["n"] == 3
    table = capsys.readouterr().out
    assert "mean of 2 of 17" in table
    assert "absent: dtd: https://huggingface.co/datasets/clip-benchmark/wds_vtab-dtd\n" in table
    assert "| classification | mean of 2 of 17 |" in (model / "evaluation.md").read_text()
    lines = list(csv.DictReader((model / "evaluation.csv").read_text().splitlines()))
    assert float(lines[0]["value"]) == found["tasks"]["food101"]["acc@1"]
    absent = [line for line in lines if line["task"] == "dtd"]
    assert [(line["metric"], line["value"]) for line in absent] == [("absent", "")]


def test_several_suites_in_one_call(model, tmp_path):
    data = tmp_path / "data"
    webdataset(data / "flickr8k", [("red", b"red\na red"), ("blue", b"blue")], "txt", kind="retrieval")
    picture(data / "winoground" / "images" / "a.png", "red")
    line = {"image_0": "a", "image_1": "a", "caption_0": "red", "caption_1": "blue"}
    write_json(data / "winoground" / "examples.jsonl", line)
    suites = ("scenes", "retrieval", "compositionality")
    found = evaluate_model(str(model), EvaluateConfig(suite=suites, data=data, size=2, output=tmp_path / "out"))
    assert {"scenes-object", "flickr8k", "winoground"} <= set(found.tasks)
    assert found.averages["retrieval"].measured == 2
    assert found.averages["compositionality"].expected == 9
    assert found.tasks["winoground"] == {"text": 0, "image": 0, "group": 0}  # the same image twice: all ties
    assert (tmp_path / "out" / "evaluation" / "winoground.json").is_file()


def test_one_missing_data_set_of_several_stops_nothing(model, tmp_path):
    colours(tmp_path / "food101")
    config = EvaluateConfig(suite=("sugarcrepe", "food101"), data=tmp_path, output=tmp_path / "out")
    found = evaluate_model(str(model), config)
    assert list(found.tasks) == ["food101"]
    assert list(found.absent) == ["sugarcrepe"]
    with pytest.raises(PowerclipError, match="no data set of the sugarcrepe or pets suite; .* sugarcrepe, pets"):
        evaluate_model(str(model), dataclasses.replace(config, suite=("sugarcrepe", "pets")))
    with pytest.raises(PowerclipError, match="no data set of the sugarcrepe suite"):  # else it would watch less
        light_suite(["sugarcrepe", "food101"], tmp_path, image_size=64)


def test_averages_are_of_the_tasks_of_this_evaluation(model, tmp_path):
    for seed, name in enumerate(("first", "second")):
        write_shards(generate("test", count=3, seed=seed), tmp_path / name)
        found = evaluate(model, "pairs", tmp_path / name, tmp_path / "out")
    assert {task for task, _ in found.averages["retrieval"].over} == set(found.tasks) == {"retrieval:second"}
    assert results_table({"m": [found]}).rows[-1][2].standard_error is not None
    assert read_evaluation(tmp_path / "out").averages["retrieval"].measured == 4


def test_an_order_task_is_made_of_a_retrieval_set(model, tmp_path):
    captions = "\n".join(f"a red dog and {number} blue cats" for number in range(7)).encode()
    webdataset(tmp_path / "flickr30k", [("red", captions), ("blue", b"a blue one")], "txt", kind="retrieval")
    found = evaluate(model, "compositionality", tmp_path, tmp_path / "out")
    assert set(found.tasks) == {"aro-flickr30k-order"}
    assert found.measured_on["aro-flickr30k-order"].n == 8  # all captions, not five of an image
    assert "aro-coco-order" in found.absent


@pytest.mark.parametrize(
    ("suite", "with_data", "message"),
    [
        ("zoo", True, "unknown suite 'zoo'; suites: scenes, pairs, classes, classification"),
        ("clasification", True, "unknown suite 'clasification'; did you mean classification"),
        ("retrieval", False, "the retrieval suite needs data; add --data DIR"),
        ("robustness", True, "holds no data set of the robustness suite; expected folders named imagenetv2"),
    ],
)
def test_wrong_suites_are_named_before_anything_is_written(suite, with_data, message, model, tmp_path):
    with pytest.raises(PowerclipError, match=message):
        evaluate(model, suite, tmp_path if with_data else None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_release_s_own_folder_where_only_clip_benchmark_s_is_read(model, tmp_path):
    (tmp_path / "food101").mkdir()
    with pytest.raises(PowerclipError, match="is not in clip_benchmark's layout"):
        evaluate(model, "classification", tmp_path)


def test_a_truncated_release_says_so_in_the_table(model, tmp_path, capsys):
    colours(tmp_path / "food101")
    evaluate_model(str(model), EvaluateConfig(size=2, output=tmp_path / "out"))
    arguments = ["evaluate", str(model), "--suite", "classification", "--data", str(tmp_path)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert "food101 (3 of 25250)" in capsys.readouterr().out
    assert "| food101 (3 of 25250) | acc@1 |" in (tmp_path / "out" / "evaluation.md").read_text()
    assert "food101 (3 of 25250),acc@1," in (tmp_path / "out" / "evaluation.csv").read_text()
    assert "scenes-object,acc@1," in (tmp_path / "out" / "evaluation.csv").read_text()
    assert read_evaluation(tmp_path / "out").measured_on["food101"].of == 25250


@pytest.mark.parametrize(("name", "suite"), [("voc2007", "classification"), ("voc2007_multilabel", "multilabel")])
def test_voc_2007_is_two_sets(name, suite, model, tmp_path):
    webdataset(tmp_path / name, [("red", npy([1, 0, 1]))], "npy", kind="multilabel")
    if suite == "multilabel":
        assert set(evaluate(model, suite, tmp_path, tmp_path / "out").tasks[name]) == {"mAP"}
        return
    with pytest.raises(PowerclipError, match="holds a MultiLabel task; expected Classification for voc2007; the set"):
        evaluate(model, suite, tmp_path, tmp_path / "out")


def test_the_view_of_training_is_another_measurement(model, tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    image = Image.open(io.BytesIO(next(iter(generate("test", count=1, seed=0))).image))
    write_tar(tmp_path / "food101" / "test" / "0.tar", [("a.png", encoded(image, "PNG", exif=exif)), ("a.cls", b"0")])
    (tmp_path / "food101" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "food101" / "classnames.txt").write_text("\n".join(NAMES))
    (tmp_path / "food101" / "zeroshot_classification_templates.txt").write_text("a {c}")
    write_shards(generate("test", count=2, seed=0), tmp_path / "own")
    for pixels in ("pil", "training"):
        config = EvaluateConfig(suite=("classification",), data=tmp_path, pixels=pixels, output=tmp_path / "out")
        evaluate_model(str(model), config)
        evaluate_model(str(model), EvaluateConfig(data=tmp_path / "own", pixels=pixels, output=tmp_path / "out"))
    found = read_evaluation(tmp_path / "out")
    aside, *rest = sorted(found.tasks, key=lambda name: "#" not in name)
    assert aside.startswith("food101#")
    assert rest == ["food101", "retrieval:own"]
    assert found.measured_on["food101"].data == f"{tmp_path / 'food101'} (pixels: training)"


def test_an_average_of_nothing_is_none():
    assert averages(["robustness"], {})["robustness"].value is None


def test_results_on_other_data_are_added(model, tmp_path):
    for name, seed in (("A", 0), ("B", 1)):
        write_shards(generate("test", count=5, seed=seed), tmp_path / name)
    out = tmp_path / "out"
    first = evaluate(model, "pairs", tmp_path / "A", out)
    assert list(first.tasks) == ["retrieval:A"]
    second = evaluate(model, "pairs", tmp_path / "B", out)
    assert list(second.tasks) == ["retrieval:B"]
    evaluate_model(str(model), EvaluateConfig(suite=("scenes",), size=2, output=out))
    found = read_evaluation(out)
    assert found.tasks["retrieval:A"] == first.tasks["retrieval:A"]
    assert found.tasks["retrieval:B"] == second.tasks["retrieval:B"]
    assert found.suite == "pairs scenes"
    for name in ("A", "B"):
        origin = found.measured_on[f"retrieval:{name}"]
        assert (origin.suite, origin.data, origin.n) == ("pairs", str(tmp_path / name), 5)
    assert found.averages["retrieval"].measured == 8  # four data sets, both ways
    again = evaluate(model, "pairs", tmp_path / "A", out)
    assert read_evaluation(out).tasks == found.tasks
    assert again.tasks == first.tasks


def test_the_same_folder_with_other_pairs_is_other_data(model, tmp_path):
    write_shards(generate("test", count=5, seed=0), tmp_path / "data")
    before = evaluate(model, "pairs", tmp_path / "data", tmp_path / "out")
    shutil.rmtree(tmp_path / "data")
    write_shards(generate("test", count=6, seed=1), tmp_path / "data")
    evaluate(model, "pairs", tmp_path / "data", tmp_path / "out")
    found = read_evaluation(tmp_path / "out")
    aside = f"retrieval:data#{before.measured_on['retrieval:data'].fingerprint[:8]}"
    assert list(found.tasks) == [aside, "retrieval:data"]
    assert found.tasks[aside] == before.tasks["retrieval:data"]
    assert [found.measured_on[name].n for name in found.tasks] == [5, 6]
    files = [json.loads((tmp_path / "out" / "evaluation" / f"{name}.json").read_text()) for name in found.tasks]
    assert [(file["task"], file["n"]) for file in files] == [(aside, 5), ("retrieval:data", 6)]


def test_results_of_other_weights_are_set_aside(model, tmp_path):
    write_shards(generate("test", count=5, seed=0), tmp_path / "data")
    evaluate(model, "pairs", tmp_path / "data", tmp_path / "out")
    first = (tmp_path / "out" / "evaluation.json").read_text()
    torch.manual_seed(1)
    other = save(create_model("tiny"), tmp_path / "other" / "model")
    evaluate_model(str(other), EvaluateConfig(size=2, output=tmp_path / "out"))
    assert not any(name.startswith("retrieval") for name in read_evaluation(tmp_path / "out").tasks)
    (aside,) = (tmp_path / "out").glob("evaluation-*.json")
    assert aside.read_text() == first
    evaluate_model(str(model), EvaluateConfig(size=2, output=tmp_path / "out"))  # the first weights again
    assert {name.split("-")[0] for name in read_evaluation(tmp_path / "out").tasks} == {"retrieval:data", "scenes"}
    assert len(list((tmp_path / "out").glob("evaluation-*.json"))) == 1


def test_results_of_the_same_weights_used_in_another_way_are_set_aside(model, tmp_path):
    out = tmp_path / "out"
    evaluate_model(str(model), EvaluateConfig(size=2, output=out))
    first = read_evaluation(out)
    for name, change in {
        "quick": lambda config: config["model"].update(quick_gelu=True),
        "pool": lambda config: config.update(image_pool="tower"),
        "scoring": lambda config: config["scoring"].update(tau=0.5),
    }.items():
        shutil.copytree(model, tmp_path / name, ignore=shutil.ignore_patterns("SHA256SUMS", "evaluation*"))
        config = json.loads((tmp_path / name / "config.json").read_text())
        change(config)
        write_json(tmp_path / name / "config.json", config)
        evaluate_model(str(tmp_path / name), EvaluateConfig(size=2, output=out))
        assert read_evaluation(out).weights != first.weights
    assert len(list(out.glob("evaluation-*.json"))) == 3
    moved = shutil.copytree(model, tmp_path / "moved")  # another place is not another model
    evaluate_model(str(moved), EvaluateConfig(size=2, output=out))
    assert read_evaluation(out).weights == first.weights


def test_results_under_the_hash_of_earlier_versions_are_the_model_s(model, tmp_path):
    write_shards(generate("test", count=2, seed=0), tmp_path / "data")
    out = tmp_path / "out"
    evaluate(model, "pairs", tmp_path / "data", out)
    former = dataclasses.replace(read_evaluation(out), weights=digest_of_weights(load(model)[0]))
    former.write(out)
    evaluate_model(str(model), EvaluateConfig(size=2, output=out))
    assert {name.split("-")[0] for name in read_evaluation(out).tasks} == {"retrieval:data", "scenes"}
    assert read_evaluation(out).weights not in ("", former.weights)
    former.write(out)
    (out / "evaluation.json").rename(out / f"evaluation-{former.weights[:8]}.json")
    write_json(out / "evaluation.json", {"weights": "another", "tasks": {"other": {"acc@1": 0.5}}})
    evaluate_model(str(model), EvaluateConfig(size=2, output=out))
    assert {name.split("-")[0] for name in read_evaluation(out).tasks} == {"retrieval:data", "scenes"}


@pytest.mark.parametrize("trained_since", [False, True])
def test_results_that_do_not_name_their_weights_are_set_aside_if_the_model_is_newer(trained_since, tmp_path):
    torch.manual_seed(0)
    run = tmp_path / "run"
    weights = save(create_model("tiny"), run / "model") / "model.safetensors"
    write_json(run / "evaluation.json", {"suite": "pairs", "tasks": {"retrieval": {"i2t_R@1": 0.5}}})
    written = (run / "evaluation.json").stat().st_mtime_ns
    os.utime(weights, ns=(written, written + (1 if trained_since else -1) * 10**9))
    evaluate_model(str(run), EvaluateConfig(size=2))
    assert ("retrieval" in read_evaluation(run).tasks) is not trained_since
    assert (run / "evaluation-earlier.json").exists() is trained_since


def test_finished_tasks_are_kept_when_a_later_one_breaks_and_the_same_command_continues(model, tmp_path, capsys):
    for name in ("food101", "cifar10", "pets"):
        colours(tmp_path / name)
    tar = tmp_path / "cifar10" / "test" / "1.tar"
    whole, out = tar.read_bytes(), tmp_path / "out"
    tar.write_bytes(whole.replace(b"\x89PNG", b"gone"))
    arguments = ["--suite", "cifar10", "food101", "pets", "--data", str(tmp_path), "--output", str(out)]
    arguments = ["evaluate", str(model), *arguments]
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(
        " cannot be read (image format not read); download it again\n"
    )  # nothing is kept
    assert not out.exists()
    order = ("food101", "cifar10", "pets")
    arguments[3:6] = order
    for again in (False, True):  # again: nothing is new
        with warnings.catch_warnings(record=True, action="always") as warned:
            assert main(arguments) == 2
        assert [str(w.message)[:33] for w in warned] == ["continued: the results of food101"] * again
        assert capsys.readouterr().err.endswith(
            f"1.tar cannot be read (image format not read); download it again. The results of food101 are kept in "
            f"{out / 'evaluation.json'}; the same command continues with cifar10\n"
        )
        found = read_evaluation(out)
        assert list(found.tasks) == ["food101"]
        assert found.pending == ["cifar10", "pets"]
        assert (out / "evaluation" / "food101.json").is_file()
    tar.write_bytes(whole)
    ran, other = [], EvaluateConfig(suite=("food101",), data=tmp_path, output=tmp_path / "other")
    shutil.copytree(out, tmp_path / "other")
    evaluate_model(str(model), other, progress=ran.append)  # does not ask for what is pending: not continued
    config = EvaluateConfig(suite=order, data=tmp_path, output=out)
    with pytest.warns(UserWarning, match="the results of food101 are of the interrupted evaluation"):
        continued = evaluate_model(str(model), config, progress=ran.append)
    assert ran == ["food101", "cifar10", "pets"]
    assert list(continued.tasks) == ["food101", "cifar10", "pets"]
    assert not read_evaluation(out).pending
    assert evaluate_model(str(model), config, progress=ran.append).tasks == continued.tasks
    assert ran[3:] == ["food101", "cifar10", "pets"]  # all of it: it was finished


def test_an_interrupted_evaluation_measures_what_is_of_other_data(model, tmp_path):
    for name in ("food101", "cifar10"):
        colours(tmp_path / name)

    def stop(name):
        if name == "cifar10":
            raise KeyboardInterrupt

    config = EvaluateConfig(suite=("food101", "cifar10"), data=tmp_path, output=tmp_path / "out")
    with pytest.raises(KeyboardInterrupt) as caught:
        evaluate_model(str(model), config, progress=stop)
    assert caught.value.__notes__[0].endswith("the same command continues with cifar10")
    webdataset(tmp_path / "food101", [("red", b"1")], "cls")
    ran = []
    evaluate_model(str(model), config, progress=ran.append)
    assert ran == ["food101", "cifar10"]


def test_pairs_without_data_are_those_of_the_run(tmp_path):
    for name, seed in (("first", 0), ("second", 1)):
        write_shards(generate("test", count=4, seed=seed), tmp_path / name)
    run, sources = tmp_path / "run", tuple(str(tmp_path / name) for name in ("first", "second"))
    torch.manual_seed(0)
    save(create_model("tiny"), run / "model")
    with pytest.raises(
        PowerclipError, match=r"does not say which data it was trained on \(no data\.json\); add --data"
    ):
        evaluate(run, "pairs", None)
    provenance = {"samples": 8, "shards": 2, "digest": "x"}
    write_json(run / "data.json", {"sources": sources, **provenance})
    found = evaluate(run, "pairs", None)
    assert list(found.tasks) == ["retrieval:first", "retrieval:second"]
    assert [origin.data for origin in found.measured_on.values()] == list(sources)
    assert found.tasks["retrieval:first"] == evaluate(run, "pairs", tmp_path / "first").tasks["retrieval:first"]
    (tmp_path / "other").mkdir()
    shutil.move(tmp_path / "second", tmp_path / "other" / "first")
    sources = [str(tmp_path / "first"), str(tmp_path / "other" / "first")]
    write_json(run / "data.json", {"sources": sources, **provenance})
    assert list(evaluate(run, "pairs", None).tasks) == [f"retrieval:{source}" for source in sources]
    write_json(run / "data.json", {"sources": ["https://x.org/a.tar"], **provenance})
    with pytest.raises(PowerclipError, match=r"trained on https://x\.org/a\.tar, which is remote; add --data"):
        evaluate(run, "pairs", None)


def test_every_score_has_its_row(model, tmp_path):
    write_shards(generate("test", count=3, seed=0), tmp_path / "data")
    config = EvaluateConfig(data=tmp_path / "data", scores=("global", "powerset", "late"), output=tmp_path / "out")
    seen = []
    found = evaluate_model(str(model), config, progress=seen.append)
    assert list(found.tasks) == seen == ["retrieval:data", "retrieval:data-powerset", "retrieval:data-late"]
    assert found.averages.keys() == {"retrieval", "retrieval, powerset score", "retrieval, late interaction"}


def test_the_powerset_score_of_stored_regions_is_another_measurement(model, tmp_path):
    write_shards(generate("test", count=3, seed=0), tmp_path / "data")
    for regions in ("grid", "stored"):
        config = EvaluateConfig(
            suite=("pairs", "scenes"),
            data=tmp_path / "data",
            size=2,
            scores=("powerset",),
            regions=regions,
            output=tmp_path / "out",
        )
        evaluate_model(str(model), config)
    found = read_evaluation(tmp_path / "out")
    own = [name for name in found.tasks if name.startswith("retrieval")]
    assert own == ["retrieval:data-powerset", "retrieval:data-powerset-stored"]
    assert "scenes-retrieval-powerset-stored" not in found.tasks  # the scenes' tasks have no masks
    assert found.averages["retrieval, powerset score of stored regions"].measured == 2


def test_regions_that_are_not_stored_are_not_scored_as_if_they_were(model, tmp_path):
    own_data(tmp_path / "data", "a dog", "a cat")
    config = EvaluateConfig(data=tmp_path / "data", scores=("powerset",), regions="stored", output=tmp_path / "out")
    with pytest.raises(PowerclipError, match=f"no regions are stored in {tmp_path / 'data'}; make them with"):
        evaluate_model(str(model), config)
    with pytest.raises(PowerclipError, match="of your own shards; add the pairs suite"):
        evaluate_model(str(model), dataclasses.replace(config, suite=("scenes",), size=2))
    with pytest.raises(ValueError, match="regions is 'stored'; it must be 'grid' without the powerset score"):
        dataclasses.replace(config, scores=("global", "late"))
    task = Retrieval(name="r", images=[Image.new("RGB", (8, 8))], captions=[["a"]])
    for score, message in (("powerset", "no task has masks"), ("late", "which looks at no regions")):
        with pytest.raises(ValueError, match=message):
            evaluate_tasks(ColourModel(), preprocess, tokenizer, [task], score=score, regions="stored")


def test_the_light_suite_is_small_and_shows_no_image_of_the_real_one():
    light, real = light_suite(image_size=64, size=3), evaluation_tasks(seed=SCENES_SEED, size=3)
    assert [task.name for task in light] == [task.name for task in real]
    for a, b in zip(light, real, strict=True):
        if isinstance(a, Retrieval):
            assert len(a.images) == 3
            seen = {image.tobytes() for image in b.images}
            assert all(image.tobytes() not in seen for image in a.images)


def test_other_light_suites_are_those_of_the_evaluation(tmp_path, monkeypatch):
    write_shards(generate("test", count=5, seed=0), tmp_path)
    monkeypatch.setattr("powerclip.evaluate.asked.origin_of", None)  # files are not looked at
    (pattern,) = light_suite("pairs", tmp_path / "*.tar", image_size=64)
    assert len(pattern.images) == 5
    tasks = light_suite(["pairs", "scenes"], tmp_path, image_size=64, size=2)
    assert tasks[0].name == "retrieval"
    assert len(tasks) == 9
    with pytest.raises(PowerclipError, match="unknown suite 'zoo'"):
        light_suite("zoo", image_size=64)
    with pytest.raises(ValueError, match="size is 0"):
        light_suite(image_size=64, size=0)


@pytest.mark.filterwarnings("ignore:.* are the same in the prompt")  # to a model that knows colours alone
def test_a_training_goes_on_as_if_it_had_not_been_watched():
    colour_model = ColourModel().train()
    state = torch.get_rng_state()
    tasks = light_suite(image_size=64, size=2)
    with pytest.warns(UserWarning, match="scenes-grounding is skipped: it needs the regions .* which ColourModel"):
        results = evaluate_tasks(colour_model, preprocess, tokenizer, tasks, batch_size=2)
    assert list(results) == [task.name for task in tasks[:-1]]
    assert colour_model.training
    assert torch.equal(torch.get_rng_state(), state)
    flat = as_metrics(results)
    assert flat["eval/scenes-object/acc@1"] == results["scenes-object"]["acc@1"]
    assert len(flat) == sum(map(len, results.values()))


VISION = {
    "vit": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
    "resnet": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
}


@pytest.mark.parametrize("tower", VISION)
def test_any_model_of_open_clip_is_evaluated_by_name(tower, tmp_path, monkeypatch, capsys):
    name = f"small-{tower}"
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": VISION[tower], "text_cfg": text}
    write_json(tmp_path / "configs" / f"{name}.json", config)
    open_clip.add_model_config(tmp_path / "configs")
    torch.manual_seed(0)
    theirs, _, transform = open_clip.create_model_and_transforms(name)
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    data = tmp_path / "data"
    colours(data / "food101")
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", "--model", name, "--pretrained", "weights.pt", "--suite", "food101", "--data", str(data)]
    assert main(arguments) == 0
    assert "food101 (3 of 25250)" in capsys.readouterr().out
    found = read_evaluation(tmp_path)
    assert found.model == f"{name}:weights.pt"
    tasks = read_webdataset(data / "food101", "food101")
    expected = evaluate_tasks(theirs, transform, open_clip.get_tokenizer(name), tasks)
    assert found.tasks == expected
    assert main(["evaluate", name, "--pretrained", "weights.pt", "--suite", "scenes", "--size", "2"]) == 0
    lacking = (
        "absent: scenes-grounding: it needs the regions and phrases of a PowerCLIP model, which CLIP does not have\n"
    )
    assert (lacking in capsys.readouterr().out) is not hasattr(theirs.visual, "patch_size")
    found = read_evaluation(tmp_path)
    assert ("scenes-grounding" in found.absent) is not ("scenes-grounding" in found.tasks)
    assert main(["evaluate", name, "--pretrained", "no-such-tag"]) == 2
    assert "is neither a file, nor a run or model folder, nor a tag" in capsys.readouterr().err
    assert main(["evaluate"]) == 2
    assert "name one model" in capsys.readouterr().err


def test_linear_probes_of_the_sets_that_have_training_images(model, tmp_path, capsys):
    for name in ("food101", "vtab/pets", "vtab-cifar10"):
        colours(tmp_path / name)
    for name in ("food101", "vtab/pets"):
        samples = [(name, str(i).encode()) for i, name in enumerate(NAMES)] * 10
        webdataset(tmp_path / name, samples, "cls", split="train")
    arguments = ["evaluate", str(model), "--suite", "linear-probe", "food101", "--data", str(tmp_path)]
    with pytest.warns(UserWarning, match="is best at the end of the search"):  # colours are easily told apart
        assert main([*arguments, "--scores", "global", "powerset", "--output", str(tmp_path / "out")]) == 0
    found = read_evaluation(tmp_path / "out")
    assert set(found.tasks) == {"food101", "food101-powerset", "food101-linear-probe", "pets-linear-probe"}
    assert found.tasks["pets-linear-probe"]["acc@1"] == 1
    assert found.averages["linear-probe"].over == (("food101-linear-probe", "acc@1"), ("pets-linear-probe", "acc@1"))
    assert found.averages["linear-probe"].expected == len(SUITES["linear-probe"]) == 18
    assert found.absent["cifar10-linear-probe"].endswith("wds_vtab-cifar10")  # which has no training images
    assert "food101-linear-probe (3 of 25250)" in capsys.readouterr().out
    assert (
        (tmp_path / "out" / "evaluation.md").read_text().startswith("zero-shot and linear probes, % ± sampling error")
    )


def test_a_task_is_read_again_from_what_a_result_says_of_it(model, tmp_path):
    write_shards(generate("train", count=3, seed=0), tmp_path / "held-out")
    webdataset(tmp_path / "data" / "flickr8k", [(name, name.encode()) for name in NAMES], "txt", kind="retrieval")
    evaluate(model, "pairs", tmp_path / "held-out", tmp_path / "out")
    evaluate(model, "flickr8k", tmp_path / "data", tmp_path / "out")
    evaluate_model(str(model), EvaluateConfig(suite=("scenes",), size=2, output=tmp_path / "out"))
    measured = read_evaluation(tmp_path / "out").measured_on
    for name, images in (("retrieval:held-out", 2), ("flickr8k", 3), ("scenes-retrieval", 2), ("scenes-object", 2)):
        task = task_again(name, measured[name], size=2)
        assert len(task.images) == images
        assert task.name == name.split(":")[0]
    for name in ("flickr8k-powerset", "flickr8k-late"):
        for score in (None, name.removeprefix("flickr8k-")):  # older files have none
            origin = dataclasses.replace(measured["flickr8k"].with_pixels("training"), score=score)
            assert task_again(name, origin, size=2).name == "flickr8k"
    again = task_again("scenes-hard-negatives", measured["scenes-hard-negatives"], size=2)
    assert again.items[0].positive == evaluation_tasks(seed=SCENES_SEED, size=2)[5].items[0].positive
    shutil.rmtree(tmp_path / "held-out")
    assert task_again("retrieval:held-out", measured["retrieval:held-out"], size=2) is None


def test_data_sets_are_evaluated_by_name_and_once(model, tmp_path):
    colours(tmp_path / "food101")
    colours(tmp_path / "pets")
    config = EvaluateConfig(suite=("pets", "classification"), data=tmp_path, output=tmp_path / "out")
    found = evaluate_model(str(model), config)
    assert {name: origin.suite for name, origin in found.measured_on.items()} == {
        "pets": "pets",
        "food101": "classification",
    }
    assert found.averages["classification"].measured == 2
    with pytest.raises(
        PowerclipError, match="holds no data set of the sugarcrepe suite; expected folders named sugarcr"
    ):
        evaluate(model, "sugarcrepe", tmp_path)


def test_two_evaluations_at_once_into_one_folder_lose_nothing(model, tmp_path):
    out = tmp_path / "out"
    for name in ("food101", "cifar10", "pets"):
        colours(tmp_path / name)
    torch.manual_seed(1)
    other = save(create_model("tiny"), tmp_path / "other" / "model")
    config = EvaluateConfig(data=tmp_path, output=out, suite=("food101", "pets", "sugarcrepe"))

    def stop(name):
        if name == "stl10":
            raise KeyboardInterrupt

    def meanwhile(name):
        if name == "pets":
            evaluate(other, "cifar10", tmp_path, out)
            with pytest.raises(KeyboardInterrupt):
                evaluate_model(str(model), second, progress=stop)
            assert read_evaluation(out).pending == ["pets", "stl10"]

    colours(tmp_path / "stl10")
    second = dataclasses.replace(config, suite=("cifar10", "stl10", "winoground"))
    found = evaluate_model(str(model), config, progress=meanwhile)
    assert list(found.tasks) == ["food101", "pets"]
    assert list(found.absent) == ["sugarcrepe"]
    both = read_evaluation(out)
    assert set(both.tasks) == {"food101", "cifar10", "pets"}
    assert set(both.absent) == {"sugarcrepe", "winoground"}
    assert both.pending == ["stl10"]
    (aside,) = out.glob("evaluation-*.json")  # the other model's
    assert set(json.loads(aside.read_text())["tasks"]) == {"cifar10"}
    ran = []
    with pytest.warns(UserWarning, match="the results of cifar10 are of the interrupted evaluation"):
        evaluate_model(str(model), second, progress=ran.append)
    assert ran == ["stl10"]
    assert not read_evaluation(out).pending


def test_a_result_is_written_when_no_other_evaluation_writes(tmp_path):
    def result(name, pending):
        origin = Origin(suite="scenes", data="/d", fingerprint=name, n=1)
        evaluation = Evaluation(tasks={}, weights="w").with_result(name, {"acc@1": 0.5}, origin)
        return dataclasses.replace(evaluation, pending=pending)

    options = {"own": {"a", "c"}, "former": ""}
    writing = Thread(target=add_result, args=(tmp_path, result("a", ["c"]), "a"), kwargs=options)
    with lock(tmp_path):
        writing.start()
        writing.join(0.1)
        assert writing.is_alive()
        result("b", ["d"]).write(tmp_path)
    writing.join()
    assert list(read_evaluation(tmp_path).tasks) == ["b", "a"]
    assert read_evaluation(tmp_path).pending == ["d", "c"]


def test_models_of_open_clip_with_the_same_weights_and_another_activation_are_two(tmp_path):
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 32, "vision_cfg": VISION["resnet"], "text_cfg": text}
    names = ["small-plain", "small-quick"]
    for name in names:
        write_json(tmp_path / "configs" / f"{name}.json", {**config, "quick_gelu": name == "small-quick"})
    open_clip.add_model_config(tmp_path / "configs")
    torch.save(open_clip.create_model(names[0]).state_dict(), tmp_path / "weights.pt")
    digests = [digest_of(load_any(name, str(tmp_path / "weights.pt"))[0]) for name in (*names, names[0])]
    assert digests[0] == digests[2] != digests[1]


def test_a_model_in_the_form_of_transformers_is_named(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "clip"})
    with pytest.raises(
        PowerclipError, match="is in the format of Hugging Face's transformers; name open_clip's version"
    ):
        evaluate_model(str(tmp_path), EvaluateConfig(size=2))


def test_tasks_of_your_own_may_be_called_like_a_score(tmp_path):
    task = Retrieval(name="shots-late", images=[Image.new("RGB", (8, 8))], captions=[["a"]])
    results = {"shots-late": {"i2t_R@1": 1.0}, "shots-late-powerset": {"i2t_R@1": 0.5}}
    write_evaluation(tmp_path, results, tasks=[task], suite="mine")
    origins = read_evaluation(tmp_path).measured_on
    assert {name: origin.score for name, origin in origins.items()} == {
        "shots-late": "global",
        "shots-late-powerset": "powerset",
    }
