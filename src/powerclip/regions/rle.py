"""Masks on disk: COCO's compressed run-length encoding."""

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

MAX_BITS = 40
"""Most bits of a number in a run-length string (COCO's have 32): a number without end would take quadratic time."""


def encode(mask: NDArray[np.bool_]) -> str:
    """An (H, W) bool mask as a COCO run-length string."""
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")  # type: ignore[no-any-return]


def encode_box(box: tuple[int, int, int, int], height: int, width: int) -> str:
    """The string of a mask that is a box: left, top, right and bottom, the latter two exclusive."""
    left, top, right, bottom = box
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return encode(mask)


def bounding_box(rle: str, height: int, width: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom, the latter two exclusive, of a string that ``encode`` made; zeros if it is empty."""
    left, top, across, down = (int(v) for v in coco.toBbox({"size": [height, width], "counts": rle.encode()}))
    return left, top, left + across, top + down


def read_runs(rle: str, height: int, width: int) -> list[int]:
    """Lengths of a COCO string's runs, off and on in turn, column by column; ValueError if they do not fit the size."""
    try:
        runs = _runs(rle.encode("ascii"))
        if sum(runs) != height * width:
            raise ValueError(f"its runs cover {sum(runs)} pixels")
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{rle[:40]!r} is not a valid run-length mask of {height} x {width} pixels: {error}"
        ) from error
    return runs


def decode(runs: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """The (H, W) bool mask of runs that ``read_runs`` returned for that size."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(runs: bytes) -> list[int]:
    """Lengths of the runs: COCO writes 5 bits a byte, sign-extended, from the fourth on as differences.

    Decoded here because pycocotools reads out of bounds if the lengths do not fit the size.
    """
    counts: list[int] = []
    position = 0
    while position < len(runs):
        value, shift, more = 0, 0, True
        while more:
            byte = runs[position] - 48
            if not 0 <= byte < 64:
                raise ValueError("it holds a character that the encoding does not use")
            if shift >= MAX_BITS:
                raise ValueError("it holds a run longer than any mask")
            value |= (byte & 0x1F) << shift
            more = bool(byte & 0x20)
            position, shift = position + 1, shift + 5
            if not more and byte & 0x10:
                value |= -1 << shift
        if len(counts) > 2:
            value += counts[-2]
        if value < 0:
            raise ValueError("it holds a negative run")
        counts.append(value)
    return counts
