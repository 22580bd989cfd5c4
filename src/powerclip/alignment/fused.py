"""Around the Triton kernel: packing the vectors as it takes them, launching it, and reading what it found."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from powerclip.alignment import tiled
from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.fused_kernel import INTERPRETED, LOWEST_INDEX, align
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.search import Candidates, HardestNegatives
from powerclip.alignment.vectors import MaskedVectors

__all__ = ["INTERPRETED", "Tile", "align", "constants", "hardest_negatives", "options", "score_rows", "tile_for"]

STORED_PAIRS = 2**26
"""About how many pairs ``score_rows`` scores at once."""

_LOWEST_KEY = (-1 - int(torch.tensor(-ABSENT).view(torch.int32)) << 32) | LOWEST_INDEX
"""The key of the score ABSENT and the index 0: the negative number -1 - b stands for minus the number with bits b."""

_TENSORS = (
    "captions",
    "images",
    "caption_offset",
    "image_offset",
    "scores",
    "caption_key",
    "image_key",
    "caption_sum",
    "image_sum",
)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """Sizes of what a program computes, all powers of two, and how it is compiled."""

    images: int = 128
    rows: int = 64
    """Phrase slots, of rows / slots captions."""
    slots: int = 4
    """Slots of a caption that are computed together."""
    depth: int = 64
    """Elements of D that are loaded at a time."""
    group: int = 16
    """Tiles of captions whose programs run next to each other, so that they find the images in the cache."""
    warps: int = 8
    stages: int = 3

    @property
    def captions(self) -> int:
        """Captions of a program."""
        return self.rows // self.slots


def tile_for(dtype: torch.dtype) -> Tile:
    """The tile for products of float16, bfloat16 or float32: the largest of which no register is spilled on sm_90."""
    return Tile(images=64, depth=32) if dtype == torch.float32 else Tile()


@dataclass(frozen=True, kw_only=True)
class _Packed:
    """Captions with their phrases or images with their regions, as the kernel takes them."""

    vectors: Tensor
    """(chunks, J, slots, D) or (M, I, D), padded to whole tiles with zeros."""
    scale: Tensor
    """() what the vectors were divided by."""
    number: Tensor
    """(J,) or (I,) int64: how many vectors are present."""
    index: Tensor
    """(J,) or (I,) int64: which caption or image this is; the padding's follow."""

    def table(self, ids: Tensor | None = None, valid: Tensor | None = None) -> Tensor:
        """(4, J) or (4, I) int64: number, index, id and whether it takes part, of unpadded (J,) or (I,)."""
        others = (self.padded(x, dtype=torch.int64) for x in (ids, valid))
        return torch.stack([self.number, self.index, *others])

    def padded(self, x: Tensor | None, dtype: torch.dtype = torch.float32) -> Tensor:
        """(J,) or (I,) values in the order of the vectors, 0 for None and for the padding."""
        found = torch.zeros(len(self.index), dtype=dtype, device=self.index.device)
        if x is not None:
            found[: len(x)] = x[self.index[: len(x)]]
        return found


def _scale(values: Tensor, dtype: torch.dtype) -> Tensor:
    """() a power of 2 that brings values into the range of float16; 1 for types with the range of float32."""
    one = torch.ones((), dtype=values.dtype, device=values.device)
    if dtype != torch.float16 or not values.numel():
        return one
    return torch.ldexp(one, torch.frexp(values.abs().amax()).exponent)


def _pack_captions(phrases: MaskedVectors, *, tile: Tile, dtype: torch.dtype) -> _Packed:
    """Sorted by their number of phrases, the longest first; in each, those that are present come first."""
    J, K, D = phrases.values.shape
    chunks, rows, depth = (triton.cdiv(n, size) for n, size in ((K, tile.slots), (J, tile.captions), (D, tile.depth)))
    rows, depth = rows * tile.captions, depth * tile.depth
    number, index = phrases.mask.sum(dim=1).sort(descending=True, stable=True)  # (J,) each
    order = phrases.mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[index]  # (J, K)
    flat, scale = index[:, None] * K + order, _scale(phrases.values, dtype)
    vectors = torch.zeros(chunks, rows, tile.slots, depth, dtype=dtype, device=flat.device)
    for chunk in range(chunks):
        of_chunk = flat[:, chunk * tile.slots : (chunk + 1) * tile.slots]  # (J, slots or fewer)
        values = phrases.values.flatten(0, 1).index_select(0, of_chunk.flatten()).div_(scale)
        vectors[chunk, :J, : of_chunk.shape[1], :D] = values.view(*of_chunk.shape, D)
    padding = torch.arange(J, rows, device=flat.device)
    return _Packed(vectors=vectors, scale=scale, number=pad(number, (0, rows - J)), index=torch.cat([index, padding]))


def _pack_images(regions: MaskedVectors, *, tile: Tile, dtype: torch.dtype) -> _Packed:
    I, M, D = regions.values.shape
    rows, depth = triton.cdiv(I, tile.images) * tile.images, triton.cdiv(D, tile.depth) * tile.depth
    scale = _scale(regions.values, dtype)
    vectors = torch.zeros(M, rows, depth, dtype=dtype, device=regions.values.device)
    vectors[:, :I, :D] = (regions.values / scale).transpose(0, 1)
    number = pad(regions.mask.sum(dim=1), (0, rows - I))
    return _Packed(vectors=vectors, scale=scale, number=number, index=torch.arange(rows, device=number.device))


