"""The powerset similarity as a score: against one image and one caption at a time."""

from functools import cache

import numpy as np
import pytest
import torch

from powerclip import create_model
from powerclip.alignment import similarity
from powerclip.data.shards import write_shards
from powerclip.evaluate import evaluate_tasks, retrieval_from_shards
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.powerset_score import PowersetReading
from powerclip.model import make_tokenizer, make_transforms
from powerclip.model.pooling import pool_leaves, pool_phrases, pool_regions
from powerclip.phrases import encode_caption, load_parser
from powerclip.regions import fixed_boxes
from powerclip.scenes import evaluation_tasks, generate
from powerclip.tasks import HardNegatives, Quadruples, Retrieval
from tests.support.colours import ColourModel, preprocess, tokenizer

PARSER = load_parser()
CLOSE = 1e-5  # float32 features of unit length, in other batches: sums of some hundred products


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("tiny").eval()


@pytest.fixture(scope="module")
def suite():
    return evaluation_tasks(seed=5, size=4)


@cache
def tree_of(caption):
    return next(PARSER.parse([caption]))


def encoder(model, batch_size):
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    return Encoder(model, transform, tokens, device="cpu", batch_size=batch_size)


def score_alone(model, image, caption, boxes=None):
    """One image, one caption, no padding, no batch."""
    boxes = fixed_boxes(model.grid_size) if boxes is None else boxes
    encoded = encode_caption(caption, tree_of(caption), make_tokenizer(model), context_length=model.context_length)
    with torch.inference_mode():
        patches = model.encode_patches(make_transforms(model)[1](image)[None])
        regions, _ = pool_regions(patches, boxes[None])
        dense = model.encode_tokens(encoded.tokens[None])
        leaves, leaf_mask = pool_leaves(dense, encoded.leaf_of_token[None], leaves=len(encoded.tokens))
        phrases, _ = pool_phrases(leaves, leaf_mask, encoded.phrase_spans[None], norm=model.phrase_norm)
        return similarity(regions, phrases).total.item() / len(boxes)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_scores_of_a_batch_are_those_of_each_pair_alone(model, suite, batch_size):
    task = next(t for t in suite if isinstance(t, Retrieval))
    reading = PowersetReading(encoder(model, batch_size))
    texts = [captions[0] for captions in task.captions]
    with torch.inference_mode():
        images, phrases = reading.images(task.images), reading.texts(texts)
        scores, pairs = reading.score(images, phrases), reading.score_pairs(images, phrases)
    alone = torch.tensor([[score_alone(model, image, text) for text in texts] for image in task.images])
    torch.testing.assert_close(scores, alone, rtol=0, atol=CLOSE)
    torch.testing.assert_close(pairs, alone.diagonal(), rtol=0, atol=CLOSE)


def test_tasks_are_read_both_ways_and_classification_only_globally(model, suite):
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    found = evaluate_tasks(model, transform, tokens, suite, score="powerset")
    wanted = [t for t in suite if isinstance(t, Retrieval | HardNegatives | Quadruples)]
    assert list(found) == [f"{task.name}-powerset" for task in wanted]
    for task in wanted:
        if isinstance(task, HardNegatives):
            right = [
                score_alone(model, i.image, i.positive) > score_alone(model, i.image, i.negative) for i in task.items
            ]
            assert found[f"{task.name}-powerset"]["micro"] == pytest.approx(sum(right) / len(right))
        if isinstance(task, Quadruples):
            s = [[[score_alone(model, i, c) for c in q.captions] for i in q.images] for q in task.items]
            text = [q[0][0] > q[0][1] and q[1][1] > q[1][0] for q in s]
            image = [q[0][0] > q[1][0] and q[1][1] > q[0][1] for q in s]
            values = found[f"{task.name}-powerset"]
            assert (values["text"], values["image"]) == (sum(text) / len(text), sum(image) / len(image))


def test_stored_masks_go_through_the_image_s_crop(model):
    reading = PowersetReading(encoder(model, 8), regions="stored")
    wide = np.zeros((2, 64, 128), dtype=bool)
    wide[0, :, 64:] = True  # the right half: of the middle square too
    wide[1, :32, :32] = True  # cut off by the crop
    grid = reading._on_grid(lambda: wide).view(2, 8, 8)
    assert grid[0, :, 4:].all()
    assert not grid[0, :, :4].any()
    assert not grid[1].any()
    assert torch.equal(reading._on_grid(lambda: wide[1:]), fixed_boxes(model.grid_size))
    assert torch.equal(reading._on_grid(None), fixed_boxes(model.grid_size))


def test_stored_masks_of_shards_are_the_regions(model, tmp_path):
    write_shards(generate("test", count=6, seed=2), tmp_path)
    task = retrieval_from_shards(tmp_path)
    reading = PowersetReading(encoder(model, 4), regions="stored")
    with torch.inference_mode():
        images = reading.images(task.images, task.masks)
        scores = reading.score(images, reading.texts([captions[0] for captions in task.captions]))
    objects = [len(open_masks()) for open_masks in task.masks]
    assert images.mask.sum(dim=1).tolist() == objects
    masks = reading._on_grid(task.masks[1])
    expected = score_alone(model, task.images[1], task.captions[2][0], masks)
    assert scores[1, 2].item() == pytest.approx(expected, abs=CLOSE)
    assert len(retrieval_from_shards(tmp_path, limit=2).images) == 2


def test_other_models_and_regions_are_refused(model, suite):
    with pytest.raises(ValueError, match="needs a PowerCLIP model, got ColourModel; use score='global'"):
        evaluate_tasks(ColourModel(), preprocess, tokenizer, suite, score="powerset")
    with pytest.raises(ValueError, match="regions is 'sam'; it must be grid or stored"):
        PowersetReading(encoder(model, 4), regions="sam")
