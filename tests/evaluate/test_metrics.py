"""Every metric against nested loops over Python numbers."""

import copy
import math
import pickle
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from powerclip.evaluate.metrics import (
    RECALLS,
    Estimate,
    class_embeddings,
    hard_negative_metrics,
    quadruple_metrics,
    same_texts,
)
from tests.support.retrieval import accuracies, recalls

# Small whole numbers: products are exact in float32, so that the oracle sees the same ties.
EXACT = st.integers(min_value=-2, max_value=2).map(float)
FLOAT32_EPS = torch.finfo(torch.float32).eps
CLOSE = 8 * FLOAT32_EPS  # a mean of at most 16 zeros and ones, then a ratio or two


def matrix(rows: int, columns: int) -> st.SearchStrategy[Tensor]:
    row = st.lists(EXACT, min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows).map(torch.tensor)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def looped_retrieval(images: Tensor, texts: Tensor, owner: list[int], group: list[int]) -> dict[str, float]:
    ranks: dict[str, list[int]] = {"i2t": [], "t2i": []}
    for i, image in enumerate(images):
        words = {group[j] for j in range(len(texts)) if owner[j] == i}
        best = max(dot(image, text) for j, text in enumerate(texts) if group[j] in words)
        wrong = [dot(image, text) for j, text in enumerate(texts) if group[j] not in words]
        ranks["i2t"].append(sum(score >= best for score in wrong))
    for j, text in enumerate(texts):
        places = {owner[k] for k in range(len(texts)) if group[k] == group[j]}
        best = max(dot(image, text) for i, image in enumerate(images) if i in places)
        wrong = [dot(image, text) for i, image in enumerate(images) if i not in places]
        ranks["t2i"].append(sum(score >= best for score in wrong))
    return {f"{name}_R@{k}": sum(r < k for r in rank) / len(rank) for name, rank in ranks.items() for k in RECALLS}


@given(st.data())
def test_retrieval_equals_loops(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 7))
    captions = data.draw(st.lists(st.integers(1, 2), min_size=count, max_size=count))
    owner = [i for i, n in enumerate(captions) for _ in range(n)]
    group = data.draw(st.lists(st.integers(0, 9), min_size=len(owner), max_size=len(owner)))
    images, texts = data.draw(matrix(count, 2)), data.draw(matrix(len(owner), 2))
    chunk = data.draw(st.integers(1, 8))
    found = recalls(images, texts, torch.tensor(owner), same_text=torch.tensor(group), chunk=chunk)
    assert found == pytest.approx(looped_retrieval(images, texts, owner, group), abs=CLOSE)


def test_a_constant_model_retrieves_nothing() -> None:
    same = torch.ones(20, 1)
    assert set(recalls(same, same, torch.arange(20)).values()) == {0.0}


def test_copies_of_a_caption_are_all_right() -> None:
    images, texts = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])  # each text points at the other's image
    apart = recalls(images, texts, torch.arange(2))
    copies = recalls(images, texts, torch.arange(2), same_text=same_texts(["a dog", "a dog"]))
    assert (apart["i2t_R@1"], apart["t2i_R@1"]) == (0, 0)
    assert (copies["i2t_R@1"], copies["t2i_R@1"]) == (1, 1)
    assert same_texts(["a", "b", "a"]).tolist() == [0, 1, 0]


def test_scores_that_are_no_numbers_are_wrong() -> None:
    broken = torch.full((20, 3), torch.nan)
    assert set(recalls(broken, torch.ones(20, 3), torch.arange(20)).values()) == {0.0}
    assert set(accuracies(broken, torch.ones(8, 3), torch.arange(20) % 8).values()) == {0.0}
    assert set(hard_negative_metrics(broken[:, 0], broken[:, 1], ["add_obj"] * 20).values()) == {0.0}
    assert set(quadruple_metrics(torch.full((5, 2, 2), torch.nan)).values()) == {0.0}