def options(tile: Tile) -> dict[str, Any]:
    """How the kernel is compiled for a tile."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}


def constants(*, scoring: Scoring, regions: int, tile: Tile, store: bool) -> dict[str, Any]:
    """The kernel's compile-time arguments."""
    exact = torch.get_float32_matmul_precision() == "highest"
    many = regions > tiled.REGIONS_PER_LOGARITHM
    return {
        "ROWS": tile.rows,
        "SLOTS": tile.slots,
        "IMAGES": tile.images,
        "DEPTH": tile.depth,
        "GROUP": tile.group,
        "HARD": scoring.tau == 0,
        "REGIONS_PER_LOGARITHM": tiled.REGIONS_PER_LOGARITHM if many else 0,
        "DIRECTION": scoring.direction,
        "BY_REGIONS": scoring.divides_by_regions,
        "STORE": store,
        "PRECISION": "tf32x3" if exact else "tf32",
    }


def _launch(captions: _Packed, images: _Packed, arguments: dict[str, Tensor], *, scoring: Scoring, tile: Tile) -> None:
    """Run the kernel with what ``arguments`` hold of its other tensors."""
    scale = (captions.scale * images.scale).float()
    zeta = scoring.even_weight
    zeta = zeta.to(scale) if isinstance(zeta, Tensor) else torch.full_like(scale, zeta)
    M, I, D = images.vectors.shape
    J = len(captions.index)
    with torch.cuda.device(images.vectors.get_device()):
        align[(J // tile.captions * (I // tile.images),)](
            captions.vectors,
            images.vectors,
            factors=torch.stack([scale, zeta]),
            tau=float(scoring.tau),
            J=J,
            I=I,
            M=M,
            D=D,
            **(dict.fromkeys(_TENSORS, scale) | arguments),
            **constants(scoring=scoring, regions=M, tile=tile, store="scores" in arguments),
            **options(tile),
        )


@torch.no_grad()
def score_rows(
    regions: MaskedVectors, phrases: MaskedVectors, *, scoring: Scoring, dtype: torch.dtype, tile: Tile | None = None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """As ``tiled.score_rows``; products are of ``dtype`` (float16, bfloat16, or float32 in 3 or 1 products of tf32).

    Three where ``torch.get_float32_matmul_precision()`` is "highest". All sums are float32.
    """
    I, J = len(regions), len(phrases)
    if not I or not J:
        return
    tile = tile or tile_for(dtype)
    captions = _pack_captions(phrases, tile=tile, dtype=dtype)
    step = max(1, STORED_PAIRS // len(captions.index) // tile.images) * tile.images
    for start in range(0, I, step):
        rows = slice(start, min(start + step, I))
        images = _pack_images(regions[rows], tile=tile, dtype=dtype)
        scores = captions.scale.new_empty(2, len(captions.index), len(images.index), dtype=torch.float32)
        arguments = {"scores": scores, "captions": captions.table(), "images": images.table()}
        _launch(captions, images, arguments, scoring=scoring, tile=tile)
        t1, t2 = scores[:, :J, : rows.stop - start].transpose(1, 2)
        yield rows, t1, t2


@torch.no_grad()
def hardest_negatives(
    regions: MaskedVectors,
    phrases: MaskedVectors,
    *,
    candidates: Candidates,
    scoring: Scoring,
    dtype: torch.dtype = torch.float16,
    tile: Tile | None = None,
) -> HardestNegatives:
    """As ``search.hardest_negatives``, with products of ``dtype``:
    what is found is within their rounding of the highest.

    Vectors of similar lengths suit float16, which rounds them 8 times less than bfloat16;
    vectors are scaled into its range.
    """
    I, J = len(regions), len(phrases)
    tile = tile or tile_for(dtype)
    captions, images = _pack_captions(phrases, tile=tile, dtype=dtype), _pack_images(regions, tile=tile, dtype=dtype)
    new = captions.scale.new_empty
    rows, columns = len(images.index), len(captions.index)
    found = {
        "caption_key": torch.full((columns,), _LOWEST_KEY, device=captions.index.device),
        "image_key": torch.full((rows,), _LOWEST_KEY, device=captions.index.device),
        "caption_sum": new(rows // tile.images, columns, dtype=torch.float32),
        "image_sum": new(columns // tile.captions, rows, dtype=torch.float32),
    }
    arguments = {
        "captions": captions.table(candidates.caption_id, candidates.caption_valid),
        "images": images.table(candidates.image_id, candidates.image_valid),
        "caption_offset": captions.padded(candidates.caption_offset),
        "image_offset": images.padded(candidates.image_offset),
    }
    if rows and columns:
        _launch(captions, images, arguments | found, scoring=scoring, tile=tile)
    caption, caption_score = _from_keys(found["image_key"][:I])
    image, image_score = _from_keys(found["caption_key"][:J])
    return HardestNegatives(
        caption=caption,
        caption_score=caption_score,
        image=image,
        image_score=image_score,
        image_sum=found["image_sum"].sum(dim=0)[:I],
        caption_sum=found["caption_sum"].sum(dim=0)[:J],
    )


def _from_keys(keys: Tensor) -> tuple[Tensor, Tensor]:
    """int64 index and float32 score of keys."""
    bits = (keys >> 32).to(torch.int32)
    score = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return keys & LOWEST_INDEX ^ LOWEST_INDEX, score
