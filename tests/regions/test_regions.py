import json
import re
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from torchvision import tv_tensors
from torchvision.transforms import v2

from powerclip.data.dataset import transform_with_regions
from powerclip.data.sample import Sample
from powerclip.data.validate import check_annotations
from powerclip.errors import BadSampleError
from powerclip.regions import (
    RegionAnnotation,
    fixed_boxes,
    masks_to_grid,
    objects_to_grid,
    random_boxes,
    rle,
    tiles,
)
from powerclip.regions.places import PixelPlaces, pixel_places


def boxes(seed, *, images=5, regions=7, grid=(6, 9)):
    return random_boxes(images, regions=regions, grid=grid, generator=torch.Generator().manual_seed(seed))


def test_random_boxes_are_rectangles_and_never_empty():
    masks = boxes(0, images=50).unflatten(2, (6, 9))
    assert masks.shape == (50, 7, 6, 9)
    assert masks.dtype == torch.bool
    assert masks.flatten(2).any(-1).all()
    rows, columns = masks.any(-1), masks.any(-2)
    assert torch.equal(masks, rows[..., :, None] & columns[..., None, :])
    for line in (rows, columns):
        starts = (line[..., 1:] & ~line[..., :-1]).sum(-1) + line[..., 0]
        assert (starts == 1).all()


def test_random_boxes_depend_on_the_generator_only_and_move_on():
    assert torch.equal(boxes(3), boxes(3))
    generator = torch.Generator().manual_seed(3)
    first, second = (random_boxes(5, regions=7, grid=(6, 9), generator=generator) for _ in range(2))
    assert not torch.equal(first, second)


def test_random_boxes_reach_every_patch():
    assert boxes(0, images=300).flatten(0, 1).any(0).all()


def test_random_boxes_of_one_patch():
    assert boxes(0, grid=(1, 1)).all()


def test_fixed_boxes_cover_the_grid_at_each_size():
    masks = fixed_boxes((8, 8))
    areas = masks.sum(1)
    assert set(areas.tolist()) == {16, 4}
    for area in (16, 4):
        assert masks[areas == area].any(0).all()
    assert len(masks.unique(dim=0)) == len(masks)


@pytest.mark.parametrize(
    ("grid", "shape"), [((8, 8), (8, 8)), ((14, 14), (7, 7)), ((5, 9), (5, 9)), ((24, 7), (12, 4))]
)
def test_tiles_cover_the_grid_once_with_as_many_as_are_allowed(grid, shape):
    found = tiles(grid)
    assert len(found) == shape[0] * shape[1] <= 64
    assert torch.equal(found.sum(dim=0), torch.ones(grid[0] * grid[1], dtype=torch.int64))
    side = -(-grid[0] // shape[0])
    first = found[0].view(grid)
    assert first[:side, :side].all()
    assert first.sum() == side * side
    assert tiles(grid, at_most=1).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_rle_round_trip(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    text = rle.encode(mask)
    assert text.isascii()
    assert np.array_equal(rle.decode(text, height, width), mask)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=12))
def test_rle_refuses_or_decodes_any_text(text):
    try:
        mask = rle.decode(text, 4, 5)
    except ValueError:
        return
    assert mask.shape == (4, 5)


def test_rle_of_another_size_says_so():
    text = rle.encode(np.eye(6, dtype=bool))
    with pytest.raises(ValueError, match="not a valid run-length mask of 7 x 6 pixels: its runs cover 36"):
        rle.read_runs([text], 7, 6)


def coverage_oracle(mask, grid):
    height, width = mask.shape
    shares = []
    for r in range(grid[0]):
        for c in range(grid[1]):
            top, bottom = Fraction(r * height, grid[0]), Fraction((r + 1) * height, grid[0])
            left, right = Fraction(c * width, grid[1]), Fraction((c + 1) * width, grid[1])
            area = sum(
                max(Fraction(0), min(bottom, y + 1) - max(top, y)) * max(Fraction(0), min(right, x + 1) - max(left, x))
                for y, x in np.argwhere(mask).tolist()
            )
            shares.append(area / ((bottom - top) * (right - left)))
    return shares


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_masks_to_grid_equals_a_loop_in_fractions(patch_height, patch_width, rows, columns, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((patch_height * rows, patch_width * columns)) < rng.random()
    shares = coverage_oracle(mask, (rows, columns))
    expected = [share >= Fraction(1, 2) for share in shares]
    if not any(expected) and max(shares) > 0:
        expected[shares.index(max(shares))] = True
    assert masks_to_grid(torch.from_numpy(mask)[None], (rows, columns))[0].tolist() == expected
    most = max(shares)
    shown = [share > 0 and share >= most / 2 for share in shares]
    assert objects_to_grid(torch.from_numpy(mask)[None], (rows, columns))[0].tolist() == shown


def test_pixels_beyond_the_last_complete_patch_belong_to_none():
    """A tower of 384 pixels and patches of 14 has 27 x 27 patches, which cover 378 pixels."""
    mask = torch.zeros(1, 384, 384, dtype=torch.bool)
    mask[:, 13:, :14] = True
    assert masks_to_grid(mask, (27, 27)).nonzero()[:, 1].tolist() == [row * 27 for row in range(1, 27)]
    mask[:, :378, :378] = False
    assert not masks_to_grid(mask, (27, 27)).any()


def test_masks_to_grid_keeps_small_masks_and_leaves_empty_ones():
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 40, 9] = True
    assert masks_to_grid(masks, (8, 8)).nonzero().tolist() == [[0, 5 * 8 + 1]]
    assert masks_to_grid(masks[:0], (8, 8)).shape == (0, 64)


