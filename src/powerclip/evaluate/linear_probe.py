"""Linear probes: multinomial logistic regression on frozen image embeddings, by the protocol of CLIP.

Radford et al. (2021, appendix A.3): L-BFGS for at most 1000 iterations, and the strength of the L2 regularisation from
10^-6 to 10^6 in steps of an eighth of a decade that a parametric search on validation images chooses. The classifier
that is tested is then trained on training and validation images together.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from powerclip.evaluate.encode import Encoder
from powerclip.evaluate.metrics import classification_metrics
from powerclip.tasks import LinearProbe

ITERATIONS = 1000

STEPS_PER_DECADE = 8
LAST = 12 * STEPS_PER_DECADE
"""The strengths are numbered from 0 (C = 10^-6) to this (C = 10^6)."""

ONE_SHOT = LAST // 2
"""C = 1, where each class has one training image, and there are no validation images."""

HELD_OUT = 5
"""Without validation images, every fifth training image of each class is one; if no class has as many, the last one of
each class that has two or more."""

ELEMENTS_AT_ONCE = 2**27
"""Logits that are held in memory at once."""


def linear_probe_metrics(encoder: Encoder, task: LinearProbe) -> dict[str, float]:
    """acc@1, acc@5 and the mean per class of the classifier on the test images, as for zero-shot classification.

    A warning says if the best strength is the smallest or largest of the search, or there is no image to choose it by.
    ValueError if the counts are not those of the images, or there is nothing to train or test on.
    """
    train, validation, test = task.counts
    if not len(task.images) == len(task.labels) == sum(task.counts) or not train or not test:
        raise ValueError(
            f"task {task.name} has {len(task.images)} images and {len(task.labels)} labels; expected {task.counts} "
            "training, validation and test images, and at least one to train and one to test on"
        )
    labels = torch.tensor(list(task.labels), dtype=torch.int64)
    chooses = torch.arange(train + validation) >= train if validation else _held_out(labels[:train])  # (I,) bool
    embedded = encoder.images(task.images)
    features = torch.cat([embedded, torch.ones(len(embedded), 1)], dim=1)  # (I, D + 1), the last for the bias
    known, answers = (x[: train + validation].to(encoder.device) for x in (features, labels))
    chooses = chooses.to(encoder.device)

    def accuracy(step: int) -> float:
        weights = fit(known[~chooses], answers[~chooses], classes=task.classes, C=strength(step))
        return ((known[chooses] @ weights.T).argmax(dim=1) == answers[chooses]).float().mean().item()

    best = peak(accuracy) if chooses.any() else ONE_SHOT
    if not chooses.any():
        warnings.warn(f"{task.name} has one training image a class, and none to choose C by, which is 1", stacklevel=2)
    elif best in (0, LAST):
        warnings.warn(f"{task.name} is best at the end of the search, C = {strength(best):g}", stacklevel=2)
    weights = fit(known, answers, classes=task.classes, C=strength(best)).cpu()
    tested = features[-test:]
    return classification_metrics(
        lambda rows: tested[rows] @ weights.T, labels[-test:], images=test, classes=task.classes
    )


def strength(step: int) -> float:
    """C, the inverse strength of the regularisation as in scikit-learn, by number."""
    return float(10.0 ** (step / STEPS_PER_DECADE - 6))


def peak(accuracy: Callable[[int], float]) -> int:
    """The number of the best C: every second decade is tried, then twice as finely around the best, and so on."""
    span, tried = 2 * STEPS_PER_DECADE, dict[int, float]()
    candidates = range(0, LAST + 1, span)
    while True:
        tried |= {step: accuracy(step) for step in candidates if step not in tried}
        best = max(tried, key=lambda step: (tried[step], -step))  # the strongest regularisation of those that tie
        if span == 1:
            return best
        span //= 2
        candidates = range(max(best - span, 0), min(best + span, LAST) + 1, span)


def fit(features: Tensor, labels: Tensor, *, classes: int, C: float) -> Tensor:
    """(C, D + 1) weights that minimise C times the sum of the cross-entropies
    plus half the squared norm of the weights.

    ``features`` are (I, D + 1), of which the last is the bias's,
    whose weights are not regularised; ``labels`` (I,) int64.
    """
    n, decay = len(features), torch.full((features.shape[1],), 1 / (C * len(features)), device=features.device)
    decay[-1] = 0
    weights = features.new_zeros(classes, features.shape[1])
    optimizer = torch.optim.LBFGS(
        [weights],
        max_iter=ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )
    rows = max(1, ELEMENTS_AT_ONCE // classes)

    def loss_and_gradient() -> Tensor:
        loss = (decay * weights.square()).sum(dtype=torch.float64) / 2
        gradient = decay * weights
        for x, y in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            likely = (x @ weights.T).log_softmax(dim=1)
            loss -= likely.gather(1, y[:, None]).sum(dtype=torch.float64) / n
            likely.exp_()[torch.arange(len(y)), y] -= 1
            gradient += likely.T @ x / n
        weights.grad = gradient
        return loss

    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return weights


def _held_out(labels: Tensor) -> Tensor:
    """(I,) bool: every fifth image of each class, or the last one where no class has as many; none of a single one."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    few = int(labels.bincount().max()) < HELD_OUT
    for label in sorted(set(labels.tolist())):
        own = (labels == label).nonzero()[:, 0]
        held[own[1:][-1:] if few else own[HELD_OUT - 1 :: HELD_OUT]] = True
    return held
