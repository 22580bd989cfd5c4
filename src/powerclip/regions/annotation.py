"""``KEY.regions.json``: the region masks of one image, as proposed once and for all crops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from powerclip.regions import rle

MAX_MASK_PIXELS = 2**32
"""Pixels of all masks of an image together: 64 of them on the largest image that is read."""


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
            ValueError: the value does not have that form; the message says where.
        """
        try:
            height, width = int(value["height"]), int(value["width"])
            entries = [(str(entry["rle"]), float(entry.get("score", 1.0))) for entry in value["masks"]]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                "regions.json must hold height, width and masks [{rle, score}, ...], but reading failed with "
                f"{type(error).__name__}: {error}"
            ) from error
        if height < 1 or width < 1:
            raise ValueError(f"regions.json gives a size of {height} x {width} pixels; both must be positive")
        if max(1, len(entries)) * height * width > MAX_MASK_PIXELS:
            raise ValueError(
                f"regions.json holds {len(entries)} masks of {height} x {width} pixels, too many to be read"
            )
        if not all(math.isfinite(score) for _, score in entries):
            raise ValueError("regions.json holds a score that is not a finite number")
        masks = np.zeros((len(entries), height, width), dtype=np.bool_)
        for index, (runs, _) in enumerate(entries):
            masks[index] = rle.decode(runs, height, width)
        scores = tuple(score for _, score in entries)
        return cls(masks=masks, scores=scores, proposer=str(value.get("proposer", "unknown")))
