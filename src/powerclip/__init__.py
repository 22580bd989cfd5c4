"""powerclip: contrastive vision-language pre-training with powerset alignment."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from powerclip import alignment
    from powerclip import config as config
    from powerclip import loss as loss
    from powerclip import model as model
    from powerclip.errors import PowerclipError
    from powerclip.loss import PowerCLIPLoss, PowersetAlignmentLoss
    from powerclip.model import PowerCLIP, create_model, load
    from powerclip.types import Batch, Features, LossOutput, Similarity

__version__ = version("powerclip")

__all__ = [
    "Batch",
    "Features",
    "LossOutput",
    "PowerCLIP",
    "PowerCLIPLoss",
    "PowerclipError",
    "PowersetAlignmentLoss",
    "Similarity",
    "__version__",
    "alignment",
    "create_model",
    "load",
]

_NAMES = {
    "powerclip.errors": ("PowerclipError",),
    "powerclip.loss": ("PowerCLIPLoss", "PowersetAlignmentLoss"),
    "powerclip.model": ("PowerCLIP", "create_model", "load"),
    "powerclip.types": ("Batch", "Features", "LossOutput", "Similarity"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import powerclip`` alone does not load torch."""
    if name in ("alignment", "config", "loss", "model"):
        return importlib.import_module(f"powerclip.{name}")
    for module, names in _NAMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'powerclip' has no attribute {name!r}")
