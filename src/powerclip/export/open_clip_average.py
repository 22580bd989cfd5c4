"""Loads a model whose text embedding is the mean over the tokens, which open_clip's own classes do not compute.

    from open_clip_average import load
    model, preprocess, tokenizer = load("FOLDER")

The folder's config says ``"pool_type": "none"``, with which open_clip gives the (B, T, D) embeddings of all tokens;
those up to the end of the text are averaged here. Exported by powerclip, which this file does not need.
"""

from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit


class _AveragedText:
    """In front of one of open_clip's classes: averages what it gives of each token."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """(B, T) token ids of CLIP's tokenizer, in which the end of the text is the highest, to (B, D)."""
        x = super().encode_text(text)  # type: ignore[misc]  # (B, T, D)
        valid = torch.arange(text.shape[1], device=text.device) <= text.argmax(dim=1)[:, None]  # (B, T)
        mean = (x.float() * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True)
        return (unit(mean, dim=-1) if normalize else mean).to(x.dtype)


class _AveragedCLIP(_AveragedText, open_clip.CLIP):  # type: ignore[misc]
    pass


class _AveragedCustomTextCLIP(_AveragedText, open_clip.CustomTextCLIP):  # type: ignore[misc]
    pass


def load(folder: str | Path = Path(__file__).parent) -> tuple[Any, Any, Any]:
    """The model in evaluation mode, the transform of a PIL image and the tokenizer."""
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name, require_pretrained=True)
    custom = isinstance(model, open_clip.CustomTextCLIP)
    model.__class__ = _AveragedCustomTextCLIP if custom else _AveragedCLIP
    return model.eval(), preprocess, open_clip.get_tokenizer(name)
