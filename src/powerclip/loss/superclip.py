"""SuperCLIP's loss: CLIP's, and which tokens a caption has, told from its image alone (Zhao et al., NeurIPS 2025).

The weighted tokens as a target are those of Huang et al., "Classification Done Right for Vision-Language Pre-Training"
(NeurIPS 2024).
"""

import torch
from torch import Tensor, nn

from powerclip.config.checks import require_number
from powerclip.distributed import sum_over_processes, with_value
from powerclip.loss.clip import clip_loss
from powerclip.types import Features, LossOutput


def contained_tokens(token_ids: Tensor, token_mask: Tensor, *, vocabulary: int) -> Tensor:
    """(B, V) bool: whether a caption contains a token, from ids (B, T) int64 and mask (B, T), False for padding."""
    found = torch.zeros(len(token_ids), vocabulary + 1, dtype=torch.bool, device=token_ids.device)
    found.scatter_(1, token_ids.masked_fill(~token_mask, vocabulary), True)  # padding has its own column
    return found[:, :vocabulary]


def inverse_document_frequency(counts: Tensor, documents: Tensor) -> Tensor:
    """(V,) max(0, log(n / (1 + n_t))), of ``counts`` n_t (V,)
    of the n captions that contain token t: 0 for one in all."""
    return (documents / (1 + counts)).log().clamp(min=0)


def token_loss(logits: Tensor, contained: Tensor, weights: Tensor) -> Tensor:
    """-1/C sum_bt y[b, t] log softmax(logits[b])[t], where y[b] are the caption's weights, divided by their sum.

    A () scalar of (B, V) logits, ``contained`` (B, V) bool and token ``weights`` (V,). A caption without a token of
    positive weight adds 0. Under an initialised process group it is the mean over the C captions of all processes, with
    the gradient of this process's share.
    """
    target_BV = contained * weights.to(logits.dtype)
    target_BV = target_BV / target_BV.sum(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
    captions = sum_over_processes(torch.tensor(float(len(logits)), dtype=logits.dtype, device=logits.device))
    share = -(target_BV * logits.log_softmax(dim=1)).sum() / captions
    return with_value(share, sum_over_processes(share))


class SuperCLIPLoss(nn.Module):
    """L_CLIP + weight * L_token, with a linear head from the mean patch embedding to the tokens of the vocabulary.

    The head is trained with the model and left out of it. It starts at 0, equal on all processes, and each process gets
    its share of the gradient. Inverse document frequencies are those of the captions of all processes and training
    steps so far, the present one included; their counts are saved with the module. Tokens that all captions have, the
    start and the end of the text, weigh 0. Of several captions of an image, each is told from it.
    """

    needs_dense = True
    counts: Tensor
    documents: Tensor

    def __init__(self, *, dimension: int, vocabulary: int, weight: float = 1.0) -> None:
        """Set up the head from ``dimension`` D to V tokens; ValueError if the weight is negative."""
        super().__init__()
        require_number("weight", weight, lambda v: v >= 0, "0 or more")
        self.weight = weight
        self.head = nn.Linear(dimension, vocabulary)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.int64))
        self.register_buffer("documents", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Features) -> LossOutput:
        """The weighted sum, and its terms "clip" and "token"; ValueError if the features lack what it needs."""
        patches, _, token_mask = features.dense()
        if features.token_ids is None:
            raise ValueError("the features lack token_ids; take those of PowerCLIP.forward")
        clip = clip_loss(features.image, features.text, features.logit_scale)
        with torch.autocast(patches.device.type, enabled=False):
            pooled_BD = patches.to(torch.promote_types(patches.dtype, torch.float32)).mean(dim=1)
            contained = contained_tokens(features.token_ids, token_mask, vocabulary=len(self.counts))
            if self.training:
                seen = torch.cat([contained.sum(dim=0), torch.tensor([len(contained)], device=contained.device)])
                seen = sum_over_processes(seen)
                self.counts += seen[:-1]
                self.documents += seen[-1]
            weights = inverse_document_frequency(self.counts, self.documents)
            logits = self.head(pooled_BD.to(self.head.weight.dtype))
            if len(contained) > len(logits):
                logits = logits.repeat_interleave(len(contained) // len(logits), dim=0)
            token = token_loss(logits, contained, weights)
        return LossOutput(total=clip + self.weight * token, terms={"clip": clip, "token": token})
