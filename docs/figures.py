"""Draws docs/method.png: what powerset alignment matches, on a generated scene with its true regions.

With a run or model folder, docs/dense.png instead: the same scene, and where the model sees each of three texts.

Run: python docs/figures.py [RUN]
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import powerclip
from powerclip.scenes.render import object_mask, render
from powerclip.scenes.world import Object

SIDE = 240
RED, BLUE, YELLOW = "#d62728", "#1f58d6", "#c9a800"


def scene() -> tuple[Object, ...]:
    """A red cube above a blue ball, and a yellow star that the caption does not mention."""
    return (
        Object(shape="cube", colour="red", size="big", texture="plain", x=0.3, y=0.26),
        Object(shape="ball", colour="blue", size="big", texture="striped", x=0.36, y=0.72),
        Object(shape="star", colour="yellow", size="small", texture="plain", x=0.8, y=0.4),
    )


def draw_method() -> None:
    """Draw method.png next to this file."""
    things = scene()
    image = np.asarray(render(things, image_size=SIDE, random=np.random.default_rng(3)))
    masks = [object_mask(thing, image_size=SIDE) for thing in things]
    panels = [
        ("image with M = 3 regions\n(2^M = 8 sets of regions)", (0, 1, 2), False),
        ('"a red cube"\n{1}', (0,), True),
        ('"a blue ball"\n{2}', (1,), True),
        ('"above a blue ball"\n{2}', (1,), True),
        ('"a red cube above a blue ball"\n{1, 2}', (0, 1), True),
    ]
    figure = Figure(figsize=(13, 3.2), dpi=120, layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    figure.suptitle(
        "Every phrase of the caption is matched with its best set of regions, and every set of regions with its best phrase",
        fontsize=12,
    )
    for axes, (title, shown, dim) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        chosen = np.any([masks[m] for m in shown], axis=0)[..., None]
        axes.imshow(np.where(chosen, image, 235 + image // 18) if dim else image)
        for number, (mask, colour) in enumerate(zip(masks, (RED, BLUE, YELLOW), strict=True)):
            if number in shown:
                axes.contour(mask, levels=[0.5], colors=[colour if not dim else "black"], linewidths=1.6)
                rows, columns = np.nonzero(mask)
                axes.text(columns.max() + 4, rows.min() + 4, str(number + 1), fontsize=11, fontweight="bold", va="top")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    figure.savefig(Path(__file__).with_name("method.png"))


def draw_dense(run: str) -> None:
    """Draw dense.png next to this file: the cosine of every patch with texts on one scale, and less their mean."""
    texts = ["a red cube", "a blue ball", "a green cone"]
    model, preprocess, tokenizer = powerclip.load(run)
    image = render(scene(), image_size=SIDE, random=np.random.default_rng(3))
    with torch.inference_mode():
        text = model.encode_text(tokenizer(texts), normalize=True)
        patches = torch.nn.functional.normalize(model.encode_patches(preprocess(image)[None])[0], dim=-1)
    maps = (text @ patches.T).unflatten(1, model.grid_size)  # (3, rows, columns)
    figure = Figure(figsize=(11, 5.6), dpi=120, layout="constrained")
    axes = figure.subplots(2, 1 + len(texts))
    for row, (values, label) in enumerate(((maps, "cosine"), (maps - maps.mean(dim=0), "less the mean of the texts"))):
        for name, panel, value in zip(texts, axes[row, 1:], values, strict=True):
            size = {"extent": (0, SIDE, SIDE, 0), "vmin": values.min(), "vmax": values.max()}
            shown = panel.imshow(value, **size)
            for thing in scene():
                mask = object_mask(thing, image_size=SIDE)
                panel.contour(mask, levels=[0.5], colors=["white"], linewidths=1.2)
            panel.set_title(f'"{name}"' if row == 0 else "", fontsize=11)
        figure.colorbar(shown, ax=list(axes[row, 1:]), shrink=0.9, label=label)
    axes[0, 0].imshow(image)
    for panel in axes.flat:
        panel.set_axis_off()
    figure.savefig(Path(__file__).with_name("dense.png"))


if __name__ == "__main__":
    draw_dense(sys.argv[1]) if sys.argv[1:] else draw_method()