def test_masks_to_grid_refuses_other_shapes():
    for shape in ((64, 64), (1, 7, 64), (1, 64, 7)):
        with pytest.raises(
            ValueError, match=rf"must be \(M, H, W\), at least as large as the grid .*{re.escape(str(shape))}"
        ):
            masks_to_grid(torch.zeros(shape, dtype=torch.bool), (8, 8))


def test_masks_that_are_not_bool_are_refused():
    with pytest.raises(ValueError, match="masks have dtype torch.uint8; expected bool: masks > 0, say"):
        masks_to_grid(torch.full((1, 16, 16), 255, dtype=torch.uint8), (4, 4))
    with pytest.raises(ValueError, match="the mask has dtype float64; expected bool: mask > 0, say"):
        rle.encode(np.full((4, 4), 0.5))


def test_annotation_round_trip():
    masks = np.random.default_rng(0).random((3, 5, 7)) < 0.5
    value = RegionAnnotation.from_masks(masks, scores=(0.5, 0.25, 1.0), proposer="gold").to_json()
    assert (value["height"], value["width"], value["proposer"]) == (5, 7, "gold")
    read = RegionAnnotation.from_json(value)
    assert np.array_equal(read.masks(), masks)
    assert np.array_equal(read.masks([2, 0]), masks[[2, 0]])
    assert len(read.rles) == 3
    assert read.scores == (0.5, 0.25, 1.0)
    assert RegionAnnotation.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 0}, "positive"),
        ({"height": "tall"}, "reading failed with TypeError"),
        ({"width": float("inf")}, "reading failed with TypeError"),
        ({"height": 2**20, "width": 2**20}, "too many to read"),
        (
            {"height": 8000, "width": 8000, "masks": [{"rle": ""}] * 65},
            "65 masks of 8000 x 8000 pixels, too many to read",
        ),
        ({"masks": [{}]}, "reading failed with KeyError"),
        ({"masks": 3}, "reading failed with TypeError"),
        ({"masks": [{"rle": 4}]}, "expected a string, not int"),
        ({"masks": [{"rle": "4", "score": "high"}]}, "expected a number, not str"),
        ({"masks": [{"rle": "4", "score": 10**400}]}, "reading failed with OverflowError"),
        ({"proposer": None}, "expected a string, not NoneType"),
        ({"masks": [[]]}, "reading failed with TypeError"),
        ({"masks": [{"rle": "", "score": float("nan")}]}, "finite"),
    ],
)
def test_annotation_errors_say_where(change, message):
    with pytest.raises(ValueError, match=message):
        RegionAnnotation.from_json({"height": 2, "width": 2, "masks": [], **change})


def test_a_string_that_is_not_a_mask_is_refused_when_it_is_decoded_or_checked():
    value = {"height": 2, "width": 2, "masks": [{"rle": rle.encode(np.ones((2, 2), bool))}, {"rle": "!"}]}
    annotation = RegionAnnotation.from_json(value)
    assert annotation.masks([0]).all()
    for read in (annotation.validate, annotation.masks, lambda: annotation.masks([1])):
        with pytest.raises(ValueError, match="'!' is not a valid run-length mask of 2 x 2"):
            read()


def test_a_run_length_without_end_is_refused_as_it_is_read():
    with pytest.raises(ValueError, match="a run longer than any mask"):
        rle.read_runs(["o" * 2_000_000 + "0"], 4, 5)
    with pytest.raises(ValueError, match="it ends within a number"):
        rle.read_runs(["o" * 2_000_000], 4, 5)


@given(st.lists(st.integers(1, 2**24 - 1), min_size=1, max_size=40), st.booleans())
def test_runs_are_read_as_pycocotools_writes_them(runs, starts_on):
    """A mask's width is that of all runs, and its height one pixel. Longer runs, of which a mask within the limits has
    three at most, take six bytes each: pycocotools writes the end of several beyond its memory."""
    runs = [0, *runs] if starts_on else runs
    text = coco.frPyObjects({"counts": runs, "size": [1, sum(runs)]}, 1, sum(runs))["counts"].decode()
    assert rle.read_runs([text], 1, sum(runs)).lengths.tolist() == runs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4), max_size=6), st.integers(0, 2**32 - 1))
