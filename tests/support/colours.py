"""A model that sees nothing but colour, and pictures for it."""

import torch
from PIL import Image
from torch import Tensor

from tests.support.images import encoded

NAMES = ("red", "green", "blue")
COLOURS = {name: tuple(255 * (name == other) for other in NAMES) for name in NAMES}


class ColourModel(torch.nn.Module):
    """Embeds a one-colour image and a colour's name as the same axis; not normalised, so that the suite has to."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.sizes.append(len(images))
        return 7 * images

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.sizes.append(len(tokens))
        return 3 * tokens.float()


def preprocess(image: Image.Image) -> Tensor:
    return torch.tensor([value / 255 for value in image.getpixel((0, 0))])  # type: ignore[union-attr]


def tokenizer(texts: list[str]) -> Tensor:
    return torch.tensor([[int(name in text) for name in NAMES] for text in texts])


def square(name: str) -> Image.Image:
    return Image.new("RGB", (4, 4), COLOURS[name])


def png(name: str) -> bytes:
    return encoded(square(name))
