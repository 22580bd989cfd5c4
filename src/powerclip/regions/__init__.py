"""Regions of an image: proposers, masks on disk, and masks on the patch grid."""

from powerclip.config.values import RegionShape
from powerclip.errors import PowerclipError
from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.boxes import fixed_boxes, random_boxes, tiles
from powerclip.regions.grid import masks_to_grid, objects_to_grid
from powerclip.regions.masks import AsBoxes, Proposer

__all__ = [
    "Proposer",
    "RegionAnnotation",
    "fixed_boxes",
    "load_proposer",
    "masks_to_grid",
    "objects_to_grid",
    "random_boxes",
    "tiles",
]


def load_proposer(name: str, *, shape: RegionShape = "masks", device: str = "auto") -> Proposer | None:
    """A proposer by its name in ``PrepareConfig.regions``; None for "boxes", which training draws itself.

    With ``shape`` "boxes", the bounding boxes of what it finds. PowerclipError if the name is unknown, the model cannot
    be loaded, or a package is missing.
    """
    kind, _, model = name.partition(":")
    if name == "boxes":
        return None
    proposer: Proposer
    if name == "superpixels":
        from powerclip.regions.superpixels import Superpixels

        proposer = Superpixels()
    else:
        from powerclip.regions.sam import SAM, SAM_MODELS

        if name not in SAM_MODELS and (kind != "sam" or not model):
            known = f"boxes, superpixels, {', '.join(SAM_MODELS)}"
            raise PowerclipError(f"unknown regions {name!r}; use {known}, or sam:MODEL (a hub name or a folder)")
        proposer = SAM(SAM_MODELS.get(name, model), device=device)
    return AsBoxes(proposer) if shape == "boxes" else proposer
