"""The towers, their dense outputs, and models on disk."""

from powerclip.model.hub import load, save
from powerclip.model.towers import PowerCLIP, create_model, from_open_clip, make_tokenizer
from powerclip.model.transforms import make_transforms

__all__ = ["PowerCLIP", "create_model", "from_open_clip", "load", "make_tokenizer", "make_transforms", "save"]
