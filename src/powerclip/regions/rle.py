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


def read_runs(rle: str, height: int, width: int) -> NDArray[np.int64]:
    """Lengths of a COCO string's runs, off and on in turn, column by column; ValueError if they do not fit the size."""
    try:
        runs = _runs(rle.encode("ascii"), height * width)
        if runs.sum() != height * width:
            raise ValueError(f"its runs cover {runs.sum()} pixels")
    except ValueError as error:
        raise ValueError(
            f"{rle[:40]!r} is not a valid run-length mask of {height} x {width} pixels: {error}"
        ) from error
    return runs


def decode(runs: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """The (H, W) bool mask of runs that ``read_runs`` returned for that size."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def decode_at(runs: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """What the mask of those runs has at some places, in ascending order:
    pixels counted column by column, -1 is off."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, np.diff(np.searchsorted(places, np.cumsum(runs)), prepend=0))


def _runs(text: bytes, pixels: int) -> NDArray[np.int64]:
    """Lengths of the runs: COCO writes 5 bits a byte, sign-extended, from the fourth on as differences.

    Decoded here because pycocotools reads out of bounds if the lengths do not fit the size.
    """
    codes = np.frombuffer(text, np.uint8) - np.uint8(48)  # characters below wrap around
    if not (codes < 64).all():
        raise ValueError("it holds a character that the encoding does not use")
    ends = np.flatnonzero(codes < 32)  # of each number; its other bytes have a bit more
    if not len(ends) or ends[-1] != len(codes) - 1:
        raise ValueError("it ends within a number")
    sizes = np.diff(ends, prepend=-1)
    if sizes.max() > MAX_BITS // 5:
        raise ValueError("it holds a run longer than any mask")
    starts = ends + 1 - sizes
    places = np.arange(len(codes)) - np.repeat(starts, sizes)
    counts = np.add.reduceat((codes & 31).astype(np.int64) << 5 * places, starts)
    counts -= (codes[ends] >> 4).astype(np.int64) << 5 * sizes  # the highest bit is the sign
    if (np.abs(counts) > pixels).any():
        raise ValueError("it holds a run longer than the mask")
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    if (counts < 0).any():
        raise ValueError("it holds a negative run")
    return counts
