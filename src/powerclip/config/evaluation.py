"""Settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from powerclip.config.checks import require, require_at_least, require_listed
from powerclip.config.values import Pixels, Score, ScoreRegions


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What a model is evaluated on, and how: the settings of ``powerclip evaluate``."""

    suite: tuple[str, ...] = ()
    """One or more of: scenes and scenes-segmentation (generated tasks); pairs (retrieval among the pairs in the shards
    --data, or without --data in the run's training data); classes (zero-shot classification of the images in --data, a
    folder for each class); and, with their data sets in folders under --data:
    classification, multilabel, robustness, imagenet, linear-probe, retrieval, compositionality, fine-grained,
    long-captions, regions, segmentation; or data sets by name (sugarcrepe whatsup). Default: pairs with --data,
    otherwise scenes."""
    data: Path | None = None
    """Shards, or the folder of public data sets (docs/evaluation.md describes its layout)."""
    pretrained: str | None = None
    """The model is a name of open_clip (ViT-B-32, RN50, ...), with the weights of this tag or checkpoint file."""
    size: int = 1000
    """Images per generated task."""
    batch_size: int = 256
    """Images or captions encoded at once."""
    workers: int = 0
    """Threads that open images while the model works."""
    scores: tuple[Score, ...] = ("global",)
    """How to score images and captions: global (products of global embeddings: what papers report), powerset (the
    powerset similarity) or late (FILIP's late interaction of patches and tokens); of several, each has its own rows."""
    pixels: Pixels = "pil"
    """Images of public data sets: pil, what PIL's convert("RGB") makes of them, as for published numbers;
    or training, as the model saw images in training (upright, white behind transparency).
    Your own pairs always are as in training."""
    regions: ScoreRegions = "grid"
    """Regions of the powerset score: boxes on a fixed grid, or every patch for a model trained on patches; or the masks
    stored in your own shards (suite pairs; other tasks stay on the grid)."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    output: Path | None = None
    """Folder for the results; default: the run folder."""

    def __post_init__(self) -> None:
        require_listed(self)
        require_at_least(self, 1, "size", "batch_size")
        require_at_least(self, 0, "workers")
        require(self, bool, "at least one of global, powerset and late", "scores")
        rule = "'grid' without the powerset score, which alone looks at regions; add powerset to scores"
        require(self, lambda regions: regions == "grid" or "powerset" in self.scores, rule, "regions")
