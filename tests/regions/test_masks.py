import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from powerclip.config import PrepareConfig
from powerclip.data.dataset import transform_with_regions
from powerclip.data.images import decode_image
from powerclip.data.shards import read_shards
from powerclip.errors import PowerclipError
from powerclip.prepare import prepare
from powerclip.regions import RegionAnnotation, load_proposer
from powerclip.regions.masks import MAX_PROPOSALS, annotate, deduplicate_masks, masks_at_size


def squares(*corners, size=40):
    masks = np.zeros((len(corners), size, size), bool)
    for mask, (top, left, side) in zip(masks, corners, strict=True):
        mask[top : top + side, left : left + side] = True
    return masks


def test_the_best_come_first_without_tiny_masks_and_duplicates():
    masks = squares((0, 0, 20), (0, 0, 19), (0, 0, 10), (30, 30, 1), (20, 20, 20))
    # 19 x 19 and 20 x 20 overlap by 361/400 > 0.9: the better stays; one pixel of 1600 is tiny.
    assert deduplicate_masks(masks, [0.5, 0.9, 0.7, 1.0, 0.8]) == [1, 4, 2]
    annotation = annotate(masks, [0.5, 0.9, 0.7, 1.0, 0.8], Image.new("RGB", (80, 80)), proposer="test")
    assert (annotation.scores, annotation.proposer) == ((0.9, 0.8, 0.7), "test")
    assert [mask.sum() for mask in annotation.masks()] == [4 * 361, 4 * 400, 4 * 100]


def test_an_image_keeps_at_most_this_many_masks():
    masks = np.stack([np.roll(squares((0, 0, 3))[0], 3 * i) for i in range(100)])
    scores = list(np.linspace(0, 1, 100))
    assert deduplicate_masks(masks, scores) == list(range(99, 99 - MAX_PROPOSALS, -1))


def test_nothing_proposed_is_normal():
    annotation = annotate(np.zeros((0, 5, 5), bool), [], Image.new("RGB", (7, 9)), proposer="test")
    assert (len(annotation.rles), annotation.masks().shape) == (0, (0, 9, 7))


def test_boxes_of_masks_are_stored_once_each():
    masks = np.zeros((5, 30, 40), bool)
    masks[0, 3:9, 5] = masks[0, 8, 5:20] = True  # an L
    masks[1, 3, 5:20] = masks[1, 3:9, 19] = True  # another one in the same box
    masks[2, 29, 39] = True
    masks[4] = True
    annotation = RegionAnnotation.from_masks(masks, scores=[0.9, 0.8, 0.7, 0.6, 0.5], proposer="test")
    boxes = annotation.as_boxes("boxes")
    assert (boxes.scores, boxes.proposer, boxes.height, boxes.width) == ((0.9, 0.7, 0.5), "boxes", 30, 40)
    expected = np.zeros((3, 30, 40), bool)
    expected[0, 3:9, 5:20] = expected[1, 29, 39] = expected[2] = True
    np.testing.assert_array_equal(boxes.masks(), expected)


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_the_box_of_any_mask_holds_it_and_no_more(mask):
    boxes = RegionAnnotation.from_masks(mask[None], scores=[1.0], proposer="test").as_boxes("boxes").masks()
    assert len(boxes) == mask.any()
    for box in boxes:
        for axis in (0, 1):
            on = np.nonzero(mask.any(axis=axis))[0]
            assert np.nonzero(box.any(axis=axis))[0].tolist() == list(range(on[0], on[-1] + 1))
        assert box.sum() == box.any(axis=0).sum() * box.any(axis=1).sum()


