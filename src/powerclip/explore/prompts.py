"""Where an image is similar to free prompts, as heat maps on one scale."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from powerclip.errors import PowerclipError
from powerclip.explore.frame import frame
from powerclip.explore.subject import Subject
from powerclip.report.examples import Images
from powerclip.report.grounding import seen_image

COLOURS = "viridis"
OPACITY = 0.65
"""Of the colours over the image."""

MAX_PROMPTS = 50
"""That are drawn at once."""

SIDE = 320
"""Pixels of the longer side of a map."""


class Map(NamedTuple):
    """What is said about a prompt: its lowest and highest patch, and the cosine of the global embeddings."""

    prompt: str
    low: float
    high: float
    whole: float


def heat_maps(subject: Subject, image: Image.Image, text: str) -> str:
    """The heat maps of prompts, one a line, as HTML; ValueError or PowerclipError if there are none."""
    prompts = list(dict.fromkeys(line for given in text.splitlines() if (line := given.strip())))
    if not prompts:
        raise ValueError("no prompt was given; type one a line")
    if len(prompts) > MAX_PROMPTS:
        raise ValueError(f"{len(prompts)} prompts were given; at most {MAX_PROMPTS} are drawn at once")
    model, encoder = subject.dense, subject.afresh()
    if model is None:
        raise PowerclipError(f"{subject.name} has no embeddings of patches, so there is nothing to map; use a ViT")
    with torch.inference_mode():
        pixels = encoder.preprocess(image)
        patches_ND = model.encode_regions(pixels[None].to(encoder.device), None)[0][0].float().cpu()
        prompts_QD = encoder.texts(prompts)
        s_QN = (prompts_QD @ patches_ND.T).numpy()
        whole_Q = (prompts_QD @ encoder.images([image]).T)[:, 0].tolist()
    low, high = float(s_QN.min()), float(s_QN.max())
    seen = seen_image(model, pixels)
    seen = seen.resize((round(seen.width * SIDE / max(seen.size)), round(seen.height * SIDE / max(seen.size))))
    images = Images()
    images.add(_coloured(np.linspace(0, 1, 256)[None]).resize((320, 16)), "scale", side=SIDE)
    images.add(seen, "image", side=SIDE)
    sources, maps = [images.sources[0], images.sources[1]], []
    for prompt, s_N, whole in zip(prompts, s_QN, whole_Q, strict=True):
        shares = ((s_N - low) / (high - low or 1.0)).reshape(model.grid_size)
        heat = _coloured(shares).resize(seen.size, Image.Resampling.NEAREST)
        sources.append(images.sources[images.add(Image.blend(seen, heat, OPACITY), prompt, side=SIDE).number])
        maps.append(Map(prompt, float(s_N.min()), float(s_N.max()), whole))
    unit = model.region_norm == "unit"
    return frame(
        "prompts.html.jinja",
        images=sources,
        cut=subject.cut(prompts),
        maps=maps,
        low=low,
        high=high,
        grid=model.grid_size,
        unit=unit,
    )


def _coloured(shares: NDArray[Any]) -> Image.Image:
    """(h, w) values from 0 to 1 as colours."""
    return Image.fromarray((255 * matplotlib.colormaps[COLOURS](shares)[..., :3]).round().astype(np.uint8))
