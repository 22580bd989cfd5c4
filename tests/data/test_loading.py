import tarfile

import pytest
import torch

from powerclip.data.images import decode_image
from powerclip.data.loader import open_data
from powerclip.data.sample import Sample
from powerclip.data.shards import find_shards, index_shard, read_shards, write_shards
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError
from powerclip.scenes import generate
from tests.support.images import one_colour
from tests.support.loaders import loader_of
from tests.support.tars import write_tar


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(generate("train", count=50, seed=0), folder, samples_per_shard=20)
    return folder


def test_samples_survive_their_shard(scenes):
    written, read = list(generate("train", count=50, seed=0)), list(read_shards(scenes))
    assert [path.name for path in find_shards(scenes)] == [f"shard-{i:06d}.tar" for i in range(3)]
    assert read == written


def test_shards_are_a_function_of_their_samples(scenes, tmp_path):
    write_shards(generate("train", count=50, seed=0), tmp_path, samples_per_shard=20)
    for shard in find_shards(scenes):
        assert (tmp_path / shard.name).read_bytes() == shard.read_bytes()
    with pytest.raises(PowerclipError, match="exists already; write into an empty folder"):
        write_shards(generate("train", count=1, seed=0), tmp_path)


def test_a_writer_that_dies_leaves_no_shard(tmp_path):
    def dying():
        yield from generate("train", count=3, seed=0)
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(dying(), tmp_path, samples_per_shard=2)
    assert [path.name for path in tmp_path.glob("*.tar")] == ["shard-000000.tar"]


def batches(scenes, tower, epoch=0, **options):
    return list(loader_of(scenes, tower, **options).epoch(epoch))


def test_an_epoch_shows_every_sample_at_most_once_in_a_fresh_order(scenes, tower):
    first, second = (batches(scenes, tower, epoch) for epoch in (0, 1))
    for epoch in (first, second):
        keys = [key for batch in epoch for key in batch.keys]
        assert len(keys) == len(set(keys)) == 48
    assert [b.keys for b in first] != [b.keys for b in second]
    assert first[0].images.shape == (8, 3, 64, 64)


