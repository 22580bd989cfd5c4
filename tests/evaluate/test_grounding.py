"""Grounding: a model that knows where things are, one that guesses, and a plain loop."""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image

from powerclip import create_model
from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.grounding import METRICS, POINTING, boxes_of, measure
from powerclip.evaluate.metrics import Estimate
from powerclip.model import make_tokenizer, make_transforms
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Grounding
from tests.support.colours import COLOURS, NAMES
from tests.support.models import write_tiny

ROUNDING = 8 * torch.finfo(torch.float32).eps
"""Means of a few hundred float32 numbers between 0 and 1, summed in float64."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """TINY, 64 pixels in patches of 16."""
    torch.manual_seed(0)
    return create_model(write_tiny(tmp_path_factory.mktemp("model"))).eval()


def evaluate(model, task, **options):
    return evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), [task], **options)[task.name]


def colour_task(*boxes_of_images):
    """White images with a rectangle (top, left, bottom, right in patches) of each colour in turn."""
    images, phrases, masks = [], [], []
    for boxes in boxes_of_images:
        pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
        own = np.zeros((len(boxes), 64, 64), dtype=bool)
        for name, mask, box in zip(NAMES, own, boxes, strict=False):
            top, left, bottom, right = (16 * edge for edge in box)
            mask[top:bottom, left:right] = True
            pixels[mask] = COLOURS[name]
        images.append(Image.fromarray(pixels))
        phrases.append([f"a thing in {name}" for name in NAMES[: len(boxes)]])
        masks.append(lambda own=own: own)
    return Grounding(name="g", images=images, phrases=phrases, masks=masks)


def with_dense(model, *, patches=None, tokens=None):
    """A copy with other dense outputs: functions of (B, 3, H, W) images and (B, T) tokens."""
    other = copy.copy(model)
    for name, function in (("encode_patches", patches), ("encode_tokens", tokens)):
        if function is not None:
            object.__setattr__(other, name, function)
    return other


def seeing_colours(model, *, elsewhere, sign=1.0):
    """A copy that knows where each colour is: its patches are 1 on the axis of that colour, all others ``elsewhere``.

    Further axes tell the patches of an object apart and cancel out over the whole of it, so that the whole is the best
    region. A word is ``sign`` on its colour's axis.
    """
    transform, tokenizer = make_transforms(model)[1], make_tokenizer(model)
    seen = [transform(Image.new("RGB", (64, 64), COLOURS[name]))[:, 0, 0] for name in NAMES]
    words = [tokenizer([name])[0, 1].item() for name in NAMES]

    def patches(images):
        shown = images.unfold(2, 16, 16).unfold(3, 16, 16).mean(dim=(-2, -1)).flatten(2).transpose(1, 2)  # (B, N, 3)
        like = torch.stack([(shown - colour).abs().amax(dim=-1) < 1e-3 for colour in seen], dim=-1).float()  # (B, N, C)
        same = like @ like.transpose(1, 2)  # (B, N, N)
        apart = like.sum(dim=-1).diag_embed() - same / same.sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.cat([torch.where(like > 0, 1.0, elsewhere), apart], dim=-1)

    def texts(tokens):
        named = torch.stack([tokens == word for word in words], dim=-1) * sign
        return torch.cat([named, named.new_zeros(*tokens.shape, 16)], dim=-1)

    return with_dense(model, patches=patches, tokens=texts)


TASK = colour_task([(0, 0, 1, 1), (2, 1, 4, 3)], [(1, 1, 3, 3), (0, 3, 4, 4), (3, 0, 4, 1)], [(0, 0, 2, 2)])
SHARES = [1 / 16, 4 / 16, 4 / 16, 4 / 16, 1 / 16, 4 / 16]
"""Of the image, for the objects of TASK."""


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_model_that_knows_is_perfect(model, batch_size):
    found = evaluate(seeing_colours(model, elsewhere=-10.0), TASK, batch_size=batch_size)
    assert found == dict.fromkeys(METRICS, 1.0)
    assert {estimate.n for estimate in found.values()} == {6}
    for name in ("patch", "precision", "recall"):  # what is chosen is the object: both shares are its own
        assert found[name].chance == pytest.approx(sum(SHARES) / 6, abs=ROUNDING)


def test_a_model_that_takes_all_regions_has_recall_alone(model):
    found = evaluate(seeing_colours(model, elsewhere=0.5), TASK)
    assert found["patch"] == 1.0
    assert found["precision"] == pytest.approx(sum(SHARES) / 6, abs=ROUNDING)
    assert found["recall"] == found["recall"].chance == 1.0


def test_a_model_that_takes_none_finds_no_area(model):
    found = evaluate(seeing_colours(model, elsewhere=1.0, sign=-1.0), TASK)
    assert (found["precision"], found["recall"]) == (0, 0)
    assert found["recall"].chance == 0


def test_a_constant_model_has_exactly_the_chance(model):
    same = {"patches": lambda images: torch.ones(len(images), 16, 3), "tokens": lambda ids: torch.ones(*ids.shape, 3)}
    found = evaluate(with_dense(model, **same), TASK)
    assert found["recall"] == 1.0
    for name in POINTING:
        assert found[name] == pytest.approx(found[name].chance, abs=ROUNDING)


def test_random_vectors_are_near_the_chance(model):
    generator = torch.Generator().manual_seed(0)
    guessing = with_dense(model, patches=lambda images: torch.randn(len(images), 16, 16, generator=generator))
    task = next(task for task in evaluation_tasks(seed=2, size=300) if isinstance(task, Grounding))
    found = evaluate(guessing, task)
    for name in METRICS:
        assert 0.02 < found[name].chance < 0.9, name
        if name != "region":  # boxes that overlap have similar averages, so that the right ones win or lose together
            assert abs(found[name] - found[name].chance) < 4 * found[name].standard_error, name


def test_scores_that_are_no_numbers_find_nothing(model):
    broken = with_dense(model, patches=lambda images: torch.full((len(images), 16, 16), torch.nan))
    assert evaluate(broken, TASK) == dict.fromkeys(METRICS, 0.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_measures_of_an_image_equal_loops(seed):
    """Coarse scores, so that candidates tie; objects and chosen sets of any form, empty ones too."""
    generator = torch.Generator().manual_seed(seed)
    Q, M, rows, columns = 4, 6, 3, 4
    N = rows * columns
    pointed = torch.randint(-2, 3, (len(POINTING), Q, N), generator=generator).float()
    regions = torch.randint(-2, 3, (Q, M), generator=generator).float()
    chosen = torch.rand(Q, M, generator=generator) < 0.3
    chosen[0] = False
    objects = torch.rand(Q, N, generator=generator) < 0.25
    objects[:, seed] = True
    candidates = torch.rand(M, N, generator=generator) < 0.5
    boxes = boxes_of(objects, (rows, columns))
    candidates = torch.cat([candidates[: M - Q], boxes])
    found = measure(pointed, regions, chosen, objects, candidates, boxes)
    for q in range(Q):
        inside = {n for n in range(N) if objects[q, n]}
        cells = [(n // columns, n % columns) for n in inside]
        (top, bottom), (left, right) = ((min(line), max(line)) for line in zip(*cells, strict=True))
        box = {r * columns + c for r in range(top, bottom + 1) for c in range(left, right + 1)}
        sets = [{n for n in range(N) if candidates[m, n]} for m in range(M)]
        good = [len(box & s) / len(box | s) >= 0.5 for s in sets]
        best_patches = [[n for n in range(N) if x[q, n] == max(x[q].tolist())] for x in pointed]
        best_regions = [m for m in range(M) if regions[q, m] == max(regions[q].tolist())]
        area = set().union(*(sets[m] for m in range(M) if chosen[q, m]))
        expected = [
            *(sum(n in inside for n in best) / len(best) for best in best_patches),
            sum(good[m] for m in best_regions) / len(best_regions),
            len(area & inside) / len(area) if area else 0,
            len(area & inside) / len(inside),
            *(len(inside) / N for _ in POINTING),
            sum(good) / M,
            len(inside) / N,
            len(area) / N,
        ]
        assert found[q].tolist() == pytest.approx(expected, abs=ROUNDING)


def test_phrases_of_one_image_count_as_one_draw():
    values, image = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1, 2])
    residuals = [2 * 0.4, 2 * -0.6, 0.4]
    expected = math.sqrt(sum(x * x for x in residuals)) / 5
    assert Estimate.of(values, clusters=image).standard_error == pytest.approx(expected)
    assert Estimate.of(values).standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 5))


def test_an_object_out_of_view_is_no_question(model):
    """The transform cuts a square from the middle of a wide image."""
    pixels = np.full((64, 192, 3), 255, dtype=np.uint8)
    masks = np.zeros((2, 64, 192), dtype=bool)
    masks[0, :16, :16], masks[1, :16, 64:80] = True, True
    pixels[masks[1]] = COLOURS["green"]
    task = Grounding(name="g", images=[Image.fromarray(pixels)], phrases=[["red", "green"]], masks=[lambda: masks])
    found = evaluate(seeing_colours(model, elsewhere=-10.0), task)
    assert found == dict.fromkeys(METRICS, 1.0)
    assert found["patch"].n == 1
    nothing = Grounding(name="g", images=task.images, phrases=[["red"]], masks=[lambda: masks[:1]])
    with pytest.raises(ValueError, match="task g has no phrase of an object in view"):
        evaluate(model, nothing)


def test_parts_that_do_not_fit_are_named(model):
    image = TASK.images[0]
    with pytest.raises(ValueError, match="task g has 1 images, phrases for 2 and masks for 1"):
        evaluate(model, Grounding(name="g", images=[image], phrases=[["a"], ["b"]], masks=[TASK.masks[0]]))
    with pytest.raises(ValueError, match="task g has an image with 1 phrases and 2 masks"):
        evaluate(model, Grounding(name="g", images=[image], phrases=[["a"]], masks=[TASK.masks[0]]))


def test_a_model_trained_on_tokens_sees_the_mean_of_a_phrase_s_tokens(model):
    tokens = seeing_colours(model, elsewhere=-10.0)
    for unit in ("token", "both"):
        tokens.phrase_unit = unit
        assert evaluate(tokens, TASK) == dict.fromkeys(METRICS, 1.0)


@pytest.mark.parametrize("unit", ["phrase", "token", "both"])
def test_a_model_whose_last_token_alone_knows_is_asked_by_it_too(model, unit):
    """The last token of "a thing in red" knows; the words before it point away from it."""
    knowing = seeing_colours(model, elsewhere=-10.0)

    def tokens(ids):
        named = knowing.encode_tokens(ids)  # (B, T, D): a colour's axis at its word
        return torch.where(named.any(dim=2, keepdim=True), named, -named.sum(dim=1, keepdim=True))

    last = with_dense(model, patches=knowing.encode_patches, tokens=tokens)
    last.phrase_unit = unit
    found = evaluate(last, TASK)
    assert (found["patch_last"], found["contribution_last"]) == (1.0, 1.0)
    assert (found["patch"], found["contribution"]) == (0.0, 0.0)
