"""Settings of a training run: its data, optimiser, layout over memory and processes, evaluation; and all together."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from powerclip.config.checks import require, require_at_least, require_listed
from powerclip.config.model import ModelConfig
from powerclip.config.objective import ObjectiveConfig
from powerclip.config.values import Crop, Objective, Sharding, Tower


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
        require_listed(self)
        require_at_least(self, 0, "workers")
        require_at_least(self, 1, "captions")
        require(self, lambda size: size > 0, "positive", "cache_gib")
        require(self, lambda share: 0 <= share <= 1, "between 0 and 1", "flip", "sentences", "max_bad_share")
        rule = "positive numbers by source"
        require(self, lambda w: w and all(0 < x < math.inf for x in w.values()), rule, "caption_weights")
        rule = "positive numbers, one for each source"
        require(self, lambda weights: weights and all(0 < w < math.inf for w in weights), rule, "weights")


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
        require_listed(self)
        require(self, lambda decay: 0 < decay <= 1, "above 0 and at most 1", "layer_decay")
        require(self, lambda beta: 0 <= beta < 1, "0 or more and less than 1", "beta1", "beta2")
        require(self, lambda value: value > 0, "positive", "learning_rate", "eps")
        require(self, lambda norm: norm > 0, "positive; None turns clipping off", "max_gradient_norm")
        require_at_least(self, 0, "warmup_steps", "weight_decay")


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
        require_listed(self)
        require_at_least(self, 1, "accumulate")


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
        require_listed(self)
        require_at_least(self, 1, "every_steps", "size")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run, apart from its data and its folder."""

    recipe: str = "custom"
    """Named settings that this starts from."""
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
        require_listed(self)
        require(self, lambda size: size >= 2, "at least 2 (a pair needs a negative)", "batch_size")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs; got steps={self.steps}, epochs={self.epochs}")
        require_at_least(self, 1, "steps", "epochs", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints")
        require(self, lambda minutes: minutes > 0, "positive", "checkpoint_every_minutes")
        require(self, lambda seed: 0 <= seed < 2**31, "0 or more and less than 2^31", "seed")
        require(self, lambda decay: 0 < decay < 1, "between 0 and 1", "ema_decay")
        o = self.objective
        if o.uses_regions and o.region_source == "stored" and self.model.region_unit == "patch":
            raise ValueError(
                "objective.region_source is 'stored', but with model.region_unit 'patch' no masks are read; set "
                "region_source to 'boxes' or region_unit to 'region'"
            )

    @property
    def drawn_regions(self) -> int:
        """M, the regions that are drawn for an image; 0 where the loss uses none, or uses patches."""
        return self.objective.regions if self.objective.uses_regions and self.model.region_unit == "region" else 0

    def with_objective(self, name: Objective) -> TrainConfig:
        """The same config with another loss."""
        return dataclasses.replace(self, objective=dataclasses.replace(self.objective, name=name))
