"""Image-text retrieval: recall at K in both directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

RECALLS = (1, 5, 10)
RightOf = Callable[[Tensor], Tensor]


def retrieval_metrics(
    images: Tensor, texts: Tensor, image_of_text: Tensor, *, same_text: Tensor | None = None, chunk: int = 1024
) -> dict[str, float]:
    """R@1, R@5 and R@10, text to image and image to text, in chunks of the queries.

    A query is answered at K when fewer than K wrong items score at least as high as its best right one (a tie with a
    wrong item is a miss). Every copy of a caption is right for every image that has it.

    Args:
        images: (I, D) unit image embeddings.
        texts: (J, D) unit text embeddings.
        image_of_text: (J,) int64, the image each text belongs to.
        same_text: (J,) int64, equal for texts that read the same; all different by default.
        chunk: queries scored at once.

    Raises:
        ValueError: there is no image or no text.
    """
    if len(images) == 0 or len(texts) == 0:
        raise ValueError(f"the retrieval task has {len(images)} images and {len(texts)} texts; it needs both")
    group = torch.arange(len(texts)) if same_text is None else same_text
    right = torch.zeros(int(group.max()) + 1, len(images), dtype=torch.bool)
    right[group, image_of_text] = True  # (groups, I)
    ranks = {
        "i2t": _ranks(images, texts, lambda rows: right.T[rows][:, group], chunk),
        "t2i": _ranks(texts, images, lambda rows: right[group[rows]], chunk),
    }
    return {f"{name}_R@{k}": (rank < k).float().mean().item() for name, rank in ranks.items() for k in RECALLS}


def _ranks(queries: Tensor, items: Tensor, right_of: RightOf, chunk: int) -> Tensor:
    """For each query, how many wrong items score at least as high as its best right one."""
    ranks = []
    for start in range(0, len(queries), chunk):
        rows = torch.arange(start, min(start + chunk, len(queries)))
        scores = queries[rows] @ items.T
        right = right_of(rows)
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(((scores >= best) & ~right).sum(dim=1))
    return torch.cat(ranks)


def same_texts(texts: Sequence[str]) -> Tensor:
    """(J,) int64: equal numbers for equal texts."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])
