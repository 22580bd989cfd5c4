"""Pictures of the alignment: for each phrase of a caption, the regions that ground it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from powerclip.alignment import grounding
from powerclip.model import PowerCLIP, make_tokenizer, make_transforms
from powerclip.phrases import encode_caption
from powerclip.phrases.tokens import EncodedCaption
from powerclip.phrases.tree import PhraseTree
from powerclip.regions import fixed_boxes

MAX_PHRASES = 6

TOKEN = "token"
"""The label of a single token, of a model that aligns tokens instead of phrases."""

CHARACTERS_PER_COLUMN = 20
"""Of the caption over the panels: what fits in 1.75 inches at ten points."""


@dataclass(frozen=True, kw_only=True)
class PhraseGrounding:
    """Where a model sees one phrase."""

    text: str
    """The words of the phrase."""
    label: str
    """Its label in the tree."""
    heat: Tensor
    """(rows, columns) on the patch grid: the summed similarity of the grounding regions over a patch, over how
    many regions cover it."""
    score: float
    """max over subsets of Q: the sum of the positive similarities."""
    regions: int
    """Size of the grounding subset {m : s > 0}."""


def ground(
    model: PowerCLIP, image: Image.Image, caption: str, tree: PhraseTree, *, masks: Tensor | None = None
) -> list[PhraseGrounding]:
    """Ground the phrases of a caption in an image; the tokens, for a model that was trained on tokens.

    Args:
        model: in evaluation mode.
        image: any size; it is put through the model's own transform.
        caption: the text.
        tree: its phrases.
        masks: (M, N) bool regions on the patch grid; boxes of fixed sizes by default.
    """
    tokenizer = make_tokenizer(model)
    encoded = encode_caption(caption, tree, tokenizer, context_length=model.context_length)
    masks = fixed_boxes(model.grid_size) if masks is None else masks
    with torch.inference_mode():
        regions, region_mask = model.encode_regions(make_transforms(model)[1](image)[None], masks[None])
        phrases, phrase_mask = model.encode_phrases(
            encoded.tokens[None], encoded.leaf_of_token[None], encoded.phrase_spans[None]
        )
        found = grounding(regions[0], phrases[0], region_mask[0], phrase_mask[0], subsets=model.scoring.subsets)
    named = _tokens(encoded, tokenizer) if model.phrase_unit == "token" else _phrases(encoded, caption, tree)
    covered = masks.float().sum(dim=0).clamp(min=1)
    return [
        PhraseGrounding(
            label=label,
            text=text,
            heat=((s.clamp(min=0) @ masks.float()) / covered).view(model.grid_size),
            score=score.item(),
            regions=int(subset.sum()),
        )
        for (label, text), s, score, subset, present in zip(
            named, found.similarities, found.scores, found.subsets, phrase_mask[0], strict=True
        )
        if present
    ]


def _phrases(encoded: EncodedCaption, caption: str, tree: PhraseTree) -> list[tuple[str, str]]:
    """Label and words of each of the K phrases."""
    labels = {(phrase.first, phrase.last): phrase.label for phrase in tree.phrases}
    return [
        (labels.get((first, last), "cut"), caption[tree.leaves[first][0] : tree.leaves[last][1]])
        for first, last in encoded.phrase_spans.tolist()
    ]


def _tokens(encoded: EncodedCaption, tokenizer: Any) -> list[tuple[str, str]]:
    """Label and text of each of the T tokens."""
    decode = getattr(tokenizer, "tokenizer", tokenizer).decode  # Hugging Face's lies in open_clip's wrapper
    return [(TOKEN, decode([token]).strip()) for token in encoded.tokens.tolist()]


def picture(image: Image.Image, caption: str, groundings: Mapping[str, Sequence[PhraseGrounding]]) -> Figure:
    """One row a model, one panel a phrase: the image, and over it the regions that ground the phrase.

    Args:
        image: what was grounded in.
        caption: the whole text.
        groundings: of each model, by its name.
    """
    columns = 1 + min(MAX_PHRASES, max(len(_shown(found)) for found in groundings.values()))
    figure = Figure(figsize=(1.75 * columns, 2.15 * len(groundings) + 0.3), layout="constrained")
    # Not wrap=True: matplotlib's own wrapping reads dollars as formulas whatever parse_math says.
    figure.suptitle(fill(caption, width=CHARACTERS_PER_COLUMN * columns), fontsize=10, parse_math=False)
    panels = figure.subplots(len(groundings), columns, squeeze=False)
    for row, (name, found) in zip(panels, groundings.items(), strict=True):
        for axes in row:
            axes.set_axis_off()
        row[0].imshow(image)
        row[0].set_title(name, fontsize=9, fontweight="bold", parse_math=False)
        for axes, phrase in zip(row[1:], _shown(found), strict=False):
            axes.imshow(image)
            extent = (-0.5, image.width - 0.5, image.height - 0.5, -0.5)
            heat = phrase.heat.numpy()
            strength = heat / max(float(heat.max()), 1e-6)
            axes.imshow(
                heat, extent=extent, cmap="inferno", alpha=0.8 * np.clip(strength, 0, 1), interpolation="bilinear"
            )
            title = phrase.text if len(phrase.text) < 24 else f"{phrase.text[:22]}…"
            axes.set_title(f"{title}\n{phrase.regions} regions, {phrase.score:.2f}", fontsize=7, parse_math=False)
    return figure


def _shown(found: Sequence[PhraseGrounding]) -> list[PhraseGrounding]:
    """The phrases to draw, in their own order: the shortest noun phrases, which name what can be seen, or any phrases
    where there are none; of tokens, those with the highest scores."""
    nouns = [phrase for phrase in found if phrase.label == "NP"] or list(found)
    kept = sorted(
        range(len(nouns)), key=lambda k: (-nouns[k].score if nouns[k].label == TOKEN else len(nouns[k].text), k)
    )[:MAX_PHRASES]
    return [nouns[k] for k in sorted(kept)]
