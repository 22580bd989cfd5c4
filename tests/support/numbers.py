"""A model that gives every image and every text a random vector of its own, for metrics in nested loops."""

import hashlib

import torch
from PIL import Image
from torch import Tensor

D = 6


def vector(content: bytes) -> Tensor:
    """(D,) random numbers that depend on the content alone."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:6], "little")
    return torch.randn(D, generator=torch.Generator().manual_seed(seed))


def of_text(text: str) -> Tensor:
    """(D,) the vector of a text."""
    return vector(text.encode())


def of_image(image: Image.Image) -> Tensor:
    """(D,) the vector of an image."""
    return vector(image.tobytes())


def cosine(a: Tensor, b: Tensor) -> float:
    """In double precision."""
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item()


class NumberModel(torch.nn.Module):
    """Takes vectors for images and for tokens, and returns them."""

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        return images

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        return tokens


def number_model() -> tuple[NumberModel, object, object]:
    """The model with its preprocessing and its tokenizer."""
    return NumberModel(), of_image, lambda texts: torch.stack([of_text(text) for text in texts])
