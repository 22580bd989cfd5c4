import weakref
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from powerclip.data.sample import Caption, Sample
from powerclip.data.shards import write_shards
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_tasks, retrieval_from_shards
from powerclip.evaluate.datasets.own_shards import MAX_MASKS
from powerclip.regions import RegionAnnotation
from tests.support.colours import ColourModel, png, preprocess, tokenizer
from tests.support.images import encoded, one_colour
from tests.support.memory import more_bytes


def sample(key, image, **more):
    return Sample(key=key, image=image, image_extension="png", caption=f"the {key}", **more)


def photo(seed):
    """300 kB of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (320, 320, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), compress_level=0)


def test_samples_that_cannot_be_used_are_skipped(tmp_path, monkeypatch):
    whole = photo(0)
    images = {"a": png("red"), "b": b"not an image", "cut": whole[: len(whole) // 2], "d": png("red")}
    write_shards([sample(key, image) for key, image in images.items()], tmp_path)
    with pytest.warns(UserWarning, match="not evaluated of .*: 1 image format not read, 1 corrupt image; evaluated: 2"):
        task = retrieval_from_shards(tmp_path)
    assert task.captions == [("the a",), ("the d",)]
    assert [image().getpixel((0, 0)) for image in task.images] == [(255, 0, 0)] * 2
    assert len(retrieval_from_shards(tmp_path, limit=1).images) == 1
    monkeypatch.setattr("powerclip.evaluate.datasets.own_shards.rank", lambda: 1)
    assert len(retrieval_from_shards(tmp_path).images) == 2  # the first process has warned


def test_all_captions_of_an_image_are_its_own(tmp_path):
    """A text finds its image by any of them, and an image is found by the best of its own."""
    captions = {"red": ("a red", "something red"), "green": ("a green",), "blue": ("a red and blue", "a blue")}
    samples = [
        sample(name, png(name)).with_captions([Caption(text=text) for text in texts])
        for name, texts in captions.items()
    ]
    write_shards(samples, tmp_path)
    task = retrieval_from_shards(tmp_path)
    assert task.captions == list(captions.values())
    found = evaluate_tasks(ColourModel(), preprocess, tokenizer, [task])["retrieval"]
    assert found["i2t_R@1"] == 1.0
    assert found["t2i_R@1"] == pytest.approx(0.8)  # "a red and blue" is as near to the red image, a miss


def test_no_usable_pair_is_an_error(tmp_path):
    write_shards([sample("b", b"not an image")], tmp_path)
    with pytest.raises(PowerclipError, match=r"no usable image-caption pair in .* \(1 image format not read\); see"):
        retrieval_from_shards(tmp_path)


def test_only_a_batch_of_images_is_in_memory(tmp_path):
    """40 images of 9 MB, 4 in a batch: no more than those 4 are ever alive, and memory grows by 2 of the 10 batches."""
    image, batch_bytes = one_colour(size=(1500, 1500), mode="RGB"), 4 * 1500 * 1500 * 4
    write_shards([sample(f"p{i}", image) for i in range(40)], tmp_path, samples_per_shard=10)
    seen, alive = [], []

    def counting(image):
        seen.append(weakref.ref(image))
        alive.append(sum(image() is not None for image in seen))
        return preprocess(image)

    with more_bytes() as peak:
        evaluate_tasks(ColourModel(), counting, tokenizer, [retrieval_from_shards(tmp_path)], batch_size=4)
    assert len(alive) == 40
    assert max(alive) <= 4
    assert peak[0] < 2 * batch_bytes


def test_masks_are_read_when_they_are_needed_and_the_best_are_kept(tmp_path):
    masks = np.zeros((MAX_MASKS + 3, 8, 8), dtype=bool)
    masks[:, 0] = np.arange(MAX_MASKS + 3)[:, None] % 8 == np.arange(8)
    scores = tuple(float(i) for i in range(MAX_MASKS + 3))
    regions = RegionAnnotation.from_masks(masks, scores=scores, proposer="test")
    write_shards([sample("a", one_colour("red"), regions=regions), sample("b", png("blue"))], tmp_path)
    task = retrieval_from_shards(tmp_path)
    first, second = task.masks
    assert second is None
    assert np.array_equal(list(first()), masks[:2:-1])
    (tmp_path / "shard-000000.tar").unlink()
    with pytest.raises(
        PowerclipError, match=r"masks of sample a in .*shard-000000\.tar cannot be read \(shard cannot be read\)"
    ):
        first()


def test_samples_whose_regions_are_not_of_their_image_are_skipped_as_in_training(tmp_path):
    mask = np.ones((1, 8, 8), dtype=bool)
    fits = RegionAnnotation.from_masks(mask, scores=[1.0], proposer="test")
    samples = {
        "fits": fits,
        "larger": RegionAnnotation.from_masks(np.ones((1, 16, 16), dtype=bool), scores=[1.0], proposer="test"),
        "turned": RegionAnnotation.from_masks(np.ones((1, 4, 16), dtype=bool), scores=[1.0], proposer="test"),
        "malformed": replace(fits, rles=("0",)),
    }
    write_shards([sample(key, one_colour(), regions=regions) for key, regions in samples.items()], tmp_path / "all")
    with pytest.warns(UserWarning, match="2 regions and image differ in size, 1 malformed regions.json; evaluated: 1"):
        task = retrieval_from_shards(tmp_path / "all")
    assert task.captions == [("the fits",)]
    assert np.array_equal(list(task.masks[0]()), mask)
    bad = [sample(key, one_colour(), regions=regions) for key, regions in samples.items() if key != "fits"]
    write_shards(bad, tmp_path / "bad")
    with pytest.raises(
        PowerclipError, match=r"\(2 regions and image differ in size, 1 malformed regions\.json\); see powerclip"
    ):
        retrieval_from_shards(tmp_path / "bad")
