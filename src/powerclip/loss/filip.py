"""FILIP's token-wise loss (Yao et al., "FILIP: Fine-grained Interactive Language-Image Pre-Training", 2022).

This is the paper's equation, without its shortcuts for speed:
fewer dimensions, half precision, a quarter of the tokens.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from powerclip.distributed import gather_rows, world_size
from powerclip.loss.clip import contrast
from powerclip.loss.positives import without_padding
from powerclip.types import Features, LossOutput

TILE_ELEMENTS = 2**25
"""Maximum number of token-token similarities in memory at a time (128 MiB in float32)."""


def late_interaction(patches: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    """(I, J) late-interaction similarities over patches, and (I, J) over tokens (FILIP's equations 4 and 5).

    The mean over an image's patches of their highest similarity to a token of the text, and vice versa, of unit vectors
    (I, N, D) and (J, T, D); ``token_mask`` (J, T) bool is True for at least one token each. Tiles of images are scored
    one after another, and recomputed in the backward pass.
    """
    rows = max(1, TILE_ELEMENTS // max(1, patches.shape[1] * tokens.shape[0] * tokens.shape[1]))
    tiles = [
        checkpoint(_tile, patches[i : i + rows], tokens, token_mask, use_reentrant=False)
        for i in range(0, max(1, len(patches)), rows)  # one tile if there are no images
    ]
    i2t, t2i = zip(*tiles, strict=True)
    return torch.cat(i2t), torch.cat(t2i)


def _tile(patches: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
    s_IJTN = torch.einsum("jtd,ind->ijtn", tokens, patches)
    return mean_over_patches(s_IJTN, token_mask), mean_over_tokens(s_IJTN, token_mask)


def mean_over_patches(s: Tensor, token_mask: Tensor) -> Tensor:
    """(...) image to text, equation 4: the mean over patches of their highest similarity to a valid token.

    ``s`` (..., T, N) are similarities, and ``token_mask`` (..., T) bool is True for at least one token each.
    """
    return s.masked_fill(~token_mask[..., None], -torch.inf).amax(dim=-2).mean(dim=-1)


def mean_over_tokens(s: Tensor, token_mask: Tensor) -> Tensor:
    """(...) text to image, equation 5: the mean over valid tokens of their highest similarity to a patch.

    The arguments are those of ``mean_over_patches``.
    """
    weights = token_mask.to(s.dtype) / token_mask.sum(dim=-1, keepdim=True)  # (..., T)
    return (s.amax(dim=-1) * weights).sum(dim=-1)


def filip_loss(patches: Tensor, tokens: Tensor, token_mask: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of late-interaction similarities (FILIP's equations 1 to 5), patches with tokens.

    Images to texts by the mean over patches, texts to images by the mean over tokens, of (B, N, D) and (B, T, D)
    embeddings, which are normalised here: a scalar in float32, also under autocast. With n captions of each image,
    tokens are (B n, T, D), and ``contrast`` says how they are used. ``token_mask`` (B, T) bool is False for padding;
    ``logit_scale`` is the () inverse temperature, already exponentiated. Under an initialised process group the loss is
    that of the global batch, as ``clip_loss``. ValueError if the mask does not fit the tokens.
    """
    tokens = without_padding(tokens, token_mask)
    with torch.autocast(patches.device.type, enabled=False):
        dtype = torch.promote_types(patches.dtype, torch.float32)
        patches, tokens = F.normalize(patches.to(dtype), dim=-1), F.normalize(tokens.to(dtype), dim=-1)
        used_T = token_mask.any(dim=0)  # padding in every caption would cost as much as words
        used_T[:1] = True  # without captions too there is one column to take maxima over
        tokens, token_mask = tokens[:, used_T], token_mask[:, used_T]
        (all_patches, start), (all_tokens, _) = gather_rows(patches), gather_rows(tokens)
        all_token_mask, _ = gather_rows(token_mask)
        i2t_BC, t2i_CB = late_interaction(patches, all_tokens, all_token_mask)
        if world_size() > 1:  # this process's images with all texts, and all images with this process's texts
            t2i_CB = late_interaction(all_patches, tokens, token_mask)[1]
        scale = logit_scale.to(dtype)
        return contrast(scale * i2t_BC, scale * t2i_CB.T, start=start)


class FILIPLoss(nn.Module):
    """``filip_loss`` of a batch's features."""

    needs_dense = True

    def forward(self, features: Features) -> LossOutput:
        """The loss, and as its one term "filip"; ValueError if the features have no dense outputs."""
        patches, tokens, token_mask = features.dense()
        loss = filip_loss(patches, tokens, token_mask, features.logit_scale)
        return LossOutput(total=loss, terms={"filip": loss})
