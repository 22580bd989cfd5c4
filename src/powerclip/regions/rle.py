"""Masks on disk: COCO's compressed run-length encoding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

MAX_BITS = 40
"""Most bits of a number in a run-length string (COCO's have 32): a number without end would take quadratic time."""


def encode(mask: NDArray[np.bool_]) -> str:
    """An (H, W) bool mask as a COCO run-length string; ValueError if it is not bool."""
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        raise ValueError(f"the mask has dtype {mask.dtype}; expected bool: mask > 0, say")
    return coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")  # type: ignore[no-any-return]


def decode(rle: str, height: int, width: int) -> NDArray[np.bool_]:
    """The (height, width) bool mask of a COCO run-length string; ValueError if that does not fit the size."""
    mask: NDArray[np.bool_] = read_runs([rle], height, width).decode(height, width)[0]
    return mask


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


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs of masks of one size, one mask after the other, column by column."""

    lengths: NDArray[np.int64]
    """(R,) of all masks; those of each begin with one that is off, which may be empty, and add up to its pixels."""
    numbers: NDArray[np.int64]
    """(M,) how many of them each mask has."""
    pixels: int
    """Of a mask."""

    @property
    def on(self) -> NDArray[np.bool_]:
        """(R,) which are on: every second one of a mask."""
        return (_places_within(self.numbers) % 2).astype(np.bool_)

    def decode(self, height: int, width: int) -> NDArray[np.bool_]:
        """The (M, H, W) masks."""
        return np.repeat(self.on, self.lengths).reshape(len(self.numbers), width, height).transpose(0, 2, 1)

    def at(self, places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(M, P) what the masks have at P pixels, counted column by column and in ascending order."""
        mask = np.repeat(np.arange(len(self.numbers)), self.numbers)
        passed = np.searchsorted(places, np.cumsum(self.lengths) - mask * self.pixels) + mask * len(places)
        return np.repeat(self.on, np.diff(passed, prepend=0)).reshape(len(self.numbers), len(places))


def read_runs(rles: Sequence[str], height: int, width: int) -> Runs:
    """The runs of the COCO strings of masks of one size; ValueError if a string does not fit it."""
    if not rles:
        return Runs(lengths=np.zeros(0, np.int64), numbers=np.zeros(0, np.int64), pixels=height * width)
    try:
        return _runs([text.encode("ascii") for text in rles], height * width)
    except ValueError as error:
        for text in rles if len(rles) > 1 else ():
            read_runs([text], height, width)  # the first that is wrong is named
        raise ValueError(
            f"{rles[0][:40]!r} is not a valid run-length mask of {height} x {width} pixels: {error}"
        ) from error


def _places_within(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... of each of some groups, of their sizes."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _runs(texts: list[bytes], pixels: int) -> Runs:
    """COCO writes 5 bits of a length a byte, sign-extended, from a mask's fourth on as difference to the last but one.

    Decoded here because pycocotools reads out of bounds if the lengths do not fit the size.
    """
    codes = np.frombuffer(b"".join(texts), np.uint8) - np.uint8(48)  # characters below wrap around
    if not (codes < 64).all():
        raise ValueError("it holds a character that the encoding does not use")
    ends = np.flatnonzero(codes < 32)  # of each number; its other bytes have a bit more
    text_ends = np.cumsum([len(text) for text in texts])
    if not all(texts) or (codes[text_ends - 1] >= 32).any():
        raise ValueError("it ends within a number")
    sizes = np.diff(ends, prepend=-1)
    if sizes.max() > MAX_BITS // 5:
        raise ValueError("it holds a run longer than any mask")
    lengths = np.add.reduceat((codes & 31).astype(np.int64) << 5 * _places_within(sizes), ends + 1 - sizes)
    lengths -= (codes[ends] >> 4).astype(np.int64) << 5 * sizes  # the highest bit is the sign
    if (np.abs(lengths) > pixels).any():
        raise ValueError("it holds a run longer than the mask")
    numbers = np.diff(np.searchsorted(ends, text_ends), prepend=0)  # of each mask
    first, place = np.cumsum(numbers) - numbers, _places_within(numbers)
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        sums = np.cumsum(np.where(chosen, lengths, 0))
        lengths = np.where(chosen, sums - np.repeat(sums[first], numbers), lengths)
    if (lengths < 0).any():
        raise ValueError("it holds a negative run")
    covered = np.add.reduceat(lengths, first)
    if (covered != pixels).any():
        raise ValueError(f"its runs cover {covered[0]} pixels")
    return Runs(lengths=lengths, numbers=numbers, pixels=pixels)
