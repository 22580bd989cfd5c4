"""The exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Averages of the trained parameters, in float32, moved after every step:
    average += (1 - decay) (weight - average)."""

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._names, self._parameters = zip(*trained, strict=True)
        self._averages = [parameter.detach().float().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, *, where: Tensor) -> None:
        """Move towards the model's weights, unless ``where``, () bool on their device, is False."""
        weights = [parameter.detach().float() for parameter in self._parameters]
        torch._foreach_lerp_(self._averages, weights, [(1 - self.decay) * where] * len(weights))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name; writing into them changes them."""
        return dict(zip(self._names, self._averages, strict=True))

    @contextmanager
    @torch.no_grad()
    def applied(self) -> Iterator[None]:
        """Within, the model has the averages as its weights."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        for parameter, average in zip(self._parameters, self._averages, strict=True):
            parameter.copy_(average)
        try:
            yield
        finally:
            for parameter, weight in zip(self._parameters, kept, strict=True):
                parameter.copy_(weight)
