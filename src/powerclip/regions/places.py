"""Places of an image's pixels, which torchvision's transforms move along with the image."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import register_kernel, resize, resized_crop
from torchvision.tv_tensors import Mask


class PixelPlaces(Mask):  # type: ignore[misc]  # torchvision has no types
    """The row or the column of each pixel of an image, from 1 on, (1, H, W) int64; 0 is outside.

    torchvision's transforms move it with the image as they would move masks, which are then read at those pixels alone.
    It takes no memory as long as it is of the image's size: resizing looks at those pixels only that it keeps.
    """


def pixel_places(height: int, width: int) -> tuple[PixelPlaces, PixelPlaces]:
    """The rows and the columns of an image's pixels."""
    rows, columns = torch.arange(1, height + 1)[:, None], torch.arange(1, width + 1)
    return PixelPlaces(rows.expand(1, height, width)), PixelPlaces(columns.expand(1, height, width))


def _resized(places: PixelPlaces, size: list[int], **_options: Any) -> PixelPlaces:
    height, width = places.shape[1:]
    if len(size) == 1:  # of the shorter side
        size = [int(size[0] * side / min(height, width)) for side in (height, width)]
    rows, columns = (
        F.interpolate(torch.arange(length, dtype=torch.float64)[None, None], wanted, mode="nearest").long().flatten()
        for length, wanted in zip((height, width), size, strict=True)
    )
    return PixelPlaces(places.as_subclass(Tensor)[:, rows[:, None], columns])


def _resized_crop(
    places: PixelPlaces, top: int, left: int, height: int, width: int, size: list[int], **_options: Any
) -> PixelPlaces:
    return _resized(PixelPlaces(places[:, top : top + height, left : left + width]), size)


register_kernel(resize, PixelPlaces)(_resized)
register_kernel(resized_crop, PixelPlaces)(_resized_crop)
