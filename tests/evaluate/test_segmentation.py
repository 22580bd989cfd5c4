"""Segmentation by the release's rule as loops, windows by hand, and the scenes' own masks."""

import numpy as np
import pytest
import torch
from PIL import Image

from powerclip import create_model
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.segmentation import classes_of
from powerclip.model import make_tokenizer, make_transforms
from powerclip.scenes import segmentation_task
from powerclip.tasks import IGNORED, Segmentation

NAMES = (("red thing",), ("green thing", "lime thing"), ("blue thing",))
COLOURS = torch.eye(3)


@pytest.fixture
def colour_model():
    """A model whose patches are the mean colour of their pixels, and whose texts the colour that they name."""
    model = create_model("tiny")
    side = model.image_size[0] // model.grid_size[0]
    mean, std = (torch.tensor(model.backbone.visual.preprocess_cfg[key])[:, None, None] for key in ("mean", "std"))

    def encode_patches(images):
        pixels = images * std + mean
        return torch.nn.functional.avg_pool2d(pixels, side).flatten(2).transpose(1, 2)

    def encode_text(tokens, normalize=False):
        return torch.stack([COLOURS[int(row[0])] for row in tokens])

    def tokenizer(texts):
        words = ("red", "green", "blue")
        found = [next((i for i, word in enumerate(words) if word in text), 1) for text in texts]
        return torch.tensor(found)[:, None]

    model.encode_patches, model.encode_text = encode_patches, encode_text
    return model, make_transforms(model)[1], tokenizer


def task(images, truths, **options):
    options = {"class_names": NAMES, "templates": ("a {c}",), **options}
    return Segmentation(name="s", images=images, truths=[lambda t=t: t for t in truths], **options)


def painted(width, height):
    """An image of three colours in stripes of 16 pixels, and its labels."""
    truth = np.zeros((height, width), dtype=np.int64)
    truth += (np.arange(width) // 16 % 3)[None, :]
    pixels = (np.eye(3, dtype=np.uint8) * 255)[truth]
    return Image.fromarray(pixels), truth


@pytest.mark.parametrize("size", [(64, 64), (96, 64), (128, 176)])
def test_stripes_are_found_in_windows_over_images_of_any_size(size, colour_model):
    image, truth = painted(*size)
    found = evaluate_tasks(*colour_model, [task([image], [truth])])["s"]
    assert found["pixel_accuracy"] > 0.85  # scores are interpolated between patches of 8 pixels
    wrong = (truth + 1) % 3
    assert evaluate_tasks(*colour_model, [task([image], [wrong])])["s"]["pixel_accuracy"] < 0.15


def test_miou_is_over_all_pixels_of_all_images_that_have_a_label(colour_model):
    images, truths = zip(*(painted(64, 64), painted(128, 64)), strict=True)
    truths = [truth.copy() for truth in truths]
    truths[0][:, :20] = IGNORED
    truths[1][truths[1] == 2] = 0  # the third class is predicted, and nowhere right there
    predicted = []
    for image in images:  # each image alone, with all labels equal: its accuracy tells what is predicted
        rows = [
            evaluate_tasks(*colour_model, [task([image], [np.full(image.size[::-1], c)])])["s"]["pixel_accuracy"]
            for c in range(3)
        ]
        assert sum(rows) == pytest.approx(1)
        predicted.append(rows)
    found = evaluate_tasks(*colour_model, [task(images, truths)])["s"]
    # The prediction of a stripe is constant in its middle; count with the prediction of single columns.
    columns = []
    for image, truth in zip(images, truths, strict=True):
        for x in range(image.size[0]):
            only = np.full(truth.shape, IGNORED)
            hits = []
            for c in range(3):
                only[:, x] = c
                hits.append(evaluate_tasks(*colour_model, [task([image], [only])])["s"]["pixel_accuracy"])
            columns += [(int(np.argmax(hits)), int(value)) for value in truth[:, x]]
            assert max(hits) == 1
    pairs = [(p, t) for p, t in columns if t != IGNORED]
    ious = [
        sum(p == t == c for p, t in pairs) / sum(c in (p, t) for p, t in pairs)
        for c in range(3)
        if any(c in pair for pair in pairs)
    ]
    assert found["mIoU"] == pytest.approx(sum(ious) / len(ious))
    assert found["pixel_accuracy"] == pytest.approx(sum(p == t for p, t in pairs) / len(pairs))


@pytest.mark.parametrize(("least_probability", "least_area"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.2), (0.45, 0.3)])
def test_synonyms_and_the_rules_of_the_background_as_loops(least_probability, least_area):
    generator = torch.Generator().manual_seed(3)
    scores, of_class = torch.rand(4, 6, 7, generator=generator) * 0.1, [0, 1, 1, 2]
    scores[2] += 0.03
    options = {"least_probability": least_probability, "least_area": least_area, "logit_scale": 40.0}
    found = classes_of(scores, torch.tensor(of_class), task([], [], **options))
    likely = {}
    for y in range(6):
        for x in range(7):
            values = [40 * scores[q, y, x].item() for q in range(4)]
            powers = [np.exp(value - max(values)) for value in values]
            likely[y, x] = [max(powers[q] for q in range(4) if of_class[q] == c) / sum(powers) for c in range(3)]
    first = [int(np.argmax(values)) for values in likely.values()]
    counts = [first.count(c) for c in range(3)]
    small = [c for c in (1, 2) if least_area and not counts[c] > least_area * (counts[1] + counts[2])]
    for (y, x), values in likely.items():
        kept = [0.0 if c in small else value for c, value in enumerate(values)]
        best = int(np.argmax(kept))
        assert found[y, x] == (0 if kept[best] < least_probability else best)
    assert len(found.unique()) > 1


def test_scenes_are_segmented_by_any_powerclip_model():
    torch.manual_seed(0)
    model = create_model("tiny")
    scenes = segmentation_task(seed=1, size=5, image_size=64)
    truth = scenes.truths[0]()
    assert truth.shape == (64, 64)
    assert IGNORED in truth
    found = evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), [scenes])["scenes-segmentation"]
    assert 0 <= found["mIoU"] <= 1
    with pytest.warns(
        UserWarning, match="scenes-segmentation is skipped: it needs the regions and phrases of a PowerCLIP"
    ):
        assert evaluate_tasks(torch.nn.Linear(1, 1), None, None, [scenes]) == {}


def test_labels_that_do_not_fit_are_named(colour_model):
    image, truth = painted(64, 64)
    with pytest.raises(ValueError, match=r"task s has an image of \(64, 64\) with labels \(63, 64\)"):
        evaluate_tasks(*colour_model, [task([image], [truth[1:]])])
    with pytest.raises(ValueError, match="task s has 1 images and labels for 0"):
        evaluate_tasks(*colour_model, [task([image], [])])
    nothing = task([image], [np.full_like(truth, IGNORED)])
    with pytest.raises(ValueError, match="has no labelled pixel"):
        evaluate_tasks(*colour_model, [nothing])