def test_prepare_stores_boxes_instead_of_masks(tmp_path):
    (tmp_path / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((96, 64)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("noise")
    found = {}
    for shape in ("masks", "boxes"):
        config = PrepareConfig(regions="superpixels", regions_as=shape, parser="none")
        prepare(tmp_path / "photos", tmp_path / shape, config)
        (sample,) = read_shards(tmp_path / shape)
        found[shape] = sample.regions
    assert found["boxes"] == found["masks"].as_boxes(f"{found['masks'].proposer}:boxes")
    assert 3 < len(found["boxes"].rles) <= len(found["masks"].rles)
    with pytest.raises(PowerclipError, match="other settings .proposer was .*:boxes, now superpixels"):
        prepare(tmp_path / "photos", tmp_path / "boxes", PrepareConfig(regions="superpixels", parser="none"))
    with pytest.raises(ValueError, match="regions_as is boxes, but regions is boxes, of which nothing is stored"):
        PrepareConfig(regions_as="boxes")


def test_masks_of_a_smaller_copy_fit_the_image():
    masks = squares((0, 0, 20))
    large = masks_at_size(masks, Image.new("RGB", (80, 120)))
    assert large.shape == (1, 120, 80)
    assert large[0, :60, :40].all()
    assert large.sum() == 60 * 40


@given(
    arrays(np.bool_, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 6))), st.integers(1, 9), st.integers(1, 9)
)
def test_a_pixel_of_a_scaled_mask_is_that_of_the_same_place(masks, height, width):
    scaled = masks_at_size(masks, Image.new("RGB", (width, height)))
    assert scaled.shape == (2, height, width)
    for row in range(height):
        for column in range(width):
            place = row * masks.shape[1] // height, column * masks.shape[2] // width
            assert (scaled[:, row, column] == masks[:, *place]).all()


def test_superpixels_find_a_square_on_a_plain_ground():
    pixels = np.full((300, 400, 3), 200, np.uint8)
    pixels[100:200, 150:300] = (255, 0, 0)
    found = load_proposer("superpixels").propose([Image.fromarray(pixels)])[0]
    assert found.masks().shape[1:] == (300, 400)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    square = np.zeros((300, 400), bool)
    square[100:200, 150:300] = True
    overlap = [(m & square).sum() / (m | square).sum() for m in found.masks()]
    assert max(overlap) > 0.8  # the smoothed edge makes segments of its own


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (33, 7)])
def test_superpixels_of_odd_sizes(size):
    found = load_proposer("superpixels").propose([Image.new("RGB", size, "red")])[0]
    assert found.masks().shape[1:] == size[::-1]


@pytest.mark.parametrize(("orientation", "shown"), [(3, (180, 240)), (6, (240, 180))])
def test_regions_lie_on_the_upright_picture_wherever_it_is_read(orientation, shown, tmp_path):
    """A camera's picture on its side: what is proposed when it is prepared is where training sees it."""
    pixels = np.zeros((180, 240, 3), np.uint8)
    pixels[24:72, 30:150] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.jpg", quality=95, exif=exif)
    (tmp_path / "photos" / "a.txt").write_text("a white box")
    prepare(tmp_path / "photos", tmp_path / "shards", PrepareConfig(regions="superpixels", parser="none"))
    (sample,) = read_shards(tmp_path / "shards")
    assert sample.image == (tmp_path / "photos" / "a.jpg").read_bytes()
    assert (sample.regions.height, sample.regions.width) == shown

    image = decode_image(sample.image)
    bright, regions = transform_with_regions(sample, image, lambda *moved: moved, count=64, grid=shown)
    bright = np.asarray(bright.convert("L")) > 128
    assert bright.shape == shown
    turned = np.rot90(pixels[..., 0] > 0, 2 if orientation == 3 else -1)
    np.testing.assert_array_equal(bright, turned)
    overlaps = [(region & bright).sum() / (region | bright).sum() for region in regions.unflatten(1, shown).numpy()]
    assert max(overlaps) > 0.75  # the smoothed edge makes segments of its own


def test_what_cannot_be_loaded_is_named(tmp_path):
    assert load_proposer("boxes") is None
    with pytest.raises(PowerclipError, match="unknown regions 'magic'; use boxes, superpixels, sam, .* or sam:MODEL"):
        load_proposer("magic")
    with pytest.raises(PowerclipError, match="cannot load the SAM model"):
        load_proposer(f"sam:{tmp_path}")


def test_prepared_shards_hold_them(tmp_path):
    pixels = np.full((60, 80, 3), 200, np.uint8)
    pixels[20:40, 30:60] = (255, 0, 0)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text("a red square")
    report = prepare(tmp_path / "photos", tmp_path / "shards", PrepareConfig(regions="superpixels"))
    (sample,) = read_shards(tmp_path / "shards")
    annotation = sample.regions
    assert annotation.proposer == "superpixels:felzenszwalb-100-300-1000"
    assert report["proposer"] == {annotation.proposer: 1}
    assert report["regions_per_image"] == len(annotation.rles) >= 2
    with pytest.raises(PowerclipError, match="made with other settings .proposer was superpixels"):
        prepare(tmp_path / "photos", tmp_path / "shards")
