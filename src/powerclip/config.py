"""Every settings dataclass, frozen and validated when it is made, and its way to YAML and back."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
import yaml

from powerclip.errors import one_of

T = TypeVar("T")

MAX_YAML_BYTES = 1 << 20
"""Size up to which a YAML file is read; a config has some 3,000 bytes."""

# The values that settings may have; the docstrings of the settings say what they mean.
Objective = Literal["clip", "siglip", "filip", "sparc", "superclip", "powerclip"]
GlobalLoss = Literal["auto", "clip", "siglip"]
ImagePool = Literal["avg", "tower"]
TextPool = Literal["avg", "tower", "argmax"]
PhraseNorm = Literal["sum", "mean", "unit"]
PhraseUnit = Literal["phrase", "token"]
PhraseContext = Literal["caption", "alone"]
Method = Literal["nla", "exact", "sampled"]
Zeta = float | Literal["calibrated"]
Direction = Literal["both", "t2r", "r2t"]
Subsets = Literal["all", "single"]
T1Activation = Literal["softplus", "relu", "gelu", "silu", "elu"]
T2Activation = Literal["tanh", "sign", "erf", "softsign", "arctan", "sigmoid"]
Zero = float | Literal["none", "midpoint", "learned", "centred"]
Margin = float | Literal["adaptive"]
Form = Literal["triplet", "softmax", "sigmoid"]
Negatives = Literal["hardest", "mean", "logsumexp"]
CentreScores = Literal["none", "detached", "full"]
EqualCaptions = Literal["negatives", "ignored"]
RegionSource = Literal["boxes", "stored"]
RegionShape = Literal["masks", "boxes"]
Score = Literal["global", "powerset"]
ScoreRegions = Literal["grid", "stored"]
Pixels = Literal["pil", "training"]
Crop = Literal["random", "none"]
Tower = Literal["image", "text"]
Sharding = Literal["ddp", "fsdp"]
Join = Literal["key", "url"]
ExportTarget = Literal["open_clip", "transformers", "onnx", "hub-folder"]

Backend = Literal["auto", "torch", "triton"]
"""What computes the powerset similarity: "torch" runs everywhere, "triton" is a kernel for GPUs, "auto" chooses."""


def _require(config: object, valid: Callable[[Any], object], rule: str, *names: str) -> None:
    """Check settings, or those that are not None."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not valid(value):
            raise ValueError(f"{name} is {value!r}; it must be {rule}")


def _require_number_or_word(config: object, hint: Any, name: str) -> None:
    words = [word for option in typing.get_args(hint) for word in typing.get_args(option)]
    rule = f"a number or {', '.join(map(repr, words))}"
    _require(config, lambda value: not isinstance(value, str) or value in words, rule, name)


