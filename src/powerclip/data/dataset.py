"""Positions to batches: samples are found, read, decoded and encoded; a good one takes the place of a bad one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from powerclip.config import DataConfig
from powerclip.config.values import RegionSource
from powerclip.data.captions import draw_captions
from powerclip.data.collate import EncodedSample, collate
from powerclip.data.images import decode_image
from powerclip.data.index import open_index
from powerclip.data.published import GRID, patch_masks
from powerclip.data.remote import Shard
from powerclip.data.sample import REGION_FILES, Sample
from powerclip.data.shards import SamplePlace
from powerclip.data.validate import check_phrases, check_size, stored_masks
from powerclip.errors import BadSampleError, PowerclipError, RunFailedError
from powerclip.phrases import encode_caption, tree_or_whole
from powerclip.regions import masks_to_grid, random_boxes
from powerclip.regions.places import pixel_places
from powerclip.types import Batch

Request = list[tuple[int, tuple[int, ...]]]
"""Samples that are read together: the position of each, and what seeds its augmentation besides the run's seed."""

MIN_SEEN = 100
"""The share of bad samples is not judged before this many have been seen."""


@dataclass(frozen=True, kw_only=True)
class TowerInputs:
    """How a model's towers take images and captions."""

    transform: Callable[..., Any]
    """PIL image to (3, H, W) tensor; for stored regions one of torchvision's v2, which moves masks along. Random ones
    draw from torch's default generator, which is seeded for each sample."""
    tokenizer: Any
    context_length: int
    grid: tuple[int, int]
    """Rows and columns of the image tower's patch grid; their product is N."""


@dataclass(frozen=True, kw_only=True)
class LoadedBatch:
    """A batch on its way from a worker, with the samples that were bad."""

    batch: Batch | None
    """None where ``MIN_SEEN`` samples from all over the data were bad, one after the other."""
    bad: dict[int, str]
    """Reason by position."""
    without_phrases: int = 0
    failure: str | None = None
    """Why no more can be read at all."""

    def pin_memory(self) -> LoadedBatch:
        """The same in page-locked memory, from where a GPU copies while it computes; DataLoader calls it."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class ShardDataset(Dataset[LoadedBatch]):
    """Batches by the positions of their samples; a bad sample's place is taken by a good one.

    Substitutes are looked for in strides over all the data, so that a bad shard is left at once and the
    neighbours of a bad sample are not shown more often than others.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        counts: Sequence[int],
        towers: TowerInputs,
        settings: DataConfig,
        *,
        seed: int,
        regions: int = 0,
        region_source: RegionSource = "boxes",
    ) -> None:
        self.shards, self.towers, self.settings, self.seed = shards, towers, settings, seed
        self.regions, self.stored = regions, bool(regions) and region_source == "stored"
        self.starts = np.cumsum([0, *counts])
        size = len(self)
        self.stride = next(s for s in range(round(0.618 * size) or 1, 2 * size + 2) if math.gcd(s, size) == 1)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, request: Request) -> LoadedBatch:
        samples: list[EncodedSample] = []
        bad: dict[int, str] = {}
        size = len(self)
        with torch.random.fork_rng(devices=[]):
            for wanted, seed in request:
                for attempt in range(min(MIN_SEEN, size)):
                    position = (wanted + attempt * self.stride) % size
                    try:
                        samples.append(self._encode(position, (self.seed, *seed)))
                        break
                    except RunFailedError as error:
                        return LoadedBatch(batch=None, bad=bad, failure=str(error))
                    except BadSampleError as error:
                        bad[position] = str(error)
                else:
                    return LoadedBatch(batch=None, bad=bad)
        batch = collate(samples, patches=math.prod(self.towers.grid), regions=self.regions)
        return LoadedBatch(batch=batch, bad=bad, without_phrases=sum(not sample.has_phrases for sample in samples))

    def _place(self, position: int) -> SamplePlace:
        shard = int(np.searchsorted(self.starts, position, side="right")) - 1
        try:
            return open_index(self.shards[shard])[position - int(self.starts[shard])]
        except RunFailedError:
            raise
        except (PowerclipError, IndexError, OSError) as error:
            raise BadSampleError("shard changed or truncated") from error

    def _read(self, position: int) -> Sample:
        place = self._place(position)
        without = ("json",) if self.stored else ("json", *REGION_FILES)
        try:
            return place.read(without=without)
        except BadSampleError:
            if place.shard.exists():
                raise
        return self._place(position).read(without=without)  # another process had removed the copy to make room

    def _encode(self, position: int, seed: tuple[int, ...]) -> EncodedSample:
        sample, towers = self._read(position), self.towers
        check_phrases(sample)
        captions = draw_captions(sample.captions, self.settings, seed)
        try:
            encoded = [
                encode_caption(
                    caption.text,
                    tree_or_whole(caption.text, caption.tree),
                    towers.tokenizer,
                    context_length=towers.context_length,
                )
                for caption in captions
            ]
        except ValueError as error:
            raise BadSampleError("phrases do not fit the caption") from error
        image = decode_image(sample.image)
        # Not torch.manual_seed: it would reseed the GPU's generator too, and formats a stack trace per backend.
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1))
        if self.stored:
            pixels, regions = transform_with_regions(
                sample, image, towers.transform, count=self.regions, grid=towers.grid
            )
        else:
            pixels, regions = towers.transform(image), None
            if self.regions:
                (regions,) = random_boxes(1, regions=self.regions, grid=towers.grid, generator=torch.default_generator)
        parsed = all(caption.tree is not None for caption in captions)
        return EncodedSample(key=sample.key, image=pixels, captions=encoded, regions=regions, has_phrases=parsed)


def transform_with_regions(
    sample: Sample, image: Image.Image, transform: Callable[..., Any], *, count: int, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """An image as the tower takes it, (3, H, W), and at most ``count`` of its regions, (m, N) bool on the patch grid.

    Which ones is drawn from torch's generator. A region that the crop leaves nothing of has no patch. ``transform`` is
    as ``TowerInputs.transform``. BadSampleError if the stored regions are malformed, or of another size or grid.
    """
    if sample.regions is None and sample.patch_regions:
        if grid != GRID:
            raise BadSampleError("regions on another patch grid")
        pixels, published = transform(image), sample.patch_regions
        drawn = torch.randperm(len(published))[:count].tolist()
        return pixels, torch.from_numpy(patch_masks([published[i] for i in drawn]))
    if sample.regions is None:
        return transform(image), torch.zeros((0, math.prod(grid)), dtype=torch.bool)
    drawn = torch.randperm(len(sample.regions.rles))[:count].tolist()
    check_size(sample.regions, (image.height, image.width))
    moved, rows, columns = transform(image, *pixel_places(image.height, image.width))
    return moved, masks_to_grid(stored_masks(sample.regions, drawn, rows, columns), grid)
