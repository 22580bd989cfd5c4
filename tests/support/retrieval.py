"""The retrieval metrics of embeddings."""

from torch import Tensor

from powerclip.evaluate.metrics import recall_metrics


def recalls(
    images: Tensor, texts: Tensor, owner: Tensor, *, same_text: Tensor | None = None, chunk: int | None = None
) -> dict[str, float]:
    """``recall_metrics`` by the product of (I, D) image and (J, D) text embeddings."""
    return recall_metrics(
        lambda rows: images[rows] @ texts.T,
        lambda rows: texts[rows] @ images.T,
        owner,
        images=len(images),
        same_text=same_text,
        chunk=chunk,
    )
