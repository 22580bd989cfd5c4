import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from powerclip.data.dataset import transform_with_regions
from powerclip.data.sample import Sample
from powerclip.data.shards import read_shards, write_shards
from powerclip.errors import BadSampleError, PowerclipError
from powerclip.phrases import whole_caption_tree
from powerclip.phrases.tree import Phrase
from powerclip.regions import RegionAnnotation, rle
from powerclip.scenes import generate
from tests.support.images import encoded, one_colour
from tests.support.loaders import batches_of, epoch_of, loader_of
from tests.support.memory import more_bytes
from tests.support.models import tiny_tower
from tests.support.tars import npy, write_tar


def sample_of(masks, *, size=(40, 60), pixels=None, key="a"):
    array = np.zeros((*size, 3), np.uint8) if pixels is None else pixels
    annotation = RegionAnnotation.from_masks(masks, scores=(1.0,) * len(masks), proposer="test")
    image = encoded(Image.fromarray(array))
    return Sample(key=key, image=image, image_extension="png", caption="a dog", regions=annotation)


def opened(sample):
    return Image.open(io.BytesIO(sample.image))


def test_masks_of_a_large_image_cost_what_the_tower_sees_of_them():
    """64 masks of 64 megapixels are read at the pixels that the tower sees, in its size."""
    half = np.zeros((8000, 8000), dtype=bool)
    half[:4000] = True
    annotation = RegionAnnotation(
        height=8000, width=8000, rles=(rle.encode(half),) * 64, scores=(1.0,) * 64, proposer="t"
    )
    image, tower = Image.new("RGB", (8000, 8000)), tiny_tower()
    sample = replace(sample_of(half[None, :8, :8]), regions=annotation)

    def read(**changes):
        return transform_with_regions(replace(sample, **changes), image, tower.transform, count=64, grid=tower.grid)

    cpu_s, peak = {}, {}
    for name, changes in {"plain": {"regions": None}, "masks": {}}.items():
        start = time.process_time()
        with more_bytes() as more:
            _, regions = read(**changes)
        cpu_s[name], peak[name] = time.process_time() - start, more[0]
    assert regions.sum(dim=1).tolist() == [tower.grid[0] * tower.grid[1] // 2] * 64
    assert cpu_s["masks"] < 3 * cpu_s["plain"]
    assert peak["masks"] < peak["plain"] + half.size  # as bits, eight masks would; crops differ by a third of it


def test_metadata_are_not_read_in_training(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", one_colour()), ("a.txt", b"a dog"), ("a.json", b"[" * 10**6)])
    (batch,) = batches_of(tmp_path, batch_size=1)
    assert list(batch.keys) == ["a"]


def test_masks_follow_the_image_through_crop_and_flip():
    """A region is where the image is white: after the transform, too."""
    tower = tiny_tower(flip=0.5)
    white = np.zeros((96, 128), bool)
    white[20:60, 70:110] = True
    sample = sample_of(white[None], size=white.shape, pixels=np.repeat(white[..., None], 3, 2).astype(np.uint8) * 255)
    sides = set()
    for seed in range(12):
        torch.manual_seed(seed)
        pixels, regions = transform_with_regions(sample, opened(sample), tower.transform, count=4, grid=tower.grid)
        brightness = torch.nn.functional.adaptive_avg_pool2d(pixels.mean(0)[None], tower.grid).flatten()
        brightness = (brightness - brightness.min()) / (brightness.max() - brightness.min())
        sure = (brightness - 0.5).abs() > 0.2  # the resized image is soft at its edges, the mask is not
        assert regions.shape == (1, 64)
        assert torch.equal(regions[0][sure], (brightness > 0.5)[sure])
        assert sure.sum() > 40
        sides.add(bool(regions[0].view(tower.grid)[:, :4].sum() > regions[0].view(tower.grid)[:, 4:].sum()))
    assert sides == {True, False}


def test_as_many_as_asked_for_are_drawn_anew_each_time():
    masks = np.zeros((9, 40, 60), bool)
    for row, mask in enumerate(masks):
        mask[4 * row : 4 * row + 4] = True
    sample, tower, seen = sample_of(masks), tiny_tower(crop="none"), set()
    for seed in range(10):
        torch.manual_seed(seed)
        _, regions = transform_with_regions(sample, opened(sample), tower.transform, count=3, grid=tower.grid)
        assert regions.shape == (3, 64)
        assert regions.any(dim=1).all()
        seen.add(regions.tolist().__str__())
    assert len(seen) > 5


@pytest.mark.parametrize("count", [0, 2])
def test_fewer_than_m_or_none_is_normal(count, tmp_path):
    masks = np.ones((count, 40, 60), bool)
    write_shards([sample_of(masks), sample_of(np.ones((1, 40, 60), bool), key="b")], tmp_path)
    (batch,) = epoch_of(loader_of(tmp_path, batch_size=2, regions=5, shuffle=False))
    assert batch.region_masks.shape == (2, 5, 64)
    assert batch.region_masks.any(dim=2).sum(dim=1).tolist() == [count, 1]


def test_a_sample_without_stored_regions_has_none_on_any_grid(tmp_path):
    one, bare = (
        sample_of(np.ones((1, 40, 60), bool), key="b"),
        replace(sample_of(np.ones((0, 40, 60), bool)), regions=None),
    )
    write_shards([bare, one], tmp_path)
    (batch,) = epoch_of(loader_of(tmp_path, batch_size=2, regions=5, shuffle=False))
    assert batch.region_masks.any(dim=2).sum(dim=1).tolist() == [0, 1]
    published = replace(bare, patch_regions=((0, 195),))
    with pytest.raises(BadSampleError, match="regions on another patch grid"):
        transform_with_regions(published, opened(bare), tiny_tower().transform, count=2, grid=(8, 8))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"height": 41}, "regions and image differ in size"),
        ({"height": "x"}, "malformed regions.json"),
        ({"masks": [{"rle": "~"}]}, "malformed regions.json"),
        ({"masks": 3}, "malformed regions.json"),
        ({"masks": [7]}, "malformed regions.json"),
    ],
)
def test_regions_that_cannot_be_used_make_a_bad_sample(change, reason):
    sample, tower = sample_of(np.ones((1, 40, 60), bool)), tiny_tower()
    files = sample.members()
    files["regions.json"] = json.dumps({**json.loads(files["regions.json"]), **change}).encode()
    with pytest.raises(BadSampleError, match=reason):
        transform_with_regions(
            Sample.from_members("a", files), opened(sample), tower.transform, count=2, grid=tower.grid
        )


