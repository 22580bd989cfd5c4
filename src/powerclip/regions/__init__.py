"""Regions of an image: proposers, masks on disk, and masks on the patch grid."""

from powerclip.errors import PowerclipError
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.boxes import fixed_boxes, random_boxes
from powerclip.regions.grid import masks_to_grid, objects_to_grid
from powerclip.regions.masks import Proposer

__all__ = [
    "Proposer",
    "RegionAnnotation",
    "fixed_boxes",
    "load_proposer",
    "masks_to_grid",
    "objects_to_grid",
    "random_boxes",
]


def load_proposer(name: str, *, device: str = "auto") -> Proposer | None:
    """A proposer by its name in ``PrepareConfig.regions``; None for "boxes", which training draws itself.

    PowerclipError if the name is unknown, the model cannot be loaded, or a package is missing.
    """
    kind, _, model = name.partition(":")
    if name == "boxes":
        return None
    if name == "superpixels":
        from powerclip.regions.superpixels import Superpixels

        return Superpixels()
    if kind == "sam":
        from powerclip.regions.sam import SAM

        return SAM(model or "facebook/sam-vit-base", device=device)
    raise PowerclipError(f"unknown regions {name!r}; use boxes, superpixels, sam or sam:MODEL")
