"""The powerset similarity as the score of an image and a caption, in place of the product of global embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.tv_tensors import Mask

from powerclip.alignment.kernel import score_rows
from powerclip.alignment.reference import MAX_REGIONS
from powerclip.alignment.scoring import Scoring
from powerclip.alignment.subsets import draw_subsets
from powerclip.alignment.tiled import score_pairs
from powerclip.alignment.vectors import MaskedVectors
from powerclip.alignment.zero import place_zero
from powerclip.config import ScoringConfig
from powerclip.config.values import ScoreRegions
from powerclip.errors import one_of
from powerclip.evaluate.datasets.images import key_of
from powerclip.evaluate.encode import Encoder, Tensors, padded, powerclip_model, unit
from powerclip.model import PowerCLIP, make_transforms
from powerclip.phrases import Parser, encode_captions, load_parser, tree_or_whole
from powerclip.phrases.clean import clean_caption
from powerclip.regions import fixed_boxes, masks_to_grid
from powerclip.tasks import Masks, Picture

default_parser = cache(load_parser)


class PowersetScorer:
    """Scores images and captions by the powerset similarity of a PowerCLIP model, as the model was trained to.

    An image's regions are fixed boxes on the patch grid; for a model trained on patches they are the patches. With
    ``regions="stored"`` they are the image's own masks, where it has any. A caption's phrases are those of its parse,
    or its tokens for a model trained on tokens. Unless the model was trained otherwise, the similarity is divided by
    the number of regions, so that images with different numbers compare.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        regions: ScoreRegions = "grid",
        parser: Parser | None = None,
        scoring: ScoringConfig | None = None,
        boxes: Tensor | None = None,
    ) -> None:
        """Set up the scorer; ValueError if the model has no regions and phrases, or an argument is out of range.

        The encoder gets the images' global embeddings too, which cost no further pass. ``regions`` are "grid", the
        fixed boxes or the patches, or "stored", a task's own masks where it has them; the parser is spaCy's with its
        small English model by default. ``scoring`` takes the place of the model's own, and ``boxes``, (M, N) bool, of
        the regions of "grid".
        """
        one_of("regions", regions, get_args(ScoreRegions))
        self.encoder, self.regions = encoder, regions
        self.model = powerclip_model(encoder.model, "the powerset score", hint="; use score='global'")
        self.parser = parser or default_parser()
        self.transform = make_transforms(self.model)[1]
        self.scoring = scoring or self.model.scoring
        self.each_patch = boxes is None and self.model.region_unit == "patch"  # the model has a shorter way for these
        self.boxes = grid_regions(self.model) if boxes is None else boxes

    def images(self, pictures: Sequence[Picture], masks: Sequence[Masks | None] | None = None) -> MaskedVectors:
        """The region vectors of images."""
        stored = masks if masks is not None and self.regions == "stored" else [None] * len(pictures)
        each_patch = self.each_patch and not any(stored)

        def prepare(items: Sequence[tuple[Picture, Masks | None]]) -> Tensors:
            if each_patch:
                return self.encoder.open_images([picture for picture, _ in items])
            grids = pad_sequence([self.on_grid(open_masks) for _, open_masks in items], batch_first=True)
            return *self.encoder.open_images([picture for picture, _ in items]), grids

        def embed(images: Tensor, grids: Tensor | None = None) -> Tensors:
            *regions, embedded = self.model.encode_image_and_regions(images, grids)
            return *regions, unit(embedded)

        keys = [(key_of(picture), id(open_masks)) for picture, open_masks in zip(pictures, stored, strict=True)]
        rows = self.encoder.once(list(zip(pictures, stored, strict=True)), keys, prepare, embed)
        for picture, (key, _), row in zip(pictures, keys, rows, strict=True):
            self.encoder.known.setdefault((key, "image"), (picture, row[2:]))
        return padded(rows)

    def texts(self, texts: Sequence[str]) -> MaskedVectors:
        """The phrase vectors of captions."""

        def prepare(captions: Sequence[str]) -> Tensors:
            captions = [clean_caption(caption) for caption in captions]
            trees = list(map(tree_or_whole, captions, self.parser.parse(captions)))
            return encode_captions(captions, trees, self.encoder.tokenizer, context_length=self.model.context_length)

        keys = [(text, "phrases") for text in texts]
        return padded(self.encoder.once(texts, keys, prepare, self.model.encode_phrases))

    def score(self, images: MaskedVectors, texts: MaskedVectors) -> Tensor:
        """(I, J) scores of every image and caption."""
        i, t = self._placed(images, texts)
        scoring = self._scoring(i)
        rows = [scoring.total(t2r, r2t, i.mask[some]).cpu() for some, t2r, r2t in score_rows(i, t, scoring=scoring)]
        return torch.cat(rows) if rows else torch.zeros(0, len(texts))

    score_images = score

    def score_pairs(self, images: MaskedVectors, texts: MaskedVectors) -> Tensor:
        """(P,) scores of P images, each with the caption in its place."""
        i, t = self._placed(images, texts)
        scoring = self._scoring(i)
        t2r, r2t = score_pairs(i, t, scoring=scoring)
        return scoring.total(t2r, r2t, i.mask).cpu()

    def _placed(self, images: MaskedVectors, texts: MaskedVectors) -> tuple[MaskedVectors, MaskedVectors]:
        """The vectors with the zero of their products where the model was trained to have it."""
        i, t = images.to(self.encoder.device), texts.to(self.encoder.device)
        return place_zero(i, t, zero=self.model.scoring.zero, means=self.model.vector_means)

    def _scoring(self, images: MaskedVectors) -> Scoring:
        """The model's own scoring, for this many regions.

        Enumeration goes up to 16 regions; beyond, and for a model trained on sampled subsets, the subsets are a random
        sample that depends on M alone, so that all scores compare.
        """
        M = images.mask.shape[1]
        scoring = Scoring(**vars(self.scoring))
        if scoring.method == "exact" and M > MAX_REGIONS:
            scoring = replace(scoring, method="sampled")
        if scoring.samples_subsets:
            generator = torch.Generator().manual_seed(0)
            scoring = replace(scoring, sample=draw_subsets(scoring.samples, M, generator=generator))
        return scoring

    def on_grid(self, open_masks: Masks | None) -> Tensor:
        """(M, N) bool: an image's stored masks, put through the same crop as the image, or the fixed boxes."""
        if open_masks is None:
            return self.boxes
        # One at a time: all of a large image take gigabytes.
        masks = [self.transform(Mask(torch.from_numpy(mask).to(torch.uint8)[None])) for mask in open_masks()]
        if not masks:
            return self.boxes
        grids = masks_to_grid(torch.cat(masks).bool(), self.model.grid_size)  # (M, N)
        return grids if grids.any() else self.boxes


def grid_regions(model: PowerCLIP) -> Tensor:
    """(M, N) bool: the patches, for a model trained on patches, or the fixed boxes."""
    rows, columns = model.grid_size
    return torch.eye(rows * columns, dtype=torch.bool) if model.region_unit == "patch" else fixed_boxes((rows, columns))
