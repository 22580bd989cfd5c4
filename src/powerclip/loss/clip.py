"""CLIP's contrastive loss (Radford et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of the scaled cosine similarities, pair i with pair i.

    Args:
        image: (B, D) unit image embeddings.
        text: (B, D) unit text embeddings.
        logit_scale: () inverse temperature, already exponentiated.

    Returns:
        () loss, float32 also under autocast.

    Raises:
        ValueError: the embeddings are not two matrices of one shape.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"image and text have shapes {tuple(image.shape)} and {tuple(text.shape)}; expected both (B, D)"
        )
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(image.dtype, torch.float32)
        logits = logit_scale.to(dtype) * image.to(dtype) @ text.to(dtype).T
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
