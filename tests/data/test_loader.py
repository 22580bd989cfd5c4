import json
import logging
from collections import Counter

import pytest
import torch
from torchvision.transforms.v2.functional import pil_to_tensor

from powerclip.data.dataset import TowerInputs
from powerclip.data.loader import open_data
from powerclip.data.shards import find_shards, write_shards
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.phrases.tree import Phrase, PhraseTree
from powerclip.scenes import generate
from tests.support.images import one_colour
from tests.support.loaders import batches_of, epoch_of, loader_of
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
    assert [len(batch) for batch in epoch_of(loader)] == [2400]
    assert loader.bad == {"image format not read": 120}


def test_a_bad_shard_among_good_ones_does_not_end_the_epoch(plain, tmp_path):
    for number in range(10):
        write_pairs(tmp_path / f"{number}.tar", 150, bad=range(150) if number == 7 else ())
    loader = loader_of(tmp_path, plain, batch_size=100, shuffle=False, max_bad_share=0.15)
    assert len(list(epoch_of(loader))) == 15
    assert loader.bad == {"image format not read": 150}


def test_keys_that_return_in_another_shard_are_counted_apart(plain, tmp_path):
    for number in range(2):
        write_pairs(tmp_path / f"{number}.tar", 60, bad=range(20))
    loader = loader_of(tmp_path, plain, batch_size=10, max_bad_share=0.9)
    list(epoch_of(loader))
    assert loader.bad == {"image format not read": 40}


def test_no_sample_stands_in_for_many(plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 1000, bad=range(300, 350))
    shown = Counter(k for b in epoch_of(loader_of(tmp_path, plain, batch_size=100)) for k in b.keys)
    assert sum(shown.values()) == 1000
    assert max(shown.values()) == 2  # each of the 50 substitutes is another sample


@pytest.mark.parametrize("workers", [0, 1])
def test_the_share_ends_the_epoch_once_a_hundred_were_seen(workers, plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 400, bad=range(0, 400, 4))
    with pytest.raises(RunFailedError, match=r"samples are bad: \d+ image format not read; fix the data"):
        list(epoch_of(loader_of(tmp_path, plain, batch_size=20, workers=workers)))
    assert len(list(epoch_of(loader_of(tmp_path, plain, batch_size=20, workers=workers, max_bad_share=0.3)))) == 20


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_without_phrases_are_counted_and_warned_of_once(workers, plain, tmp_path, caplog):
    write_pairs(tmp_path / "a.tar", 8, tree=None)
    loader = loader_of(tmp_path, plain, batch_size=4, workers=workers)
    with caplog.at_level(logging.WARNING):
        batches = [*epoch_of(loader), *epoch_of(loader, 1)]
    assert loader.without_phrases == 16
    assert [record.message for record in caplog.records if "without phrases" in record.message] == [
        "samples without phrases: the caption is their only phrase; powerclip prepare adds phrases"
    ]
    assert all(torch.equal(b.phrase_spans, torch.tensor([[[0, 1]]]).expand(4, 1, 2)) for b in batches)


