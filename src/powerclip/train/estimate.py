"""How much memory a step will take, before the first one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from powerclip.model import PowerCLIP
from powerclip.types import Batch, Features

PROBE = 2
"""Pairs that are run to see what they leave for the backward pass."""


def estimate(
    model: PowerCLIP,
    *,
    pairs: int,
    forward: Callable[[nn.Module, Batch], Features],
    shards: int = 1,
    averaged: bool = False,
) -> str:
    """One line: parameters, what they and the optimiser take, and what a piece and its activations will.

    Args:
        model: in the state it is trained in, whole; it is run once.
        pairs: pairs that a process takes at a time.
        forward: runs the model, under autocast where training does.
        shards: processes that share weights, gradients and optimiser state.
        averaged: an average of the weights is kept as well.
    """
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = sum(p.numel() * p.element_size() for p in model.parameters()) + 3 * sum(
        p.numel() * p.element_size() for p in model.parameters() if p.requires_grad
    )
    state += 4 * parameters * averaged
    images = 4 * 3 * math.prod(model.image_size)
    activations = (_saved_bytes(model, forward) + images) * pairs
    return (
        f"{parameters / 1e6:.1f} M parameters, {trained / 1e6:.1f} M of them trained; {pairs} pairs at a time on each "
        f"process; about {state / shards / 2**30:.2f} GiB for weights, gradients and optimiser{', average included,' * averaged} and "
        f"{activations / 2**30:.2f} GiB for pairs and activations"
    )


def _saved_bytes(model: PowerCLIP, forward: Callable[[nn.Module, Batch], Features]) -> int:
    """Bytes a pair leaves for the backward pass, parameters not counted."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    batch = _any_batch(model)
    with saved_tensors_hooks(pack, lambda x: x):
        features = forward(model, batch)
    del features
    return sum(seen.values()) // PROBE


def _any_batch(model: PowerCLIP) -> Batch:
    """Pairs of a model's sizes; what they hold is of no account."""
    rows, columns = model.grid_size
    leaf_of_token = torch.zeros(PROBE, model.context_length, dtype=torch.int64)
    return Batch(
        images=torch.zeros(PROBE, 3, *model.image_size),
        tokens=torch.ones_like(leaf_of_token),
        leaf_of_token=leaf_of_token,
        phrase_spans=torch.zeros(PROBE, 1, 2, dtype=torch.int64),
        region_masks=torch.ones(PROBE, 1, rows * columns, dtype=torch.bool),
    ).to(model.logit_scale.device)
