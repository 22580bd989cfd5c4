"""One or two captions of an image: which the model finds to fit better, by which phrases, and where it sees these."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from PIL import Image
from torch import Tensor

from powerclip.errors import PowerclipError
from powerclip.evaluate.powerset_score import PowersetScorer, default_parser, grid_regions
from powerclip.explore.frame import frame
from powerclip.explore.subject import Subject
from powerclip.model import PowerCLIP
from powerclip.phrases import tree_or_whole
from powerclip.phrases.clean import clean_caption
from powerclip.regions import fixed_boxes, load_proposer, tiles
from powerclip.regions.sam import SAM_MODELS
from powerclip.report.examples import Images
from powerclip.report.grounding import Grounding, ground, regions_of, rows
from powerclip.report.html import GROUNDED_SIDE
from powerclip.report.tables import Table

MAX_REGIONS = 64
"""Of the slider: what a proposer keeps of an image at most."""

PARTS = 12
"""Phrases that are listed, those with the largest difference."""

proposer_of = cache(load_proposer)  # with its weights, for all visitors

FORMULAS = {"both": "T2R + R2T", "t2r": "T2R", "r2t": "R2T"}
"""S by the direction that a model was trained with."""


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Compares captions of images by one model."""

    subject: Subject
    device: str = "auto"
    sam: str | None = None
    """SAM's weights, as in ``ExploreConfig``."""

    @property
    def proposers(self) -> list[str]:
        """Names of what can propose regions; of a model trained on patches, first these."""
        own = ["patches"] if self.subject.dense and self.subject.dense.region_unit == "patch" else []
        return [*own, "tiles", "boxes", "superpixels", *([f"SAM ({self.sam})"] if self.sam else [])]

    @property
    def single(self) -> bool:
        """Whether the best region alone counts, so that S has no temperature."""
        return self.subject.dense is not None and self.subject.dense.scoring.subsets == "single"

    @property
    def log_tau(self) -> float:
        """The power of ten nearest to the temperature that the model was trained with; the lowest for its limit, 0."""
        model = self.subject.dense
        return round(math.log10(max(model.scoring.tau if model else 0.0, 1e-4)), 2)

    def show(self, image: Image.Image, captions: Sequence[str], *, proposer: str, count: int, tau: float) -> str:
        """The result as HTML; ValueError or PowerclipError if there is no caption or no region."""
        captions = [text for caption in captions if (text := clean_caption(caption))]
        if not captions:
            raise ValueError("no caption was given; type one, or pick one of the list")
        with torch.inference_mode():
            encoder = self.subject.afresh()
            cut = self.subject.cut(captions)
            cosines = (encoder.images([image]) @ encoder.texts(captions).T)[0]
            model = self.subject.dense
            if not self.subject.aligned or model is None:
                scale = float(encoder.model.logit_scale.exp())  # type: ignore[attr-defined]
                return _by_cosine(captions, cosines, scale=scale, cut=cut)
            masks = self._masks(model, image, proposer, count)
            parser = default_parser()
            trees = list(map(tree_or_whole, captions, parser.parse(captions)))
            scores: list[Tensor] = []
            for direction in (model.scoring.direction, "t2r", "r2t"):
                scoring = replace(model.scoring, tau=tau, direction=direction, normalise_by_regions=False)
                if not scores:
                    scoring = replace(scoring, normalise_by_regions=model.scoring.normalise_by_regions)
                scorer = PowersetScorer(encoder, parser=parser, scoring=scoring, boxes=masks)
                scores.append(scorer.score(scorer.images([image]), scorer.texts(captions))[0])
        found = [ground(model, image, c, tree, masks=masks) for c, tree in zip(captions, trees, strict=True)]
        return _by_phrases(
            self.subject.name, captions, found, [*scores, cosines], model=model, tau=tau, regions=proposer, cut=cut
        )

    def _masks(self, model: PowerCLIP, image: Image.Image, proposer: str, count: int) -> Tensor:
        """(M, N) bool: all patches, or at most ``count`` tiles, boxes spread over those of two sizes,
        or the best of the proposed masks."""
        if proposer == "patches":
            return grid_regions(model)
        if proposer == "tiles":
            return tiles(model.grid_size, at_most=count)
        if proposer == "boxes":
            boxes = fixed_boxes(model.grid_size)
            return boxes[torch.linspace(0, len(boxes) - 1, min(count, len(boxes))).round().long()]
        name = proposer
        if proposer.startswith("SAM"):
            name = self.sam if self.sam in SAM_MODELS else f"sam:{self.sam}"
        found = proposer_of(name, device=self.device)
        assert found is not None
        masks = regions_of(model, found.propose([image])[0], count=count)
        if masks is None:
            raise PowerclipError(f"{proposer} finds no region in this image; choose tiles")
        return masks


