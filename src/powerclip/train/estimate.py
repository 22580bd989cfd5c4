"""How much memory a training step will take, before the first one."""

import math

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from powerclip.config import TrainConfig
from powerclip.distributed import world_size
from powerclip.model import PowerCLIP
from powerclip.train.build import autocast
from powerclip.types import Batch

PROBED = 2
"""Pairs that are run to see what they keep for the backward pass."""


def estimate(config: TrainConfig, model: PowerCLIP) -> str:
    """One line: parameters, what they and the optimiser take, and what pairs and their activations will.

    The model is on its device and not yet spread over processes; it is run once, on two pairs.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    parameters, trainable = (sum(p.numel() for p in kept) for kept in (model.parameters(), trained))
    averaged = config.ema_decay is not None
    state_bytes = sum(p.nbytes for p in model.parameters()) + (3 + averaged) * sum(p.nbytes for p in trained)
    shards = world_size() if config.parallel.sharding == "fsdp" else 1
    pairs = -(-config.batch_size // world_size() // config.parallel.accumulate)
    pair_bytes = _kept_bytes(config, model) + 4 * 3 * math.prod(model.image_size)
    return (
        f"{parameters / 1e6:.1f} M parameters, {trainable / 1e6:.4g} M of them trained; {pairs} pairs at a time on each "
        f"process; about {state_bytes / shards / 2**30:.2f} GiB for weights, gradients and "
        f"optimiser{', average included,' * averaged} and {pair_bytes * pairs / 2**30:.2f} GiB for pairs and "
        "activations"
    )


def _kept_bytes(config: TrainConfig, model: PowerCLIP) -> int:
    """Bytes that a pair keeps for the backward pass, apart from parameters."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    captions = PROBED * config.data.captions
    tokens = torch.ones(captions, model.context_length, dtype=torch.int64)
    batch = Batch(
        images=torch.zeros(PROBED, 3, *model.image_size),
        tokens=tokens,
        leaf_of_token=torch.zeros_like(tokens),
        phrase_spans=torch.zeros(captions, 1, 2, dtype=torch.int64),
        region_masks=torch.ones(PROBED, 1, math.prod(model.grid_size), dtype=torch.bool),
    )
    device = model.logit_scale.device
    with autocast(config, device), saved_tensors_hooks(pack, lambda x: x):
        model(batch.to(device))
    return sum(kept.values()) // PROBED
