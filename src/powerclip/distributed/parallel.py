"""Spreading a model over processes: checkpoint activations, compile, then replicate or shard; in that order."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from powerclip.config.values import Sharding
from powerclip.distributed.gather import world_size


def parallelize(
    model: nn.Module,
    *,
    blocks: list[nn.Module],
    device: torch.device,
    sharding: Sharding = "ddp",
    compiled: bool = False,
) -> nn.Module:
    """The model to call in place of ``model``, which is already on its device; the two share parameters.

    The order matters. Activation checkpointing comes first (``PowerCLIP.set_grad_checkpointing``), so that it is
    compiled too. Then each block is compiled by itself: seconds, where compiling the model as one takes minutes. Last
    comes the reduction of gradients, outside of what is compiled.

    ``blocks``, the towers' transformer blocks, are the units of compilation and of sharding. "ddp" replicates, "fsdp"
    (FSDP2) shards parameters, gradients and optimiser state.
    """
    if compiled:
        for block in blocks:
            block.compile()
    if world_size() == 1:
        return model
    if sharding == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
    for block in blocks:
        fully_shard(block)
    fully_shard(model, ignored_params=_scalars(model))  # a scalar cannot be sharded
    for method in ("encode_image", "encode_text", "encode_regions", "encode_image_and_regions", "encode_phrases"):
        # Within these, as within forward, every process has the complete parameters.
        register_fsdp_forward_method(model, method)
    return model


def reshard(model: nn.Module) -> None:
    """Free the gathered parameters that FSDP keeps after a forward pass without a backward pass."""
    if isinstance(model, FSDPModule):
        model.reshard()


def average_ignored_gradients(model: nn.Module) -> None:
    """Average over processes the gradients that FSDP ignores; does nothing for any other model."""
    if isinstance(model, FSDPModule):
        average_gradients(_scalars(model))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients of parameters that no parallel model holds over processes, as DDP and FSDP do."""
    for parameter in parameters:
        if parameter.grad is not None and world_size() > 1:
            dist.all_reduce(parameter.grad, op=dist.ReduceOp.SUM)
            parameter.grad /= world_size()


@contextmanager
def no_sync_unless_last(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Within, backward passes do not reduce the gradients of a parallel model, unless ``last`` (of a step)."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    elif isinstance(model, FSDPModule):
        shards: Any = model
        shards.set_requires_gradient_sync(last)
        yield
    else:
        yield


def _scalars(model: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in model.parameters() if parameter.ndim == 0}