def test_more_workers_than_cores_are_said_in_one_line(plain, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # which torch asks, too
    write_pairs(tmp_path / "a.tar", 8)
    assert len(list(epoch_of(loader_of(tmp_path, plain, batch_size=4, workers=2)))) == 2
    said = "data.workers is 2 and there are 1 CPU cores; more than these hardly help"
    assert [record.message for record in caplog.records] == [said]


def test_a_tree_without_a_phrase_counts_as_the_whole_caption(plain, tmp_path):
    write_pairs(tmp_path / "a.tar", 2, tree=PhraseTree(leaves=TREE.leaves, phrases=(), parser="test"))
    (batch,) = epoch_of(loader_of(tmp_path, plain, batch_size=2))
    assert batch.phrase_spans.tolist() == [[[0, 1]]] * 2


def test_augmentation_seeds_no_generator_but_the_cpu_s(plain, tmp_path, monkeypatch):
    write_pairs(tmp_path / "a.tar", 4)
    loader = loader_of(tmp_path, plain, batch_size=4)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPU's generator was seeded"))
    assert len(list(epoch_of(loader))) == 1


def test_an_epoch_shows_every_sample_at_most_once_in_a_fresh_order(scenes, tower):
    first, second = (batches_of(scenes, tower, epoch) for epoch in (0, 1))
    for epoch in (first, second):
        keys = [key for batch in epoch for key in batch.keys]
        assert len(keys) == len(set(keys)) == 48
    assert [b.keys for b in first] != [b.keys for b in second]
    assert first[0].images.shape == (8, 3, 64, 64)


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 1}])
def test_batches_do_not_depend_on_the_workers(options, scenes, tower):
    for a, b in zip(batches_of(scenes, tower), batches_of(scenes, tower, **options), strict=True):
        assert a.keys == b.keys
        for name in ("images", "tokens", "leaf_of_token", "phrase_spans"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_starting_in_the_middle_gives_the_rest_and_leaves_the_global_generator(scenes, tower):
    loader = loader_of(scenes, tower)
    state = torch.get_rng_state()
    rest = list(epoch_of(loader, 0, start_batch=4))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(rest, batches_of(scenes, tower)[4:], strict=True):
        assert torch.equal(a.images, b.images)


FIELDS = ("images", "tokens", "leaf_of_token", "phrase_spans", "region_masks")


@pytest.mark.parametrize(("pieces", "workers"), [(1, 0), (3, 0), (3, 2), (8, 1)])
def test_steps_go_on_over_the_epochs_and_their_pieces_make_the_batches(pieces, workers, scenes, tower):
    loader = loader_of(scenes, tower, workers=workers)
    expected = [batch for epoch in (0, 1, 2) for batch in batches_of(scenes, tower, epoch)][4:]
    for step, (batch, found) in enumerate(zip(expected, loader.steps(4, pieces=pieces), strict=False)):
        assert len(found) == pieces
        assert sum((piece.keys for piece in found), ()) == batch.keys, step
        for name in FIELDS:
            assert torch.equal(torch.cat([getattr(piece, name) for piece in found]), getattr(batch, name)), name


def test_any_number_of_processes_and_workers_shares_one_shard(tmp_path, tower):
    write_shards(generate("train", count=24, seed=0), tmp_path, samples_per_shard=24)
    whole = batches_of(tmp_path, tower, batch_size=12)
    parts = [batches_of(tmp_path, tower, batch_size=12, part=(i, 3), workers=2) for i in range(3)]
    for batch, *found in zip(whole, *parts, strict=True):
        assert [len(part) for part in found] == [4, 4, 4]
        assert sum((part.keys for part in found), ()) == batch.keys


def test_opened_data_say_what_was_found(tmp_path, monkeypatch):
    write_shards(generate("train", count=9, seed=0), tmp_path / "a", samples_per_shard=4)
    write_tar(tmp_path / "b.tar", [("x.png", one_colour()), ("x.txt", b"a dog")])
    monkeypatch.chdir(tmp_path)
    opened = open_data(["a", "b.tar"])
    assert [source.counts for source in opened.sources] == [[4, 4, 1], [1]]
    assert (opened.samples, [shard.name for shard in opened.shards][2:]) == (10, ["shard-000002.tar", "b.tar"])
    assert opened.provenance.sources == (str(tmp_path / "a"), str(tmp_path / "b.tar"))
    assert opened.sources[1].extensions == {"png", "txt"}
    opened.check_present()
    (tmp_path / "a" / "shard-000001.tar").unlink()
    with pytest.raises(PowerclipError, match="shard-000001.tar is missing on this node; all nodes need the same data"):
        opened.check_present()


def test_the_digest_is_that_of_the_content_wherever_it_is(tmp_path):
    for name, seed in {"one": 0, "two": 5, "three": 0}.items():
        write_shards(generate("train", count=8, seed=seed), tmp_path / name)
    one, two, three = (open_data(tmp_path / name) for name in ("one", "two", "three"))
    assert one.identity == two.identity
    assert one.digest == three.digest != two.digest
    assert (
        open_data([tmp_path / "one", tmp_path / "two"]).digest != open_data([tmp_path / "two", tmp_path / "one"]).digest
    )


def test_an_empty_shard_in_front_is_no_obstacle(tmp_path, tower):
    write_tar(tmp_path / "a.tar", [])
    write_shards(generate("train", count=8, seed=0), tmp_path)
    assert open_data(tmp_path).sources[0].probed.name == "shard-000000.tar"
    assert len(batches_of(tmp_path, tower, regions=2)) == 1


def test_bad_samples_are_skipped_and_counted(tmp_path, tower):
    members = []
    for i in range(20):
        image = b"junk" if i == 3 else one_colour()
        members += [(f"{i:02d}.png", image), (f"{i:02d}.txt", b"" if i == 7 else b"a dog on a chair")]
    write_tar(tmp_path / "a.tar", members)
    loader = loader_of(tmp_path, tower, batch_size=10, max_bad_share=0.2)
    for batch in epoch_of(loader):
        assert len(batch) == 10
        assert not {"03", "07"} & set(batch.keys)
    assert loader.bad == {"image format not read": 1, "empty caption": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_epoch(workers, tmp_path, tower):
    members = [(f"{i:02d}.{ext}", b"junk") for i in range(20) for ext in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", members)
    loader = loader_of(tmp_path, tower, batch_size=4, workers=workers)
    with pytest.raises(RunFailedError, match="20 of 20 samples are bad: 20 image format not read"):
        list(epoch_of(loader))


def test_shards_that_cannot_be_used_are_one_clear_line(tmp_path, tower):
    with pytest.raises(PowerclipError, match="no shards at .*nowhere: there is no such folder, file or pattern"):
        find_shards(tmp_path / "nowhere")
    with pytest.raises(PowerclipError, match="no shards at .*: the folder holds no .tar file"):
        find_shards(tmp_path)
    (tmp_path / "photos.csv").write_text("image,caption\na.jpg,a dog\n")
    message = r"photos\.csv is not a tar file; if it is a table .*: powerclip prepare .*photos\.csv OUTPUT$"
    with pytest.raises(PowerclipError, match=message):
        open_data(tmp_path / "photos.csv")
    with pytest.raises(PowerclipError, match=r"is a folder without \.tar files, .*: powerclip prepare .* OUTPUT$"):
        open_data(tmp_path)
    write_tar(tmp_path / "a.tar", [("x.jpg", one_colour()), ("x.cls", b"3")])
    with pytest.raises(PowerclipError, match=r"no caption under txt in the first 1 samples .*keys seen: cls, jpg"):
        open_data(tmp_path)
    write_tar(tmp_path / "a.tar", [("x.npy", b""), ("x.txt", b"hi")])
    with pytest.raises(PowerclipError, match=r"no image under jpg, .*keys seen: npy, txt"):
        open_data(tmp_path)
    write_tar(tmp_path / "a.tar", [("x.jpg", one_colour()), ("x.txt", b"a dog")])
    with pytest.raises(PowerclipError, match="batch_size is 8 and .* holds 1 samples; reduce batch_size"):
        loader_of(tmp_path, tower)
