"""Regions from SAM and SAM 2 (Kirillov et al., 2023; Ravi et al., 2024), with transformers' models."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import masks_to_boxes, nms

from powerclip.devices import find_device
from powerclip.errors import PowerclipError, needs_extra
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.masks import annotate, shrink_to

SAM_MODELS = {
    "sam": "facebook/sam-vit-base",
    "sam-large": "facebook/sam-vit-large",
    "sam-huge": "facebook/sam-vit-huge",
    "sam2": "facebook/sam2.1-hiera-large",
    "sam2-base-plus": "facebook/sam2.1-hiera-base-plus",
    "sam2-small": "facebook/sam2.1-hiera-small",
    "sam2-tiny": "facebook/sam2.1-hiera-tiny",
}
"""Hub names of the models that have a short one."""

LONGEST_SIDE = 1024
"""SAM sees a copy with at most this many pixels on its longer side, its native input size, and its masks are made at
the size of that copy: memory would grow with the image otherwise. They are then scaled to the image."""

IMAGES, POINTS = 1, 64
GPU_IMAGES, GPU_POINTS = 8, 256
"""Images that are encoded at once, and points that are decoded at once, of all these images together."""


@dataclass(frozen=True, kw_only=True)
class MaskChoice:
    """Which of the masks that SAM finds are kept; by default as its authors' generator of masks."""

    points_per_side: int = 32
    """Points in a row, and rows, on each image; every point gives three masks."""
    min_score: float = 0.88
    """Masks are kept above this IoU, as the model predicts it,"""
    min_stability: float = 0.95
    """and above this IoU between those of the logits above 1 and above -1."""
    max_box_iou: float = 0.7
    """Of two masks whose boxes overlap more, the one of the lower score is dropped."""


class _Masks(NamedTuple):
    """Masks of an image at the decoder's resolution."""

    logits: Tensor
    """(n, h, w)"""
    scores: Tensor
    """(n,) float32"""
    boxes: Tensor
    """(n, 4): left, top, right and bottom in the copy of the image."""


class SAM:
    """Masks of everything that a SAM or SAM 2 model finds on a grid of points; the score is its predicted IoU."""

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        points_per_batch: int | None = None,
        choice: MaskChoice | None = None,
    ) -> None:
        """Read the configuration of a model, a hub name or a folder; the weights are loaded for the first image.

        By default the weights and the arithmetic are bfloat16 with ``GPU_IMAGES`` and ``GPU_POINTS`` on a GPU, and
        float32 with ``IMAGES`` and ``POINTS`` elsewhere. PowerclipError if transformers is not installed, or there is
        no such model.
        """
        with needs_extra("--regions sam", "sam"):
            from transformers import MODEL_FOR_MASK_GENERATION_MAPPING, AutoConfig
        self.name = f"sam:{model}"
        self._model = model
        self.device = find_device(device)
        try:
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            if type(config) not in MODEL_FOR_MASK_GENERATION_MAPPING or config.model_type == "sam_hq":
                raise ValueError(f"its type, {config.model_type}, is not one of SAM or SAM 2")
        except Exception as error:  # transformers raises many kinds on malformed files
            raise self._unloadable(error) from error
        gpu = self.device.type == "cuda"
        self.dtype = dtype or (torch.bfloat16 if gpu else torch.float32)
        self.batch_size = batch_size or (GPU_IMAGES if gpu else IMAGES)
        self.points_per_batch = points_per_batch or (GPU_POINTS if gpu else POINTS)
        self.choice = choice or MaskChoice()

    @torch.inference_mode()
    def propose(self, images: Sequence[Image.Image]) -> list[RegionAnnotation]:
        """As ``Proposer.propose``; a PowerclipError if the weights cannot be loaded."""
        copies = [shrink_to(image, LONGEST_SIDE) for image in images]
        embeddings, seen = self.encode(copies)
        side = (torch.arange(self.choice.points_per_side) + 0.5) / self.choice.points_per_side
        grid = torch.cartesian_prod(side, side)  # (P, 2) in rows and columns
        points = (grid * seen[:, None]).flip(-1)[:, :, None].to(self.device)  # (B, P, 1, 2) in x and y
        found: list[list[_Masks]] = [[] for _ in copies]
        for part in torch.split(points, max(1, self.points_per_batch // len(copies)), dim=1):
            output = self.loaded[0](image_embeddings=embeddings, input_points=part)
            for i, (logits, scores) in enumerate(zip(output["pred_masks"], output["iou_scores"], strict=True)):
                found[i].append(self._passing(logits.flatten(0, 1), scores.flatten().float(), copies[i], seen[i]))
        return [
            self._annotation(_Masks(*map(torch.cat, zip(*parts, strict=True))), *of)
            for parts, *of in zip(found, images, copies, seen, strict=True)
        ]

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> tuple[Any, Tensor]:
        """The embeddings of images, as the model's decoder takes them, and (B, 2) int64, the height and width seen."""
        model, processor = self.loaded
        inputs = processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"]
        # SAM sees an image in a corner of its square input, and SAM 2 sees it stretched to all of it.
        seen = inputs.get("reshaped_input_sizes", torch.tensor([pixels.shape[-2:]] * len(images)))
        return model.get_image_embeddings(pixels.to(self.device, self.dtype)), seen

    def _passing(self, logits: Tensor, scores: Tensor, copy: Image.Image, seen: Tensor) -> _Masks:
        """Those of (n, h, w) masks and (n,) scores that are good enough by themselves."""
        good = scores > self.choice.min_score
        logits, scores = logits[good], scores[good]
        full = self._at_size(logits, copy, seen)
        stable = (full > 1).sum((1, 2)) / (full > -1).sum((1, 2)) > self.choice.min_stability
        good = stable & (full > 0).flatten(1).any(1)
        return _Masks(logits[good], scores[good], masks_to_boxes(full[good] > 0))

    def _annotation(self, masks: _Masks, image: Image.Image, copy: Image.Image, seen: Tensor) -> RegionAnnotation:
        """The masks of an image, without those whose boxes overlap."""
        kept = nms(masks.boxes, masks.scores, self.choice.max_box_iou)
        full = self._at_size(masks.logits[kept], copy, seen) > 0
        return annotate(full.cpu().numpy(), masks.scores[kept].tolist(), image, proposer=self.name)

    def _at_size(self, logits: Tensor, copy: Image.Image, seen: Tensor) -> Tensor:
        """(n, H, W) logits at the size of the copy of the image."""
        size = copy.height, copy.width
        if not len(logits):
            return logits.new_zeros((0, *size))
        processor = self.loaded[1]
        (full,) = processor.post_process_masks(
            [logits[None]], [size], reshaped_input_sizes=[seen.tolist()], binarize=False
        )
        at_size: Tensor = full[0]
        return at_size

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its image processor, loaded when first needed: naming a model should not take its memory."""
        from transformers import AutoImageProcessor, AutoModelForMaskGeneration

        try:
            model = AutoModelForMaskGeneration.from_pretrained(self._model, trust_remote_code=False)
            processor = AutoImageProcessor.from_pretrained(self._model, trust_remote_code=False)
            return model.to(self.device, self.dtype).eval(), processor
        except Exception as error:  # transformers raises many kinds on malformed files
            raise self._unloadable(error) from error

    def _unloadable(self, error: Exception) -> PowerclipError:
        reason = " ".join(str(error).split())[:200]
        return PowerclipError(
            f"cannot load the SAM model {self._model!r} ({reason}); "
            "give a hub name or the folder of a SAM or SAM 2 model"
        )
