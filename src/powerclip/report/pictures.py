"""Pictures of the alignment: for each phrase of a caption, the regions that ground it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from powerclip.alignment import grounding
from powerclip.model import PowerCLIP, make_tokenizer, make_transforms
from powerclip.phrases import encode_caption
from powerclip.phrases.tree import PhraseTree
from powerclip.regions import fixed_boxes
from powerclip.report.plots import STYLE
from powerclip.report.tables import printable

MAX_PHRASES = 6

TOKEN = "token"
"""The label of a single token, of a model that aligns tokens instead of phrases."""


@dataclass(frozen=True, kw_only=True)
class PhraseGrounding:
    """Where a model sees one phrase."""

    text: str
    label: str
    heat: Tensor
    """(rows, columns) on the patch grid: the summed similarity of the grounding regions over a patch, divided by the
    number of regions that cover it."""
    score: float
    """max over subsets of Q: the sum of the positive similarities; of single regions, the highest."""
    regions: int
    """Size of the grounding subset: {m : s > 0}, or 1 of single regions."""


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """Where a model sees the phrases of a caption."""

    image: Image.Image
    """The image as the model sees it: cropped and scaled by its transform."""
    phrases: tuple[PhraseGrounding, ...]
    """The phrases within the model's context."""


def ground(
    model: PowerCLIP, image: Image.Image, caption: str, tree: PhraseTree, *, masks: Tensor | None = None
) -> Grounding:
    """Ground the phrases of a caption in an image; the tokens, for a model that was trained on tokens.

    The model must be in evaluation mode; an image of any size goes through its own transform. ``masks`` are (M, N) bool
    regions on the patch grid, boxes of fixed sizes by default.
    """
    tokenizer: Any = make_tokenizer(model)
    encoded = encode_caption(caption, tree, tokenizer, context_length=model.context_length)
    masks = fixed_boxes(model.grid_size) if masks is None else masks
    with torch.inference_mode():
        pixels = make_transforms(model)[1](image)  # (3, H, W)
        regions, region_mask = model.encode_regions(pixels[None], masks[None])
        phrases, phrase_mask = model.encode_phrases(
            encoded.tokens[None], encoded.leaf_of_token[None], encoded.phrase_spans[None]
        )
        found = grounding(
            regions[0],
            phrases[0],
            region_mask[0],
            phrase_mask[0],
            subsets=model.scoring.subsets,
            zero=model.scoring.zero,
            means=model.vector_means,
        )
    if model.phrase_unit == "token":
        decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # open_clip wraps Hugging Face's
        named = [(TOKEN, decode([token]).strip()) for token in encoded.tokens.tolist()]
    else:
        labels = {(phrase.first, phrase.last): phrase.label for phrase in tree.phrases}
        named = [
            (labels.get((first, last), "cut"), caption[tree.leaves[first][0] : tree.leaves[last][1]])
            for first, last in encoded.phrase_spans.tolist()
        ]
    s_KM = found.similarities.clamp(min=0) * found.subsets
    heat_KN = s_KM @ masks.float() / masks.float().sum(dim=0).clamp(min=1)
    parts = zip(named, heat_KN, found.scores, found.subsets, phrase_mask[0], strict=True)
    grounded = [
        PhraseGrounding(
            text=text, label=label, heat=heat_N.view(model.grid_size), score=score.item(), regions=int(subset.sum())
        )
        for (label, text), heat_N, score, subset, present in parts
        if present
    ]
    return Grounding(image=_seen(model, pixels), phrases=tuple(grounded))


@rc_context(STYLE)
def picture(groundings: Mapping[str, Grounding]) -> Figure:
    """A row per model of a caption's groundings, a panel per phrase: the image, and over it the phrase's regions."""
    shown = {name: shown_phrases(found.phrases) for name, found in groundings.items()}
    columns = 1 + max(map(len, shown.values()))
    figure = Figure(figsize=(1.75 * columns, 2.15 * len(groundings)), layout="constrained")
    panels = figure.subplots(len(groundings), columns, squeeze=False)
    for row, (name, found) in zip(panels, groundings.items(), strict=True):
        for axes in row:
            axes.set_axis_off()
        row[0].imshow(found.image)
        row[0].set_title(_cut(name), fontsize=9, fontweight="bold")
        for axes, phrase in zip(row[1:], shown[name], strict=False):
            extent = axes.imshow(found.image).get_extent()
            heat = phrase.heat.numpy()
            alpha = 0.8 * heat / max(heat.max(), 1e-6)
            axes.imshow(heat, extent=extent, cmap="inferno", alpha=alpha, interpolation="bilinear")
            axes.set_title(f"{_cut(phrase.text)}\n{phrase.regions} regions, {phrase.score:.2f}", fontsize=7)
    return figure


def shown_phrases(phrases: Sequence[PhraseGrounding]) -> list[PhraseGrounding]:
    """The phrases to draw, in their own order: the shortest noun phrases, which name what can be seen, or any phrases
    if there are none; of tokens, those with the highest scores."""
    nouns = [phrase for phrase in phrases if phrase.label == "NP"] or list(phrases)
    rank = [(-phrase.score if phrase.label == TOKEN else len(phrase.text), k) for k, phrase in enumerate(nouns)]
    return [nouns[k] for k in sorted(k for _, k in sorted(rank)[:MAX_PHRASES])]


def _seen(model: PowerCLIP, pixels: Tensor) -> Image.Image:
    """The image that became (3, H, W) normalised pixels."""
    config = model.backbone.visual.preprocess_cfg
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    image: Image.Image = to_pil_image((255 * (pixels * std + mean)).round().clamp(0, 255).byte())
    return image


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) < 24 else f"{text[:22]}…"
