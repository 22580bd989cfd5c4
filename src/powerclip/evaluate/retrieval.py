"""Image-text retrieval: recall at K in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RECALLS = (1, 5, 10)
CHUNK_ELEMENTS = 2**20
"""Scores held at once."""

RightOf = Callable[[Tensor], Tensor]


def retrieval_metrics(
    images: Tensor, texts: Tensor, image_of_text: Tensor, *, same_text: Tensor | None = None, chunk: int | None = None
) -> dict[str, float]:
    """R@1, R@5 and R@10, text to image and image to text, in chunks of the queries.

    A query is answered at K when fewer than K wrong items score at least as high as its best right one: a tie with a
    wrong item is a miss, and so is a score that is not a number. Every copy of a caption is right for every image
    that has it. Memory is a few (chunk, I) and (chunk, J) matrices.

    Args:
        images: (I, D) unit image embeddings.
        texts: (J, D) unit text embeddings.
        image_of_text: (J,) int64, the image each text belongs to.
        same_text: (J,) int64, equal for texts that read the same; all different by default.
        chunk: queries scored at once; by default as many as fill a few MiB.

    Raises:
        ValueError: there is no image or no text, or an image has no text.
    """
    return recall_metrics(
        lambda rows: images[rows] @ texts.T,
        lambda rows: texts[rows] @ images.T,
        image_of_text,
        images=len(images),
        same_text=same_text,
        chunk=chunk,
    )


def recall_metrics(
    score_texts: Callable[[Tensor], Tensor],
    score_images: Callable[[Tensor], Tensor],
    image_of_text: Tensor,
    *,
    images: int,
    same_text: Tensor | None = None,
    chunk: int | None = None,
) -> dict[str, float]:
    """``retrieval_metrics`` of any score.

    Args:
        score_texts: (rows,) images to their (rows, J) scores with all texts.
        score_images: (rows,) texts to their (rows, I) scores with all images.
        image_of_text: (J,) int64, the image each text belongs to.
        images: I.
        same_text: (J,) int64, equal for texts that read the same; all different by default.
        chunk: queries scored at once; by default as many as fill a few MiB.

    Raises:
        ValueError: as ``retrieval_metrics``.
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
    return {f"{name}_R@{k}": (rank < k).float().mean().item() for name, rank in ranks.items() for k in RECALLS}


def _ranks(score: Callable[[Tensor], Tensor], queries: int, right_of: RightOf, chunk: int) -> Tensor:
    """For each query, how many wrong items are not below its best right one; all items where that is no number."""
    ranks = torch.empty(queries, dtype=torch.int64)  # one block: small ones kept between large ones split the heap
    for start in range(0, queries, chunk):
        rows = torch.arange(start, min(start + chunk, queries))
        scores, right = score(rows), right_of(rows)
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        rank = torch.count_nonzero(~(scores < best) & ~right, dim=1)
        ranks[rows] = rank.masked_fill(best[:, 0].isnan(), scores.shape[1] + max(RECALLS))
    return ranks


def same_texts(texts: Sequence[str]) -> Tensor:
    """(J,) int64: equal numbers for equal texts."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])
