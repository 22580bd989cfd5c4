"""CLIP's contrastive loss (Radford et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from powerclip.distributed import gather_rows, sum_over_processes, with_value


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of scaled cosine similarities, pair i with pair i: a float32 scalar, also under autocast.

    ``image`` and ``text`` are (B, D) unit embeddings (ValueError if their shapes differ), ``logit_scale`` is the ()
    inverse temperature, already exponentiated. Under an initialised process group every process passes its own pairs
    and gets the loss of the global batch, with that loss's gradient on its own rows (and its share of the gradient of
    ``logit_scale``); see ``powerclip.distributed.gather``. Only rows of this process's pairs are held: B by the global
    B logits a side.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(f"image and text are {tuple(image.shape)} and {tuple(text.shape)}; expected both (B, D)")
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(image.dtype, torch.float32)
        image, text, scale = image.to(dtype), text.to(dtype), logit_scale.to(dtype)
        both, start = gather_rows(torch.stack([image, text], dim=1))
        images, texts = both.unbind(dim=1)
        return contrast(scale * image @ texts.T, scale * text @ images.T, start=start)


def contrast(i2t_BC: Tensor, t2i_BC: Tensor, *, start: int) -> Tensor:
    """() mean of both (B, C) cross-entropies over the C pairs of all processes; row i belongs to pair ``start + i``."""
    labels_B = torch.arange(start, start + len(i2t_BC), device=i2t_BC.device)
    i2t, t2i = (F.cross_entropy(logits, labels_B, reduction="sum") for logits in (i2t_BC, t2i_BC))
    share = (i2t + t2i) / (2 * i2t_BC.shape[1])
    return with_value(share, sum_over_processes(share))