def _by_cosine(captions: Sequence[str], cosines: Tensor, *, scale: float, cut: str) -> str:
    shares = (scale * cosines).softmax(dim=0).tolist()
    cells = zip(captions, cosines.tolist(), shares, strict=True)
    table = Table(
        columns=("caption", "cosine", "probability"), rows=tuple((c, f"{s:.3f}", f"{p:.1%}") for c, s, p in cells)
    )
    return frame(
        "captions.html.jinja",
        verdict=_verdict(cosines.tolist(), "cosine"),
        table=table,
        captions=captions,
        one=None,
        cut=cut,
        scale=scale,
    )


def _by_phrases(
    name: str,
    captions: Sequence[str],
    found: Sequence[Grounding],
    scores: Sequence[Tensor],
    *,
    model: PowerCLIP,
    tau: float,
    regions: str,
    cut: str,
) -> str:
    images = Images()
    images.add(found[0].image, captions[0], side=GROUNDED_SIDE)
    cells = zip(captions, *(score.tolist() for score in scores), strict=True)
    return frame(
        "captions.html.jinja",
        runs=[name],
        images=images.sources,
        masks=[[found[0].mask_texts]],
        verdict=_verdict(scores[0].tolist(), "S"),
        table=Table(
            columns=("caption", "S", "T2R", "R2T", "cosine"),
            rows=tuple((caption, *(f"{value:.3f}" for value in values)) for caption, *values in cells),
        ),
        parts=parts_table(found) if len(found) > 1 else None,
        captions=captions,
        one=found[0],
        trees=[rows({name: one}) for one in found],
        most={name: max(one.best for one in found)},
        single=found[0].single,
        regions=regions,
        cut=cut,
        formula=FORMULAS[model.scoring.direction],
        normalised=model.scoring.divides_by_regions,
        tau=tau,
    )


def parts_table(found: Sequence[Grounding]) -> Table:
    """What each phrase adds to T2R of two captions, where that differs, the largest difference first.

    T2R at tau 0 is the mean over a caption's phrases of their scores; a phrase that occurs twice counts twice.
    """
    parts: list[dict[str, float]] = []
    for one in found:
        parts.append({})
        for phrase in one.phrases.values():
            parts[-1][phrase.text] = parts[-1].get(phrase.text, 0.0) + phrase.score / len(one.phrases)
    first, second = parts
    differences = {text: first.get(text, 0.0) - second.get(text, 0.0) for text in {**first, **second}}
    largest = sorted(differences, key=lambda text: -abs(differences[text]))[:PARTS]
    shown = [
        (text, *(f"{part[text]:.3f}" if text in part else "-" for part in parts), f"{differences[text]:+.3f}")
        for text in largest
    ]
    total = (f"all {len(differences)} phrases", *(f"{sum(part.values()):.3f}" for part in parts))
    return Table(
        columns=("phrase", "first caption", "second caption", "difference"),
        rows=(*shown, (*total, f"{sum(differences.values()):+.3f}")),
    )


def _verdict(scores: Sequence[float], name: str) -> str:
    if len(scores) < 2:
        return f"{name} is {scores[0]:.3f}"
    first, second = scores
    if first == second:
        return f"Both captions have the same {name}, {first:.3f}"
    return f"The {'first' if first > second else 'second'} caption wins by {abs(first - second):.3f} of {name}"
