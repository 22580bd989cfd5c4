"""What a config describes: model, loss, loader and evaluation tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from powerclip.config import TrainConfig
from powerclip.data.loader import DEFAULT_COPIES, Data, Loader, make_loader
from powerclip.data.remote import Copies
from powerclip.distributed import rank, world_size
from powerclip.loss import FILIPLoss, PowerCLIPLoss, PowersetAlignmentLoss, SigLIPLoss, SPARCLoss
from powerclip.loss.siglip import INIT_LOGIT_BIAS, INIT_LOGIT_SCALE
from powerclip.model import PowerCLIP, create_model, make_tokenizer, make_transforms


def build_model(config: TrainConfig) -> PowerCLIP:
    """The model a config describes, with a tower frozen where it says so."""
    m, start = config.model, {}
    if config.objective.name == "siglip":
        start = {"init_logit_scale": INIT_LOGIT_SCALE, "init_logit_bias": INIT_LOGIT_BIAS}
    model = create_model(
        m.name,
        pretrained=m.pretrained,
        text_pool=m.text_pool,
        phrase_norm=m.phrase_norm,
        phrase_unit=m.phrase_unit,
        scoring=config.objective.scoring,
        **start,
    )
    if config.parallel.activation_checkpointing:
        model.set_grad_checkpointing()
    if config.optim.freeze != "none":
        for parameter in model.tower_parameters(config.optim.freeze):
            parameter.requires_grad_(False)
    return model


def build_loss(config: TrainConfig) -> nn.Module:
    """The loss a config describes: ``Features`` to ``LossOutput``."""
    o = config.objective
    if o.name == "siglip":
        return SigLIPLoss()
    if o.name == "filip":
        return FILIPLoss()
    if o.name == "sparc":
        return SPARCLoss(global_weight=o.sparc_global_weight, local_weight=o.sparc_local_weight)
    if not o.uses_regions:
        return PowerCLIPLoss(weight=0.0)
    powerset = PowersetAlignmentLoss(margin=o.margin, **vars(o.scoring))
    return PowerCLIPLoss(weight=o.powerset_weight, powerset=powerset, equal_captions=o.equal_captions)


def build_copies(config: TrainConfig) -> Copies:
    """Where a config keeps shards behind URLs."""
    folder = Path(config.data.cache) if config.data.cache else DEFAULT_COPIES.folder
    return Copies(folder=folder, max_bytes=int(config.data.cache_gib * 2**30))


def build_loader(config: TrainConfig, model: PowerCLIP, data: Data, *, counted: Sequence[int] | None = None) -> Loader:
    """The loader a config describes, for a model's image size and tokenizer: this process's part of every batch."""
    stored = config.objective.uses_regions and config.objective.region_source == "stored"
    return make_loader(
        data,
        transform=make_transforms(model, crop=config.data.crop, flip=config.data.flip)[0],
        tokenizer=make_tokenizer(model),
        context_length=model.context_length,
        grid=model.grid_size,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.data.workers,
        shuffle=config.data.shuffle,
        weights=config.data.weights,
        resample=config.data.resample,
        regions=config.objective.regions if stored else 0,
        whole_images=config.data.crop == "none" and config.data.flip == 0,
        max_bad_share=config.data.max_bad_share,
        part=(rank(), world_size()),
        copies=build_copies(config),
        counted=counted,
    )
