"""Regions from SAM and SAM 2 (Kirillov et al., 2023; Ravi et al., 2024), through transformers' mask generation."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.masks import annotate, shrink_to

LONGEST_SIDE = 1024
"""SAM sees a copy with at most this many pixels on its longer side, its native input size: the pipeline resizes all
its masks to what it is given, so memory would grow with the image. The masks are scaled back to the image."""

POINTS, GPU_POINTS = 64, 128
"""Points per call of the mask decoder, on a CPU and on a GPU. Both divide the 32 x 32 points of an image: otherwise
transformers 4.56 does not notice the end of an image."""


class SAM:
    """Masks of everything that a SAM or SAM 2 model finds on a grid of points; the score is its predicted IoU."""

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        points_per_batch: int | None = None,
        longest_side: int = LONGEST_SIDE,
        **settings: Any,
    ) -> None:
        """Read the configuration of a model, a hub name or a folder; the weights are loaded for the first image.

        By default the weights and the arithmetic are bfloat16 and ``points_per_batch`` is ``GPU_POINTS`` on a GPU, and
        float32 and ``POINTS`` elsewhere. ``settings`` are the pipeline's: ``pred_iou_thresh``, ``crops_n_layers``, ...
        PowerclipError if transformers is not installed, or there is no such model.
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
                raise ValueError(f"its type, {config.model_type}, does not generate masks")
        except Exception as error:  # transformers raises many kinds on malformed files
            raise self._unloadable(error) from error
        gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if gpu else torch.float32)
        self.points_per_batch = points_per_batch or (GPU_POINTS if gpu else POINTS)
        self._longest_side, self._settings = longest_side, settings

    def propose(self, image: Image.Image) -> RegionAnnotation:
        """As ``Proposer.propose``; a PowerclipError if the weights cannot be loaded."""
        copy = shrink_to(image, self._longest_side)
        result = self._generate(copy, points_per_batch=self.points_per_batch, **self._settings)
        masks = [np.asarray(mask, dtype=np.bool_) for mask in result["masks"]]
        stacked = np.stack(masks) if masks else np.zeros((0, copy.height, copy.width), dtype=np.bool_)
        return annotate(stacked, [float(score) for score in result["scores"]], image, proposer=self.name)

    @cached_property
    def _generate(self) -> Any:
        """The pipeline, loaded when it is first needed: naming a model should not take its memory."""
        from transformers import pipeline

        try:
            generate = pipeline("mask-generation", model=self._model, device=self.device, dtype=self.dtype)
        except Exception as error:  # transformers raises many kinds on malformed files
            raise self._unloadable(error) from error
        generate.model.to(self.dtype)  # transformers 4.56 loads float32 whatever dtype it is given
        generate.model.register_forward_hook(_float_scores)
        return generate

    def _unloadable(self, error: Exception) -> PowerclipError:
        reason = " ".join(str(error).split())[:200]
        return PowerclipError(
            f"cannot load the SAM model {self._model!r} ({reason}); give a hub name or the folder of a SAM or SAM 2 model"
        )


def _float_scores(_module: Any, _arguments: Any, output: Any) -> Any:
    """Scores in float32: non-maximum suppression requires the dtype of its boxes, which are float32."""
    output["iou_scores"] = output["iou_scores"].float()
    return output
