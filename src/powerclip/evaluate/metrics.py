"""Metrics: zero-shot classification, image-text retrieval and compositionality, with their sampling errors.

In retrieval and compositionality a tie with something wrong is wrong; in classification the first of the classes that
tie is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

RECALLS = (1, 5, 10)
CHUNK_ELEMENTS = 2**20
"""Scores that are held in memory at once."""


class Estimate(float):
    """A metric, which is a mean over items, and how far it can be trusted; everywhere else an ordinary number."""

    n: int
    """Items in the mean."""
    standard_error: float
    """Of the mean, for items drawn at random: sqrt(p (1 - p) / n) for a share p of independent items."""
    chance: float | None
    """The expected value of guessing on the same items, where it is known."""

    def __new__(cls, value: float, n: int, standard_error: float, chance: float | None = None) -> Estimate:
        """The value with what is known about it."""
        self = super().__new__(cls, value)
        self.n, self.standard_error, self.chance = n, standard_error, chance
        return self

    def __getnewargs__(self) -> tuple[float, int, float, float | None]:  # type: ignore[override]
        """What a copy is made of."""
        return float(self), self.n, self.standard_error, self.chance

    @classmethod
    def of(
        cls,
        values: Tensor,
        *,
        strata: Tensor | None = None,
        clusters: Tensor | None = None,
        chance: Tensor | float | None = None,
    ) -> Estimate:
        """The mean of (n,) values between 0 and 1, at least one; the chance is one for all or (n,).

        With ``strata``, (n,) int64, it is the unweighted mean of the means of the items with the same number: kinds, or
        classes. Items with the same number in ``clusters``, (n,) int64, are one draw (all captions of an image): what
        varies is their sum. How much the items of a stratum vary is seen by its mean, and by that of all strata where
        it has one item.
        """
        x = values.double()
        group = (
            torch.zeros(len(x), dtype=torch.int64) if strata is None else torch.unique(strata, return_inverse=True)[1]
        )
        sizes = group.bincount()

        def means(of: Tensor) -> Tensor:
            return torch.zeros_like(sizes, dtype=torch.float64).index_add_(0, group, of.double()) / sizes

        mean = means(x).mean()
        around = torch.where(sizes == 1, mean, means(x))[group]
        residuals = (x - around) / (len(sizes) * sizes[group])
        if clusters is not None:
            residuals = residuals.new_zeros(int(clusters.max()) + 1).index_add_(0, clusters, residuals)
        if isinstance(chance, Tensor):
            chance = means(chance).mean().item()
        return cls(mean.item(), len(x), residuals.norm().item(), chance)


def class_embeddings(prompts: Tensor) -> Tensor:
    """(C, D) unit class embeddings: the rescaled mean of the (C, P, D) unit embeddings of each class's P prompts."""
    return torch.nn.functional.normalize(prompts.mean(dim=1), dim=-1)


