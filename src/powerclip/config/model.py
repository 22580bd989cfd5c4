"""Settings that a saved model keeps: its towers, and how its vectors become scores."""

from dataclasses import dataclass

from powerclip.config.checks import part, require_at_least, require_listed
from powerclip.config.values import (
    Direction,
    ImagePool,
    Method,
    PhraseContext,
    PhraseNorm,
    PhraseUnit,
    RegionNorm,
    RegionUnit,
    Subsets,
    T1Activation,
    T2Activation,
    TextPool,
    Zero,
    Zeta,
)


@dataclass(frozen=True, kw_only=True)
class PoolingConfig:
    """How the dense outputs of the towers become vectors; saved models keep it."""

    image_pool: ImagePool = "avg"
    """Global image embedding: mean of the patches (the paper), or the tower's own pooling (class token, attention)."""
    text_pool: TextPool = "avg"
    """Global text embedding: mean of the valid tokens (the paper), or the tower's own pooling (argmax: older name)."""
    region_norm: RegionNorm = "unit"
    """A region's vector from its patches: their sum at unit length (the paper), or their mean in units of the length of
    the mean of all patches of the image, so that patches that say little count for little."""
    region_unit: RegionUnit = "region"
    """What phrases are aligned with: regions, boxes or masks (the paper), or every patch of the grid by itself."""
    phrase_norm: PhraseNorm = "unit"
    """A phrase's vector from its leaves: plain sum (the paper's text), mean, or unit length."""
    phrase_unit: PhraseUnit = "phrase"
    """What is aligned with the regions: phrases of the parse tree, single tokens (the paper's ablation), or both."""
    phrase_context: PhraseContext = "caption"
    """What the text tower reads a phrase in: its caption (the paper), or alone, as a text of its own."""

    def __post_init__(self) -> None:
        require_listed(self)
        if self.text_pool == "argmax":
            object.__setattr__(self, "text_pool", "tower")


@dataclass(frozen=True, kw_only=True)
class ModelConfig(PoolingConfig):
    """Which towers, and how their dense outputs become vectors."""

    name: str = "ViT-B-16"
    """A ViT that open_clip knows, "tiny", "tiny-conv" or "tiny-local", or the path of a JSON config in open_clip's
    format; or, with its weights, local-dir:FOLDER or hf-hub:ORGANISATION/NAME."""
    pretrained: str | None = None
    """What to start from: an open_clip tag, a checkpoint file, or a run or model folder of powerclip, which brings its
    own architecture (how vectors are pooled is set here, not there); None starts from scratch."""
    image_size: int | None = None
    """Height and width of the images in pixels; None takes the model's own. Position embeddings are resized."""
    context_length: int | None = None
    """Tokens of a caption; None takes the model's own. Position embeddings are resized."""
    lora_rank: int | None = None
    """Train additions of this rank to the linear layers instead of the weights (LoRA, needs the extra powerclip[lora]);
    the saved model is the merged one."""
    lora_alpha: int | None = None
    """LoRA's additions are multiplied by alpha / rank; None takes the rank, so by 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, 1, "image_size", "lora_rank", "lora_alpha")
        if self.lora_rank is not None and self.from_scratch:
            raise ValueError("lora_rank is for pretrained weights, which it leaves as they are; give pretrained")
        require_at_least(self, 3, "context_length")  # start, a token, end

    @property
    def from_scratch(self) -> bool:
        """Whether there are no weights to start from."""
        return self.pretrained is None and not self.name.startswith(("local-dir:", "hf-hub:"))

    @property
    def pooling(self) -> PoolingConfig:
        """The settings that a model keeps."""
        return part(self, PoolingConfig)


@dataclass(frozen=True, kw_only=True)
class AggregationConfig:
    """How the similarities of an image's regions and a caption's phrases become two scores, T2R and R2T."""

    tau: float = 1e-3
    """Temperature of the non-linear aggregators; 0 is their hard limit."""
    zeta: Zeta = 0.75
    """Weight of log cosh in the regions-to-tree aggregator; "calibrated" fits it to exact values during training."""
    method: Method = "nla"
    """Linear-time aggregators, enumeration of all subsets (at most 16 regions), or a random sample of subsets."""
    samples: int = 256
    """Subsets that the method "sampled" draws at each step."""
    subsets: Subsets = "all"
    """All subsets of the regions, or single regions only (the paper's ablation)."""
    t1_activation: T1Activation = "softplus"
    """Activation of the tree-to-regions aggregator."""
    t2_activation: T2Activation = "tanh"
    """Derivative of the even part of the regions-to-tree aggregator (tanh: log cosh)."""

    def __post_init__(self) -> None:
        require_listed(self)
        require_at_least(self, 0, "tau")
        require_at_least(self, 4, "samples")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(AggregationConfig):
    """How the vectors of an image's regions and a caption's phrases become one score; saved models keep it."""

    direction: Direction = "both"
    """Both similarities, or tree to regions or regions to tree alone (the paper's ablations)."""
    normalise_by_regions: bool = True
    """Divide the similarity by the number of regions, so that the margin means the same at every M; not that of single
    regions (``subsets``), whose two scores are means already."""
    zero: Zero = "none"
    """Where the similarity s of a region and a phrase is zero, so that the best subset neither is empty nor holds all
    regions. A number, the mean of matched pairs, the midpoint between it and that of unmatched ones, or a learned
    number is taken off s; centred takes the batch's means off regions and phrases and makes them unit vectors again."""

    @property
    def divides_by_regions(self) -> bool:
        """Whether the score is a sum over regions that is divided by their number."""
        return self.normalise_by_regions and self.subsets == "all"
