"""Zero-shot segmentation: each pixel gets the class whose name its patches are most similar to.

The protocol is that of SCLIP (Wang et al., 2024), without its change of the attention: windows of the model's size
slide over the image by half of it, the scores of all windows that show a pixel are averaged, and small or unlikely
classes become background where a data set has one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as v2

from powerclip.evaluate.datasets.images import key_of, open_picture
from powerclip.evaluate.encode import Encoder, Tensors, powerclip_model, unit
from powerclip.evaluate.metrics import class_embeddings
from powerclip.evaluate.prompts import prompts_of
from powerclip.model import PowerCLIP
from powerclip.regions.boxes import window_starts
from powerclip.tasks import IGNORED, Picture, Segmentation, Truth

IMAGES_AT_ONCE = 4


def segmentation_metrics(encoder: Encoder, task: Segmentation) -> dict[str, float]:
    """mIoU: the mean over classes of the intersection over union of all pixels of all images;
    and the share of right pixels.

    A class that is neither in the labels nor predicted is left out of the mean. ValueError if the model has no patches,
    the task has no image, or labels do not fit their images.
    """
    model = powerclip_model(encoder.model, f"task {task.name}")
    if not task.images or len(task.images) != len(task.truths):
        raise ValueError(f"task {task.name} has {len(task.images)} images and labels for {len(task.truths)}")
    of_class = torch.tensor([c for c, names in enumerate(task.class_names) for _ in names])  # (Q,)
    prompts = encoder.texts(prompts_of(task)).view(len(of_class), len(task.templates), -1)
    queries = class_embeddings(prompts).to(encoder.device)  # (Q, D)
    config: Any = model.backbone.visual.preprocess_cfg

    def prepare(items: Sequence[tuple[Picture, Truth]]) -> Tensors:
        images, truths, sizes = [], [], []
        for picture, open_truth in items:
            image = open_picture(picture, encoder.pixels)
            scale = max(task.short_side, *model.image_size) / min(image.size)
            size = [
                max(int(side * scale + 0.5), least)
                for side, least in zip(image.size[::-1], model.image_size, strict=True)
            ]
            pixels = v2.to_dtype(v2.to_image(v2.resize(image, size, antialias=True)), torch.float32, scale=True)
            truth = torch.as_tensor(open_truth()).long()
            if truth.shape != image.size[::-1]:
                raise ValueError(
                    f"task {task.name} has an image of {image.size[::-1]} with labels {tuple(truth.shape)}"
                )
            images.append(v2.normalize(pixels, config["mean"], config["std"]))
            truths.append(truth)
            sizes.append(torch.tensor([*size, *truth.shape]))
        return _padded(images, 0.0), _padded(truths, IGNORED), torch.stack(sizes)

    def embed(images: Tensor, truths: Tensor, sizes: Tensor) -> Tensors:
        counts = []
        for image, truth, (h, w, H, W) in zip(images, truths, sizes.tolist(), strict=True):
            scores = _scores(model, image[:, :h, :w], queries)  # (Q, h, w)
            scores = F.interpolate(scores[None], (H, W), mode="bilinear")[0]
            counts.append(
                _counts(classes_of(scores, of_class.to(scores.device), task), truth[:H, :W], len(task.class_names))
            )
        return (torch.stack(counts),)

    alone = replace(encoder, batch_size=IMAGES_AT_ONCE, known={})
    items = list(zip(task.images, task.truths, strict=True))
    rows = alone.once(items, [(i, key_of(picture)) for i, picture in enumerate(task.images)], prepare, embed)
    both, predicted, truth = torch.stack([row for (row,) in rows]).sum(dim=0)  # each (C,)
    union = predicted + truth - both
    seen = union > 0
    if not seen.any():
        raise ValueError(f"task {task.name} has no labelled pixel; nothing can be measured")
    iou = both[seen].double() / union[seen]
    return {"mIoU": iou.mean().item(), "pixel_accuracy": (both.sum().double() / truth.sum()).item()}


def classes_of(scores: Tensor, of_class: Tensor, task: Segmentation) -> Tensor:
    """(H, W) classes of pixels from the (Q, H, W) scores of all names; ``of_class``, (Q,), is each name's class.

    A class is as likely as its likeliest name. If the task says so, classes that have a smaller share of the pixels
    that are not background, and pixels whose class is less likely, become background, class 0.
    """
    likely = (task.logit_scale * scores).softmax(dim=0)
    C = len(task.class_names)
    index = of_class[:, None, None].expand_as(likely)
    likely = likely.new_zeros(C, *likely.shape[1:]).scatter_reduce(0, index, likely, "amax")  # (C, H, W)
    if task.least_area:
        area = torch.bincount(likely.argmax(dim=0).flatten(), minlength=C)[1:]
        likely[1:] *= (area > task.least_area * area.sum())[:, None, None]
    best, classes = likely.max(dim=0)
    return classes.masked_fill(best < task.least_probability, 0)


def _scores(model: PowerCLIP, image: Tensor, queries: Tensor) -> Tensor:
    """(Q, h, w) cosines of the pixels of a (3, h, w) image with all names, averaged over the windows that show them."""
    rows, columns = (
        window_starts(size, window) for size, window in zip(image.shape[1:], model.image_size, strict=True)
    )
    (height, width), (R, C) = model.image_size, model.grid_size
    places = [(y, x) for y in rows for x in columns]
    windows = torch.stack([image[:, y : y + height, x : x + width] for y, x in places])
    patches = unit(model.encode_patches(windows).flatten(0, 1)).view(len(places), R * C, -1)
    total = image.new_zeros(len(queries), *image.shape[1:])
    shown = image.new_zeros(image.shape[1:])
    for (y, x), of_window in zip(places, patches @ queries.T, strict=True):  # (N, Q)
        grid = of_window.T.view(1, -1, R, C)
        total[:, y : y + height, x : x + width] += F.interpolate(grid, (height, width), mode="bilinear")[0]
        shown[y : y + height, x : x + width] += 1
    return total / shown


def _counts(classes: Tensor, truth: Tensor, C: int) -> Tensor:
    """(3, C) pixels of each class in both, in the prediction, and in the labels, where there are labels."""
    labelled = truth != IGNORED
    classes, truth = classes[labelled], truth[labelled]
    return torch.stack([torch.bincount(x, minlength=C) for x in (truth[classes == truth], classes, truth)])


def _padded(rows: Sequence[Tensor], value: float) -> Tensor:
    height, width = (max(row.shape[side] for row in rows) for side in (-2, -1))
    return torch.stack([F.pad(row, (0, width - row.shape[-1], 0, height - row.shape[-2]), value=value) for row in rows])
