"""FILIP's token-wise contrastive loss (Yao et al., "FILIP: Fine-grained Interactive Language-Image Pre-Training", 2022).

The paper's cuts for speed (fewer dimensions, half precision, a quarter of the tokens) are left out: this is its
equation as it stands.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from powerclip.distributed import gather_rows, sum_over_processes
from powerclip.loss.clip import with_value
from powerclip.types import Features, LossOutput

TILE_ELEMENTS = 2**25
"""Token-token similarities held at a time (128 MiB in float32)."""


def late_interaction(queries: Tensor, query_mask: Tensor, items: Tensor, item_mask: Tensor) -> Tensor:
    """(I, J) mean over a query's tokens of their highest similarity to a token of the item (FILIP's equations 4, 5).

    Tiles of queries are scored one after another, and again in the backward pass.

    Args:
        queries: (I, N, D) unit vectors.
        query_mask: (I, N) bool, True = present; at least one each.
        items: (J, T, D) unit vectors.
        item_mask: (J, T) bool, True = present; at least one each.
    """
    rows = max(1, TILE_ELEMENTS // max(1, queries.shape[1] * items.shape[0] * items.shape[1]))
    tiles = [
        checkpoint(_tile, queries[i : i + rows], query_mask[i : i + rows], items, item_mask, use_reentrant=False)
        for i in range(0, len(queries), rows)
    ]
    return torch.cat(tiles)


def _tile(queries: Tensor, query_mask: Tensor, items: Tensor, item_mask: Tensor) -> Tensor:
    s_IJNT = torch.einsum("ind,jtd->ijnt", queries, items)
    best_IJN = s_IJNT.masked_fill(~item_mask[None, :, None], -torch.inf).amax(dim=-1)
    weights_IN = query_mask.to(best_IJN.dtype)
    weights_IN = weights_IN / weights_IN.sum(dim=1, keepdim=True)
    return torch.einsum("ijn,in->ij", best_IJN, weights_IN)


def filip_loss(patches: Tensor, tokens: Tensor, token_mask: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of late-interaction similarities: images to texts by the mean over patches, texts to
    images by the mean over tokens (FILIP's equations 1 to 5).

    Under an initialised process group the loss is that of the global batch, as ``clip_loss``.

    Args:
        patches: (B, N, D) patch embeddings; normalised here.
        tokens: (B, T, D) token embeddings; normalised here.
        token_mask: (B, T) bool, True = a token of the caption, False = padding.
        logit_scale: () inverse temperature, already exponentiated.

    Returns:
        () loss, float32 also under autocast.
    """
    with torch.autocast(patches.device.type, enabled=False):
        dtype = torch.promote_types(patches.dtype, torch.float32)
        patches, tokens = F.normalize(patches.to(dtype), dim=-1), F.normalize(tokens.to(dtype), dim=-1)
        patch_mask = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
        (all_patches, start), (all_tokens, _) = gather_rows(patches), gather_rows(tokens)
        (all_patch_mask, _), (all_token_mask, _) = gather_rows(patch_mask), gather_rows(token_mask)
        labels = torch.arange(start, start + len(patches), device=patches.device)
        i2t_BC = late_interaction(patches, patch_mask, all_tokens, all_token_mask)
        t2i_BC = late_interaction(tokens, token_mask, all_patches, all_patch_mask)
        scale = logit_scale.to(dtype)
        share = (
            F.cross_entropy(scale * i2t_BC, labels, reduction="sum")
            + F.cross_entropy(scale * t2i_BC, labels, reduction="sum")
        ) / (2 * len(all_patches))
        return with_value(share, sum_over_processes(share))


class FILIPLoss(nn.Module):
    """``filip_loss`` of a batch's features."""

    needs_dense = True

    def forward(self, features: Features) -> LossOutput:
        """The loss, and as its one term "filip".

        Raises:
            ValueError: the features have no dense outputs.
        """
        patches, tokens, token_mask = features.dense()
        loss = filip_loss(patches, tokens, token_mask, features.logit_scale)
        return LossOutput(total=loss, terms={"filip": loss})
