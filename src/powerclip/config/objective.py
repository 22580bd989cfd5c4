"""Settings of the loss."""

import math
from dataclasses import dataclass, fields
from typing import Annotated

import tyro

from powerclip.config.checks import part, require, require_at_least, require_listed
from powerclip.config.model import ScoringConfig
from powerclip.config.values import (
    CentreScores,
    EqualCaptions,
    Form,
    GlobalLoss,
    Margin,
    Negatives,
    Objective,
    RegionSource,
)


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """What the powerset loss makes of the scores S of all images and captions, beside the paper's form."""

    form: Form = "triplet"
    """The triplet loss (the paper), or CLIP's softmax or SigLIP's sigmoid loss of S with a learned scale (and bias)."""
    negatives: Negatives = "hardest"
    """Which negatives the triplet loss compares a pair with: the hardest (the paper), all (the mean of their hinges),
    or all by the log of their summed exponentials, a smooth maximum."""
    negatives_temperature: float = 0.02
    """logsumexp only: the temperature of the smooth maximum, in units of S; towards 0 it becomes the hardest."""
    centre_scores: CentreScores = "none"
    """Take the means of its row and column off each score, so that no caption or image is close to all; the gradient
    goes through the means (full) or not (detached)."""
    max_margin: float = 1.0
    """Limit of an adaptive margin, in units of S."""

    def __post_init__(self) -> None:
        require_listed(self)
        require(self, lambda value: value > 0, "positive", "negatives_temperature", "max_margin")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ScoringConfig, ContrastConfig):
    """The loss: PowerCLIP's (CLIP's, plus ``powerset_weight`` times the powerset alignment loss), or a baseline's."""

    name: Annotated[Objective, tyro.conf.arg(aliases=("--objective",))] = "powerclip"
    """Which loss; the other settings apply to powerclip, unless they name another loss."""
    powerset_weight: float = 0.2
    """lambda, the weight of the powerset alignment loss; the objective clip trains without that loss."""
    global_loss: GlobalLoss = "auto"
    """What powerclip adds it to: CLIP's loss, SigLIP's, SPARC's (CLIP's and a contrast within each caption), or by the
    model (auto): SigLIP's if it has a bias, else CLIP's."""
    weight_start_step: int = 0
    """Steps with CLIP's loss alone, before the powerset alignment loss begins."""
    weight_warmup_steps: int = 0
    """Steps over which lambda then rises linearly from 0."""
    gradient_ratio: float | None = None
    """Sets lambda, in place of ``powerset_weight``, so that the gradient of the weighted powerset alignment loss has
    this ratio to that of CLIP's loss: both at the pooled unit vectors, images and captions for CLIP's, regions and
    phrases for the other. SPARC's own contrast of patches and tokens does not pass through these and is not counted."""
    gradient_cap: float | None = None
    """Lowers lambda in steps in which that ratio would be higher than this; None leaves it."""
    margin: Margin = 0.2
    """delta of the triplet loss; "adaptive" is the last step's mean positive minus mean negative score."""
    equal_captions: EqualCaptions = "negatives"
    """Whether pairs with the same caption are negatives of each other in the powerset loss."""
    region_source: RegionSource = "boxes"
    """Random boxes drawn at every step (PowerCLIP-R), or the masks stored with the data (PowerCLIP-S); unused where
    patches are the regions (``region_unit``)."""
    regions: int = 10
    """M: regions per image and step; if more masks are stored, this many are drawn each time."""
    sparc_global_weight: float = 0.5
    """SPARC's loss only: weight of CLIP's."""
    sparc_local_weight: float = 1.0
    """SPARC's loss only: weight of the one between tokens and grouped patches."""
    superclip_weight: float = 1.0
    """superclip only: weight of the loss of telling a caption's tokens from the image."""

    def __post_init__(self) -> None:
        ScoringConfig.__post_init__(self)
        ContrastConfig.__post_init__(self)
        rule = "positive; choose the objective clip to train without the powerset loss"
        require(self, lambda weight: weight > 0, rule, "powerset_weight")
        require(self, lambda ratio: 0 < ratio < math.inf, "positive", "gradient_ratio", "gradient_cap")
        require_at_least(self, 0, "weight_start_step", "weight_warmup_steps")
        rule = "0 or more, or 'adaptive'"
        require(self, lambda m: m == "adaptive" or (not isinstance(m, str) and m >= 0), rule, "margin")
        require_at_least(self, 0, "sparc_global_weight", "sparc_local_weight", "superclip_weight")
        require_at_least(self, 1, "regions")
        if "sparc" in (self.name, self.global_loss) and self.sparc_global_weight == self.sparc_local_weight == 0:
            raise ValueError("sparc_global_weight and sparc_local_weight are 0; SPARC's loss needs one of them")

    @property
    def uses_siglip(self) -> bool | None:
        """Whether the loss needs a model with SigLIP's bias; None if the model decides."""
        name = self.global_loss if self.name == "powerclip" else self.name
        return None if name == "auto" else name == "siglip"

    @property
    def uses_regions(self) -> bool:
        """Whether the loss looks at regions and phrases."""
        return self.name == "powerclip"

    def starts_too_late(self, steps: int) -> list[str]:
        """A line if a training of so many steps ends before the powerset loss starts."""
        if not self.uses_regions or self.weight_start_step < steps:
            return []
        start = self.weight_start_step
        return [f"objective.weight_start_step is {start} and training ends after step {steps}: no powerset loss"]

    @property
    def without_effect(self) -> list[str]:
        """Lines on settings that differ from their defaults and, with the others as they are, change nothing."""
        unused: dict[str, str] = {}  # why, by name
        names: tuple[str, ...]
        if self.subsets == "single":
            names = ("tau", "zeta", "method", "samples", "t1_activation", "t2_activation")
            unused |= dict.fromkeys(names, "subsets is 'single'")
            if self.zero != "centred" and self.form != "sigmoid":
                unused["zero"] = f"subsets is 'single' and form {self.form!r}, and it is the same for all scores"
        elif self.method != "nla":
            unused |= dict.fromkeys(("tau", "zeta", "t1_activation", "t2_activation"), f"method is {self.method!r}")
        if self.form != "triplet":
            names = ("margin", "negatives", "negatives_temperature", "max_margin")
            unused |= dict.fromkeys(names, f"form is {self.form!r}")
        if self.gradient_ratio is not None and self.powerset_weight != 1.0:  # which the recipes write
            unused["powerset_weight"] = f"gradient_ratio is {self.gradient_ratio!r} and sets lambda"
        defaults = {field.name: field.default for field in fields(self)}
        return [
            f"objective.{name} is {getattr(self, name)!r} and has no effect: {why}"
            for name, why in unused.items()
            if self.uses_regions and getattr(self, name) != defaults[name]
        ]

    @property
    def scoring(self) -> ScoringConfig:
        """The settings that a model keeps, so that it is scored as it was trained."""
        return part(self, ScoringConfig)

    @property
    def contrast(self) -> ContrastConfig:
        """What the powerset loss makes of the scores."""
        return part(self, ContrastConfig)
