"""SPARC's sparse loss (Bica et al., "Improving fine-grained understanding in image-text pre-training", 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from powerclip.config.checks import require_number
from powerclip.distributed import sum_over_processes, with_value
from powerclip.loss.clip import clip_loss
from powerclip.loss.positives import without_padding
from powerclip.types import Features, LossOutput


def group_patches(patches: Tensor, tokens: Tensor) -> Tensor:
    """(B, T, D) for every token the unit mean of the patches it points at, by sparse similarity (equations 2 to 5).

    A token's similarities to the N patches (B, N, D) are scaled to [0, 1] by their lowest and highest value, those
    below 1 / N become 0, and the rest are divided by their sum. One that is equally similar to all gets zero.
    """
    s_BTN = torch.bmm(tokens, patches.transpose(1, 2))
    low, high = s_BTN.amin(dim=-1, keepdim=True), s_BTN.amax(dim=-1, keepdim=True)
    tiny = torch.finfo(s_BTN.dtype).tiny
    s_BTN = (s_BTN - low) / (high - low).clamp(min=tiny)
    s_BTN = s_BTN.masked_fill(s_BTN < 1 / patches.shape[1], 0.0)
    weights_BTN = s_BTN / s_BTN.sum(dim=-1, keepdim=True).clamp(min=tiny)
    return F.normalize(torch.bmm(weights_BTN, patches), dim=-1)


def sparc_loss(patches: Tensor, tokens: Tensor, token_mask: Tensor, logit_scale: Tensor) -> Tensor:
    """Within each caption, contrast every token with the patches grouped for it, both ways (equation 6).

    A scalar in float32, also under autocast, of (B, N, D) patch and (B, T, D) token embeddings; ``token_mask`` (B, T)
    bool is False for padding, with one True or more each; ``logit_scale`` is the () inverse temperature, already
    exponentiated. The negatives of a token are the other tokens of its caption. The mean is over a caption's tokens,
    then over captions; of n captions of an image, (B n, T, D), each is compared with its patches. Under an initialised
    process group it is over the global batch, as ``clip_loss``.
    """
    tokens = without_padding(tokens, token_mask)
    with torch.autocast(patches.device.type, enabled=False):
        dtype = torch.promote_types(patches.dtype, torch.float32)
        patches, tokens = patches.to(dtype), tokens.to(dtype)
        if len(tokens) > len(patches):
            patches = patches.repeat_interleave(len(tokens) // len(patches), dim=0)
        grouped = group_patches(patches, tokens)
        logits_BTT = logit_scale.to(dtype) * torch.bmm(grouped, F.normalize(tokens, dim=-1).transpose(1, 2))
        per_token_BT = (_own(logits_BTT, token_mask) + _own(logits_BTT.transpose(1, 2), token_mask)) / 2
        per_caption_B = (per_token_BT * token_mask).sum(dim=1) / token_mask.sum(dim=1)
        captions = sum_over_processes(torch.tensor(float(len(tokens)), dtype=dtype, device=patches.device))
        share = per_caption_B.sum() / captions
        return with_value(share, sum_over_processes(share))


def _own(logits_BTT: Tensor, token_mask: Tensor) -> Tensor:
    """(B, T) cross-entropy of each row with its own column, among the columns that are present."""
    # A padded row may have any finite value, because its weight is 0; so its own column stays.
    T = logits_BTT.shape[1]
    own = torch.eye(T, dtype=torch.bool, device=logits_BTT.device)
    logits_BTT = logits_BTT.masked_fill(~(token_mask[:, None] | own), -torch.inf)
    return -logits_BTT.log_softmax(dim=-1).diagonal(dim1=1, dim2=2)


class SPARCLoss(nn.Module):
    """global_weight * L_CLIP + local_weight * L_SPARC (equation 7; the paper's weights are 0.5 and 1)."""

    needs_dense = True

    def __init__(self, *, global_weight: float = 0.5, local_weight: float = 1.0) -> None:
        """Set up the loss; ValueError if a weight is negative."""
        super().__init__()
        for name, value in (("global_weight", global_weight), ("local_weight", local_weight)):
            require_number(name, value, lambda v: v >= 0, "0 or more")
        self.global_weight, self.local_weight = global_weight, local_weight

    def forward(self, features: Features) -> LossOutput:
        """The weighted sum, and its terms "clip" and "sparc"; ValueError if the features have no dense outputs."""
        patches, tokens, token_mask = features.dense()
        clip = clip_loss(features.image, features.text, features.logit_scale)
        local = sparc_loss(patches, tokens, token_mask, features.logit_scale)
        total = self.global_weight * clip + self.local_weight * local
        return LossOutput(total=total, terms={"clip": clip, "sparc": local})
