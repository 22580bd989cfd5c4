"""CLIP's contrastive loss (Radford et al., 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from powerclip.distributed import gather_rows, sum_over_processes, with_value


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of the scaled cosine similarities, pair i with pair i.

    Under an initialised process group every process passes its own pairs and gets the loss of the global batch, with
    that loss's gradient on its own rows (and its share of the gradient of ``logit_scale``); see
    ``powerclip.distributed.gather``. Only rows of this process's pairs are held: B by the global B logits a side.

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
        image, text, scale = image.to(dtype), text.to(dtype), logit_scale.to(dtype)
        both, start = gather_rows(torch.stack([image, text], dim=1))
        images, texts = both.unbind(dim=1)
        labels = torch.arange(start, start + len(image), device=image.device)
        share = (
            F.cross_entropy(scale * image @ texts.T, labels, reduction="sum")
            + F.cross_entropy(scale * text @ images.T, labels, reduction="sum")
        ) / (2 * len(images))
        return with_value(share, sum_over_processes(share))
