"""``KEY.regions.json``: the region masks of one image, proposed once for all crops and models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from powerclip.regions import rle

MAX_PIXELS = 64_000_000
"""Pixels of an image, and of each of its masks; a larger one is refused before it is decoded."""

MAX_MASKS = 10_000
"""Masks of an image; SAM finds some hundred."""

MAX_MASK_PIXELS = 64 * MAX_PIXELS
"""Pixels of all masks of an image together."""


@dataclass(frozen=True, kw_only=True)
class RegionAnnotation:
    """The masks of an image, still encoded, with the proposer's scores."""

    height: int
    width: int
    """Of the image, in pixels."""
    rles: tuple[str, ...]
    """M masks as COCO run-length strings; ``masks`` decodes them."""
    scores: tuple[float, ...]
    """M scores of the proposer, higher is better."""
    proposer: str
    """What proposed them: "gold", or the name of the method or model."""

    @classmethod
    def from_masks(cls, masks: NDArray[np.bool_], *, scores: Sequence[float], proposer: str) -> RegionAnnotation:
        """Encode (M, H, W) bool masks in the pixels of the image, with M scores; ValueError for other shapes."""
        if masks.ndim != 3 or len(scores) != len(masks):
            raise ValueError(f"masks must be (M, H, W) with M scores, but are {masks.shape} with {len(scores)} scores")
        _, height, width = masks.shape
        rles = tuple(map(rle.encode, masks))
        return cls(height=height, width=width, rles=rles, scores=tuple(map(float, scores)), proposer=proposer)

    def masks(self, indices: Sequence[int] | None = None) -> NDArray[np.bool_]:
        """Decode the masks, or those at some indices, in their order: (M, H, W) bool in the pixels of the image.

        ValueError, before memory is allocated, if a string is not a mask of this size.
        """
        indices = range(len(self.rles)) if indices is None else indices
        self.validate(indices)
        masks = np.zeros((len(indices), self.height, self.width), dtype=np.bool_)
        for mask, decoded in zip(masks, self.each(indices), strict=True):
            mask[:] = decoded
        return masks

    def best(self, count: int) -> list[int]:
        """The indices of the masks with the highest scores, the highest first, at most ``count``."""
        return sorted(range(len(self.rles)), key=lambda m: -self.scores[m])[:count]

    def as_boxes(self, proposer: str) -> RegionAnnotation:
        """The bounding boxes of the masks, as masks; of equal boxes the first is kept, and an empty mask has none."""
        scores: dict[tuple[int, int, int, int], float] = {}
        for text, score in zip(self.rles, self.scores, strict=True):
            box = rle.bounding_box(text, self.height, self.width)
            if box[0] < box[2]:
                scores.setdefault(box, score)
        rles = tuple(rle.encode_box(box, self.height, self.width) for box in scores)
        return replace(self, rles=rles, scores=tuple(scores.values()), proposer=proposer)

    def each(self, indices: Sequence[int] | None = None) -> Iterator[NDArray[np.bool_]]:
        """The same masks one after the other, (H, W) each: all of a large image take gigabytes."""
        for m in range(len(self.rles)) if indices is None else indices:
            yield rle.decode(self.rles[m], self.height, self.width)

    def at(self, indices: Sequence[int], rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.bool_]:
        """What the masks at some indices have at some pixels only, in memory for these alone.

        ``rows`` and ``columns`` (h, w) count from 1, and 0 is outside, where no mask is: (M, h, w) bool. ValueError if
        a string is not a mask of this size.
        """
        places = np.where((rows > 0) & (columns > 0), (columns - 1) * self.height + rows - 1, -1).T.ravel()
        inside = np.argsort(places, kind="stable")[np.count_nonzero(places < 0) :]
        masks = np.zeros((len(indices), places.size), dtype=np.bool_)
        masks[:, inside] = self._runs(indices).at(places[inside])
        return masks.reshape(len(indices), *rows.T.shape).transpose(0, 2, 1)

    def validate(self, indices: Sequence[int] | None = None) -> None:
        """Check the masks, or those at some indices, without decoding them; ValueError if one is not of this size."""
        for m in range(len(self.rles)) if indices is None else indices:
            self._runs([m])

    def _runs(self, indices: Sequence[int]) -> rle.Runs:
        return rle.read_runs([self.rles[m] for m in indices], self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        """The content of a ``KEY.regions.json`` file."""
        masks = [{"rle": text, "score": score} for text, score in zip(self.rles, self.scores, strict=True)]
        return {"height": self.height, "width": self.width, "masks": masks, "proposer": self.proposer}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RegionAnnotation:
        """Read the content of a ``KEY.regions.json`` file; the masks themselves are checked when they are decoded.

        ValueError if the value, of whatever type, does not have that form; the message says where.
        """
        try:
            height, width = (_checked(value[side], int, "an integer") for side in ("height", "width"))
            rles = tuple(_checked(entry["rle"], str, "a string") for entry in value["masks"])
            scores = tuple(
                float(_checked(entry.get("score", 1.0), int | float, "a number")) for entry in value["masks"]
            )
            proposer = _checked(value.get("proposer", "unknown"), str, "a string")
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                "regions.json must hold height, width and masks [{rle, score}, ...], but reading failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if height < 1 or width < 1:
            raise ValueError(f"regions.json gives a size of {height} x {width} pixels; both must be positive")
        if height * width > MAX_PIXELS or len(rles) > MAX_MASKS or len(rles) * height * width > MAX_MASK_PIXELS:
            raise ValueError(f"regions.json holds {len(rles)} masks of {height} x {width} pixels, too many to read")
        if not all(map(math.isfinite, scores)):
            raise ValueError("regions.json holds a score that is not a finite number")
        return cls(height=height, width=width, rles=rles, scores=scores, proposer=proposer)


def _checked(value: Any, kind: Any, expected: str) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"expected {expected}, not {type(value).__name__}")
    return value
