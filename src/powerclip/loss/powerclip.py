"""PowerCLIP's loss: CLIP's, plus the weighted powerset alignment loss."""

from torch import nn

from powerclip.config import EqualCaptions
from powerclip.loss.clip import clip_loss
from powerclip.loss.powerset import PowersetAlignmentLoss
from powerclip.types import Features, LossOutput


class PowerCLIPLoss(nn.Module):
    """L = L_CLIP + weight * L_powerset (Kawamura et al., CVPR 2026; weight is their lambda, 0.2)."""

    def __init__(
        self,
        *,
        weight: float = 0.2,
        powerset: PowersetAlignmentLoss | None = None,
        equal_captions: EqualCaptions = "negatives",
    ) -> None:
        """Set up the loss; ValueError if the weight is negative.

        A weight of 0 is plain CLIP and computes no powerset term. ``powerset`` is by default the alignment loss with
        its defaults; ``equal_captions`` says whether pairs with the same caption are negatives of each other in it.
        """
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight is {weight!r}; it must be 0 or more")
        self.weight = weight
        self.powerset = powerset or PowersetAlignmentLoss()
        self.equal_captions = equal_captions

    def forward(self, features: Features) -> LossOutput:
        """The weighted sum, and its terms "clip" and "powerset" by name."""
        clip = clip_loss(features.image, features.text, features.logit_scale)
        if self.weight == 0:
            return LossOutput(total=clip, terms={"clip": clip})
        powerset = self.powerset(
            features.regions,
            features.phrases,
            features.region_mask,
            features.phrase_mask,
            caption_ids=features.caption_ids if self.equal_captions == "ignored" else None,
        )
        return LossOutput(total=clip + self.weight * powerset, terms={"clip": clip, "powerset": powerset})
