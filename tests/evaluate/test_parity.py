"""Our metrics equal clip_benchmark's own functions, and a loaded model runs in them unchanged.

They differ where two scores tie in retrieval: there clip_benchmark takes the item that stands first, we count the tie
as wrong; and where captions are copies of each other: there clip_benchmark has one of them right, we have all.
"""

import gc
import math
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_wds_dataset, image_captions_collate_fn
from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

import powerclip
from powerclip import create_model
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.datasets.clip_benchmark import read_webdataset
from powerclip.evaluate.metrics import (
    RECALLS,
    average_precision_metrics,
    class_embeddings,
    hard_negative_metrics,
    quadruple_metrics,
    same_texts,
)
from powerclip.model import save
from powerclip.scenes import generate
from tests.support.layouts import webdataset
from tests.support.retrieval import accuracies, recalls
from tests.support.tars import npy

CLOSE = 1e-6  # means of at most a few hundred zeros and ones, in float32 there


THEIR_ACCURACY = zeroshot_classification.accuracy
EXAMPLE = Path(__file__).parents[2] / "examples" / "clip_benchmark_cli.py"


@pytest.fixture(autouse=True)
def their_accuracy(monkeypatch):
    """That of the example: NumPy 2.4 no longer runs clip_benchmark 1.6.2's."""
    monkeypatch.setattr(zeroshot_classification, "accuracy", runpy.run_path(str(EXAMPLE))["accuracy"])


@pytest.mark.parametrize("seed", range(3))
def test_the_example_s_accuracy_is_theirs_where_numpy_runs_theirs(seed, monkeypatch):
    scores, labels = random_features(40, D=9, seed=seed), torch.arange(40) % 9
    ours = zeroshot_classification.accuracy(scores, labels, topk=(1, 5))
    if np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        with pytest.raises(TypeError, match="only 0-dimensional arrays can be converted"):
            THEIR_ACCURACY(scores, labels, topk=(1, 5))
        monkeypatch.setattr(zeroshot_classification, "float", lambda array: array.item(), raising=False)
    assert ours == pytest.approx(THEIR_ACCURACY(scores, labels, topk=(1, 5)), abs=CLOSE)


class Features(torch.nn.Module):
    """A model whose inputs are the features; a text "7" is row 7 of a table."""

    def __init__(self, texts):
        super().__init__()
        self.table = texts

    def encode_image(self, images):
        return images.flatten(1)

    def encode_text(self, tokens):
        return self.table[tokens]

    def tokenize(self, texts):
        return torch.tensor([int(text) for text in texts])


class Rows(torch.utils.data.Dataset):
    def __init__(self, images, targets, classes=()):
        self.images, self.targets, self.classes = images, targets, list(classes)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], self.targets[index]


def random_features(rows, D=6, seed=0):
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed))


def their_classification(images, texts, targets, templates):
    classes = len(texts) // templates
    names = [str(templates * c) for c in range(classes)]
    prompts = {name: [str(int(name) + p) for p in range(templates)] for name in names}
    model = Features(texts)
    loader = DataLoader(Rows(images, targets, names), batch_size=7)
    return zeroshot_classification.evaluate(model, loader, model.tokenize, names, prompts, "cpu", amp=False)


@pytest.mark.parametrize("classes", [3, 5, 9])
def test_accuracies(classes):
    images, texts = random_features(120), random_features(2 * classes, seed=1)
    labels = torch.arange(120) % classes
    theirs = their_classification(images, texts, labels, templates=2)
    embedded = class_embeddings(normalize(texts, dim=-1).view(classes, 2, -1))
    ours = accuracies(normalize(images, dim=-1), embedded, labels)
    assert ours["acc@1"] == pytest.approx(theirs["acc1"], abs=CLOSE)
    assert ours["mean_per_class"] == pytest.approx(theirs["mean_per_class_recall"], abs=CLOSE)
    assert 0 < theirs["acc1"] < 1
    if classes > 5:
        assert ours["acc@5"] == pytest.approx(theirs["acc5"], abs=CLOSE)
    else:  # among five classes the right one always is; among fewer clip_benchmark has no number
        assert "acc@5" not in ours
        assert math.isnan(theirs["acc5"]) or theirs["acc5"] == 1


