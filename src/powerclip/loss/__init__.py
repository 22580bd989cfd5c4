"""Losses: CLIP's, the powerset alignment loss, PowerCLIP's weighted sum of both, and the baselines."""

from powerclip.loss.clip import CLIPLoss, clip_loss
from powerclip.loss.filip import FILIPLoss, filip_loss
from powerclip.loss.powerclip import PowerCLIPLoss
from powerclip.loss.powerset import PowersetAlignmentLoss
from powerclip.loss.siglip import SigLIPLoss, siglip_loss
from powerclip.loss.sparc import SPARCLoss, sparc_loss
from powerclip.loss.superclip import SuperCLIPLoss
from powerclip.loss.triplet import triplet_loss

__all__ = [
    "CLIPLoss",
    "FILIPLoss",
    "PowerCLIPLoss",
    "PowersetAlignmentLoss",
    "SPARCLoss",
    "SigLIPLoss",
    "SuperCLIPLoss",
    "clip_loss",
    "filip_loss",
    "siglip_loss",
    "sparc_loss",
    "triplet_loss",
]