def classification_metrics(
    score: Callable[[Tensor], Tensor], labels: Tensor, *, images: int, classes: int
) -> dict[str, float]:
    """acc@1, acc@5 and the mean of the classes' own accuracies.

    ``score`` gives the (rows, C) scores of (rows,) images with all ``classes`` (C), and is asked for a few MiB at a
    time; ``labels``, (I,) int64, are the right classes of the ``images`` (I). Of classes that tie, the first is chosen,
    as argmax does and clip_benchmark reports: ImageNet has two names twice ("missile", "sunglasses"). A score that is
    not a number is wrong; acc@5 is left out with five classes or fewer. A class without an image is left out of the
    mean per class. ValueError if there is no image, or a label is not among the classes.
    """
    if images == 0:
        raise ValueError("the classification task has no image; nothing can be measured")
    if len(labels) != images or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"the classification task has {images} images, {classes} classes and {len(labels)} labels from "
            f"{labels.min() if len(labels) else '-'} to {labels.max() if len(labels) else '-'}; expected one label per "
            "image, from 0 to the number of classes less one"
        )
    number = torch.arange(classes)  # (C,)
    rank, alone = torch.empty_like(labels), torch.empty_like(labels, dtype=torch.bool)  # each (I,)
    for rows in torch.split(torch.arange(images), max(1, CHUNK_ELEMENTS // classes)):
        scores, label = score(rows), labels[rows, None]
        own = scores.gather(1, label)
        ahead = ~(scores <= own) | ((scores == own) & (number < label))
        rank[rows] = ahead.sum(dim=1).masked_fill(own[:, 0].isnan(), classes)
        alone[rows] = torch.count_nonzero(~(scores < own), dim=1) == 1  # no other class ties
    right = (rank == 0).float()
    strict = alone.float() * right
    metrics: dict[str, float] = {
        "acc@1": Estimate.of(right, chance=1 / classes),
        "mean_per_class": Estimate.of(right, strata=labels),
    }
    if classes > 5:
        metrics["acc@5"] = Estimate.of(rank < 5, chance=5 / classes)
    if not torch.equal(strict, right):
        metrics["acc@1-strict"] = Estimate.of(strict, chance=1 / classes)
    return metrics


def average_precision_metrics(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """mAP: the mean over classes of the mean, over a class's images, of the precision at their ranks.

    ``scores`` are (I, C); ``targets``, (I, C) bool, is True where the image has the class. Images of equal score count
    as wrong before right. A class without an image is left out of the mean. ValueError if there is no image or no image
    with a class, or the targets do not fit.
    """
    if targets.shape != scores.shape or not targets.any():
        raise ValueError(
            f"the multi-label task has {len(scores)} images, {scores.shape[1]} classes and targets of shape "
            f"{tuple(targets.shape)} with {int(targets.sum())} True; expected (images, classes) and at least one True"
        )
    scores = scores.nan_to_num(nan=-torch.inf)
    precisions = []
    for c in range(scores.shape[1]):
        own = targets[:, c]
        if not own.any():
            continue
        # By falling score, and among equal ones the wrong images first.
        order = own.to(torch.int8).argsort(stable=True)
        order = order[scores[order, c].argsort(descending=True, stable=True)]
        right = own[order].double()
        precision = right.cumsum(dim=0) / torch.arange(1, len(right) + 1)
        precisions.append((precision * right).sum() / right.sum())
    return {"mAP": torch.stack(precisions).mean().item()}


def recall_metrics(
    score_texts: Callable[[Tensor], Tensor],
    score_images: Callable[[Tensor], Tensor],
    image_of_text: Tensor,
    *,
    images: int,
    same_text: Tensor | None = None,
    chunk: int | None = None,
) -> dict[str, float]:
    """R@1, R@5 and R@10, text to image and image to text, in chunks of the queries.

    A query is answered at K when fewer than K wrong items score at least as high as its best right one: a tie with a
    wrong item is a miss, and so is a score that is not a number. Every copy of a caption is right for every image that
    has it. Memory is a few (chunk, I) and (chunk, J) matrices; by default a chunk fills a few MiB.

    ``score_texts`` gives the (rows, J) scores of (rows,) images with all texts, and ``score_images`` the (rows, I)
    scores of (rows,) texts with all ``images`` (I). ``image_of_text``, (J,) int64, is the image each text belongs to;
    ``same_text``, (J,) int64, is equal for equal texts (all different by default). ValueError if there is no image or
    no text, or an image has no text.
    """
    texts = len(image_of_text)
    if images == 0 or texts == 0:
        raise ValueError(f"the retrieval task has {images} images and {texts} texts; it needs both")
    without = sorted(set(range(images)) - set(image_of_text.tolist()))
    if without:
        raise ValueError(f"image {without[0]} of the retrieval task has no caption; give it one or leave it out")
    group = torch.arange(texts) if same_text is None else same_text

    def texts_of(rows: Tensor) -> Tensor:
        """(rows, J) bool: the texts of each image, and every copy of them."""
        row, text = (rows[:, None] == image_of_text).nonzero(as_tuple=True)
        has = torch.zeros(len(rows), int(group.max()) + 1, dtype=torch.bool)
        has[row, group[text]] = True
        return has[:, group]

    def images_of(rows: Tensor) -> Tensor:
        """(rows, I) bool: the images that have each text."""
        row, copy = (group[rows, None] == group).nonzero(as_tuple=True)
        right = torch.zeros(len(rows), images, dtype=torch.bool)
        right[row, image_of_text[copy]] = True
        return right

    ranks = {
        "i2t": _ranks(score_texts, images, texts_of, chunk or max(1, CHUNK_ELEMENTS // texts)),
        "t2i": _ranks(score_images, texts, images_of, chunk or max(1, CHUNK_ELEMENTS // images)),
    }
    clusters = {"i2t": torch.arange(images), "t2i": image_of_text}
    return {
        f"{way}_R@{k}": Estimate.of(rank < k, clusters=clusters[way]) for way, rank in ranks.items() for k in RECALLS
    }


def _ranks(score: Callable[[Tensor], Tensor], queries: int, right_of: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
    """For each query, how many wrong items are not below its best right one; all items where that is NaN."""
    ranks = torch.empty(queries, dtype=torch.int64)  # one block: small ones kept between large ones split the heap
    for start in range(0, queries, chunk):
        rows = torch.arange(start, min(start + chunk, queries))
        scores, right = score(rows), right_of(rows)
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        rank = torch.count_nonzero(~(scores < best) & ~right, dim=1)
        ranks[rows] = rank.masked_fill(best[:, 0].isnan(), scores.shape[1] + max(RECALLS))
    return ranks


def same_texts(texts: Sequence[Hashable]) -> Tensor:
    """(J,) int64: equal numbers for equal texts, or for what a model sees of them."""
    numbers: dict[Hashable, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])


def hard_negative_metrics(
    positive: Tensor,
    negative: Tensor,
    kinds: Sequence[str],
    macro_kinds: frozenset[str] | None = None,
    *,
    chances: Tensor | None = None,
    units: Sequence[Hashable] | None = None,
    images: Tensor | None = None,
) -> dict[str, float]:
    """Share of images whose right caption scores strictly higher, by kind, with micro and macro averages.

    Given ``units``, images of the same one (and kind) count once, as right if all are.

    ``positive`` is (I,) scores of the right captions, ``negative`` of the wrong ones, the highest where an image has
    several, and ``kinds`` the kind of each; ``chances``, (I,), are those of guessing right, and ``images``,
    (I,) int64, equal for equal images. "macro" averages all kinds; given ``macro_kinds``, it averages those, or is
    left out if none of them occurs, and "macro-all-kinds" averages all. ValueError if there is no item.
    """
    if len(positive) == 0:
        raise ValueError("the hard-negative task has no item; nothing can be measured")
    right = positive > negative
    clusters = torch.arange(len(right)) if images is None else images
    if units is not None and len(set(units)) < len(units):  # whose chance depends on what their images share
        unit = same_texts(units)
        kinds = list(dict(zip(unit.tolist(), kinds, strict=True)).values())
        right = torch.ones(len(kinds)).scatter_reduce(0, unit, right.float(), "amin") > 0
        clusters = torch.zeros(len(kinds), dtype=torch.int64).scatter(0, unit, clusters)
        chances = None
    number = same_texts(kinds)

    def mean(items: Tensor, *, of_kinds: bool = False) -> Estimate:
        """Over some items, by (I,) bool or number, or over their kinds."""
        chance = None if chances is None else chances[items]
        return Estimate.of(
            right[items], strata=number[items] if of_kinds else None, clusters=clusters[items], chance=chance
        )

    everything = torch.ones_like(right)
    some = torch.tensor([macro_kinds is None or kind in macro_kinds for kind in kinds])
    metrics: dict[str, float] = {"micro": mean(everything)}
    if some.any():
        metrics["macro"] = mean(some, of_kinds=True)
    if macro_kinds is not None:
        metrics["macro-all-kinds"] = mean(everything, of_kinds=True)
    return metrics | {kind: mean(items) for kind, items in _by_kind(kinds).items()}


def _by_kind(kinds: Sequence[str]) -> dict[str, Tensor]:
    """The numbers of the items of each kind, in one pass; the kinds are sorted."""
    number, names = same_texts(kinds), dict.fromkeys(kinds)
    groups = torch.split(number.argsort(stable=True), number.bincount().tolist())
    return dict(sorted(zip(names, groups, strict=True)))


def quadruple_metrics(scores: Tensor, kinds: Sequence[str] = ()) -> dict[str, float]:
    """Winoground's text, image and group scores (Thrush et al., 2022); ValueError if there is no quadruple.

    ``scores``, (Q, 2, 2), is that of image i with caption j of each quadruple. If there are several ``kinds``, one a
    quadruple, their own scores follow ("text-KIND", ...).
    """
    if len(scores) == 0:
        raise ValueError("the quadruple task has no item; nothing can be measured")
    text = (scores[:, 0, 0] > scores[:, 0, 1]) & (scores[:, 1, 1] > scores[:, 1, 0])
    image = (scores[:, 0, 0] > scores[:, 1, 0]) & (scores[:, 1, 1] > scores[:, 0, 1])
    chances = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}  # of scores in random order
    found = {"text": text, "image": image, "group": text & image}
    metrics: dict[str, float] = {name: Estimate.of(right, chance=chances[name]) for name, right in found.items()}
    for kind, own in _by_kind(kinds).items() if len(set(kinds)) > 1 else ():
        metrics |= {f"{name}-{kind}": Estimate.of(right[own], chance=chances[name]) for name, right in found.items()}
    return metrics
