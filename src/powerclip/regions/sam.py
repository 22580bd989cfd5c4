"""Regions from SAM and SAM 2 (Kirillov et al., 2023; Ravi et al., 2024), through transformers' mask generation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.masks import masks_at_size, resized, tidied

LONGEST_SIDE = 1024
"""Pixels to which an image is reduced, SAM's own input: the pipeline resizes all its masks to what it is given, so that
memory would grow with the picture. Masks are given in the picture's own pixels all the same."""

POINTS, GPU_POINTS = 64, 128
"""Points that a call of the mask decoder takes, on a CPU and on a GPU. Both divide the 32 x 32 points of an image:
transformers 4.56 finds no end of an image otherwise."""


class SAM:
    """Masks of everything that a SAM or SAM 2 model finds on a grid of points; the score is its predicted IoU."""

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        points_per_batch: int | None = None,
        **settings: Any,
    ) -> None:
        """Find a model by its configuration; the weights are loaded for the first image.

        Args:
            model: hub name or local folder.
            device: "auto", "cpu", "cuda", ...
            dtype: of weights and arithmetic; bfloat16 on a GPU and float32 elsewhere by default.
            points_per_batch: points that the mask decoder takes at once; ``GPU_POINTS`` or ``POINTS`` by default.
            settings: of the pipeline: ``pred_iou_thresh``, ``stability_score_thresh``, ``crops_n_layers``, ...

        Raises:
            PowerclipError: transformers is not installed, or there is no such model.
        """
        try:
            from transformers import MODEL_FOR_MASK_GENERATION_MAPPING, AutoConfig
        except ImportError as error:
            raise PowerclipError(
                "regions from SAM need transformers, which is not installed; pip install 'powerclip[sam]'"
            ) from error
        self.name = f"sam:{model}"
        self._model = model
        try:
            self.device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            if type(config) not in MODEL_FOR_MASK_GENERATION_MAPPING:
                raise ValueError(f"it is of the type {config.model_type}, which generates no masks")
        except Exception as error:  # transformers raises many kinds on malformed files
            raise self._unloadable(error) from error
        gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if gpu else torch.float32)
        self.points_per_batch = points_per_batch or (GPU_POINTS if gpu else POINTS)
        self._settings = settings

    def propose(self, images: Iterable[Image.Image]) -> Iterator[RegionAnnotation]:
        """The masks of each image, the best first.

        What is batched are the points of an image. Images are streamed one by one, so that the memory does not depend
        on their number; one of them is work enough for the encoder, which sees 4096 patches.

        Raises:
            PowerclipError: the weights cannot be loaded.
            ValueError: an image that the model's own preprocessing refuses; the images behind it are not reached.
        """
        waiting: deque[Image.Image] = deque()

        def copies() -> Iterator[Image.Image]:
            for image in images:
                waiting.append(image)
                yield resized(image, LONGEST_SIDE)

        # A generator, not a list: the pipeline would hold the masks of all images of a list.
        for found in self._generate(copies(), points_per_batch=self.points_per_batch, **self._settings):
            yield self._annotation(found, waiting.popleft())
        assert not waiting

    def _annotation(self, found: dict[str, Any], image: Image.Image) -> RegionAnnotation:
        masks = [np.asarray(mask, dtype=np.bool_) for mask in found["masks"]]
        scores = [float(score) for score in found["scores"]]
        stacked = np.stack(masks) if masks else np.zeros((0, image.height, image.width), dtype=np.bool_)
        small = tidied(stacked, scores, proposer=self.name)
        return RegionAnnotation(masks=masks_at_size(small.masks, image), scores=small.scores, proposer=self.name)

    @cached_property
    def _generate(self) -> Any:
        """The pipeline, loaded when it is first needed: the name alone should not cost a model's memory."""
        from transformers import pipeline

        try:
            generate = pipeline("mask-generation", model=self._model, device=self.device, dtype=self.dtype)
        except Exception as error:  # transformers raises many kinds on malformed files
            raise self._unloadable(error) from error
        generate.model.to(self.dtype)  # transformers 4.56 has loaded float32 whatever it was told
        generate.model.register_forward_hook(_float_scores)
        return generate

    def _unloadable(self, error: Exception) -> PowerclipError:
        reason = " ".join(str(error).split())[:200]
        return PowerclipError(
            f"cannot load the SAM model {self._model!r} ({reason}); give a hub name or the folder of a SAM or SAM 2 model"
        )


def _float_scores(_module: Any, _arguments: Any, output: Any) -> Any:
    """Scores in float32: the suppression of doubles, whose boxes are float32, takes no other beside them."""
    output["iou_scores"] = output["iou_scores"].float()
    return output