@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 1}])
def test_batches_do_not_depend_on_the_workers(options, scenes, tower):
    for a, b in zip(batches(scenes, tower), batches(scenes, tower, **options), strict=True):
        assert a.keys == b.keys
        for name in ("images", "tokens", "leaf_of_token", "phrase_spans"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_starting_in_the_middle_gives_the_rest_and_leaves_the_global_generator(scenes, tower):
    loader = loader_of(scenes, tower)
    state = torch.get_rng_state()
    rest = list(loader.epoch(0, start_batch=4))
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(rest, batches(scenes, tower)[4:], strict=True):
        assert torch.equal(a.images, b.images)


FIELDS = ("images", "tokens", "leaf_of_token", "phrase_spans", "region_masks")


@pytest.mark.parametrize(("pieces", "workers"), [(1, 0), (3, 0), (3, 2), (8, 1)])
def test_steps_go_on_over_the_epochs_and_their_pieces_make_the_batches(pieces, workers, scenes, tower):
    loader = loader_of(scenes, tower, workers=workers)
    expected = [batch for epoch in (0, 1, 2) for batch in batches(scenes, tower, epoch)][4:]
    for step, (batch, found) in enumerate(zip(expected, loader.steps(4, pieces=pieces), strict=False)):
        assert len(found) == pieces
        assert sum((piece.keys for piece in found), ()) == batch.keys, step
        for name in FIELDS:
            assert torch.equal(torch.cat([getattr(piece, name) for piece in found]), getattr(batch, name)), name


def test_any_number_of_processes_and_workers_shares_one_shard(tmp_path, tower):
    write_shards(generate("train", count=24, seed=0), tmp_path, samples_per_shard=24)
    whole = batches(tmp_path, tower, batch_size=12)
    parts = [batches(tmp_path, tower, batch_size=12, part=(i, 3), workers=2) for i in range(3)]
    for batch, *found in zip(whole, *parts, strict=True):
        assert [len(part) for part in found] == [4, 4, 4]
        assert sum((part.keys for part in found), ()) == batch.keys


def test_opened_data_say_what_was_found(tmp_path, monkeypatch):
    write_shards(generate("train", count=9, seed=0), tmp_path / "a", samples_per_shard=4)
    write_tar(tmp_path / "b.tar", [("x.png", one_colour()), ("x.txt", b"a dog")])
    monkeypatch.chdir(tmp_path)
    opened = open_data(["a", "b.tar"])
    assert [source.counts for source in opened.sources] == [(4, 4, 1), (1,)]
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


@pytest.mark.parametrize("workers", [0, 2])
def test_boxes_are_a_function_of_the_seed_the_epoch_and_the_sample(workers, scenes, tower):
    def boxes(epoch=0, **options):
        return {
            k: m for b in batches(scenes, tower, epoch, **options) for k, m in zip(b.keys, b.region_masks, strict=True)
        }

    found = boxes(regions=5, boxes=True)
    assert all(masks.shape == (5, 64) and masks.any(dim=1).all() for masks in found.values())
    assert len({masks.numpy().tobytes() for masks in found.values()}) == len(found)  # no image shares another's boxes
    for key, masks in boxes(regions=5, boxes=True, workers=workers, batch_size=6, shuffle=False).items():
        assert key not in found or torch.equal(masks, found[key]), key
    for options in ({"epoch": 1}, {"seed": 4}):
        other = boxes(regions=5, boxes=True, **options)
        assert not any(torch.equal(masks, other[key]) for key, masks in found.items() if key in other)


def test_an_empty_shard_in_front_is_no_obstacle(tmp_path, tower):
    write_tar(tmp_path / "a.tar", [])
    write_shards(generate("train", count=8, seed=0), tmp_path)
    assert open_data(tmp_path).sources[0].probed.name == "shard-000000.tar"
    assert len(batches(tmp_path, tower, regions=2)) == 1


def test_phrases_arrive_over_the_tokens(scenes, tower):
    samples = {sample.key: sample for sample in read_shards(scenes)}
    batch = batches(scenes, tower)[0]
    for key, leaves, spans in zip(batch.keys, batch.leaf_of_token, batch.phrase_spans, strict=True):
        tree = samples[key].tree
        assert set(leaves.tolist()) - {-1} == set(range(len(tree.leaves)))
        found = {tuple(span) for span in spans.tolist()} - {(-1, -1)}
        assert found == {(p.first, p.last) for p in tree.phrases}


def test_bad_samples_are_skipped_and_counted(tmp_path, tower):
    members = []
    for i in range(20):
        image = b"junk" if i == 3 else one_colour()
        members += [(f"{i:02d}.png", image), (f"{i:02d}.txt", b"" if i == 7 else b"a dog on a chair")]
    write_tar(tmp_path / "a.tar", members)
    loader = loader_of(tmp_path, tower, batch_size=10, max_bad_share=0.2)
    for batch in loader.epoch(0):
        assert len(batch) == 10
        assert not {"03", "07"} & set(batch.keys)
    assert loader.bad == {"corrupt image": 1, "empty caption": 1}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_samples_stop_the_epoch(workers, tmp_path, tower):
    members = [(f"{i:02d}.{ext}", b"junk") for i in range(20) for ext in ("jpg", "txt")]
    write_tar(tmp_path / "a.tar", members)
    loader = loader_of(tmp_path, tower, batch_size=4, workers=workers)
    with pytest.raises(RunFailedError, match="20 of 20 samples are bad: 20 corrupt image"):
        list(loader.epoch(0))


def test_shards_that_cannot_be_used_are_one_clear_line(tmp_path, tower):
    with pytest.raises(PowerclipError, match="no shards at .*nowhere: there is no such folder, file or pattern"):
        find_shards(tmp_path / "nowhere")
    with pytest.raises(PowerclipError, match="the folder holds no .tar file"):
        find_shards(tmp_path)
    write_tar(tmp_path / "a.tar", [("x.jpg", one_colour()), ("x.cls", b"3")])
    with pytest.raises(PowerclipError, match=r"no caption under txt in the first 1 samples .*keys seen: cls, jpg"):
        open_data(tmp_path)
    write_tar(tmp_path / "a.tar", [("x.npy", b""), ("x.txt", b"hi")])
    with pytest.raises(PowerclipError, match=r"no image under jpg, .*keys seen: npy, txt"):
        open_data(tmp_path)
    write_tar(tmp_path / "a.tar", [("x.jpg", one_colour()), ("x.txt", b"a dog")])
    with pytest.raises(PowerclipError, match="batch_size is 8 and .* holds 1 samples; reduce batch_size"):
        loader_of(tmp_path, tower)


def test_a_truncated_tar_is_named(scenes, tmp_path):
    whole = find_shards(scenes)[0].read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(PowerclipError, match=r"cut.tar is truncated or not a tar file .*re-create it"):
        index_shard(tmp_path / "cut.tar")


def test_links_and_devices_in_a_shard_are_skipped(tmp_path):
    link = tarfile.TarInfo("x.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    write_tar(tmp_path / "a.tar", [link])
    assert index_shard(tmp_path / "a.tar") == []


def test_transparency_is_laid_over_white():
    assert decode_image(one_colour((255, 0, 0, 0), mode="RGBA")).getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(one_colour((255, 0, 0, 255), mode="RGBA")).getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(one_colour(7, mode="L")).getpixel((0, 0)) == (7, 7, 7)


def test_a_decompression_bomb_is_refused_before_it_is_decompressed():
    bomb = one_colour(0, size=(30_000, 30_000), mode="1")
    with pytest.raises(BadSampleError, match="image too large"):
        decode_image(bomb)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"txt": b"a dog"}, "no image"),
        ({"png": one_colour()}, "no caption"),
        ({"png": one_colour(), "txt": b" \n"}, "empty caption"),
        ({"png": one_colour(), "txt": b"\xff"}, "caption not UTF-8"),
        ({"png": one_colour(), "txt": b"a dog", "phrases.json": b"{}"}, "malformed phrases.json"),
        ({"png": one_colour(), "txt": b"a dog", "json": b"{"}, "malformed json"),
    ],
)
def test_a_sample_that_cannot_be_used_has_a_reason(files, reason):
    with pytest.raises(BadSampleError, match=reason):
        Sample.from_members("x", files)