def _require_at_least(config: object, low: int, *names: str) -> None:
    _require(config, lambda value: value >= low, f"at least {low}" if low else "0 or more", *names)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which towers, and how their dense outputs become vectors."""

    name: str = "ViT-B-16"
    """A ViT that open_clip knows, "tiny" or "tiny-conv", or the path of a JSON config in open_clip's format; or, with its
    weights, local-dir:FOLDER or hf-hub:ORGANISATION/NAME."""
    pretrained: str | None = None
    """What to start from: an open_clip tag, a checkpoint file, or a run or model folder of powerclip, which brings its
    own architecture; None starts from scratch."""
    image_size: int | None = None
    """Height and width of the images in pixels; None takes the model's own. Position embeddings are resized."""
    context_length: int | None = None
    """Tokens of a caption; None takes the model's own. Position embeddings are resized."""
    image_pool: ImagePool = "avg"
    """Global image embedding: mean of the patches (the paper), or the tower's own pooling (class token, attention)."""
    text_pool: TextPool = "avg"
    """Global text embedding: mean of the valid tokens (the paper), or the tower's own pooling (argmax: older name)."""
    phrase_norm: PhraseNorm = "unit"
    """A phrase's vector from its leaves: plain sum (the paper's text), mean, or unit length."""
    phrase_unit: PhraseUnit = "phrase"
    """What is aligned with the regions: the phrases of the parse tree, or single tokens (the paper's ablation)."""
    phrase_context: PhraseContext = "caption"
    """What the text tower reads a phrase in: its caption (the paper), or alone, as a text of its own."""
    lora_rank: int | None = None
    """Train additions of this rank to the linear layers instead of the weights (LoRA, needs the extra powerclip[lora]);
    the saved model is the merged one."""
    lora_alpha: int | None = None
    """LoRA's additions are multiplied by alpha / rank; None takes the rank, so by 1."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "image_size", "lora_rank", "lora_alpha")
        if (
            self.lora_rank is not None
            and self.pretrained is None
            and not self.name.startswith(("local-dir:", "hf-hub:"))
        ):
            raise ValueError("lora_rank is for pretrained weights, which it leaves as they are; give pretrained")
        _require_at_least(self, 3, "context_length")  # start, a token, end
        if self.text_pool == "argmax":
            object.__setattr__(self, "text_pool", "tower")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How the vectors of an image's regions and a caption's phrases become one score; saved models keep it."""

    tau: float = 1e-3
    """Temperature of the non-linear aggregators; 0 is their hard limit."""
    zeta: Zeta = 0.75
    """Weight of log cosh in the regions-to-tree aggregator; "calibrated" fits it to exact values during training."""
    method: Method = "nla"
    """Linear-time aggregators, enumeration of all subsets (at most 16 regions), or a random sample of subsets."""
    samples: int = 256
    """Subsets that the method "sampled" draws at each step."""
    direction: Direction = "both"
    """Both similarities, or tree to regions or regions to tree alone (the paper's ablations)."""
    subsets: Subsets = "all"
    """All subsets of the regions, or single regions only (the paper's ablation)."""
    t1_activation: T1Activation = "softplus"
    """Activation of the tree-to-regions aggregator."""
    t2_activation: T2Activation = "tanh"
    """Derivative of the even part of the regions-to-tree aggregator (tanh: log cosh)."""
    normalise_by_regions: bool = True
    """Divide the similarity by the number of regions, so that the margin means the same at every M."""
    zero: Zero = "none"
    """Where the similarity s of a region and a phrase is zero, so that the best subset neither is empty nor holds all
    regions. A number, the midpoint between the means of matched and unmatched pairs, or a learned number is taken off
    s; centred takes the batch's means off regions and phrases and makes them unit vectors again."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name in ("method", "direction", "subsets", "t1_activation", "t2_activation"):
            one_of(name, getattr(self, name), typing.get_args(hints[name]))
        _require_at_least(self, 0, "tau")
        _require_at_least(self, 4, "samples")
        _require_number_or_word(self, Zeta, "zeta")
        _require_number_or_word(self, Zero, "zero")


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """What the powerset loss makes of the scores S of all images and captions, beside the paper's form."""

    form: Form = "triplet"
    """The triplet loss (the paper), or CLIP's softmax or SigLIP's sigmoid loss of S with a learned scale (and bias)."""
    negatives: Negatives = "hardest"
    """Which negatives the triplet loss compares a pair with: the hardest (the paper), all (the mean of their hinges), or
    all by the log of their summed exponentials, a smooth maximum."""
    negatives_temperature: float = 0.02
    """logsumexp only: the temperature of the smooth maximum, in units of S; towards 0 it becomes the hardest."""
    centre_scores: CentreScores = "none"
    """Take the means of its row and column off each score, so that no caption or image is close to all; the gradient
    goes through the means (full) or not (detached)."""
    max_margin: float = 1.0
    """Limit of an adaptive margin, in units of S."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for name in ("form", "negatives", "centre_scores"):
            one_of(name, getattr(self, name), typing.get_args(hints[name]))
        _require(self, lambda value: value > 0, "positive", "negatives_temperature", "max_margin")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ScoringConfig, ContrastConfig):
    """The loss: PowerCLIP's (CLIP's, plus ``powerset_weight`` times the powerset alignment loss), or a baseline's."""

    name: Annotated[Objective, tyro.conf.arg(aliases=("--objective",))] = "powerclip"
    """Which loss; the other settings apply to powerclip, unless they name another loss."""
    powerset_weight: float = 0.2
    """lambda, the weight of the powerset alignment loss; the objective clip trains without that loss."""
    global_loss: GlobalLoss = "auto"
    """What powerclip adds it to: CLIP's loss, SigLIP's, or by the model (auto): SigLIP's if it has a bias, else CLIP's."""
    weight_start_step: int = 0
    """Steps with CLIP's loss alone, before the powerset alignment loss begins."""
    weight_warmup_steps: int = 0
    """Steps over which lambda then rises linearly from 0."""
    gradient_ratio: float | None = None
    """Sets lambda, in place of ``powerset_weight``, so that the gradient of the weighted powerset alignment loss has
    this ratio to that of CLIP's loss, both at the vectors that the towers give."""
    gradient_cap: float | None = None
    """Lowers lambda in steps in which that ratio would be higher than this; None leaves it."""
    margin: Margin = 0.2
    """delta of the triplet loss; "adaptive" is the last step's mean positive minus mean negative score."""
    equal_captions: EqualCaptions = "negatives"
    """Whether pairs with the same caption are negatives of each other in the powerset loss."""
    region_source: RegionSource = "boxes"
    """Random boxes drawn at every step (PowerCLIP-R), or the masks stored with the data (PowerCLIP-S)."""
    regions: int = 10
    """M: regions per image and step; if more masks are stored, this many are drawn each time."""
    sparc_global_weight: float = 0.5
    """sparc only: weight of CLIP's loss."""
    sparc_local_weight: float = 1.0
    """sparc only: weight of the loss between tokens and grouped patches."""
    superclip_weight: float = 1.0
    """superclip only: weight of the loss of telling a caption's tokens from the image."""

    def __post_init__(self) -> None:
        ScoringConfig.__post_init__(self)
        ContrastConfig.__post_init__(self)
        rule = "positive; choose the objective clip to train without the powerset loss"
        _require(self, lambda weight: weight > 0, rule, "powerset_weight")
        _require(self, lambda ratio: 0 < ratio < math.inf, "positive", "gradient_ratio", "gradient_cap")
        _require_at_least(self, 0, "weight_start_step", "weight_warmup_steps")
        rule = "0 or more, or 'adaptive'"
        _require(self, lambda m: m == "adaptive" or (not isinstance(m, str) and m >= 0), rule, "margin")
        _require_at_least(self, 0, "sparc_global_weight", "sparc_local_weight", "superclip_weight")
        _require_at_least(self, 1, "regions")

    @property
    def uses_siglip(self) -> bool | None:
        """Whether the loss needs a model with SigLIP's bias; None if the model decides."""
        name = self.global_loss if self.name == "powerclip" else self.name
        return None if name == "auto" else name == "siglip"

    @property
    def uses_regions(self) -> bool:
        """Whether the loss looks at regions and phrases."""
        return self.name == "powerclip"

    @property
    def scoring(self) -> ScoringConfig:
        """The settings that a model keeps, so that it is scored as it was trained."""
        return ScoringConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(ScoringConfig)})

    @property
    def contrast(self) -> ContrastConfig:
        """What the powerset loss makes of the scores."""
        return ContrastConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(ContrastConfig)})


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are read."""

    workers: int = 0
    """Decoding processes in addition to the trainer; the batches do not depend on it."""
    shuffle: bool = True
    """A new order in every epoch, a function of the seed and the epoch alone."""
    weights: tuple[float, ...] | None = None
    """Share of each of several sources given as data, in their order; None shows all samples equally often."""
    resample: bool = False
    """Draw samples with replacement, instead of each once per epoch."""
    captions: int = 1
    """n: captions of each image in a step, drawn from those it has; all are positives of the image."""
    caption_weights: dict[str, float] | None = None
    """How often captions of each source are drawn (alt 1 synthetic 3); sources not named are not drawn. None draws all
    captions of an image equally often."""
    sentences: float = 0.0
    """Probability that a drawn caption is cut to one of its sentences, a sub-caption."""
    crop: Crop = "random"
    """A random crop of at least 90 % of the area, or the complete image squeezed to the tower's size."""
    flip: float = 0.0
    """Probability of a left-right flip; captions that say left or right are wrong for a flipped image."""
    cache: str | None = None
    """Folder for local copies of shards behind URLs; None is ~/.cache/powerclip/shards."""
    cache_gib: float = 32.0
    """Size in GiB above which the least recently used copies are deleted; a shuffle reads from 16 shards at a time."""
    max_bad_share: float = 0.1
    """Stop when more than this share of the samples cannot be read."""

    def __post_init__(self) -> None:
        _require_at_least(self, 0, "workers")
        _require_at_least(self, 1, "captions")
        _require(self, lambda size: size > 0, "positive", "cache_gib")
        _require(self, lambda share: 0 <= share <= 1, "between 0 and 1", "flip", "sentences", "max_bad_share")
        rule = "positive numbers by source"
        _require(self, lambda w: w and all(0 < x < math.inf for x in w.values()), rule, "caption_weights")
        rule = "positive numbers, one for each source"
        _require(self, lambda weights: weights and all(0 < w < math.inf for w in weights), rule, "weights")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 1e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly from 0."""
    weight_decay: float = 0.2
    """Decoupled weight decay; norms, biases and the temperature have none."""
    beta1: float = 0.9
    """Decay of AdamW's running mean of gradients."""
    beta2: float = 0.98
    """Decay of AdamW's running mean of squared gradients."""
    eps: float = 1e-6
    """AdamW's denominator term."""
    max_gradient_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; None leaves them as they are."""
    layer_decay: float = 1.0
    """A block's learning rate as a fraction of the next block's; below 1, early layers move less."""
    freeze: Tower | Literal["none"] = "none"
    """A tower whose weights are not trained; "image" is locked-image tuning."""

    def __post_init__(self) -> None:
        _require(self, lambda decay: 0 < decay <= 1, "above 0 and at most 1", "layer_decay")
        _require(self, lambda beta: 0 <= beta < 1, "0 or more and less than 1", "beta1", "beta2")
        _require(self, lambda value: value > 0, "positive", "learning_rate", "eps")
        _require(self, lambda norm: norm > 0, "positive; None turns clipping off", "max_gradient_norm")
        _require_at_least(self, 0, "warmup_steps", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How a step is laid out over memory and processes; none of it changes what is learnt, up to rounding."""

    accumulate: int = 1
    """Pieces in which each process takes its part of a batch; the gradient is still that of the full batch."""
    sharding: Sharding = "ddp"
    """With several processes: replicate the model (DDP), or shard it (FSDP2)."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile the towers' blocks with torch.compile."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "accumulate")


@dataclass(frozen=True, kw_only=True)
class PeriodicEvaluationConfig:
    """Zero-shot evaluation during training, on all processes."""

    every_steps: int | None = None
    """Evaluate after every this many steps and at the end; None never does."""
    suite: str = "scenes"
    """As in ``powerclip evaluate``."""
    data: str | None = None
    """Data of the suite, if it needs any."""
    size: int = 200
    """Images of each generated task."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "every_steps", "size")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What a model is evaluated on, and how: the settings of ``powerclip evaluate``."""

    suite: tuple[str, ...] = ()
    """One or more of: scenes and scenes-segmentation (generated tasks); pairs (retrieval among the pairs in the shards
    --data, or without --data in the run's training data); and, with their data sets in folders under --data:
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
    """How to score images and captions: by global embeddings (what papers report), the powerset similarity, or both."""
    pixels: Pixels = "pil"
    """Images of public data sets: pil, what PIL's convert("RGB") makes of them, as for published numbers; or training,
    as the model saw images in training (upright, white behind transparency). Your own pairs always are as in training."""
    regions: ScoreRegions = "grid"
    """Regions of the powerset score: boxes on a fixed grid, or the masks stored in your own shards."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    output: Path | None = None
    """Folder for the results; default: the run folder."""

    def __post_init__(self) -> None:
        _require_at_least(self, 1, "size", "batch_size")
        _require_at_least(self, 0, "workers")
        _require(self, bool, "at least one of global and powerset", "scores")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run, apart from its data and its folder."""

    recipe: str = "custom"
    """Named settings that this starts from; see powerclip/recipes.py."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Which towers, and how their dense outputs become vectors."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """The loss."""
    data: DataConfig = field(default_factory=DataConfig)
    """How samples are read."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimiser and its schedule."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How a step is laid out over memory and processes."""
    evaluation: PeriodicEvaluationConfig = field(default_factory=PeriodicEvaluationConfig)
    """Zero-shot evaluation during training."""
    batch_size: int = 128
    """Image-caption pairs in a step, over all processes."""
    steps: int | None = None
    """Length of the run in steps; None takes it from ``epochs``."""
    epochs: int | None = None
    """Length of the run in passes over the data; None takes it from ``steps``."""
    seed: int = 0
    """Decides initial weights, data order, augmentation and boxes."""
    device: str = "auto"
    """"auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", ..."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast of the towers; "auto" is bf16 on a GPU and fp32 elsewhere. Scores are always fp32."""
    log_every_steps: int = 10
    """Steps between lines in ``metrics.jsonl``."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints; there is one at the end, too."""
    checkpoint_every_minutes: float | None = None
    """Minutes between further checkpoints; None makes none by the clock."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights (0.9999, say), saved as ``model_ema``; None keeps none."""
    wandb_project: str | None = None
    """Log to Weights & Biases as well (needs the extra powerclip[wandb])."""

    def __post_init__(self) -> None:
        _require(self, lambda size: size >= 2, "at least 2 (a pair needs a negative)", "batch_size")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs; got steps={self.steps}, epochs={self.epochs}")
        _require_at_least(self, 1, "steps", "epochs", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints")
        _require(self, lambda minutes: minutes > 0, "positive", "checkpoint_every_minutes")
        _require(self, lambda seed: 0 <= seed < 2**31, "0 or more and less than 2^31", "seed")
        _require(self, lambda decay: 0 < decay < 1, "between 0 and 1", "ema_decay")

    def with_objective(self, name: Objective) -> TrainConfig:
        """The same config with another loss."""
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, name=name))


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How ``powerclip prepare`` reads a source and annotates its pairs."""

    image_column: str | None = None
    """Column of the image in a table (a path or the bytes), its name or number; guessed from common names by default."""
    caption_column: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Column of the caption in a table, its name or number, guessed from common names by default; or several, the
    first for KEY.txt."""
    header: bool = True
    """Whether the first line of a CSV or TSV file names the columns; without, name them by their numbers (1, 2, ...)."""
    caption_key: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Where tars hold the caption: an extension (txt), or json:KEY for a key inside the json; found by default. Several
    may be given, as for columns."""
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
    device: str = "auto"
    """Where SAM runs: auto, cpu, cuda, ..."""
    samples_per_shard: int = 1000
    """Pairs of the source in one shard; if the source is tars, each of them becomes one shard."""
    max_bad_share: float = 0.1
    """Stop if more than this share of the samples cannot be used."""
    count: int = 8192
    """Scenes to generate (scenes: sources only)."""
    seed: int = 0
    """Seed of the generated scenes (scenes: sources only)."""
    workers: int = 1
    """Processes that make shards in parallel."""
    ray: str | None = None
    """Run on the Ray cluster at this address (auto: this machine's); the paths must be the same on every node."""
    gpu_share: float = 0.25
    """Share of a GPU that each of Ray's workers takes for SAM."""

    def __post_init__(self) -> None:
        for name in ("caption_column", "caption_key"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given or ()))
        one_of("join", self.join, typing.get_args(Join))
        _require_at_least(self, 1, "samples_per_shard", "workers", "count")
        _require(self, lambda share: 0 <= share <= 1, "between 0 and 1", "max_bad_share")
        if self.regions_as == "boxes" and self.regions == "boxes":
            raise ValueError(
                "regions_as is boxes, but regions is boxes, of which nothing is stored; add --regions superpixels or sam"
            )


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """How ``powerclip embed`` reads pairs and writes their embeddings."""

    pretrained: str | None = None
    """The model is a name of open_clip (ViT-B-32, RN50, ...), with the weights of this tag or checkpoint file."""
    image_column: str | None = None
    """Column of the image in a table, as for powerclip prepare, like the next three."""
    caption_column: str | None = None
    """Column of the caption in a table."""
    header: bool = True
    """Whether the first line of a CSV or TSV file names the columns."""
    caption_key: str | None = None
    """Where tars hold the caption."""
    count: int = 8192
    """Scenes to generate (scenes: sources only)."""
    seed: int = 0
    """Seed of the generated scenes (scenes: sources only)."""
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
        _require_at_least(self, 1, "count", "batch_size", "rows_per_part", "workers")
        _require_at_least(self, 0, "thumbnail_pixels")


