"""Pixels as an image tower takes them: open_clip's transforms, the random one in a form that moves masks along."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from torchvision.transforms import InterpolationMode, v2

from powerclip.config import Crop
from powerclip.model.towers import PowerCLIP, Transform

CROP_SCALE = (0.9, 1.0)
"""Share of the area that a random crop keeps, as in open_clip."""


def make_transforms(model: PowerCLIP, *, crop: Crop = "random", flip: float = 0.0) -> tuple[Any, Transform]:
    """Transforms for training and for evaluation; the latter is open_clip's own.

    The one for training takes an RGB image, or an image and masks (``tv_tensors.Mask``) that go through the same
    crop and flip.

    Args:
        model: decides size, mean and standard deviation.
        crop: "random" keeps at least 90 % of the area; "none" shows the image whole, squeezed to the tower's size.
        flip: probability of a left-right flip, which makes captions wrong that speak of left and right.
    """
    config = PreprocessCfg(**model.backbone.visual.preprocess_cfg)
    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    bicubic = InterpolationMode.BICUBIC
    steps = [
        v2.RandomResizedCrop(size, scale=CROP_SCALE, interpolation=bicubic)
        if crop == "random"
        else v2.Resize(size, interpolation=bicubic),
        *([v2.RandomHorizontalFlip(flip)] if flip else []),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=config.mean, std=config.std),
        v2.ToPureTensor(),
    ]
    return v2.Compose(steps), image_transform_v2(config, is_train=False)