def test_scenes_carry_their_regions_into_batches(tmp_path):
    write_shards(generate("train", count=16, seed=0), tmp_path)
    objects = {s.key: len(s.regions.rles) for s in read_shards(tmp_path)}
    (batch,) = epoch_of(loader_of(tmp_path, batch_size=16, regions=6))
    assert batch.region_masks.any(dim=2).sum(dim=1).tolist() == [objects[key] for key in batch.keys]
    (again,) = epoch_of(loader_of(tmp_path, batch_size=16, regions=6, workers=1))
    assert torch.equal(batch.region_masks, again.region_masks)


def test_regions_that_are_not_there_are_missed_before_the_first_step(tmp_path):
    write_shards([Sample(key="a", image=b"", image_extension="png", caption="a")], tmp_path)
    with pytest.raises(PowerclipError, match="no regions in the first samples of .*--objective.region-source boxes"):
        loader_of(tmp_path, batch_size=1, regions=2)


def published(tmp_path, lens, cat, *, name="shard.tar"):
    files = {
        "png": sample_of(np.ones((0, 40, 60), bool)).image,
        "txt": b"a dog",
        "samlens.npy": lens,
        "samcat.npy": cat,
        "njson": b'{"lengths": [2, 1], "indices": [1, 2, 2]}',
    }
    write_tar(tmp_path / name, [(f"000.{extension}", data) for extension, data in files.items()])


