"""Which regions of an image ground each phrase of its caption,
as a report shows it: tree, masks, and a score's parts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from torchvision.tv_tensors import Mask

from powerclip.alignment import grounding
from powerclip.evaluate.powerset_score import grid_regions
from powerclip.model import PowerCLIP, make_tokenizer, make_transforms
from powerclip.model.alone import pack_phrases
from powerclip.phrases import encode_caption
from powerclip.phrases.tree import PhraseTree
from powerclip.regions import RegionAnnotation, masks_to_grid, tiles

TOKEN = "token"
"""The label of a single token, of a model that aligns tokens instead of phrases."""

MAX_REGIONS = 32
"""Stored regions of an image that are shown."""

Place = tuple[int, int, int]
"""First and last leaf of a phrase, and 0; of a token its leaf, twice, and its position in the caption."""


@dataclass(frozen=True, kw_only=True)
class PhraseGrounding:
    """Where a model sees one phrase."""

    text: str
    label: str
    shares: Mapping[int, float]
    """The similarity of each region of the grounding subset, {m : s > 0}, or of single regions the best one."""
    others: Mapping[int, float] = field(default_factory=dict)
    """That of the regions that do not count: of single regions all but the best. Sums have none."""

    @property
    def score(self) -> float:
        """max over subsets of Q: the sum of the subset's similarities."""
        return math.fsum(self.shares.values())

    @property
    def parts(self) -> list[tuple[int, float]]:
        """Region and similarity, the highest first."""
        return sorted(self.shares.items(), key=lambda part: -part[1])


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Where a model sees the phrases of a caption."""

    image: Image.Image
    """The image as the model sees it: cropped and scaled by its transform."""
    grid: tuple[int, int]
    """Rows and columns of its patches."""
    masks: Tensor
    """(M, N) bool: the patches of each region."""
    single: bool
    """Whether the best region alone grounds a phrase."""
    phrases: Mapping[Place, PhraseGrounding]
    """The phrases within the model's context."""

    @property
    def mask_texts(self) -> list[str]:
        """The masks as a page's script reads them: strings of 0 and 1."""
        return ["".join("01"[bit] for bit in mask) for mask in self.masks.tolist()]

    @property
    def best(self) -> float:
        """The highest score of a phrase; 0 if there is none."""
        return max([0.0, *(phrase.score for phrase in self.phrases.values())])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One phrase of a caption's tree, with every model's grounding of it."""

    text: str
    label: str
    found: Mapping[str, PhraseGrounding]
    """By model; a model whose context ends before, or that aligns something else, is missing."""
    children: "list[Row]"


def ground(
    model: PowerCLIP, image: Image.Image, caption: str, tree: PhraseTree, *, masks: Tensor | None = None
) -> Grounding:
    """Ground the phrases of a caption in an image; the tokens, for a model that was trained on tokens.

    The model must be in evaluation mode; an image of any size goes through its own transform. ``masks`` are (M, N) bool
    regions on the patch grid; by default ``tiles`` of it, or every patch for a model trained on patches.
    """
    tokenizer: Any = make_tokenizer(model)
    encoded = encode_caption(caption, tree, tokenizer, context_length=model.context_length)
    if masks is None:
        masks = grid_regions(model) if model.region_unit == "patch" else tiles(model.grid_size)
    inputs = (encoded.tokens, encoded.leaf_of_token, encoded.phrase_spans)
    device = model.logit_scale.device
    with torch.inference_mode():
        pixels = make_transforms(model)[1](image)  # (3, H, W)
        regions, region_mask = model.encode_regions(pixels[None].to(device), masks[None].to(device))
        phrases, phrase_mask = model.encode_phrases(*(x[None].to(device) for x in inputs))
        found = grounding(
            regions[0],
            phrases[0],
            region_mask[0],
            phrase_mask[0],
            subsets=model.scoring.subsets,
            zero=model.scoring.zero,
            means=model.vector_means,
        )
    named = []
    if model.phrase_unit != "token":
        labels = {(phrase.first, phrase.last): phrase.label for phrase in tree.phrases}
        for first, last in encoded.phrase_spans.tolist():
            text = caption[tree.leaves[first][0] : tree.leaves[last][1]]
            named.append(((first, last, 0), labels.get((first, last), "cut"), text))
    if model.phrase_unit != "phrase":
        decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # open_clip wraps Hugging Face's
        tokens, leaves = encoded.tokens, encoded.leaf_of_token
        if model.phrase_context == "alone":  # a token comes once for each phrase that it is in
            tokens, after = (
                pack_phrases(x[None], leaves[None], encoded.phrase_spans[None]).tokens[0] for x in (tokens, leaves + 1)
            )
            leaves = after - 1
        for i, (leaf, token) in enumerate(zip(leaves.tolist(), tokens.tolist(), strict=True), 1):
            named.append(((leaf, leaf, i), TOKEN, decode([token]).strip()))
    parts = zip(named, found.subsets.tolist(), found.similarities.tolist(), phrase_mask[0].tolist(), strict=True)
    single = model.scoring.subsets == "single"
    grounded = {
        place: PhraseGrounding(
            text=text,
            label=label,
            shares={m: s for m, s in enumerate(s_M) if subset[m]},
            others={m: s for m, s in enumerate(s_M) if single and region_mask[0, m] and not subset[m]},
        )
        for (place, label, text), subset, s_M, present in parts
        if present
    }
    seen = seen_image(model, pixels)
    return Grounding(image=seen, grid=model.grid_size, masks=masks, single=single, phrases=grounded)


def rows(groundings: Mapping[str, Grounding]) -> list[Row]:
    """The tree of a caption's phrases, in reading order, with the groundings of all models;
    a token is in its phrase."""
    places = {place: phrase for found in groundings.values() for place, phrase in found.phrases.items()}
    top: list[Row] = []
    open_rows: list[tuple[int, Row]] = []
    for place in sorted(places, key=lambda place: (place[0], -place[1], place[2])):
        first, last, _ = place
        phrase = places[place]
        found = {name: one.phrases[place] for name, one in groundings.items() if place in one.phrases}
        row = Row(text=phrase.text, label=phrase.label, found=found, children=[])
        while open_rows and open_rows[-1][0] < first:
            open_rows.pop()
        (open_rows[-1][1].children if open_rows else top).append(row)
        if phrase.label != TOKEN:
            open_rows.append((last, row))
    return top


def regions_of(model: PowerCLIP, regions: RegionAnnotation | None, *, count: int = MAX_REGIONS) -> Tensor | None:
    """(M, N) bool: the masks with the highest scores, at most ``count``, as the model's transform moves them.

    None if there are none, or the view that the model has of the image shows none.
    """
    if regions is None or not regions.rles:
        return None
    best = regions.masks(regions.best(count))
    moved = make_transforms(model)[1](Mask(torch.from_numpy(best).to(torch.uint8)))
    grids = masks_to_grid(moved.bool(), model.grid_size)
    return grids if grids.any() else None


def seen_image(model: PowerCLIP, pixels: Tensor) -> Image.Image:
    """The image that became (3, H, W) normalised pixels: what a model sees of it."""
    config = model.backbone.visual.preprocess_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    image: Image.Image = to_pil_image((255 * (pixels * std + mean)).round().clamp(0, 255).byte())
    return image
