"""Several captions of an image, all of them its positives."""

from torch import Tensor


def captions_per_image(image: Tensor, text: Tensor) -> int:
    """n, of embeddings (B, D) of images and (B n, D) of captions;
    ValueError if they do not fit. Without images it is 1."""
    if image.ndim != 2 or text.ndim != 2 or image.shape[1:] != text.shape[1:] or not fit(len(image), len(text)):
        raise ValueError(
            f"image and text are {tuple(image.shape)} and {tuple(text.shape)}; expected both (B, D), or n captions of "
            "each image, (B n, D)"
        )
    return len(text) // max(1, len(image)) or 1


def fit(images: int, captions: int) -> bool:
    """Whether so many captions are the same number, one or more, for each image."""
    return captions % images == 0 < captions if images else captions == 0


def without_padding(tokens: Tensor, token_mask: Tensor) -> Tensor:
    """Tokens (B, T, D) with zeros, in place of any number, where ``token_mask`` (B, T) is False.

    ValueError if that mask has another shape: it could be broadcast.
    """
    if token_mask.shape != tokens.shape[:2]:
        raise ValueError(f"token_mask has shape {tuple(token_mask.shape)}; expected {tuple(tokens.shape[:2])}")
    return tokens.masked_fill(~token_mask[..., None], 0.0)
