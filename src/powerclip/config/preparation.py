"""Settings of what reads images and captions: preparing shards, and embedding."""

from dataclasses import dataclass

import tyro

from powerclip.config.checks import require, require_at_least, require_listed
from powerclip.config.values import Join, RegionShape


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """How the pairs of a source are read."""

    image_column: str | None = None
    """Column of the image in a table (a path or the bytes),
    its name or number; guessed from common names by default."""
    caption_column: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Column of the caption in a table, its name or number, guessed from common names by default; or several, the
    first for KEY.txt."""
    header: bool = True
    """Whether the first line of a CSV or TSV file names the columns;
    without, name them by their numbers (1, 2, ...)."""
    caption_key: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Where tars hold the caption: an extension (txt), or json:KEY for a key inside the json; found by default. Several
    may be given, as for columns."""
    count: int = 8192
    """Scenes to generate (scenes: sources only)."""
    seed: int = 0
    """Seed of the generated scenes (scenes: sources only)."""

    def __post_init__(self) -> None:
        for name in ("caption_column", "caption_key"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given or ()))
        require_at_least(self, 1, "count")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(SourceConfig):
    """How ``powerclip prepare`` reads a source and annotates its pairs."""

    caption_lines: bool = False
    """Each line of a caption is a caption."""
    captions: str | None = None
    """A table of new captions for the images of shards, which are the source; the captions there are stay."""
    join: Join = "key"
    """What the table's rows have in common with samples: their keys, or the url in KEY.json."""
    join_column: str | None = None
    """Column of that in the table of new captions; guessed from common names by default."""
    parser: str = "spacy"
    """Phrase parser: spacy, spacy:PIPELINE (any installed spaCy pipeline or its path), benepar[:MODEL], or none."""
    regions: str = "boxes"
    """boxes (drawn in training, not stored), superpixels, sam, sam-large, sam-huge, sam2, sam2-base-plus, sam2-small,
    sam2-tiny, or sam:MODEL (hub name or folder of SAM or SAM 2)."""
    regions_as: RegionShape = "masks"
    """What is stored of the regions that are found: masks, or their bounding boxes, as the paper did with SAM's."""
    replace_annotations: bool = False
    """Replace the phrases and regions that tars or scenes bring along; by default they are kept."""
    replace_regions: bool = False
    """Replace their regions alone, and keep their phrases."""
    device: str = "auto"
    """Where SAM runs: auto, cpu, cuda, ..."""
    samples_per_shard: int = 1000
    """Pairs of the source in one shard; if the source is tars, each of them becomes one shard."""
    max_bad_share: float = 0.1
    """Stop if more than this share of the samples cannot be used."""
    workers: int = 1
    """Processes that make shards in parallel."""
    ray: str | None = None
    """Run on the Ray cluster at this address (auto: this machine's); the paths must be the same on every node."""
    gpu_share: float = 0.25
    """Share of a GPU that each of Ray's workers takes for SAM."""

    @property
    def keeps_phrases(self) -> bool:
        """Whether the phrases that a source brings along are kept."""
        return not self.replace_annotations

    @property
    def keeps_regions(self) -> bool:
        """Whether the regions that a source brings along are kept."""
        return not (self.replace_annotations or self.replace_regions)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_listed(self)
        require_at_least(self, 1, "samples_per_shard", "workers")
        require(self, lambda share: 0 <= share <= 1, "between 0 and 1", "max_bad_share")
        if self.regions_as == "boxes" and self.regions == "boxes":
            raise ValueError(
                "regions_as is boxes, but regions is boxes, of which nothing is stored; "
                "add --regions superpixels or sam"
            )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(SourceConfig):
    """How ``powerclip embed`` reads pairs and writes their embeddings."""

    pretrained: str | None = None
    """The model is a name of open_clip (ViT-B-32, RN50, ...), with the weights of this tag or checkpoint file."""
    thumbnail_pixels: int = 96
    """Longer side of the thumbnails; 0 for none."""
    batch_size: int = 64
    """Pairs encoded at once."""
    rows_per_part: int = 1000
    """Pairs that are written together; an interrupted job loses at most this many for each worker. Tars stay whole."""
    workers: int = 1
    """Processes, each with a copy of the model; they share out the GPUs of this machine."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "batch_size", "rows_per_part", "workers")
        require_at_least(self, 0, "thumbnail_pixels")
