"""Draws docs/method.png: what powerset alignment matches, on a generated scene with its true regions.

Run: python docs/figures.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

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


def main() -> None:
    """Draw the picture next to this file."""
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


if __name__ == "__main__":
    main()
