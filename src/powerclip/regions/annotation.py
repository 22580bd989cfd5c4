"""``KEY.regions.json``: the region masks of one image, as proposed once and for all crops."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from powerclip.regions import rle

MAX_PIXELS = 2**26
"""Pixels of a mask: no larger image is read."""

MAX_MASK_PIXELS = 64 * MAX_PIXELS
"""Pixels of all masks of an image together."""


@dataclass(frozen=True, kw_only=True)
class RegionAnnotation:
    """The masks of an image, with the proposer's scores."""

    masks: NDArray[np.bool_]
    """(M, H, W) in pixels of the original image."""
    scores: tuple[float, ...]
    """M scores of the proposer, higher is better."""
    proposer: str
    """What proposed them: "gold", or the name of the method or model."""

    def __post_init__(self) -> None:
        if self.masks.ndim != 3 or len(self.scores) != len(self.masks):
            raise ValueError(
                f"masks must be (M, H, W) with M scores, but are {self.masks.shape} with {len(self.scores)} scores"
            )

    def to_json(self) -> dict[str, Any]:
        """The content of a ``KEY.regions.json`` file."""
        _, height, width = self.masks.shape
        pairs = zip(self.masks, self.scores, strict=True)
        masks = [{"rle": rle.encode(mask), "score": float(score)} for mask, score in pairs]
        return {"height": height, "width": width, "masks": masks, "proposer": self.proposer}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RegionAnnotation:
        """Read the content of a ``KEY.regions.json`` file.

        Raises:
            ValueError: the value, of whatever type, does not have that form; the message says where.
        """
        try:
            height, width = operator.index(value["height"]), operator.index(value["width"])
            entries = [(_text(entry["rle"]), _number(entry.get("score", 1.0))) for entry in value["masks"]]
            proposer = _text(value.get("proposer", "unknown"))
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                "regions.json must hold height, width and masks [{rle, score}, ...], but reading failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if height < 1 or width < 1:
            raise ValueError(f"regions.json gives a size of {height} x {width} pixels; both must be positive")
        if height * width > MAX_PIXELS or len(entries) * height * width > MAX_MASK_PIXELS:
            raise ValueError(
                f"regions.json holds {len(entries)} masks of {height} x {width} pixels, too many to be read"
            )
        if not all(math.isfinite(score) for _, score in entries):
            raise ValueError("regions.json holds a score that is not a finite number")
        runs = [rle.read_runs(text, height, width) for text, _ in entries]  # all are sound before memory is taken
        masks = np.zeros((len(entries), height, width), dtype=np.bool_)
        for mask, lengths in zip(masks, runs, strict=True):
            mask[:] = rle.fill(lengths, height, width)
        return cls(masks=masks, scores=tuple(score for _, score in entries), proposer=proposer)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, not {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number, not {type(value).__name__}")
    return float(value)
