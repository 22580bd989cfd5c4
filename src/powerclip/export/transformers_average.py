"""transformers' CLIP with means for embeddings: over the patches, over the tokens of the text, or both.

    model = AutoModel.from_pretrained("FOLDER", trust_remote_code=True)

Everything else is CLIPModel's. Exported by powerclip, which this file does not need.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel


class AveragedCLIPConfig(CLIPConfig):  # type: ignore[misc]
    """CLIPConfig with ``averages``: which of "image" and "text" are averaged."""

    model_type = "averaged_clip"


class AveragedCLIPModel(CLIPModel):  # type: ignore[misc]
    """CLIPModel whose towers pool as the config's ``averages`` say."""

    config_class = AveragedCLIPConfig

    def __init__(self, config: AveragedCLIPConfig) -> None:
        super().__init__(config)
        if "image" in config.averages:
            self.vision_model.register_forward_hook(_average_patches)
        if "text" in config.averages:
            self.text_model.register_forward_hook(_average_tokens, with_kwargs=True)


def _average_patches(tower: Any, inputs: Any, output: Any) -> Any:
    """The mean of the normalised patches, instead of the class token; the projection comes after it."""
    patches: Tensor = tower.post_layernorm(output.last_hidden_state[:, 1:])  # (B, N, width)
    output.pooler_output = patches.float().mean(dim=1).to(patches.dtype)
    return output


def _average_tokens(tower: Any, inputs: Any, options: dict[str, Any], output: Any) -> Any:
    """The mean of the tokens up to the first that ends the text, instead of that one alone."""
    tokens: Tensor = options["input_ids"] if "input_ids" in options else inputs[0]
    x: Tensor = output.last_hidden_state  # (B, T, width), normalised
    end = tokens.eq(tower.config.eos_token_id).int().argmax(dim=1)
    valid = torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]  # (B, T)
    output.pooler_output = ((x.float() * valid[..., None]).sum(dim=1) / valid.sum(dim=1, keepdim=True)).to(x.dtype)
    return output
