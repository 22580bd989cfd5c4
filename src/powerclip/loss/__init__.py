"""Losses: CLIP's, the powerset alignment loss, and PowerCLIP's weighted sum of both."""

from powerclip.loss.clip import clip_loss
from powerclip.loss.powerclip import PowerCLIPLoss
from powerclip.loss.powerset import PowersetAlignmentLoss
from powerclip.loss.triplet import triplet_loss

__all__ = ["PowerCLIPLoss", "PowersetAlignmentLoss", "clip_loss", "triplet_loss"]