def test_average_precision():
    images, texts = random_features(50), random_features(8, seed=1)
    targets = torch.rand(50, 8, generator=torch.Generator().manual_seed(2)) < 0.3
    theirs = their_classification(images, texts, targets.float(), templates=1)["mean_average_precision"]
    ours = average_precision_metrics(normalize(images, dim=-1) @ normalize(texts, dim=-1).T, targets)["mAP"]
    assert ours == pytest.approx(theirs, abs=CLOSE)
    # A class that no image has counts 0 there; here it is left out, as nothing can be found.
    targets[:, 0] = False
    theirs = their_classification(images, texts, targets.float(), templates=1)["mean_average_precision"]
    ours = average_precision_metrics(normalize(images, dim=-1) @ normalize(texts, dim=-1).T, targets)["mAP"]
    assert ours == pytest.approx(theirs * 8 / 7, abs=CLOSE)


def their_retrieval(images, texts, captions):
    model = Features(texts)
    loader = DataLoader(Rows(images, captions), batch_size=7, collate_fn=image_captions_collate_fn)
    return zeroshot_retrieval.evaluate(model, loader, model.tokenize, "cpu", amp=False, recall_k_list=list(RECALLS))


def our_retrieval(images, texts, owner, group=None):
    found = recalls(normalize(images, dim=-1), normalize(texts, dim=-1), owner, same_text=group)
    names = {"i2t": "text", "t2i": "image"}
    return {f"{names[key[:3]]}_retrieval_recall@{key.split('@')[1]}": value for key, value in found.items()}


def test_recalls_of_any_number_of_captions():
    counts = [1 + i % 4 for i in range(30)]
    owner = torch.tensor([i for i, count in enumerate(counts) for _ in range(count)])
    numbers = iter(range(len(owner)))
    captions = [[str(next(numbers)) for _ in range(count)] for count in counts]
    images = random_features(30)
    texts = images[owner] + random_features(len(owner), seed=1)
    theirs = their_retrieval(images, texts, captions)
    assert our_retrieval(images, texts, owner) == pytest.approx(theirs, abs=CLOSE)
    assert 0 < theirs["image_retrieval_recall@1"] < 1


def test_copies_of_a_caption_can_only_help():
    images = random_features(30)
    texts = images + 0.5 * random_features(30, seed=1)
    texts[1] = texts[0]
    captions = [[str(i)] for i in range(30)]
    captions[1] = ["0"]
    theirs = their_retrieval(images, texts, captions)
    ours = our_retrieval(images, texts, torch.arange(30), same_texts([c[0] for c in captions]))
    assert all(ours[name] >= value - CLOSE for name, value in theirs.items())
    assert ours["image_retrieval_recall@1"] == pytest.approx(theirs["image_retrieval_recall@1"] + 1 / 30, abs=CLOSE)


def test_ties_are_theirs_by_order_and_ours_never():
    same = torch.ones(12, 2)
    theirs = their_retrieval(same, same, [[str(i)] for i in range(12)])
    assert theirs["image_retrieval_recall@1"] == pytest.approx(1 / 12)
    assert set(our_retrieval(same, same, torch.arange(12)).values()) == {0.0}


def test_a_class_name_that_stands_twice_is_the_first_of_them_as_for_argmax():
    images, texts = random_features(90), random_features(9, seed=1)
    texts[7] = texts[3]
    labels = torch.arange(90) % 9
    images = images + 4 * texts[labels]
    theirs = their_classification(images, texts, labels, templates=1)
    ours = accuracies(normalize(images, dim=-1), normalize(texts, dim=-1), labels)
    assert ours["acc@1"] == pytest.approx(theirs["acc1"], abs=CLOSE)
    assert ours["mean_per_class"] == pytest.approx(theirs["mean_per_class_recall"], abs=CLOSE)
    assert 0.8 < ours["acc@1"] < 8 / 9 + CLOSE  # nothing of the second class is right
    same = torch.ones(12, 2)
    assert their_classification(same, same[:6], torch.arange(12) % 6, templates=1)["acc1"] == pytest.approx(1 / 6)
    assert accuracies(same, same[:6], torch.arange(12) % 6)["acc@1"] == pytest.approx(1 / 6)


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
def test_one_class_is_always_right():
    images, texts = random_features(4), random_features(1, seed=1)
    labels = torch.zeros(4, dtype=torch.int64)
    assert their_classification(images, texts, labels, templates=1)["acc1"] == 1
    ours = accuracies(normalize(images, dim=-1), normalize(texts, dim=-1), labels)
    assert ours == {"acc@1": 1.0, "mean_per_class": 1.0}


