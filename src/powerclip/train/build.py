"""What a config describes: model, loss, precision and loader."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from powerclip.config import TrainConfig
from powerclip.data.dataset import TowerInputs
from powerclip.data.loader import Loader, OpenedData
from powerclip.data.remote import ShardCache
from powerclip.distributed import rank, world_size
from powerclip.errors import PowerclipError
from powerclip.loss import (
    CLIPLoss,
    FILIPLoss,
    PowerCLIPLoss,
    PowersetAlignmentLoss,
    SigLIPLoss,
    SPARCLoss,
    SuperCLIPLoss,
)
from powerclip.loss.siglip import INIT_LOGIT_BIAS, INIT_LOGIT_SCALE
from powerclip.model import PowerCLIP, add_lora, create_model, make_tokenizer, make_transforms


def build_model(config: TrainConfig) -> PowerCLIP:
    """The model a config describes, with a tower frozen or with LoRA if it says so.

    Of a loss that looks at no regions the model makes none in training, whatever its unit. There is no dropout and no
    stochastic depth: what they draw would depend on the pieces and processes of a batch. PowerclipError if a model from
    scratch normalises over a batch (see ``batch_norms``).
    """
    m, siglip = config.model, config.objective.uses_siglip  # None: as the model is
    pooling = m.pooling if config.objective.uses_regions else replace(m.pooling, region_unit="region")
    bias: dict[str, Any] = {}
    if siglip:
        bias = {"init_logit_scale": INIT_LOGIT_SCALE, "init_logit_bias": INIT_LOGIT_BIAS}
    model = create_model(
        m.name,
        pretrained=m.pretrained,
        **vars(pooling),
        scoring=config.objective.scoring,
        image_size=m.image_size,
        context_length=m.context_length,
        **bias,
    )
    if m.from_scratch and batch_norms(model):
        raise PowerclipError(
            f"{m.name} has batch normalisation, whose statistics would depend on how batches are cut, so it cannot be "
            "trained from scratch; start from weights with --model.pretrained"
        )
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
    if model.logit_bias is not None and siglip is False:
        model.logit_bias.requires_grad_(False)  # no other loss uses it
    if config.parallel.activation_checkpointing:
        model.set_grad_checkpointing()
    if config.optim.freeze != "none":
        for parameter in model.tower_parameters(config.optim.freeze):
            parameter.requires_grad_(False)
    if m.lora_rank is not None:
        add_lora(model, rank=m.lora_rank, alpha=m.lora_alpha)
    return model


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The layers that normalise over a batch; in training with the statistics that came with the weights.

    Those of a step would be of a piece of its batch on one process, and a skipped step would leave its own.
    """
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def regions_of(config: TrainConfig, model: PowerCLIP) -> int:
    """M: the regions of an image in a step, drawn or every patch; 0 where the loss uses none."""
    patches = config.objective.uses_regions and model.region_unit == "patch"
    return math.prod(model.grid_size) if patches else config.drawn_regions


def build_loss(config: TrainConfig, model: PowerCLIP) -> nn.Module:
    """The loss that a config describes for a model's ``Features``: to ``LossOutput``.

    PowerclipError if its method cannot take as many regions as an image has.
    """
    o = config.objective
    base: nn.Module | None = None  # of powerclip with the global loss auto: the features tell
    match o.global_loss if o.name == "powerclip" else o.name:
        case "clip":
            base = CLIPLoss()
        case "siglip":
            base = SigLIPLoss()
        case "filip":
            base = FILIPLoss()
        case "sparc":
            base = SPARCLoss(global_weight=o.sparc_global_weight, local_weight=o.sparc_local_weight)
        case "superclip":
            base = SuperCLIPLoss(dimension=model.embed_dim, vocabulary=model.vocabulary, weight=o.superclip_weight)
    if base is not None and o.name not in ("clip", "powerclip"):
        return base
    if not o.uses_regions:
        return PowerCLIPLoss(weight=0.0, base=base)
    powerset = PowersetAlignmentLoss(margin=o.margin, contrast=o.contrast, dimension=model.embed_dim, **vars(o.scoring))
    try:
        powerset.scoring.check_regions(regions_of(config, model))
    except ValueError as error:
        patches = model.region_unit == "patch"
        option = "--model.region-unit patch" if patches else f"--objective.regions {o.regions}"
        raise PowerclipError(f"{option} and --objective.method {o.method}: {error}") from error
    return PowerCLIPLoss(
        weight=o.powerset_weight,
        start_step=o.weight_start_step,
        warmup_steps=o.weight_warmup_steps,
        gradient_ratio=o.gradient_ratio,
        gradient_cap=o.gradient_cap,
        powerset=powerset,
        equal_captions=o.equal_captions,
        base=base,
    )


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The precision in which a config runs its towers, as a context."""
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)


def build_cache(config: TrainConfig) -> ShardCache:
    """Where a config keeps copies of shards behind URLs."""
    cache = ShardCache(max_bytes=int(config.data.cache_gib * 2**30))
    return cache if config.data.cache is None else replace(cache, folder=Path(config.data.cache))


def build_loader(config: TrainConfig, model: PowerCLIP, data: OpenedData) -> Loader:
    """The loader a config describes, for a model's image size and tokenizer: this process's part of every batch."""
    towers = TowerInputs(
        transform=make_transforms(model, crop=config.data.crop, flip=config.data.flip)[0],
        tokenizer=make_tokenizer(model),
        context_length=model.context_length,
        grid=model.grid_size,
    )
    return Loader(
        data,
        towers,
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        regions=config.drawn_regions,
        region_source=config.objective.region_source,
        part=(rank(), world_size()),
    )
