"""The hardest negative of every image and of every caption, without gradient and without the matrix of scores."""

from dataclasses import dataclass

import torch
from torch import Tensor

from powerclip.alignment.aggregators import ABSENT
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.tiled import score_rows
from powerclip.alignment.vectors import MaskedVectors


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Which pairs of I images and J captions are negatives, and what is taken off their scores before the search."""

    image_id: Tensor
    """(I,) int64, or (I, n) if images have several ids."""
    caption_id: Tensor
    """(J,) int64: a caption is no negative of the images that have its id."""
    image_valid: Tensor
    """(I,) bool: the image takes part."""
    caption_valid: Tensor
    """(J,) bool"""
    image_offset: Tensor | None = None
    """(I,) what is taken off an image's scores where captions look for their hardest image; None is nothing."""
    caption_offset: Tensor | None = None
    """(J,) what is taken off a caption's scores where images look for their hardest caption."""

    def negatives(self, images: slice) -> Tensor:
        """(images, J) bool: the ids differ, and both take part."""
        ids = self.image_id[images]
        differs = ids[..., None] != self.caption_id  # (images, J), or (images, n, J)
        return (differs.all(dim=1) if ids.ndim > 1 else differs) & self.valid(images)

    def valid(self, images: slice) -> Tensor:
        """(images, J) bool: both take part."""
        return self.image_valid[images, None] & self.caption_valid


@dataclass(frozen=True, kw_only=True)
class HardestNegatives:
    """For every image the caption, and for every caption the image, that scores highest among its negatives.

    Scores are those that were compared: an offset is already taken off.
    """

    caption: Tensor
    """(I,) int64 index of each image's hardest caption."""
    caption_score: Tensor
    """(I,) its score; ``ABSENT`` if the image has no negative."""
    image: Tensor
    """(J,) int64 index of each caption's hardest image."""
    image_score: Tensor
    """(J,) its score; ``ABSENT`` if the caption has no negative."""
    image_sum: Tensor
    """(I,) the sum of each image's scores with the valid captions, its own included and no offset taken off."""
    caption_sum: Tensor
    """(J,) the sum of each caption's scores with the valid images."""


@torch.no_grad()
def hardest_negatives(
    regions: MaskedVectors,
    phrases: MaskedVectors,
    *,
    candidates: Candidates,
    scoring: Scoring,
) -> HardestNegatives:
    """The hardest negative of every row and column of I images and J captions; ties go to the lowest index."""
    I, J = len(regions), len(phrases)
    caption, image = (torch.zeros(n, dtype=torch.int64, device=regions.values.device) for n in (I, J))
    caption_score, image_score = (regions.values.new_full((n,), ABSENT) for n in (I, J))
    image_sum, caption_sum = (regions.values.new_zeros(n) for n in (I, J))
    for images, t2r, r2t in score_rows(regions, phrases, scoring=scoring):
        scores = scoring.total(t2r, r2t, regions.mask[images])  # (i, J)
        counted = scores.masked_fill(~candidates.valid(images), 0.0)
        image_sum[images] = counted.sum(dim=1)
        caption_sum += counted.sum(dim=0)
        others = ~candidates.negatives(images)
        if J:
            by_image = scores if candidates.caption_offset is None else scores - candidates.caption_offset
            caption_score[images], caption[images] = by_image.masked_fill(others, ABSENT).max(dim=1)
        by_caption = scores if candidates.image_offset is None else scores - candidates.image_offset[images, None]
        best = by_caption.masked_fill(others, ABSENT).max(dim=0)
        better = best.values > image_score
        image_score = torch.where(better, best.values, image_score)
        image = torch.where(better, best.indices + images.start, image)
    return HardestNegatives(
        caption=caption,
        caption_score=caption_score,
        image=image,
        image_score=image_score,
        image_sum=image_sum,
        caption_sum=caption_sum,
    )