def test_no_image_is_an_error_in_both():
    none = torch.zeros(0, 6)
    with pytest.raises(ValueError, match="non-empty list"):
        their_classification(none, random_features(3), torch.zeros(0), templates=1)
    with pytest.raises(ValueError, match="has no image"):
        accuracies(none, random_features(3), torch.zeros(0, dtype=torch.int64))


@pytest.mark.parametrize("images_per_item", [1, 2])
def test_captions_of_one_image_and_of_two(images_per_item):
    images = random_features(40 * images_per_item)
    texts = images.view(40, images_per_item, -1).repeat(1, 2 // images_per_item, 1).flatten(0, 1)
    texts = texts + 2 * random_features(80, seed=1)
    captions = [[str(2 * i), str(2 * i + 1)] for i in range(40)]
    pictures = images.view(40, images_per_item, 6, 1, 1) if images_per_item == 2 else images.view(40, 6, 1, 1)
    model = Features(texts)
    loader = DataLoader(Rows(pictures, captions), batch_size=7, collate_fn=image_captions_collate_fn)
    theirs = image_caption_selection.evaluate(model, loader, model.tokenize, "cpu", amp=False)
    i, t = normalize(images, dim=-1).view(40, images_per_item, 6), normalize(texts, dim=-1).view(40, 2, 6)
    scores = i @ t.transpose(1, 2)
    if images_per_item == 1:
        ours = hard_negative_metrics(scores[:, 0, 0], scores[:, 0, 1], ["swap_att"] * 40)
        assert ours["micro"] == pytest.approx(theirs["text_acc"], abs=CLOSE)
    else:
        expected = {"text": theirs["text_acc"], "image": theirs["image_acc"], "group": theirs["acc"]}
        assert quadruple_metrics(scores) == pytest.approx(expected, abs=CLOSE)
    assert 0 < theirs["text_acc"] < 1


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    torch.manual_seed(0)
    return powerclip.load(save(create_model("tiny"), tmp_path_factory.mktemp("m") / "model"))


def scenes_in_their_layout(folder, monkeypatch, kind):
    """Scenes under the names of three classes, in the layout that clip_benchmark's loader reads."""
    from tests.support import layouts

    samples = list(generate("test", count=12, seed=1))
    monkeypatch.setattr(layouts, "png", lambda index: samples[index].image)
    labels = {
        "classification": [str(i % 3).encode() for i in range(12)],
        "multilabel": [npy([i % 2, i % 3 == 0, 1]) for i in range(12)],
        "retrieval": [f"{sample.caption}\nscene {i}".encode() for i, sample in enumerate(samples)],
    }[kind]
    extension = {"classification": "cls", "multilabel": "npy", "retrieval": "txt"}[kind]
    return webdataset(
        folder, list(enumerate(labels)), extension, per_shard=5, kind=kind, templates=("a {c}", "a picture of {c}")
    )


def read_by_them(folder, preprocess):
    """Images and targets as clip_benchmark's loader gives them; webdataset leaves the shards open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = build_wds_dataset("any", preprocess, data_dir=str(folder))
        images, targets = zip(*dataset, strict=True)
        classes, templates = dataset.classes, dataset.templates
        del dataset
        gc.collect()
    return Rows(images, targets, classes or ()), classes, templates


@pytest.mark.parametrize("kind", ["classification", "multilabel", "retrieval"])
def test_a_loaded_model_runs_in_clip_benchmark_and_gets_our_numbers(kind, loaded, tmp_path, monkeypatch):
    model, preprocess, tokenizer = loaded
    folder = scenes_in_their_layout(tmp_path, monkeypatch, kind)
    ours = evaluate_tasks(model, preprocess, tokenizer, read_webdataset(folder, "any"), batch_size=5)["any"]
    rows, classes, templates = read_by_them(folder, preprocess)
    if kind == "retrieval":
        loader = DataLoader(rows, batch_size=5, collate_fn=image_captions_collate_fn)
        theirs = zeroshot_retrieval.evaluate(model, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5])
        names = {
            f"{o}_R@{k}": f"{t}_retrieval_recall@{k}" for o, t in (("i2t", "text"), ("t2i", "image")) for k in (1, 5)
        }
    else:
        loader = DataLoader(rows, batch_size=5)
        theirs = zeroshot_classification.evaluate(model, loader, tokenizer, classes, templates, "cpu", amp=False)
        names = {"acc@1": "acc1", "mean_per_class": "mean_per_class_recall", "mAP": "mean_average_precision"}
    compared = {name: value for name, value in ours.items() if name in names}
    assert compared
    assert compared == pytest.approx({name: theirs[names[name]] for name in compared}, abs=CLOSE)
