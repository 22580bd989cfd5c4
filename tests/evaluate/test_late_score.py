"""Late interaction as a score: against one image and one text at a time."""

from functools import cache

import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from powerclip import create_model
from powerclip.evaluate import evaluate_tasks, late_score
from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.late_score import LateScorer
from powerclip.evaluate.metrics import average_precision_metrics
from powerclip.evaluate.score import jobs_of
from powerclip.model import make_tokenizer, make_transforms
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import (
    Classification,
    HardNegative,
    HardNegatives,
    LinearProbe,
    MultiLabel,
    Quadruples,
    Region,
    Retrieval,
)
from tests.support.colours import ColourModel, preprocess, tokenizer
from tests.support.retrieval import accuracies, recalls

# Another batch rounds a few components the other way, each of which changes a product by 2^-11 |x_d y_d|, with
# components of 0.1 to 0.3; the rest is that of sums in float32.
CLOSE = 1e-4
HALF = 2**-10  # both factors of a product of unit vectors are rounded, each by a share of 2^-11 at most
TEXTS = ("red", "a red dog next to two small green cats", "some blue thing")


@pytest.fixture(scope="module", params=["unit", "image"])
def model(request):
    """Patches and tokens differ by what is in them more than those of a new model, so that scores do."""
    torch.manual_seed(0)
    model = create_model("tiny", region_norm=request.param).eval()
    with torch.no_grad():
        model.backbone.token_embedding.weight.normal_()
        model.backbone.visual.conv1.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def suite():
    """One classification task, of 64 classes with three prompts each, and all others."""
    return [task for task in evaluation_tasks(seed=5, size=3) if not task.name.startswith("scenes-colour-object")]


def encoder(model, batch_size=8):
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    return Encoder(model, transform, tokens, device="cpu", batch_size=batch_size)


tokenizer_of = cache(make_tokenizer)


@cache
def patches_of(model, pixels):
    """(N, D) of one image, given as its bytes."""
    image = Image.frombytes("RGB", (64, 64), pixels)
    with torch.inference_mode():
        return normalize(model.encode_patches(make_transforms(model)[1](image)[None])[0], dim=-1)


@cache
def words_of(model, text):
    """(T, D) of one text's valid tokens."""
    tokens = tokenizer_of(model)([text])
    with torch.inference_mode():
        return normalize(model.encode_tokens(tokens)[0][model.valid_tokens(tokens)[0]], dim=-1)


def alone(model, image, text, dtype=torch.float16):
    """(s_I, s_T) of one image and one text, by loops over vectors that are rounded to the dtype."""
    x, y = (v.to(dtype).double() for v in (patches_of(model, image.tobytes()), words_of(model, text)))
    s = (x @ y.T).tolist()
    of_patches = [max(row) for row in s]
    of_words = [max(row[t] for row in s) for t in range(len(y))]
    return sum(of_patches) / len(of_patches), sum(of_words) / len(of_words)


def all_alone(model, pictures, texts, dtype=torch.float16):
    """(I, J) s_I and s_T."""
    return torch.tensor([[alone(model, image, text, dtype) for text in texts] for image in pictures]).unbind(dim=-1)


def every_score(model, pictures, texts, batch_size=8):
    """(I, J) s_I and s_T, and (I,) scores of the pairs."""
    scorer = LateScorer(encoder(model, batch_size))
    with torch.inference_mode():
        i, t = scorer.images(pictures), scorer.texts(texts)
        return scorer.score(i, t), scorer.score_images(i, t), scorer.score_pairs(i[: len(texts)], t[: len(pictures)])


@pytest.mark.parametrize("tile", [1, 2, 64])
@pytest.mark.parametrize("batch_size", [2, 64])
def test_scores_are_filip_s_equations_in_any_batch_and_tile(model, suite, batch_size, tile, monkeypatch):
    monkeypatch.setattr(late_score, "TILE", tile)
    pictures = next(t for t in suite if isinstance(t, Retrieval)).images[:3]
    s_I, s_T, pairs = every_score(model, pictures, TEXTS, batch_size)
    expected_I, expected_T = all_alone(model, pictures, TEXTS)
    torch.testing.assert_close(s_I, expected_I, rtol=0, atol=CLOSE)
    torch.testing.assert_close(s_T, expected_T, rtol=0, atol=CLOSE)
    torch.testing.assert_close(pairs, (expected_I + expected_T).diagonal() / 2, rtol=0, atol=CLOSE)
    assert (s_I - s_T).abs().min() > 10 * CLOSE
    assert s_I.std(dim=1).min() > 10 * CLOSE


def test_float16_changes_little(model, suite):
    pictures = next(t for t in suite if isinstance(t, Retrieval)).images[:3]
    exact = all_alone(model, pictures, TEXTS, torch.float32)
    for found, expected in zip(every_score(model, pictures, TEXTS), exact, strict=False):
        assert 0 < (found - expected).abs().max() < HALF + CLOSE


