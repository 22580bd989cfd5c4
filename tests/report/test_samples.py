from dataclasses import replace

import numpy as np
import pytest

from powerclip.data.sample import Sample
from powerclip.data.shards import write_shards
from powerclip.evaluate import Evaluation, Origin
from powerclip.phrases import whole_caption_tree
from powerclip.regions import RegionAnnotation
from powerclip.report.samples import own_pairs, scene_pairs, task_to_show
from powerclip.scenes import generate
from powerclip.tasks import HardNegatives, Retrieval
from tests.support.images import one_colour
from tests.support.runs import own_data, record_data


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_pairs_are_spread_over_the_start_of_the_data(run, tmp_path):
    record_data(run, own_data(tmp_path / "data", *(f"caption {i}" for i in range(14))))
    pairs, notes = own_pairs({"run": run}, count=3)
    assert [pair.caption for pair in pairs] == ["caption 0", "caption 4", "caption 8"]
    assert notes == []
    assert {pair.image.size for pair in pairs} == {(40, 20)}
    assert pairs[0].tree == whole_caption_tree("caption 0")


def test_sources_and_runs_have_an_equal_share_and_a_shared_source_counts_once(run, tmp_path):
    first, second, third = (
        own_data(tmp_path / name, *(f"{name} {i}" for i in range(5)), image=one_colour(colour))
        for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"))
    )
    other = tmp_path / "other"
    other.mkdir()
    record_data(run, first, second)
    record_data(other, second, third)
    pairs, _ = own_pairs({"run": run, "other": other}, count=6)
    assert [pair.caption[0] for pair in pairs] == ["a", "a", "b", "b", "c", "c"]


def test_two_folders_of_the_same_images_show_different_ones(run, tmp_path):
    sources = []
    for name in ("a", "b"):
        write_shards(generate("train", count=6, seed=0), tmp_path / name)
        sources.append(tmp_path / name)
    record_data(run, *sources)
    pairs, _ = own_pairs({"run": run}, count=6)
    assert len({pair.image.tobytes() for pair in pairs}) == len(pairs) == 6


def test_broken_images_are_skipped(run, tmp_path):
    record_data(run, own_data(tmp_path / "bad", "x", image=b"no image"), own_data(tmp_path / "good", "y"))
    assert [pair.caption for pair in own_pairs({"run": run}, count=2)[0]] == ["y"]


def test_pairs_whose_regions_are_not_of_their_image_are_skipped(run, tmp_path):
    fits = RegionAnnotation.from_masks(np.ones((1, 8, 8), dtype=bool), scores=[1.0], proposer="test")
    regions = {"fits": fits, "larger": replace(fits, height=16), "malformed": replace(fits, rles=("0",))}
    samples = [
        Sample(key=key, image=one_colour(), image_extension="png", caption=key, regions=of_image)
        for key, of_image in regions.items()
    ]
    write_shards(samples, tmp_path / "data")
    record_data(run, tmp_path / "data")
    assert [pair.caption for pair in own_pairs({"run": run}, count=3)[0]] == ["fits"]


@pytest.mark.parametrize("text", [None, "{", '["x"]', "{}", '{"sources": 3}'])
def test_a_run_that_does_not_say_its_data_is_named(text, run):
    if text is not None:
        (run / "data.json").write_text(text)
    assert own_pairs({"r": run}, count=2) == ([], ["r does not say which data it was trained on."])


@pytest.mark.parametrize(
    ("source", "note"),
    [
        ("/nowhere/shards", "The data at /nowhere/shards cannot be read: "),
        ("http://host/{0..9}.tar", "The data at http://host/{0..9}.tar are remote, and a report downloads nothing."),
    ],
)
def test_data_that_cannot_be_shown_are_named(source, note, run):
    record_data(run, source)
    pairs, (said,) = own_pairs({"r": run}, count=2)
    assert pairs == []
    assert said.startswith(note)


def test_scenes_are_the_same_every_time_and_have_the_size_asked_for():
    pairs = scene_pairs(count=2, image_size=96)
    assert [pair.image.size for pair in pairs] == [(96, 96)] * 2
    assert [pair.caption for pair in pairs] == [pair.caption for pair in scene_pairs(count=2, image_size=96)]
    assert all(len(pair.tree.phrases) > 1 for pair in pairs)


def measured(**results):
    """An evaluation with the suite and data of each task."""
    metrics = {"scenes-hard-negatives": {"micro": 0.5}}
    return Evaluation(
        tasks={name: metrics.get(name, {"t2i_R@1": 0.5}) for name in results},
        measured_on={
            name: Origin(suite=suite, data=str(data), fingerprint="0", n=1) for name, (suite, data) in results.items()
        },
    )


def test_tasks_are_those_that_the_runs_were_evaluated_on_pairs_first_then_their_data_then_scenes(run, tmp_path):
    record_data(run, own_data(tmp_path / "own", *"abc"))
    held_out = own_data(tmp_path / "held-out", "x", "y")
    generated = "generated: seed 3, 64 pixels"
    options = {"size": 2, "image_size": 32}
    both = measured(**{"scenes-retrieval": ("scenes", generated), "retrieval": ("pairs", held_out)})
    task, origin = task_to_show(Retrieval, {"r": run}, [both], **options)
    assert (task.captions, origin) == (
        [("x",), ("y",)],
        "from retrieval, on which the results above were measured",
    )
    task, _ = task_to_show(Retrieval, {"r": run}, [measured(**{"scenes-retrieval": ("scenes", generated)})], **options)
    assert [image.size for image in task.images] == [(64, 64)] * 2
    for evaluations in ([], [measured(retrieval=("pairs", tmp_path / "gone"))]):
        task, origin = task_to_show(Retrieval, {"r": run}, evaluations, **options)
        assert task.captions == [("a",), ("b",)]
        assert origin.startswith("from the start of the data that the models were trained on, ")
    task, origin = task_to_show(HardNegatives, {"r": run}, [], **options)
    assert (task.name, len({id(item.image) for item in task.items}), origin) == (
        "scenes-hard-negatives",
        2,
        "generated scenes",
    )
