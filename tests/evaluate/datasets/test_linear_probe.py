from functools import partial

import pytest

from powerclip.errors import PowerclipError
from powerclip.evaluate.datasets.imagenet import read_imagenet
from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.datasets.linear_probe import read_linear_probe
from powerclip.evaluate.datasets.prompts import imagenet_label_of_synset
from powerclip.evaluate.results import origin_of
from tests.support.colours import COLOURS
from tests.support.layouts import picture, webdataset
from tests.support.tars import npy

RED, GREEN, BLUE = (("red", b"0"), ("green", b"1"), ("blue", b"2"))


def no_release(folder, name):
    raise PowerclipError(f"{folder} of {name}")


def colours_of(task):
    return [next(name for name, rgb in COLOURS.items() if rgb == open_picture(x).getpixel((0, 0))) for x in task.images]


@pytest.mark.parametrize("validation", [None, "val", "valid", "validation"])
def test_the_splits_of_clip_benchmark_s_layout(validation, tmp_path):
    for split, samples in (("train", [RED, GREEN, BLUE]), (validation, [GREEN]), ("test", [BLUE, RED])):
        if split is not None:
            webdataset(tmp_path, samples, "cls", split=split)
    (task,) = read_linear_probe(tmp_path, "food101-linear-probe", release=no_release)
    middle = ["green"] if validation else []
    assert colours_of(task) == ["red", "green", "blue", *middle, "blue", "red"]
    assert list(task.labels) == [0, 1, 2, *([1] if validation else []), 2, 0]
    assert (task.counts, task.classes) == ((3, len(middle), 2), 3)
    origin = origin_of(task, suite="s", data="d")
    assert origin.n == 2
    webdataset(tmp_path, [RED, GREEN, GREEN], "cls", split="train")  # another label
    (other,) = read_linear_probe(tmp_path, "food101-linear-probe", release=no_release)
    assert origin_of(other, suite="s", data="d").fingerprint != origin.fingerprint


def test_imagenet_s_folders(tmp_path):
    synsets = {label: synset for synset, label in imagenet_label_of_synset().items()}
    for split, labels in (("train", (6, 207)), ("val", (207, 6))):
        for label in labels:
            picture(tmp_path / split / synsets[label] / f"{split}.png", "red" if label == 6 else "blue")
    release = partial(read_imagenet, classes=2)
    (task,) = read_linear_probe(tmp_path, "imagenet1k-linear-probe", release=release)
    assert colours_of(task) == ["red", "blue", "red", "blue"]
    assert (list(task.labels), task.counts, task.classes) == ([0, 1, 0, 1], (2, 0, 2), 2)


def test_other_tasks_and_forms_are_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(PowerclipError, match="train of food101$"):
        read_linear_probe(tmp_path, "food101-linear-probe", release=no_release)
    for split in ("train", "test"):
        webdataset(tmp_path, [("red", npy([1, 0, 1]))], "npy", kind="multilabel", split=split)
    with pytest.raises(
        PowerclipError, match="holds MultiLabel, MultiLabel tasks; a linear probe needs images of one class each"
    ):
        read_linear_probe(tmp_path, "voc2007-linear-probe", release=no_release)
    webdataset(tmp_path, [RED], "cls", split="test")
    (tmp_path / "dataset_type.txt").unlink()
    (tmp_path / "train" / "0.tar").unlink()
    with pytest.raises(PowerclipError, match=r"train lacks 0\.tar of its 1 shards"):
        read_linear_probe(tmp_path, "voc2007-linear-probe", release=no_release)
