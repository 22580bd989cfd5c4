"""The image and text towers: building them, their region and phrase vectors, transforms, saving and loading."""

from powerclip.model.create import architecture, create_model, describe, from_open_clip
from powerclip.model.hub import load, load_any, load_for_clip_benchmark, load_open_clip, save
from powerclip.model.lora import add_lora
from powerclip.model.packed import pack
from powerclip.model.tokenizer import make_tokenizer
from powerclip.model.towers import PowerCLIP
from powerclip.model.transforms import make_transforms

__all__ = [
    "PowerCLIP",
    "add_lora",
    "architecture",
    "create_model",
    "describe",
    "from_open_clip",
    "load",
    "load_any",
    "load_for_clip_benchmark",
    "load_open_clip",
    "make_tokenizer",
    "make_transforms",
    "pack",
    "save",
]
