"""The metrics of embeddings."""

from torch import Tensor

from powerclip.evaluate.metrics import classification_metrics, recall_metrics


def accuracies(images: Tensor, classes: Tensor, labels: Tensor) -> dict[str, float]:
    """``classification_metrics`` by the product of (I, D) image and (C, D) class embeddings."""
    return classification_metrics(
        lambda rows: images[rows] @ classes.T, labels, images=len(images), classes=len(classes)
    )


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