def test_start_and_end_of_text_count_and_padding_does_not(model):
    scorer = LateScorer(encoder(model))
    with torch.inference_mode():
        together, short = scorer.texts(TEXTS), scorer.texts(TEXTS[:1])
    assert together.mask.sum(dim=1).tolist() == [3, 11, 5]
    assert together.values[~together.mask].abs().max() == 0
    assert together.values.dtype == torch.float16
    assert torch.equal(short.values[0, :3], together.values[0, :3])


def mean_of_both(model, image, text):
    return sum(alone(model, image, text)) / 2


def test_every_task_is_scored_in_the_directions_of_the_paper(model, suite):
    transform, tokens = make_transforms(model)[1], make_tokenizer(model)
    found = evaluate_tasks(model, transform, tokens, suite, score="late")
    assert list(found) == [*(f"{task.name}-late" for task in suite[:-1]), "scenes-grounding"]
    for task in suite[:-1]:
        metrics = found[f"{task.name}-late"]
        if isinstance(task, Classification):
            s = [all_alone(model, task.images, [t.replace("{c}", c) for t in task.templates]) for c in task.class_names]
            scores = torch.stack([s_I.mean(dim=1) for s_I, _ in s], dim=1)
            assert metrics == accuracies(scores, torch.eye(len(s)), torch.tensor(task.labels))
        if isinstance(task, Retrieval):
            owner = torch.tensor([i for i, captions in enumerate(task.captions) for _ in captions])
            s_I, s_T = all_alone(model, task.images, [c for captions in task.captions for c in captions])
            texts, images = torch.eye(len(owner)), torch.eye(len(task.images))
            expected = {k: v for k, v in recalls(s_I, texts, owner).items() if k.startswith("i2t")}
            expected |= {k: v for k, v in recalls(images, s_T.T, owner).items() if k.startswith("t2i")}
            assert metrics == expected
        if isinstance(task, HardNegatives):
            right = [
                mean_of_both(model, i.image, i.positive) > max(mean_of_both(model, i.image, n) for n in i.negatives)
                for i in task.items
            ]
            assert metrics["micro"] == pytest.approx(sum(right) / len(right))
        if isinstance(task, Quadruples):
            s = [[[mean_of_both(model, i, c) for c in q.captions] for i in q.images] for q in task.items]
            text = [q[0][0] > q[0][1] and q[1][1] > q[1][0] for q in s]
            image = [q[0][0] > q[1][0] and q[1][1] > q[0][1] for q in s]
            assert (metrics["text"], metrics["image"]) == (sum(text) / len(text), sum(image) / len(image))


def test_several_prompts_and_labels(model, suite):
    classes, prompts = ("red heart", "blue tree", "green fish"), ("{c}", "a photo of a very small {c}")
    images = suite[0].images[:3]
    task = MultiLabel(
        name="m",
        images=images,
        class_names=classes,
        templates=prompts,
        targets=[[1, 0, 1], [0, 1, 0], [1, 0, 1]],
    )
    found = evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), [task], score="late")
    of_prompts = [all_alone(model, images, [p.replace("{c}", c) for c in classes])[0] for p in prompts]
    expected = average_precision_metrics(sum(of_prompts) / 2, torch.tensor(task.targets).bool())
    assert found == {"m-late": pytest.approx(expected)}


def test_scores_that_are_no_numbers_are_wrong(suite):
    model = create_model("tiny")
    with torch.no_grad():
        model.backbone.visual.proj.fill_(torch.nan)
    tasks = [task for task in suite if isinstance(task, Classification | Retrieval | HardNegatives | Quadruples)]
    found = evaluate_tasks(model, make_transforms(model)[1], make_tokenizer(model), tasks, score="late")
    assert {value for metrics in found.values() for value in metrics.values()} == {0.0}


def test_tasks_without_images_or_texts_have_no_such_score(suite):
    image, box = suite[0].images[0], Region(suite[0].images[0], (0, 0, 9, 9))
    tasks = [
        LinearProbe(name="p", images=[image] * 3, labels=[0, 0, 0], counts=(1, 1, 1), classes=1),
        Classification(name="b", images=[box], labels=[0], class_names=["a"], templates=["{c}"]),
        HardNegatives(name="t", items=[HardNegative(image="a", positive="b", negatives=["c"], kind="k")]),
        Classification(name="c", images=[image], labels=[0], class_names=["a"], templates=["{c}"]),
    ]
    assert [job.name for job in jobs_of(tasks, ("global", "powerset", "late"))] == [
        "p",
        "b",
        "t",
        "c",
        "c-powerset",
        "c-late",
    ]


def test_other_models_are_refused(suite):
    with pytest.raises(
        ValueError, match="late-interaction score needs a PowerCLIP model, got ColourModel; use score='glo"
    ):
        evaluate_tasks(ColourModel(), preprocess, tokenizer, suite[:-1], score="late")
