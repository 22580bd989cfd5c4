"""Examples of what runs find and miss: retrieval among a few hundred pairs, and hard negatives they got wrong."""

import base64
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from powerclip.evaluate.datasets.images import open_picture
from powerclip.evaluate.encode import Encoder
from powerclip.pixels import encoded, small_copy
from powerclip.tasks import HardNegatives, Picture, Region, Retrieval

POOL = 200
"""Images, and hard negatives, that every run is asked about."""

QUERIES = 8
"""Captions, and images, whose answers are shown."""

TOP = 5

WRONG_ITEMS = 12
"""Hard negatives that are shown."""

SIDE = 160
"""Pixels of the longer side of a small image."""

Item = TypeVar("Item")


class Thumb(NamedTuple):
    """An image on the page: its number among the sources, and its description."""

    number: int
    alt: str


Content = str | Thumb
"""A caption or an image."""


@dataclass
class Images:
    """The images of a page as data URIs, each once, by number."""

    sources: list[str] = field(default_factory=list)
    known: dict[object, int] = field(default_factory=dict)

    def add(self, picture: Picture, alt: str, *, side: int = SIDE) -> Thumb:
        """An image, scaled down to ``side`` pixels."""
        image = small_copy(open_picture(picture, "training"), side)
        file = encoded(image, "WEBP", quality=80, lossless=max(image.size) <= SIDE // 2)
        source = f"data:image/webp;base64,{base64.b64encode(file).decode()}"
        if source not in self.known:
            self.known[source] = len(self.sources)
            self.sources.append(source)
        return Thumb(self.known[source], alt)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One thing that a run found for a query."""

    content: Content
    score: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Query:
    """What was asked, and what each run found, best first."""

    content: Content
    answers: Mapping[str, Sequence[Answer]]
    solved: Mapping[str, bool]
    """Whether a right one scores higher than all wrong ones, as R@1 counts."""


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Queries of one direction."""

    title: str
    queries: Sequence[Query]
    solved: Mapping[str, int]
    """How many of ``asked`` each run solves."""
    asked: int


Words = Sequence[tuple[str, bool]]
"""The words of a caption, and whether they differ from the other caption's."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A run's scores of a right caption and of the best wrong one, and the words of the latter."""

    right: float
    wrong: float
    words: Words


@dataclass(frozen=True, kw_only=True)
class WrongItem:
    """A hard negative that a run got wrong."""

    kind: str
    image: Thumb
    positive: Words
    """The right caption, compared with the first run's wrong one."""
    found: Mapping[str, Contrast]


def retrieval(task: Retrieval, encoders: Mapping[str, Encoder], images: Images) -> list[Direction]:
    """Text to image and image to text among at most ``POOL`` images
    of a task with one caption each, by global embeddings.

    Half of the queries shown are spaced evenly, the others are among those that a run gets wrong. A copy of a caption
    is right for every image that has it.
    """
    pool = spaced(range(len(task.images)), POOL)
    pictures, captions = [task.images[i] for i in pool], [task.captions[i][0] for i in pool]
    right_IJ = torch.tensor([[text in task.captions[i] for text in captions] for i in pool])
    with torch.inference_mode():
        scores = {name: one.images(pictures) @ one.texts(captions).T for name, one in encoders.items()}
    turned = {name: s_IJ.T for name, s_IJ in scores.items()}

    def image(i: int) -> Thumb:
        return images.add(pictures[i], captions[i])

    return [
        _direction("Text to image", turned, right_IJ.T, captions.__getitem__, image),
        _direction("Image to text", scores, right_IJ, image, captions.__getitem__),
    ]


def _direction(
    title: str,
    scores: Mapping[str, Tensor],
    right: Tensor,
    query: Callable[[int], Content],
    answer: Callable[[int], Content],
) -> Direction:
    """Each run's (Q, A) scores of queries and answers, the (Q, A) bool of which are right, and how both are shown."""
    solved = {
        name: (s.masked_fill(~right, -torch.inf).amax(dim=1) > s.masked_fill(right, -torch.inf).amax(dim=1)).tolist()
        for name, s in scores.items()
    }
    even = spaced(range(len(right)), QUERIES // 2)
    missed = [q for q in range(len(right)) if q not in even and not all(of_run[q] for of_run in solved.values())]

    def best(s_A: Sequence[float], is_right: Sequence[bool]) -> list[Answer]:
        order = sorted(range(len(s_A)), key=lambda a: (-s_A[a], is_right[a]))[:TOP]
        return [Answer(content=answer(a), score=s_A[a], right=is_right[a]) for a in order]

    queries = [
        Query(
            content=query(q),
            answers={name: best(s[q].tolist(), right[q].tolist()) for name, s in scores.items()},
            solved={name: of_run[q] for name, of_run in solved.items()},
        )
        for q in sorted([*even, *spaced(missed, QUERIES - len(even))])
    ]
    totals = {name: sum(of_run) for name, of_run in solved.items()}
    return Direction(title=title, queries=queries, solved=totals, asked=len(right))


def hard_negatives(
    task: HardNegatives, encoders: Mapping[str, Encoder], images: Images
) -> tuple[list[WrongItem], dict[str, int], int]:
    """Items that a run gets wrong by global embeddings, spread over the kinds;
    each run's number of wrong ones, of how many.

    Of a task's items, at most ``POOL`` are asked, the same share of each kind; those that do not show a whole image
    with captions are left out.
    """
    texts = [(item, [item.positive, *item.negatives]) for item in task.items if item.negatives]
    usable = [
        (item.kind, item.image, [text for text in of_item if isinstance(text, str)])
        for item, of_item in texts
        if not isinstance(item.image, str | Region) and all(isinstance(text, str) for text in of_item)
    ]
    asked = spaced(sorted(usable, key=lambda item: item[0]), POOL)  # a period of the kinds must not meet the spacing
    scores: dict[str, list[list[float]]] = {}
    with torch.inference_mode():
        for name, encoder in encoders.items():
            pictures = encoder.images([picture for _, picture, _ in asked])
            captions = encoder.texts([text for *_, own in asked for text in own])
            parts = torch.split(captions, [len(own) for *_, own in asked])
            scores[name] = [(t @ i).tolist() for t, i in zip(parts, pictures, strict=True)]
    wrong = {name: [not s[0] > max(s[1:]) for s in of_run] for name, of_run in scores.items()}
    missed = [n for n in range(len(asked)) if any(of_run[n] for of_run in wrong.values())]
    shown = []
    for n in spaced(missed, WRONG_ITEMS):
        kind, picture, (positive, *negatives) = asked[n]
        found, hardest = {}, ""
        for name, of_run in scores.items():
            right, *others = of_run[n]
            score, text = max(zip(others, negatives, strict=True))
            found[name], hardest = Contrast(right=right, wrong=score, words=_against(text, positive)), hardest or text
        thumb = images.add(picture, positive)
        shown.append(WrongItem(kind=kind, image=thumb, positive=_against(positive, hardest), found=found))
    return shown, {name: sum(of_run) for name, of_run in wrong.items()}, len(asked)


def spaced(items: Sequence[Item], count: int) -> list[Item]:
    """At most ``count`` items, spaced evenly from the first one on."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else list(items)


def _against(text: str, other: str) -> Words:
    """The words of a text, and whether they differ from another one's: place by place if they are equally many."""
    words, others = text.split(), other.split()
    if len(words) == len(others):
        return [(word, word != at_place) for word, at_place in zip(words, others, strict=True)]
    blocks = difflib.SequenceMatcher(None, words, others, autojunk=False).get_matching_blocks()
    same = {i for block in blocks for i in range(block.a, block.a + block.size)}
    return [(word, i not in same) for i, word in enumerate(words)]
