import json
import logging
from collections import Counter

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from powerclip.data.dataset import TowerInputs
from powerclip.errors import RunFailedError
from powerclip.phrases.tree import Phrase, PhraseTree
from tests.support.images import one_colour
from tests.support.loaders import loader_of
from tests.support.tars import write_tar

TREE = PhraseTree(leaves=((0, 1), (2, 5)), phrases=(Phrase(label="NP", first=0, last=1),), parser="test")


def write_pairs(path, count, *, bad=(), tree=TREE):
    annotations = {} if tree is None else {"phrases.json": json.dumps(tree.to_json()).encode()}
    good = one_colour()
    files = [{"png": b"junk" if i in bad else good, "txt": b"a dog", **annotations} for i in range(count)]
    write_tar(path, [(f"{i:05d}.{extension}", data) for i, of in enumerate(files) for extension, data in of.items()])


@pytest.fixture(scope="module")
def plain(tokenizer):
    """Towers that take an image as it is."""
    return TowerInputs(
        transform=lambda image: pil_to_tensor(image).float(), tokenizer=tokenizer, context_length=16, grid=(2, 2)
    )


def test_a_large_batch_bears_the_share_of_bad_samples_that_is_allowed(plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 2400, bad=range(0, 2400, 20))
    loader = loader_of(tmp_path, plain, batch_size=2400)
    assert [len(batch) for batch in loader.epoch(0)] == [2400]
    assert loader.bad == {"corrupt image": 120}


def test_a_bad_shard_among_good_ones_does_not_end_the_epoch(plain, tmp_path):
    for number in range(10):
        write_pairs(tmp_path / f"{number}.tar", 150, bad=range(150) if number == 7 else ())
    loader = loader_of(tmp_path, plain, batch_size=100, shuffle=False, max_bad_share=0.15)
    assert len(list(loader.epoch(0))) == 15
    assert loader.bad == {"corrupt image": 150}


def test_keys_that_return_in_another_shard_are_counted_apart(plain, tmp_path):
    for number in range(2):
        write_pairs(tmp_path / f"{number}.tar", 60, bad=range(20))
    loader = loader_of(tmp_path, plain, batch_size=10, max_bad_share=0.9)
    list(loader.epoch(0))
    assert loader.bad == {"corrupt image": 40}


def test_no_sample_stands_in_for_many(plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 1000, bad=range(300, 350))
    shown = Counter(k for b in loader_of(tmp_path, plain, batch_size=100).epoch(0) for k in b.keys)
    assert sum(shown.values()) == 1000
    assert max(shown.values()) == 2  # each of the 50 substitutes is another sample


@pytest.mark.parametrize("workers", [0, 1])
def test_the_share_ends_the_epoch_once_a_hundred_were_seen(workers, plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 400, bad=range(0, 400, 4))
    with pytest.raises(RunFailedError, match=r"samples are bad: \d+ corrupt image; fix the data"):
        list(loader_of(tmp_path, plain, batch_size=20, workers=workers).epoch(0))
    assert len(list(loader_of(tmp_path, plain, batch_size=20, workers=workers, max_bad_share=0.3).epoch(0))) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_without_phrases_are_counted_and_warned_of_once(workers, plain, tmp_path, caplog):
    write_pairs(tmp_path / "a.tar", 8, tree=None)
    loader = loader_of(tmp_path, plain, batch_size=4, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = [*loader.epoch(0), *loader.epoch(1)]
    assert loader.without_phrases == 16
    assert [record.message for record in caplog.records if "without phrases" in record.message] == [
        "samples without phrases: the whole caption is their one phrase; powerclip prepare adds them"
    ]
    assert all(torch.equal(b.phrase_spans, torch.tensor([[[0, 1]]]).expand(4, 1, 2)) for b in batches)


def test_a_tree_without_a_phrase_counts_as_the_whole_caption(plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 2, tree=PhraseTree(leaves=TREE.leaves, phrases=(), parser="test"))
    (batch,) = loader_of(tmp_path, plain, batch_size=2).epoch(0)
    assert batch.phrase_spans.tolist() == [[[0, 1]]] * 2


def test_augmentation_seeds_no_generator_but_the_cpu_s(plain, tmp_path, monkeypatch):
    write_pairs(tmp_path / "a.tar", 4)
    loader = loader_of(tmp_path, plain, batch_size=4)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's generator was seeded"))
    assert len(list(loader.epoch(0))) == 1
