"""AdamW groups and the learning-rate schedule."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from powerclip.config import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW without weight decay for parameters of fewer than two dimensions and those that the towers exempt.

    A parameter with fewer than two dimensions is a norm's, a bias or the temperature. A group's "lr_scale" multiplies
    its learning rate: the layer decay, to the power of the number of layers above it.
    """
    exempt = set(getattr(model, "no_weight_decay", set)())
    depth_of: Callable[[str], int] = getattr(model, "depth_of", lambda name: 0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim < 2 or name in exempt else config.weight_decay
            scale = config.layer_decay ** depth_of(name) if config.layer_decay < 1 else 1.0
            groups[decay, scale].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (decay, scale), parameters in sorted(groups.items(), key=lambda group: group[0], reverse=True)
        ],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def gradient_norm(modules: Sequence[nn.Module]) -> Tensor:
    """() norm of the gradients of all modules as one vector; one of them may be sharded by FSDP and the others not."""
    groups = [[p.grad for p in module.parameters() if p.grad is not None] for module in modules]
    norms = [get_total_norm(group) for group in groups if group]
    norms = [x.full_tensor() if isinstance(x, DTensor) else x for x in norms]
    return norms[0] if len(norms) == 1 else torch.stack(norms).norm()


def learning_rate(step: int, *, steps: int, config: OptimConfig) -> float:
    """Learning rate of a step (counted from 0): linear warm-up to the peak, then a cosine to 0."""
    warmup = min(config.warmup_steps, steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
