"""Training on data that fit in memory, for many runs on one machine: samples are decoded and tokenized once.

``powerclip train`` decodes, crops and tokenizes each sample whenever it is shown, which for these small images costs
more than the step on a GPU. Here crops are made of whole batches, on the device. Everything else is the trainer's: the
model, the loss, the optimiser's steps, the order of the samples, and the saved model.
"""

import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from powerclip.config import TrainConfig
from powerclip.data.collate import equally_wide
from powerclip.data.images import decode_image
from powerclip.data.sample import Sample
from powerclip.data.sampler import Order
from powerclip.model import make_tokenizer
from powerclip.model.transforms import CROP_SCALE
from powerclip.phrases import encode_captions, whole_caption_tree
from powerclip.regions import masks_to_grid, random_boxes
from powerclip.runs import RunFolder
from powerclip.train.build import build_model
from powerclip.train.step import Engine
from powerclip.types import Batch

OVERSAMPLING = 2
"""Crops are sampled at so many points per pixel and side, and averaged."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """n samples of a data set, with images of one size."""

    images: Tensor
    """(n, 3, H, W) uint8."""
    tokens: Tensor
    leaf_of_token: Tensor
    """(n, T) int64, both."""
    spans: Tensor
    """(n, K, 2) int64."""
    objects: Tensor
    """(n, O, H, W) bool: the stored regions; all False for none."""

    @classmethod
    def of(cls, given: Iterable[Sample], config: TrainConfig) -> "Samples":
        """Samples, tokenized for a config's model."""
        model, samples = build_model(config), list(given)
        images = [torch.from_numpy(np.array(decode_image(s.image))).permute(2, 0, 1) for s in samples]
        trees = [s.tree if s.tree is not None and s.tree.phrases else whole_caption_tree(s.caption) for s in samples]
        captions = [s.caption for s in samples]
        encoded = encode_captions(captions, trees, make_tokenizer(model), context_length=model.context_length)
        none = torch.zeros(0, *images[0].shape[1:], dtype=torch.bool)
        masks = [none if s.regions is None else torch.from_numpy(s.regions.masks()) for s in samples]
        return cls(
            images=torch.stack(images),
            tokens=encoded[0],
            leaf_of_token=encoded[1],
            spans=encoded[2],
            objects=pad_sequence(masks, batch_first=True),
        )

    def to(self, device: torch.device) -> "Samples":
        """The same with the images on a device."""
        return replace(self, images=self.images.to(device), objects=self.objects.to(device))

    @classmethod
    def joined(cls, parts: Sequence["Samples"]) -> "Samples":
        """One after the other."""

        def join(tensors: list[Tensor], padding: int = 0) -> Tensor:
            width = max(x.shape[1] for x in tensors)
            filled = [
                torch.cat([x, x.new_full((len(x), width - x.shape[1], *x.shape[2:]), padding)], dim=1) for x in tensors
            ]
            return torch.cat(filled)

        return cls(
            images=torch.cat([part.images for part in parts]),
            tokens=torch.cat([part.tokens for part in parts]),
            leaf_of_token=torch.cat([part.leaf_of_token for part in parts]),
            spans=join([part.spans for part in parts], -1),
            objects=join([part.objects for part in parts]),
        )

    def batch(self, rows: Tensor, config: TrainConfig, *, model: "Shape", generator: torch.Generator) -> Batch:
        """Some of them, cropped at random (at least 90 % of the area) on the device of the images."""
        count, o = len(rows), config.objective
        grid = _crops(count, model.image_size, generator).to(self.images.device)
        on_device = rows.to(self.images.device)
        images = _cropped(self.images[on_device].float() / 255, grid)
        mean, std = (x.to(images.device)[:, None, None] for x in (model.mean, model.std))
        M = config.drawn_regions
        if M and o.region_source == "stored":
            masks = _cropped(self.objects[on_device][:, :M].float(), grid) >= 0.5
            regions = masks_to_grid(masks.flatten(0, 1), model.grid_size).unflatten(0, masks.shape[:2])
        else:
            regions = random_boxes(count, regions=M, grid=model.grid_size, generator=generator)
        batch = Batch(
            images=(images - mean) / std,
            tokens=self.tokens[rows],
            leaf_of_token=self.leaf_of_token[rows],
            phrase_spans=self.spans[rows],
            region_masks=regions,
        )
        return equally_wide([batch])[0]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's batches look like."""

    image_size: tuple[int, int]
    grid_size: tuple[int, int]
    mean: Tensor
    std: Tensor


def _crops(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(B, h, w, 2) sampling grids of random crops whose aspect ratios are as wide as their areas allow."""
    low, high = CROP_SCALE
    area = low + (high - low) * torch.rand(count, generator=generator)
    ratio = torch.exp((2 * torch.rand(count, generator=generator) - 1) * -area.log())
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    x, y = ((2 * torch.rand(count, generator=generator) - 1) * (1 - side) for side in (width, height))
    zero = torch.zeros(count)
    theta = torch.stack([torch.stack([width, zero, x], dim=1), torch.stack([zero, height, y], dim=1)], dim=1)
    shape = [count, 1, size[0] * OVERSAMPLING, size[1] * OVERSAMPLING]
    return F.affine_grid(theta, shape, align_corners=False)


def _cropped(x: Tensor, grid: Tensor) -> Tensor:
    return F.avg_pool2d(F.grid_sample(x, grid, padding_mode="border", align_corners=False), OVERSAMPLING)


def train(config: TrainConfig, samples: Samples, output: Path, *, device: torch.device) -> None:
    """Train a config and leave ``metrics.jsonl`` and the model in a run folder; nothing if the model is there."""
    run = RunFolder(output)
    if run.model.is_dir():
        return
    assert config.steps is not None
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = build_model(config).to(device)
    cfg = model.backbone.visual.preprocess_cfg
    shape = Shape(
        image_size=model.image_size,
        grid_size=model.grid_size,
        mean=torch.tensor(cfg["mean"]),
        std=torch.tensor(cfg["std"]),
    )
    engine = Engine(config, model, device=device, steps=config.steps, output=output)
    order, size = Order(sources=[[len(samples.images)]], seed=config.seed), config.batch_size
    per_epoch = len(samples.images) // size
    start, before = time.perf_counter(), 0
    rows = np.empty(0, dtype=np.int64)
    with run.metrics_file.open("w", encoding="utf-8") as log:
        for step in range(config.steps):
            epoch, number = divmod(step, per_epoch)
            if number == 0:
                rows = order.epoch(epoch)
            generator = torch.Generator().manual_seed(config.seed * 10**6 + step)
            taken = torch.from_numpy(rows[number * size : (number + 1) * size])
            found, norm = engine.step([samples.batch(taken, config, model=shape, generator=generator)], step)
            if not engine.is_logged(step + 1):
                continue
            line = {
                "step": step + 1,
                "samples_seen": engine.counters["samples_seen"],
                "loss": found.total.item(),
                **{f"loss_{name}": term.item() for name, term in found.terms.items()},
                **{name: value.item() for name, value in found.measures.items()},
                "gradient_norm": norm.item(),
                "logit_scale": model.logit_scale.exp().item(),
            }
            elapsed, start = time.perf_counter() - start, time.perf_counter()
            line["samples_per_s"] = (step + 1 - before) * size / elapsed
            before = step + 1
            if not math.isfinite(line["loss"]):
                raise RuntimeError(f"{output}: the loss is {line['loss']} after step {step + 1}")
            log.write(json.dumps(line) + "\n")
    engine.save_model(run.model)