@given(st.data())
def test_classification_equals_loops(data: st.DataObject) -> None:
    count, classes = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 8))
    images, weights = data.draw(matrix(count, 2)), data.draw(matrix(classes, 2))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    ranks = [
        sum((-dot(image, weights[c]), c) < (-dot(image, weights[label]), label) for c in range(classes))
        for image, label in zip(images, labels, strict=True)
    ]
    own = [[rank == 0 for rank, label in zip(ranks, labels, strict=True) if label == c] for c in set(labels)]
    expected = {
        "acc@1": sum(rank == 0 for rank in ranks) / count,
        "mean_per_class": sum(sum(right) / len(right) for right in own) / len(own),
    }
    if classes > 5:
        expected["acc@5"] = sum(rank < 5 for rank in ranks) / count
    strict = [
        all(dot(image, weights[c]) < dot(image, weights[label]) for c in range(classes) if c != label)
        for image, label in zip(images, labels, strict=True)
    ]
    if strict != [rank == 0 for rank in ranks]:
        expected["acc@1-strict"] = sum(strict) / count
    with patch("powerclip.evaluate.metrics.CHUNK_ELEMENTS", data.draw(st.integers(1, 30))):
        found = accuracies(images, weights, torch.tensor(labels))
    assert found == pytest.approx(expected, abs=CLOSE)


def test_class_embeddings_average_prompts_then_rescale() -> None:
    prompts = torch.nn.functional.normalize(torch.randn(3, 4, 5, generator=torch.manual_seed(0)), dim=-1)
    for c in range(3):
        mean = [sum(prompts[c, p, d].item() for p in range(4)) / 4 for d in range(5)]
        length = math.sqrt(sum(x * x for x in mean))
        found = class_embeddings(prompts)[c].tolist()
        # Rounding of a sum of four and of the norm, over a mean that may be shorter than one.
        assert found == pytest.approx([x / length for x in mean], abs=16 * FLOAT32_EPS / length)


@given(st.lists(st.tuples(EXACT, EXACT, st.sampled_from(["swap_att", "add_obj", "replace_rel"])), min_size=1))
def test_hard_negatives_equal_loops(items: list[tuple[float, float, str]]) -> None:
    positive, negative, kinds = zip(*items, strict=True)
    by_kind: dict[str, list[bool]] = {}
    for p, n, kind in items:
        by_kind.setdefault(kind, []).append(p > n)
    shares = {kind: sum(right) / len(right) for kind, right in by_kind.items()}
    expected = {
        "micro": sum(p > n for p, n, _ in items) / len(items),
        "macro": sum(shares.values()) / len(shares),
        **shares,
    }
    found = hard_negative_metrics(torch.tensor(positive), torch.tensor(negative), kinds)
    assert found == pytest.approx(expected, abs=CLOSE)


def binomial(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def test_standard_errors_and_chances() -> None:
    images = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    found = accuracies(images, torch.tensor([[1.0]] + 7 * [[0.0]]), torch.tensor([0, 0, 1, 0]))
    assert vars(found["acc@1"]) == {"n": 4, "standard_error": pytest.approx(binomial(0.5, 4)), "chance": 1 / 8}
    assert found["acc@5"].chance == 5 / 8
    negatives = hard_negative_metrics(
        torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0]),
        torch.tensor([0.0, 2.0, 1.0, 0.0, 0.0]),
        ["a", "a", "b", "b", "b"],
        chances=torch.tensor([1 / 2, 1 / 2, 1 / 5, 1 / 5, 1 / 5]),
    )
    assert negatives["micro"].standard_error == pytest.approx(binomial(3 / 5, 5))
    assert negatives["micro"].chance == pytest.approx(8 / 25)
    assert (negatives["macro"].n, negatives["macro"].chance) == (5, pytest.approx(7 / 20))
    expected = math.hypot(binomial(1 / 2, 2), binomial(2 / 3, 3)) / 2
    assert negatives["macro"].standard_error == pytest.approx(expected)
    assert negatives["b"].standard_error == pytest.approx(binomial(2 / 3, 3))
    found = accuracies(images, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1, 1, 1]))
    assert found["mean_per_class"] == pytest.approx((1 + 1 / 3) / 2)
    single = 1 - (1 + 1 / 3) / 2  # from the mean of both classes: one image does not show how a class varies
    assert found["mean_per_class"].standard_error == pytest.approx(math.hypot(single, binomial(1 / 3, 3)) / 2)
    # The captions of an image are one draw: three of one image right, the one of the other wrong.
    texts, owner = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 0, 1])
    retrieved = recalls(torch.eye(2), texts, owner)
    assert (retrieved["t2i_R@1"], retrieved["t2i_R@1"].n) == (3 / 4, 4)
    assert retrieved["t2i_R@1"].standard_error == pytest.approx(math.sqrt(2 * (3 / 4) ** 2) / 4)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=16))
