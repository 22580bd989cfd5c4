"""Pixels as an image tower takes them: open_clip's transforms, in a form that moves masks along with the image."""

from functools import partial
from typing import Any

import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.tv_tensors import Mask

from powerclip.config.values import Crop
from powerclip.errors import one_of
from powerclip.model.towers import PowerCLIP, Transform
from powerclip.pixels import to_rgb

INTERPOLATIONS = {
    "bicubic": InterpolationMode.BICUBIC,
    "bilinear": InterpolationMode.BILINEAR,
    "random": InterpolationMode.BICUBIC,  # as open_clip evaluates such models
}

CROP_SCALE = (0.9, 1.0)
"""Share of the area that a random crop keeps, as in open_clip."""

EXTREME = 100
"""An image is extreme if its longer side is more than this many times the shorter one: scaled as others are, a file of
a few kB would take gigabytes."""


def make_transforms(model: PowerCLIP, *, crop: Crop = "random", flip: float = 0.0) -> tuple[Transform, Transform]:
    """Transforms for training and for evaluation.

    Both take an image, masks of its size (``tv_tensors.Mask``), or an image and masks; masks go through the same
    resizing, crop and flip. The one for evaluation is open_clip's, and takes a PIL image of any mode, which it sees as
    training does: upright, white behind transparency, 16 bits as 8. The one for training takes RGB.

    Args:
        model: decides size, mean, standard deviation and interpolation, and for evaluation the way of resizing.
        crop: "random" keeps at least 90 % of the area; "none" shows the complete image, squeezed to the tower's size.
        flip: probability of a left-right flip, which makes captions wrong that speak of left and right.

    Returns:
        Each turns an image into (3, H, W) float32 and masks (M, h, w) into (M, H, W).

    Raises:
        ValueError: the model asks for an interpolation that is not among open_clip's. Both raise TypeError for what is
            neither an image nor masks.
    """
    config = PreprocessCfg(**model.backbone.visual.preprocess_cfg)
    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    one_of("interpolation", config.interpolation, INTERPOLATIONS)
    mode = INTERPOLATIONS[config.interpolation]
    pixels = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=config.mean, std=config.std),
        v2.ToPureTensor(),
    ]
    random = v2.RandomResizedCrop(size, scale=CROP_SCALE, interpolation=mode)
    view = [random] if crop == "random" else _squeezing(size, mode)
    augmentation = [*view, *([v2.RandomHorizontalFlip(flip)] if flip else [])]
    seen, rgb = v2.Lambda(_image_or_masks), v2.Lambda(to_rgb, Image.Image)
    evaluation = [seen, rgb, *_resizing(config, size, mode), *pixels]
    return v2.Compose([seen, *augmentation, *pixels]), v2.Compose(evaluation)


def _image_or_masks(x: Any) -> Any:
    if isinstance(x, Image.Image | Mask):
        return x
    raise TypeError(f"got {type(x).__name__}; expected a PIL image (PIL.Image.open, PIL.Image.fromarray) or masks")


def _resizing(config: PreprocessCfg, size: tuple[int, int], mode: InterpolationMode) -> list[Any]:
    """open_clip's ways to bring an image to the tower's size: squeezed, cropped at the longer side, or padded."""
    if config.resize_mode == "squash":
        return _squeezing(size, mode)
    centre = v2.Lambda(_centre, Image.Image, Mask)
    if config.resize_mode == "shortest" and size[0] == size[1]:
        return [centre, v2.Resize(size[0], interpolation=mode), v2.CenterCrop(size)]
    fit = partial(_fit, size=size, longest=config.resize_mode == "longest", mode=mode, fill=config.fill_color)
    return [*([centre] if config.resize_mode == "shortest" else []), v2.Lambda(fit, Image.Image, Mask)]


def _squeezing(size: tuple[int, int], mode: InterpolationMode) -> list[Any]:
    """Steps that bring the complete image to a size."""
    return [v2.Lambda(partial(_lower, height=size[0], mode=mode), Image.Image, Mask), v2.Resize(size, mode)]


def _lower(x: Any, *, height: int, mode: InterpolationMode) -> Any:
    """An image or masks; if they are extremely high, scaled to ``height``, as Pillow would make them wide first."""
    rows, columns = v2.functional.get_size(x)
    return x if rows <= EXTREME * columns else v2.functional.resize(x, [height, columns], interpolation=mode)


def _centre(x: Any) -> Any:
    """An image or masks; if they are extreme, the part around the middle that a crop after scaling can see."""
    rows, columns = v2.functional.get_size(x)
    length, seen = max(rows, columns), EXTREME * min(rows, columns)
    if length <= seen:
        return x
    seen += (length - seen) % 2  # so that the middle stays where it is
    return v2.functional.center_crop(x, [min(rows, seen), min(columns, seen)])


def _fit(x: Any, *, size: tuple[int, int], longest: bool, mode: InterpolationMode, fill: int) -> Any:
    """Scale an image or masks until the longer or the shorter side fits ``size``, then pad and crop the other."""
    height, width = v2.functional.get_size(x)
    ratio = (max if longest else min)(height / size[0], width / size[1])
    height, width = (max(round(side / ratio), 1) for side in (height, width))  # extreme images have a thin side
    x = v2.functional.resize(x, [height, width], interpolation=mode)
    rows, columns = max(size[0] - height, 0), max(size[1] - width, 0)
    padding = [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]
    x = v2.functional.pad(x, padding, fill=0 if isinstance(x, Mask) else fill)
    return v2.functional.center_crop(x, list(size))
