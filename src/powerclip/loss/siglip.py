"""SigLIP's pairwise sigmoid loss (Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from powerclip.distributed import gather_rows, sum_over_processes, with_value
from powerclip.loss.positives import captions_per_image
from powerclip.types import Features, LossOutput

INIT_LOGIT_SCALE = math.log(10)
"""Initial log of the inverse temperature (section 3.2: t' = log 10)."""

INIT_LOGIT_BIAS = -10.0
"""Initial bias: nearly all pairs are negatives, and so the model predicts at the start (section 3.2)."""


def siglip_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    """-1/J sum_ij log sigmoid(z_ij (t x_i . y_j + b)), with z_ij = 1 for an image's own captions and -1 elsewhere.

    A scalar in float32, also under autocast, of unit embeddings (B, D) of images and (B n, D) of captions, n of each
    image (ValueError otherwise). ``logit_scale`` () is the inverse temperature t, already exponentiated, and
    ``logit_bias`` () b. Under an initialised process group the loss is that of the global batch of C images and their
    J = C n captions, as ``clip_loss``.
    """
    n = captions_per_image(image, text)
    with torch.autocast(image.device.type, enabled=False):
        dtype = torch.promote_types(image.dtype, torch.float32)
        texts, start = gather_rows(text.to(dtype))
        logits_BC = logit_scale.to(dtype) * image.to(dtype) @ texts.T + logit_bias.to(dtype)
        signs_BC = torch.full_like(logits_BC, -1.0)
        own = torch.arange(len(text), device=image.device)
        signs_BC[own // n, start + own] = 1.0
        share = -F.logsigmoid(signs_BC * logits_BC).sum() / len(texts)
        return with_value(share, sum_over_processes(share))


class SigLIPLoss(nn.Module):
    """``siglip_loss`` of a batch's features; the model needs a ``logit_bias``."""

    def forward(self, features: Features) -> LossOutput:
        """The loss, and as its one term "siglip"; ValueError if the features have no bias."""
        if features.logit_bias is None:
            raise ValueError("the features have no logit_bias; create the model with init_logit_bias")
        loss = siglip_loss(features.image, features.text, features.logit_scale, features.logit_bias)
        return LossOutput(total=loss, terms={"siglip": loss})
