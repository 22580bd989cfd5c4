"""Published class names and prompts: open_clip's for ImageNet, clip_benchmark's for everything else."""

import json
from functools import cache
from importlib.resources import files

from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES
from timm.data import ImageNetInfo

from powerclip.tasks import PLACE


def imagenet_classes() -> list[str]:
    """The 1000 class names, in the order of the labels."""
    return list(IMAGENET_CLASSNAMES)


def imagenet_templates() -> list[str]:
    """The 80 prompts of Radford et al. (2021), with ``{c}`` where the class name goes."""
    return [template(PLACE) for template in OPENAI_IMAGENET_TEMPLATES]


@cache
def imagenet_label_of_synset() -> dict[str, int]:
    """The label, 0 to 999, of each WordNet id that names a class folder."""
    return {synset: label for label, synset in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def benchmark_prompts(name: str) -> tuple[list[str] | None, list[str] | None]:
    """clip_benchmark's class names and templates of a data set;
    None for what it does not have, or if it is not installed."""
    try:
        folder = files("clip_benchmark") / "datasets"
    except ModuleNotFoundError:
        return None, None
    classes, templates = (
        json.loads((folder / f"en_{kind}.json").read_text(encoding="utf-8")).get(name)
        for kind in ("classnames", "zeroshot_classification_templates")
    )
    return classes, templates if isinstance(templates, list) else None