def to_yaml(config: object) -> str:
    """A config dataclass as YAML, with every setting."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)  # type: ignore[call-overload]


def from_dict(cls: type[T], values: object, *, where: str = "config") -> T:
    """A config dataclass from nested dicts; ValueError names the place of an unknown, missing or refused setting."""
    if not isinstance(values, dict):
        raise ValueError(f"{where} holds {type(values).__name__}; expected a mapping of settings")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(map(str, values.keys() - fields.keys())):
        raise ValueError(f"{where} has unknown settings {', '.join(unknown)}; known: {', '.join(fields)}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where} lacks the settings {', '.join(missing)}")
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = from_dict(hint, value, where=f"{where}.{name}")
        elif not _fits(value, hint):
            raise ValueError(f"{where}.{name} is {value!r}; expected {_described(hint)}")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _fits(value: object, hint: Any) -> bool:
    """Whether a YAML value is of an annotated type (the few that configs use)."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in options
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is tuple:
        return isinstance(value, list) and all(_fits(item, options[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(x, hint) for item in value.items() for x, hint in zip(item, options, strict=True)
        )
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    """An annotated type in words."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(map(repr, options))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_described, options))
    if origin in (tuple, dict):
        return "a list" if origin is tuple else "a mapping"
    return "None" if hint is types.NoneType else str(hint.__name__)


def load_config(path: Path) -> TrainConfig:
    """Read the ``config.yaml`` of a run folder; ValueError names the place of what is wrong."""
    values = read_yaml(path)
    objective = values.get("objective") if isinstance(values, dict) else None
    if isinstance(objective, dict) and objective.get("powerset_weight") == 0:  # how earlier versions said it
        del objective["powerset_weight"]
        objective["name"] = "clip" if objective.get("name", "powerclip") == "powerclip" else objective["name"]
    return from_dict(TrainConfig, values, where=str(path))


def read_yaml(path: Path) -> Any:
    """The value in a YAML file of up to ``MAX_YAML_BYTES``, without aliases, which could make it grow without bounds.

    ValueError if the file cannot be read, is larger, or is not such YAML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_YAML_BYTES + 1)
        if len(content) > MAX_YAML_BYTES:
            raise yaml.YAMLError(f"it is larger than {MAX_YAML_BYTES} bytes")
        return yaml.load(content, Loader=_PlainLoader)
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: {' '.join(str(error).split())}") from error


class _PlainLoader(yaml.SafeLoader):
    """Reads YAML and refuses aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias; write the value again in its place")
        return super().compose_node(parent, index)
