"""The powerset similarity as a score: against one image and one caption at a time."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from powerclip import create_model, load
from powerclip.alignment import similarity
from powerclip.config import ScoringConfig
from powerclip.data.shards import write_shards
from powerclip.evaluate import evaluate_tasks, pairwise_scores, retrieval_from_shards
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.late_score import LateScorer
from powerclip.evaluate.powerset_score import PowersetScorer
from powerclip.model import make_tokenizer, make_transforms, save
from powerclip.model.pooling import pool_leaves, pool_phrases, pool_regions
from powerclip.phrases import encode_caption, load_parser
from powerclip.regions import fixed_boxes
from powerclip.scenes import evaluation_tasks, generate
from powerclip.tasks import PLACE, Classification, HardNegatives, Quadruples, Retrieval
from tests.support.colours import ColourModel, preprocess, tokenizer
from tests.support.problems import masked, problem
from tests.support.retrieval import accuracies

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


def score_alone(model, image, caption, boxes=None, **options):
    """One image, one caption, no padding, no batch; ``options`` are those of the similarity."""
    boxes = fixed_boxes(model.grid_size) if boxes is None else boxes
    encoded = encode_caption(caption, tree_of(caption), make_tokenizer(model), context_length=model.context_length)
    with torch.inference_mode():
        patches = model.encode_patches(make_transforms(model)[1](image)[None])
        regions, _ = pool_regions(patches, boxes[None])
        dense = model.encode_tokens(encoded.tokens[None])
        if model.phrase_unit == "token":
            phrases = normalize(dense[:, encoded.leaf_of_token >= 0], dim=-1)
        else:
            leaves, leaf_mask = pool_leaves(dense, encoded.leaf_of_token[None], leaves=len(encoded.tokens))
            phrases, _ = pool_phrases(leaves, leaf_mask, encoded.phrase_spans[None], norm=model.phrase_norm)
        if model.phrase_unit == "both":
            tokens = normalize(dense[:, encoded.leaf_of_token >= 0], dim=-1)
            phrases = torch.cat([phrases, tokens], dim=1)
        if model.scoring.zero == "centred":
            means = model.vector_means
            regions, phrases = normalize(regions - means[0], dim=-1), normalize(phrases - means[1], dim=-1)
        elif model.scoring.zero != "none":  # a product of ones and -b
            regions = torch.cat([regions, torch.ones_like(regions[..., :1])], dim=-1)
            phrases = torch.cat([phrases, -model.scoring.zero * torch.ones_like(phrases[..., :1])], dim=-1)
        found = similarity(regions, phrases, **options)
    parts = {"both": found.total, "t2r": found.t2r, "r2t": found.r2t}
    divided = model.scoring.normalise_by_regions and model.scoring.subsets == "all"
    return parts[model.scoring.direction].item() / (len(boxes) if divided else 1)


def in_both_ways(model, suite):
    """Scores of some images and captions: (I, J) all together, and (I,) in pairs."""
    task = next(t for t in suite if isinstance(t, Retrieval))
    pictures, texts = task.images[:3], [captions[0] for captions in task.captions[:3]]
    scorer = PowersetScorer(encoder(model, 2))
    with torch.inference_mode():
        images, phrases = scorer.images(pictures), scorer.texts(texts)
        return pictures, texts, scorer.score(images, phrases), scorer.score_pairs(images, phrases)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_scores_of_a_batch_are_those_of_each_pair_alone(model, suite, batch_size):
    task = next(t for t in suite if isinstance(t, Retrieval))
    scorer = PowersetScorer(encoder(model, batch_size))
    texts = [captions[0] for captions in task.captions]
    with torch.inference_mode():
        images, phrases = scorer.images(task.images), scorer.texts(texts)
        scores, pairs = scorer.score(images, phrases), scorer.score_pairs(images, phrases)
    alone = torch.tensor([[score_alone(model, image, text) for text in texts] for image in task.images])
    torch.testing.assert_close(scores, alone, rtol=0, atol=CLOSE)
    torch.testing.assert_close(pairs, alone.diagonal(), rtol=0, atol=CLOSE)


def test_any_images_and_captions_can_be_scored(model, suite):
    task = next(t for t in suite if isinstance(t, Retrieval))
    images, captions = task.images[:2], [captions[0] for captions in task.captions[:3]]
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    model.train()
    found = pairwise_scores(model, transform, tokens, images, captions)
    assert model.training
    model.eval()
    alone = torch.tensor([[score_alone(model, image, caption) for caption in captions] for image in images])
    torch.testing.assert_close(found, alone, rtol=0, atol=CLOSE)
    with torch.inference_mode():
        i = model.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
        t = model.encode_text(tokens(captions), normalize=True)
    found = pairwise_scores(model, transform, tokens, images, captions, score="global")
    torch.testing.assert_close(found, i @ t.T, rtol=0, atol=CLOSE)
    found += 1  # it is no tensor of inference mode
    assert pairwise_scores(model, transform, tokens, [], captions).shape == (0, 3)
    with pytest.raises(ValueError, match="score is 'best'"):
        pairwise_scores(model, transform, tokens, images, captions, score="best")


def test_late_scores_are_those_that_rank_images(model, suite):
    task = next(t for t in suite if isinstance(t, Retrieval))
    images, captions = task.images[:2], [captions[0] for captions in task.captions[:3]]
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    found = pairwise_scores(model, transform, tokens, images, captions, score="late")
    scorer = LateScorer(encoder(model, 2))
    with torch.inference_mode():
        i, t = scorer.images(images), scorer.texts(captions)
        torch.testing.assert_close(found, scorer.score_images(i, t), rtol=0, atol=CLOSE)
        assert not torch.allclose(found, scorer.score(i, t), rtol=0, atol=CLOSE)


SCORINGS = {
    "tau": ScoringConfig(tau=0.3),
    "hard": ScoringConfig(tau=0.0),
    "zeta": ScoringConfig(zeta=0.2),
    "activations": ScoringConfig(tau=0.3, t1_activation="gelu", t2_activation="arctan"),
    "single regions": ScoringConfig(subsets="single"),
    "one direction": ScoringConfig(direction="t2r"),
    "the other direction": ScoringConfig(direction="r2t"),
    "threshold": ScoringConfig(zero=0.05),
    "centred": ScoringConfig(zero="centred"),
    "not normalised": ScoringConfig(normalise_by_regions=False),
    "sampled": ScoringConfig(method="sampled", samples=64),
    "exact": ScoringConfig(method="exact", samples=64),
}


@pytest.mark.parametrize("scoring", SCORINGS.values(), ids=SCORINGS.keys())
def test_a_model_is_scored_as_it_was_trained(suite, scoring, tmp_path):
    torch.manual_seed(0)
    trained = create_model("tiny", image_size=32, scoring=scoring)
    if scoring.zero == "centred":
        trained.vector_means.normal_(std=0.05)
    save(trained, tmp_path)
    model = load(tmp_path)[0]
    pictures, texts, scores, pairs = in_both_ways(model, suite)
    names = ("tau", "zeta", "subsets", "t1_activation", "t2_activation", "samples")
    options = {name: getattr(scoring, name) for name in names}
    if scoring.method != "nla":  # exact: these are more regions than can be enumerated
        options["method"] = "sampled"

    def alone(model, image, text, **options):
        return score_alone(model, image, text, generator=torch.Generator().manual_seed(0), **options)

    expected = torch.tensor([[alone(model, image, text, **options) for text in texts] for image in pictures])
    atol = CLOSE if scoring.normalise_by_regions else CLOSE * len(fixed_boxes(model.grid_size))
    torch.testing.assert_close(scores, expected, rtol=0, atol=atol)
    torch.testing.assert_close(pairs, expected.diagonal(), rtol=0, atol=atol)
    plain = create_model("tiny", image_size=32)
    plain.load_state_dict(model.state_dict(), strict=scoring.zero != "centred")
    assert not torch.allclose(in_both_ways(plain.eval(), suite)[2], scores, rtol=0, atol=10 * CLOSE)


def test_few_regions_are_enumerated_by_a_model_trained_by_enumeration(suite):
    torch.manual_seed(0)
    model = create_model("tiny", scoring=ScoringConfig(method="exact")).eval()
    regions, phrases, region_mask, phrase_mask = problem(3, 4, 5, 3)
    scorer = PowersetScorer(encoder(model, 2))
    images, texts = masked((regions, phrases, region_mask, phrase_mask))
    exact = similarity(regions, phrases, region_mask, phrase_mask, method="exact").total
    torch.testing.assert_close(scorer.score(images, texts), exact / region_mask.sum(dim=1)[:, None])


def test_a_calibrated_zeta_without_an_estimate_is_the_usual_one(suite):
    torch.manual_seed(0)
    model = create_model("tiny", scoring=ScoringConfig(zeta="calibrated")).eval()
    plain = create_model("tiny")
    plain.load_state_dict(model.state_dict())
    assert torch.equal(in_both_ways(model, suite)[2], in_both_ways(plain.eval(), suite)[2])


@pytest.mark.parametrize("unit", ["token", "both"])
def test_a_model_trained_on_tokens_is_scored_by_tokens(unit, suite):
    torch.manual_seed(0)
    model = create_model("tiny", phrase_unit=unit).eval()
    pictures, texts, scores, pairs = in_both_ways(model, suite)
    expected = torch.tensor([[score_alone(model, image, text) for text in texts] for image in pictures])
    torch.testing.assert_close(scores, expected, rtol=0, atol=CLOSE)
    torch.testing.assert_close(pairs, expected.diagonal(), rtol=0, atol=CLOSE)


def test_a_model_trained_on_patches_is_scored_by_patches(suite):
    torch.manual_seed(0)
    model = create_model("tiny", region_unit="patch", scoring=ScoringConfig(subsets="single")).eval()
    patches = torch.eye(math.prod(model.grid_size), dtype=torch.bool)
    pictures, texts, scores, pairs = in_both_ways(model, suite)
    expected = torch.tensor(
        [[score_alone(model, image, text, patches, subsets="single") for text in texts] for image in pictures]
    )
    torch.testing.assert_close(scores, expected, rtol=0, atol=CLOSE)
    torch.testing.assert_close(pairs, expected.diagonal(), rtol=0, atol=CLOSE)


@pytest.mark.parametrize("norm", ["unit", "image"])
def test_patches_are_scored_without_masks_of_one_patch_each(norm, suite, monkeypatch):
    torch.manual_seed(0)
    model = create_model("tiny", region_unit="patch", region_norm=norm).eval()
    given = []
    encode = model.encode_image_and_regions
    monkeypatch.setattr(model, "encode_image_and_regions", lambda x, masks: (given.append(masks), encode(x, masks))[1])
    pictures = next(t for t in suite if isinstance(t, Retrieval)).images[:3]
    patches = torch.eye(math.prod(model.grid_size), dtype=torch.bool)
    with torch.inference_mode():
        ways = [PowersetScorer(encoder(model, 2), boxes=boxes) for boxes in (None, patches)]
        scores = [scorer.score(scorer.images(pictures), scorer.texts(["a red cat"])) for scorer in ways]
    assert [masks is None for masks in given] == [True, True, False, False]
    torch.testing.assert_close(*scores, rtol=0, atol=CLOSE)


def test_a_class_has_the_mean_score_of_its_prompts(model, suite):
    images = [suite[0].images[i] for i in range(3)]
    names, templates = ["red cat", "blue star", "moon"], ["a {c}", "there is a {c}"]
    task = Classification(name="c", images=images, labels=[2, 0, 1], class_names=names, templates=templates)
    found = evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), [task], score="powerset")
    prompts = [[template.replace(PLACE, name) for template in templates] for name in names]
    s = torch.tensor([[[score_alone(model, image, p) for p in of_class] for of_class in prompts] for image in images])
    assert found["c-powerset"] == accuracies(s.mean(dim=2), torch.eye(3), torch.tensor(task.labels))


def test_tasks_are_read_both_ways(model, suite):
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    suite = [task for task in suite if not isinstance(task, Classification)]
    found = evaluate_tasks(model, transform, tokens, suite, score="powerset")
    wanted = [t for t in suite if isinstance(t, Retrieval | HardNegatives | Quadruples)]
    assert list(found) == [*(f"{task.name}-powerset" for task in wanted), "scenes-grounding"]
    for task in wanted:
        values = found[f"{task.name}-powerset"]
        if isinstance(task, HardNegatives):
            margins = [
                [score_alone(model, i.image, i.positive) - score_alone(model, i.image, i.negatives[0])]
                for i in task.items
            ]
            assert_share_right(values["micro"], margins)
        if isinstance(task, Quadruples):
            s = [[[score_alone(model, i, c) for c in q.captions] for i in q.images] for q in task.items]
            assert_share_right(values["text"], [[q[0][0] - q[0][1], q[1][1] - q[1][0]] for q in s])
            assert_share_right(values["image"], [[q[0][0] - q[1][0], q[1][1] - q[0][1]] for q in s])


def assert_share_right(share, margins):
    """An item is right if all of its margins are above zero; those that rounding decides may go either way."""
    sure, possible = (sum(min(item) > limit for item in margins) for limit in (CLOSE, -CLOSE))
    assert sure <= round(share * len(margins), 6) <= possible
    assert possible - sure <= len(margins) / 4


def test_stored_masks_go_through_the_image_s_crop(model):
    scorer = PowersetScorer(encoder(model, 8), regions="stored")
    wide = np.zeros((2, 64, 128), dtype=bool)
    wide[0, :, 64:] = True  # the right half: of the middle square too
    wide[1, :32, :32] = True  # cut off by the crop
    grid = scorer.on_grid(lambda: wide).view(2, 8, 8)
    assert grid[0, :, 4:].all()
    assert not grid[0, :, :4].any()
    assert not grid[1].any()
    assert torch.equal(scorer.on_grid(lambda: wide[1:]), fixed_boxes(model.grid_size))
    assert torch.equal(scorer.on_grid(None), fixed_boxes(model.grid_size))


def test_stored_masks_of_shards_are_the_regions(model, tmp_path):
    write_shards(generate("test", count=6, seed=2), tmp_path)
    task = retrieval_from_shards(tmp_path)
    scorer = PowersetScorer(encoder(model, 4), regions="stored")
    with torch.inference_mode():
        images = scorer.images(task.images, task.masks)
        scores = scorer.score(images, scorer.texts([captions[0] for captions in task.captions]))
    objects = [len(list(open_masks())) for open_masks in task.masks]
    assert images.mask.sum(dim=1).tolist() == objects
    masks = scorer.on_grid(task.masks[1])
    expected = score_alone(model, task.images[1](), task.captions[2][0], masks)
    assert scores[1, 2].item() == pytest.approx(expected, abs=CLOSE)
    assert len(retrieval_from_shards(tmp_path, limit=2).images) == 2


def test_other_models_and_regions_are_refused(model, suite):
    with pytest.raises(ValueError, match="needs a PowerCLIP model, got ColourModel; use score='global'"):
        evaluate_tasks(ColourModel(), preprocess, tokenizer, suite[:-1], score="powerset")
    with pytest.raises(ValueError, match="regions is 'sam'; it must be one of grid, stored"):
        PowersetScorer(encoder(model, 4), regions="sam")