def test_published_shards_are_read_on_their_own_grid(tmp_path):
    published(tmp_path, npy([2, 0, 3]), npy([0, 1, 15, 14, 195]))
    tower = replace(tiny_tower(crop="none"), grid=(14, 14))
    (batch,) = epoch_of(loader_of(tmp_path, tower, batch_size=1, regions=4, crop="none"))
    found = {tuple(region.nonzero().flatten().tolist()) for region in batch.region_masks[0]}
    assert found == {(0, 1), (14, 15, 195), ()}
    assert batch.leaf_of_token[0, :4].tolist() == [-1, 0, 1, -1]
    assert batch.phrase_spans.tolist() == [[[0, 1], [1, 1]]]


def test_the_limits_of_the_published_form_are_enforced(tmp_path):
    published(tmp_path, npy([1]), npy([0]))
    with pytest.raises(PowerclipError, match="regions on a 14 x 14 patch grid and the model's is 8 x 8"):
        loader_of(tmp_path, batch_size=1, regions=4)
    with pytest.raises(PowerclipError, match="cannot follow a crop or flip; add --data.crop none --data.flip 0"):
        loader_of(tmp_path, replace(tiny_tower(), grid=(14, 14)), batch_size=1, regions=4)


@pytest.mark.parametrize("workers", [0, 2])
def test_boxes_are_a_function_of_the_seed_the_epoch_and_the_sample(workers, scenes, tower):
    def boxes(epoch=0, **options):
        return {
            k: m
            for b in batches_of(scenes, tower, epoch, **options)
            for k, m in zip(b.keys, b.region_masks, strict=True)
        }

    found = boxes(regions=5, boxes=True)
    assert all(masks.shape == (5, 64) and masks.any(dim=1).all() for masks in found.values())
    assert len({masks.numpy().tobytes() for masks in found.values()}) == len(found)  # no image shares another's boxes
    for key, masks in boxes(regions=5, boxes=True, workers=workers, batch_size=6, shuffle=False).items():
        assert key not in found or torch.equal(masks, found[key]), key
    for options in ({"epoch": 1}, {"seed": 4}):
        other = boxes(regions=5, boxes=True, **options)
        assert not any(torch.equal(masks, other[key]) for key, masks in found.items() if key in other)


def test_phrases_arrive_over_the_tokens(scenes, tower):
    samples = {sample.key: sample for sample in read_shards(scenes)}
    batch = batches_of(scenes, tower)[0]
    for key, leaves, spans in zip(batch.keys, batch.leaf_of_token, batch.phrase_spans, strict=True):
        tree = samples[key].tree
        assert set(leaves.tolist()) - {-1} == set(range(len(tree.leaves)))
        found = {tuple(span) for span in spans.tolist()} - {(-1, -1)}
        assert found == {(p.first, p.last) for p in tree.phrases}


def test_crossing_phrases_are_refused_and_do_not_widen_the_batch(tmp_path):
    caption = " ".join(["dog"] * 75)
    tree = whole_caption_tree(caption)
    every = tuple(Phrase(label="X", first=i, last=j) for i in range(75) for j in range(i, 75))
    nested = tuple(Phrase(label="X", first=0, last=j) for j in range(75))
    plain = replace(sample_of(np.ones((1, 40, 60), bool)), caption=caption)
    samples = [
        replace(plain, key="crossing", tree=replace(tree, phrases=every)),
        replace(plain, key="nested", tree=replace(tree, phrases=nested)),
    ]
    write_shards(samples, tmp_path)
    loader = loader_of(tmp_path, batch_size=2, shuffle=False, max_bad_share=1.0)
    (batch,) = epoch_of(loader)
    assert batch.keys == ("nested", "nested")
    assert batch.phrase_spans.shape[1] <= 75
    assert loader.bad == {"phrases cross": 1}
