"""CLIP's contrastive loss (Radford et al., 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from powerclip.distributed import gather_rows, sum_over_processes, with_value
from powerclip.loss.positives import captions_per_image
from powerclip.types import Features, LossOutput


def clip_loss(image: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of scaled cosine similarities of images and their captions,
    also under autocast in float32.

    ``image`` (B, D) and ``text`` (B n, D) are unit embeddings, n captions of each image (ValueError otherwise);
    ``contrast`` says how several are used. ``logit_scale`` is the () inverse temperature, already exponentiated. Under
    an initialised process group every process passes its own pairs and gets the loss of the global batch, with that
    loss's gradient on its own rows (and its share of the gradient of ``logit_scale``); see
    ``powerclip.distributed.gather``. Only rows of this process's pairs are held: B by the global B logits a side.
    """
    n = captions_per_image(image, text)
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(image.dtype, torch.float32)
        image, text, scale = image.to(dtype), text.to(dtype), logit_scale.to(dtype)
        both, start = gather_rows(
            torch.cat([image[:, None], text.reshape(len(image), n, text.shape[1])], dim=1)
        )  # (C, 1 + n, D)
        images, texts = both[:, 0], both[:, 1:].flatten(0, 1)
        return contrast(scale * image @ texts.T, scale * text @ images.T, start=start)


def contrast(i2t: Tensor, t2i: Tensor, *, start: int) -> Tensor:
    """() mean of both cross-entropies over the C images of all processes and their n captions each.

    ``i2t`` (B, C n) are logits of this process's images, of which the first is image ``start``, and ``t2i`` (B n, C) of
    its captions. The target of an image is spread evenly over its captions (the multi-positive loss of Khosla et al.,
    "Supervised Contrastive Learning", 2020, equation 2); that of a caption is its image.
    """
    C = t2i.shape[1]
    n = i2t.shape[1] // C if C else 1
    own = torch.arange(start, start + len(i2t), device=i2t.device)  # (B,)
    of_images = i2t.log_softmax(dim=1)
    images = torch.stack([F.nll_loss(of_images, own * n + k, reduction="sum") for k in range(n)]).sum()
    captions = F.cross_entropy(t2i, own.repeat_interleave(n), reduction="sum")
    share = (images + captions) / (2 * C * n)
    return with_value(share, sum_over_processes(share))


class CLIPLoss(nn.Module):
    """``clip_loss`` of a batch's features."""

    def forward(self, features: Features) -> LossOutput:
        """The loss, and as its one term "clip"."""
        loss = clip_loss(features.image, features.text, features.logit_scale)
        return LossOutput(total=loss, terms={"clip": loss})