def test_the_error_of_a_mean_of_means_equals_a_loop(items: list[tuple[bool, int, int]]) -> None:
    values, kinds, images = zip(*items, strict=True)
    found = Estimate.of(torch.tensor(values), strata=torch.tensor(kinds), clusters=torch.tensor(images))
    of_kind = {kind: [v for v, k, _ in items if k == kind] for kind in set(kinds)}
    means = {kind: sum(of) / len(of) for kind, of in of_kind.items()}
    assert found == pytest.approx(sum(means.values()) / len(means))
    around = {kind: means[kind] if len(of) > 1 else sum(means.values()) / len(means) for kind, of in of_kind.items()}
    draws = [
        sum((v - around[k]) / len(of_kind[k]) / len(means) for v, k, i in items if i == image) for image in set(images)
    ]
    assert found.standard_error == pytest.approx(math.sqrt(sum(x * x for x in draws)), abs=1e-12)


def test_the_seven_captions_of_an_image_are_one_draw() -> None:
    """All right for two of three images: what varies is the image."""
    right = torch.tensor([1.0, 1.0, 0.0]).repeat_interleave(7)
    kinds = [f"kind {i % 7}" for i in range(21)]
    found = hard_negative_metrics(right, torch.full((21,), 0.5), kinds, images=torch.arange(3).repeat_interleave(7))
    for name in ("micro", "macro", "kind 0"):
        assert found[name].standard_error == pytest.approx(binomial(2 / 3, 3))


@pytest.mark.parametrize("seed", range(3))
def test_quadruples_of_random_scores_are_near_their_chance(seed: int) -> None:
    found = quadruple_metrics(torch.rand(3000, 2, 2, generator=torch.manual_seed(seed)))
    for estimate in found.values():
        assert abs(estimate - estimate.chance) < 4 * estimate.standard_error


def test_copies_of_an_estimate_keep_what_is_known() -> None:
    estimate = Estimate(0.25, n=8, standard_error=0.1, chance=0.5)
    for other in (copy.deepcopy(estimate), pickle.loads(pickle.dumps(estimate))):
        assert (other, vars(other)) == (0.25, vars(estimate))


def test_a_release_s_macro_is_over_some_kinds() -> None:
    positive, negative = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
    kinds = ["on", "near", "under"]
    some = hard_negative_metrics(positive, negative, kinds, frozenset({"on", "under", "behind"}))
    assert (some["macro"], some["macro-all-kinds"]) == (1, pytest.approx(2 / 3))
    none = hard_negative_metrics(positive, negative, kinds, frozenset())
    assert "macro" not in none
    assert none["macro-all-kinds"] == pytest.approx(2 / 3)


@given(st.lists(st.tuples(EXACT, EXACT, EXACT, EXACT), min_size=1, max_size=16))
def test_quadruples_equal_loops(items: list[tuple[float, float, float, float]]) -> None:
    text = [a > b and d > c for a, b, c, d in items]  # s(I0,C0), s(I0,C1), s(I1,C0), s(I1,C1)
    image = [a > c and d > b for a, b, c, d in items]
    expected = {
        "text": sum(text) / len(items),
        "image": sum(image) / len(items),
        "group": sum(t and i for t, i in zip(text, image, strict=True)) / len(items),
    }
    found = quadruple_metrics(torch.tensor(items).view(-1, 2, 2))
    assert found == pytest.approx(expected, abs=CLOSE)


def test_kinds_are_told_apart_in_one_pass() -> None:
    compared = []

    class Kind(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return str.__eq__(self, str(other))

    kinds = [Kind(number % 200) for number in range(400)]
    found = hard_negative_metrics(torch.arange(400) % 200 % 3, torch.ones(400), kinds)
    assert found["0"] == 0
    assert found["2"] == found["197"] == 1
    assert found["macro"] == pytest.approx(66 / 200)
    assert len(compared) < 10 * 400  # not 200 * 400


def test_empty_or_unfit_tasks_say_so() -> None:
    none = torch.zeros(0, 2)
    with pytest.raises(ValueError, match="0 images and 1 texts"):
        recalls(none, torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="image 1 of the retrieval task has no caption"):
        recalls(torch.ones(2, 2), torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="has no image"):
        accuracies(none, torch.ones(1, 2), torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match="1 images, 2 classes and 1 labels from 2 to 2"):
        accuracies(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([2]))
    with pytest.raises(ValueError, match="hard-negative task has no item"):
        hard_negative_metrics(torch.zeros(0), torch.zeros(0), [])
    with pytest.raises(ValueError, match="quadruple task has no item"):
        quadruple_metrics(torch.zeros(0, 2, 2))
