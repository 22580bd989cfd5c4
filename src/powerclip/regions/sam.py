"""Regions from SAM and SAM 2 (Kirillov et al., 2023; Ravi et al., 2024), through transformers' mask generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.proposers import tidied
from powerclip.types import PowerclipError


class SAM:
    """Masks of everything that a SAM or SAM 2 model finds on a grid of points; the score is its predicted IoU."""

    def __init__(self, model: str, *, device: str = "auto", points_per_batch: int = 64, **settings: Any) -> None:
        """Load a model.

        Args:
            model: hub name or local folder.
            device: "auto", "cpu", "cuda", ...
            points_per_batch: points that the mask decoder takes at once.
            settings: of the pipeline: ``pred_iou_thresh``, ``stability_score_thresh``, ``crops_n_layers``, ...

        Raises:
            PowerclipError: transformers is not installed, or the model cannot be loaded.
        """
        try:
            from transformers import pipeline
        except ImportError as error:
            raise PowerclipError(
                "regions from SAM need transformers, which is not installed; pip install 'powerclip[sam]'"
            ) from error
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
        try:
            self._generate = pipeline("mask-generation", model=model, device=place, dtype=dtype)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise PowerclipError(
                f"cannot load the SAM model {model!r} ({reason}); give a hub name or the folder of a SAM or SAM 2 model"
            ) from error
        self.name = f"sam:{model}"
        self._settings = {"points_per_batch": points_per_batch, **settings}

    def propose(self, images: Sequence[Image.Image]) -> list[RegionAnnotation]:
        """The masks of each image, the best first."""
        return [self._propose(image) for image in images]

    def _propose(self, image: Image.Image) -> RegionAnnotation:
        with torch.inference_mode():
            found = self._generate(image, **self._settings)
        masks = [np.asarray(mask, dtype=np.bool_) for mask in found["masks"]]
        scores = [float(score) for score in found["scores"]]
        stacked = np.stack(masks) if masks else np.zeros((0, image.height, image.width), dtype=np.bool_)
        return tidied(stacked, scores, proposer=self.name)
