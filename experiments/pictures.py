"""Where two trained models see each object of the first scenes of the grounding task; none is chosen by its look.

    python experiments/pictures.py runs/experiments/scenes/clip-seed-0 runs/experiments/scenes/grounded-seed-0

Writes docs/evidence-grounding.png: a patch is the brighter, the higher its similarity to the phrase above the picture, which is a
caption of its own; the white line is the object that is meant.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import powerclip
from powerclip.evaluate.run import SCENES_SEED
from powerclip.files import atomic_write
from powerclip.phrases import encode_captions, whole_caption_tree
from powerclip.report.plots import png
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Grounding

PHRASES = 9


def main(runs: list[str]) -> int:
    """Draw a row per run."""
    (task,) = (task for task in evaluation_tasks(seed=SCENES_SEED, size=PHRASES) if isinstance(task, Grounding))
    shown: list[tuple[Any, str, Any]] = [
        (image, phrase, mask)
        for image, phrases, masks in zip(task.images, task.phrases, task.masks, strict=True)
        for phrase, mask in zip(phrases, masks(), strict=True)
    ][:PHRASES]
    figure = Figure(figsize=(1.5 * PHRASES, 1.75 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), PHRASES, squeeze=False)
    for row, run in zip(panels, runs, strict=True):
        model, preprocess, tokenizer = powerclip.load(run)
        row[0].set_ylabel(Path(run).name.rsplit("-seed-", 1)[0], fontsize=10)
        one_patch = torch.eye(model.grid_size[0] * model.grid_size[1], dtype=torch.bool)[None]
        for axes, (image, phrase, mask) in zip(row, shown, strict=True):
            with torch.inference_mode():
                regions, _ = model.encode_regions(preprocess(image)[None], one_patch)  # (1, N, D)
                caption = encode_captions(
                    [phrase], [whole_caption_tree(phrase)], tokenizer, context_length=model.context_length
                )
                phrases, _ = model.encode_phrases(*caption)  # (1, 1, D)
            heat = (regions[0] @ phrases[0, 0]).view(model.grid_size).numpy()
            extent = axes.imshow(np.asarray(image.convert("L")), cmap="gray", vmin=0, vmax=400).get_extent()
            axes.imshow(heat, cmap="inferno", alpha=0.65, extent=extent, vmin=heat.min(), vmax=heat.max())
            axes.contour(mask, levels=[0.5], colors="white", linewidths=1.4)
            axes.set_title(phrase, fontsize=8)
            axes.set(xticks=[], yticks=[])
    atomic_write(Path(__file__).parents[1] / "docs" / "evidence-grounding.png", png(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
