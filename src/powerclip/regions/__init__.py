"""Regions of an image: proposers, masks on disk, and masks on the patch grid."""

from powerclip.regions.annotation import RegionAnnotation
from powerclip.regions.boxes import fixed_boxes, random_boxes
from powerclip.regions.grid import masks_to_grid

__all__ = ["RegionAnnotation", "fixed_boxes", "masks_to_grid", "random_boxes"]
