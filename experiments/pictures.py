"""The first scenes of the grounding task, and where trained models see each object; none is chosen by its look.

    python experiments/pictures.py runs/experiments/scenes/clip-seed-0 runs/experiments/scenes/superpixels-32-seed-0

Writes docs/evidence-grounding.png: a patch is the brighter, the more it adds to the similarity of image and phrase (the
dot product of patch and phrase, whose mean over patches is that of the image before it is normalised). The phrase above
the picture is a caption of its own; the white line is the object that is meant.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tables import SHOWN

import powerclip
from powerclip.evaluate.asked import SCENES_SEED
from powerclip.files import atomic_write
from powerclip.phrases import encode_captions, whole_caption_tree
from powerclip.pixels import png
from powerclip.scenes import evaluation_tasks
from powerclip.tasks import Grounding

PHRASES = 9


def main(runs: list[str]) -> int:
    """Draw a row of images and a row per run."""
    (task,) = (task for task in evaluation_tasks(seed=SCENES_SEED, size=PHRASES) if isinstance(task, Grounding))
    shown: list[tuple[Any, str, Any]] = [
        (image, phrase, mask)
        for image, phrases, masks in zip(task.images, task.phrases, task.masks, strict=True)
        for phrase, mask in zip(phrases, masks(), strict=True)
    ][:PHRASES]
    figure = Figure(figsize=(1.5 * PHRASES, 1.75 + 1.5 * len(runs)), layout="constrained")
    panels = figure.subplots(1 + len(runs), PHRASES, squeeze=False)
    for axes, (image, phrase, _) in zip(panels[0], shown, strict=True):
        axes.imshow(np.asarray(image))
        axes.set_title(phrase, fontsize=8)
        axes.set(xticks=[], yticks=[])
    for row, run in zip(panels[1:], runs, strict=True):
        model, preprocess, tokenizer = powerclip.load(run)
        config = Path(run).name.rsplit("-seed-", 1)[0]
        row[0].set_ylabel(SHOWN.get(config, config), fontsize=10)
        for axes, (image, phrase, mask) in zip(row, shown, strict=True):
            with torch.inference_mode():
                patches = model.encode_patches(preprocess(image)[None])  # (1, N, D)
                caption = encode_captions(
                    [phrase], [whole_caption_tree(phrase)], tokenizer, context_length=model.context_length
                )
                phrases, _ = model.encode_phrases(*caption)  # (1, 1, D)
            heat = (patches[0] @ phrases[0, 0]).view(model.grid_size).numpy()
            extent = axes.imshow(np.asarray(image.convert("L")), cmap="gray", vmin=0, vmax=400).get_extent()
            axes.imshow(heat, cmap="inferno", alpha=0.65, extent=extent, vmin=heat.min(), vmax=heat.max())
            axes.contour(mask, levels=[0.5], colors="white", linewidths=1.4)
            axes.set(xticks=[], yticks=[])
    atomic_write(Path(__file__).parents[1] / "docs" / "evidence-grounding.png", png(figure))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder")
    sys.exit(main(parser.parse_args().runs))