def test_masks_read_together_are_those_read_one_by_one(kinds, seed):
    random = np.random.default_rng(seed)
    shares = (0.0, 1.0, 0.5, 0.9, 0.05)
    masks = np.array([random.random((9, 13)) < shares[kind] for kind in kinds], dtype=bool).reshape(-1, 9, 13)
    runs = rle.read_runs([rle.encode(mask) for mask in masks], 9, 13)
    assert np.array_equal(runs.decode(9, 13), masks)
    places = np.sort(random.integers(0, 9 * 13, size=random.integers(0, 40)))
    assert np.array_equal(runs.at(places), masks.transpose(0, 2, 1).reshape(len(masks), 9 * 13)[:, places])


@pytest.mark.parametrize("wrong", ["", "!", "4o", "5", "04o"])
def test_of_masks_read_together_the_one_that_is_wrong_is_named(wrong):
    right = rle.encode(np.eye(4, dtype=bool))
    with pytest.raises(ValueError, match=re.escape(f"{wrong!r} is not a valid run-length mask of 4 x 4 pixels")):
        rle.read_runs([right, wrong, right], 4, 4)


SIZES = [(rows, columns) for rows in (7, 13, 47, 50, 101) for columns in (1, 22, 61, 69)]


def test_masks_that_are_read_where_the_image_went_are_those_that_went_with_it():
    torch.manual_seed(0)
    masks = torch.rand(19, 50, 70) < 0.3
    annotation = RegionAnnotation.from_masks(masks.numpy(), scores=[1.0] * 19, proposer="test")
    for move in (
        v2.Resize((23, 31)),
        v2.RandomCrop(30),
        v2.RandomHorizontalFlip(1),
        v2.RandomVerticalFlip(1),
        v2.Compose([v2.Pad(5), v2.RandomRotation(30)]),
        v2.Resize((90, 90)),
        *map(v2.RandomResizedCrop, SIZES),
        *map(v2.Resize, [20, *SIZES]),
    ):
        seed = torch.get_rng_state()
        rows, columns = move(pixel_places(50, 70))
        assert type(rows) is PixelPlaces
        torch.set_rng_state(seed)
        expected = move(tv_tensors.Mask(masks.to(torch.uint8))).bool()
        assert torch.equal(torch.from_numpy(annotation.at(range(19), rows[0].numpy(), columns[0].numpy())), expected)


def test_runs_of_no_pixels_are_read_at_pixels_too():
    text = coco.frPyObjects({"counts": [2, 0, 1, 0, 0, 0, 3, 2], "size": [2, 4]}, 2, 4)["counts"].decode()
    regions = RegionAnnotation(height=2, width=4, rles=(text,) * 9, scores=(1.0,) * 9, proposer="test")
    assert regions.masks().any()
    np.testing.assert_array_equal(
        regions.at(range(9), *(places[0].numpy() for places in pixel_places(2, 4))), regions.masks()
    )


def test_invalid_masks_take_no_memory():
    wrong = {"height": 8000, "width": 8000, "masks": [{"rle": rle.encode(np.ones((2, 2), bool))}] * 64}
    tracemalloc.start()
    with pytest.raises(ValueError, match="its runs cover 4 pixels"):
        RegionAnnotation.from_json(wrong).masks()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000  # the masks would be 4 GiB


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["height", "width", "masks", "rle", "score", "proposer", ""]), inner)
    ),
    max_leaves=12,
)


@st.composite
def mutated(draw):
    """A valid annotation of (5, 7) pixels in which a value or some characters are replaced."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    masks = rng.random((draw(st.integers(0, 3)), 5, 7)) < rng.random()
    value = RegionAnnotation.from_masks(masks, scores=(0.5,) * len(masks), proposer="test").to_json()
    for _ in range(draw(st.integers(0, 2))):
        holder = draw(st.sampled_from([value, *(entry for entry in value["masks"] if isinstance(entry, dict))]))
        name = draw(st.sampled_from(sorted(holder)))
        if name == "rle" and isinstance(holder["rle"], str) and holder["rle"]:
            place, sign = draw(st.integers(0, len(holder["rle"]) - 1)), draw(st.characters(max_codepoint=130))
            holder["rle"] = holder["rle"][:place] + sign + holder["rle"][place + draw(st.integers(0, 2)) :]
        else:
            holder[name] = draw(ANYTHING)
        if not isinstance(value["masks"], list):
            break
    return value


@settings(max_examples=300)
@given(ANYTHING | mutated())
def test_any_json_is_an_annotation_or_a_value_error(value):
    value = json.loads(json.dumps(value))
    try:
        annotation = RegionAnnotation.from_json(value)
    except ValueError:
        return
    sample = Sample(key="a", image=b"", image_extension="png", caption="a", regions=annotation)
    image = Image.new("RGB", (7, 5))
    try:
        assert annotation.masks().shape == (len(value["masks"]), value["height"], value["width"])
    except ValueError:
        with pytest.raises(BadSampleError):
            check_annotations(sample, (5, 7))
    try:
        _, regions = transform_with_regions(
            sample, image, lambda *moved: moved if len(moved) > 1 else moved[0], count=9, grid=(2, 2)
        )
    except BadSampleError:
        with pytest.raises(BadSampleError):
            check_annotations(sample, (5, 7))
        return
    check_annotations(sample, (5, 7))
    assert regions.shape == (len(value["masks"]), 4)
