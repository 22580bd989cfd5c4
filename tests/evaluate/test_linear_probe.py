"""The linear probe against scikit-learn's logistic regression, by CLIP's protocol in a loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cross_entropy, normalize

from powerclip.evaluate import evaluate_tasks
from powerclip.evaluate.linear_probe import LAST, ONE_SHOT, fit, peak, strength
from powerclip.tasks import LinearProbe
from tests.support.numbers import NumberModel, number_model

CLASSES = 4


def preprocess(image):
    return torch.from_numpy(np.array(image)).float().flatten() - 128


def probe(counts):
    """Noisy images of four classes, of which the last is rare."""
    random = np.random.default_rng(0)
    means = np.random.default_rng(7).normal(128, 30, (CLASSES, 2, 2, 3))
    labels = random.choice(CLASSES, sum(counts), p=(0.3, 0.3, 0.3, 0.1))
    pixels = (means[labels] + random.normal(0, 60, (len(labels), 2, 2, 3))).clip(0, 255).astype(np.uint8)
    images = [Image.fromarray(x) for x in pixels]
    return LinearProbe(name="p", images=images, labels=labels.tolist(), counts=counts, classes=CLASSES)


def run(task):
    _, _, tokenizer = number_model()
    return evaluate_tasks(NumberModel(), preprocess, tokenizer, [task], batch_size=16)[task.name]


@pytest.mark.parametrize("C", [1e-6, 0.1, 10.0, 1e4])
def test_the_minimum_is_that_of_scikit_learn(C):
    task = probe((300, 0, 1))
    x = normalize(torch.stack([preprocess(image) for image in task.images]), dim=1)
    y = torch.tensor(task.labels)
    weights = fit(torch.cat([x, torch.ones(len(x), 1)], dim=1), y, classes=CLASSES, C=C).double()
    theirs = LogisticRegression(C=C, max_iter=10_000, tol=1e-10).fit(x.double().numpy(), y.numpy())
    w, b = torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_)

    def objective(w, b):
        return (C * cross_entropy(x.double() @ w.T + b, y, reduction="sum") + w.square().sum() / 2).item()

    assert objective(weights[:, :-1], weights[:, -1]) == pytest.approx(objective(w, b), rel=1e-6)
    torch.testing.assert_close(weights[:, :-1], w, rtol=1e-2, atol=1e-3 * w.abs().max().item())


def test_rows_at_once_do_not_matter(monkeypatch):
    task = probe((50, 0, 1))
    x, y = torch.randn(51, 5, generator=torch.Generator().manual_seed(0)), torch.tensor(task.labels)
    expected = fit(x, y, classes=CLASSES, C=1.0)
    monkeypatch.setattr("powerclip.evaluate.linear_probe.ELEMENTS_AT_ONCE", 7 * CLASSES)
    torch.testing.assert_close(fit(x, y, classes=CLASSES, C=1.0), expected, rtol=1e-3, atol=1e-4)


def test_the_search_halves_its_steps_around_the_best():
    for top in (0, 3, 47, 88, LAST):
        tried = []

        def accuracy(step, top=top, tried=tried):
            tried.append(step)
            return -abs(step - top)

        assert peak(accuracy) == top
        assert len(tried) == len(set(tried)) <= 15
    assert peak(lambda step: float(step >= 9)) == 9  # the strongest of those that tie
    assert [strength(step) for step in (0, 48, LAST)] == pytest.approx([1e-6, 1, 1e6])


def test_the_protocol_is_clip_s():
    task = probe((200, 60, 120))
    x = normalize(torch.stack([preprocess(image) for image in task.images]), dim=1).double().numpy()
    y = np.array(task.labels)

    def trained(n, step):
        return LogisticRegression(C=strength(step), max_iter=1000, tol=1e-8).fit(x[:n], y[:n])

    best = peak(lambda step: (trained(200, step).predict(x[200:260]) == y[200:260]).mean())
    right = trained(260, best).predict(x[260:]) == y[260:]
    found = run(task)
    assert found["acc@1"] == pytest.approx(right.mean())
    assert 0.4 < found["acc@1"] < 0.95
    by_class = [right[y[260:] == c].mean() for c in range(CLASSES)]
    assert found["mean_per_class"] == pytest.approx(np.mean(by_class))
    assert found["acc@1"].n == 120


def test_every_fifth_image_of_a_class_is_held_out_where_there_is_no_validation_part():
    task = probe((90, 0, 60))
    seen, held = [0] * CLASSES, []
    for i, label in enumerate(task.labels[:90]):
        seen[label] += 1
        if seen[label] % 5 == 0:
            held.append(i)
    assert 10 < len(held) < 20
    order = [*(i for i in range(90) if i not in held), *held, *range(90, 150)]
    images, labels = ([values[i] for i in order] for values in (task.images, task.labels))
    counts = (90 - len(held), len(held), 60)
    assert run(task) == run(replace(task, images=images, labels=labels, counts=counts))


@pytest.mark.filterwarnings("ignore:p is best at the end of the search")
def test_the_last_image_of_a_class_is_held_out_where_no_class_has_five():
    task = probe((60, 0, 30))
    count = [0] * CLASSES
    few = []
    for i, label in enumerate(task.labels[:60]):
        if count[label] < (4, 3, 2, 1)[label]:
            few.append(i)
        count[label] += 1
    of_class = [[i for i in few if task.labels[i] == c] for c in range(CLASSES)]
    assert list(map(len, of_class)) == [4, 3, 2, 1]
    held = [of_one[-1] for of_one in of_class[:3]]
    train = [i for i in few if i not in held]

    def part(training, counts):
        order = [*training, *range(60, 90)]
        images, labels = ([values[i] for i in order] for values in (task.images, task.labels))
        return replace(task, images=images, labels=labels, counts=counts)

    found = run(part(few, (10, 0, 30)))
    assert found == run(part([*train, *held], (7, 3, 30)))
    with pytest.warns(UserWarning, match="p has one training image a class, and none to choose C by, which is 1"):
        found = run(part([of_one[0] for of_one in of_class], (4, 0, 30)))
    assert strength(ONE_SHOT) == 1
    assert found["acc@1"] > 1 / CLASSES


def test_a_search_that_ends_at_its_end_says_so():
    with pytest.warns(UserWarning, match=r"p is best at the end of the search, C = 1e-06"):
        run(replace(probe((40, 30, 30)), labels=[0] * 100))  # anything is right


@pytest.mark.parametrize("counts", [(10, 0, 11), (0, 10, 10), (20, 0, 0)])
def test_counts_that_do_not_fit(counts):
    task = probe((10, 0, 10))
    with pytest.raises(ValueError, match="task p has 20 images and 20 labels; expected"):
        run(replace(task, counts=counts))
