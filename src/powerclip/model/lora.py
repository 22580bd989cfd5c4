"""LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022), through peft."""

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from powerclip.errors import PowerclipError, needs_extra
from powerclip.model.pooling import at_least_float32
from powerclip.model.towers import PowerCLIP

ADAPTER = "default"
"""What peft calls the additions."""


def add_lora(model: PowerCLIP, *, rank: int, alpha: int | None = None) -> None:
    """Train additions of low rank to a model's weights W instead of the weights: W + alpha / rank B A (equation 3).

    They are added to every linear layer of both towers' blocks (the projections in and out of the attention, and the
    MLP), except in a tower that is frozen. All other parameters are frozen, but the temperature and the bias keep
    their state. B starts as zeros, so the model stays what it is until it is trained. ``alpha`` is ``rank`` if None.

    Raises:
        PowerclipError: peft is not installed, or a block has an attention without linear layers.
    """
    with needs_extra("LoRA", "lora"):
        from peft import LoraConfig, inject_adapter_in_model
    blocks = [block for block in model.blocks() if any(parameter.requires_grad for parameter in block.parameters())]
    for block in blocks:
        for name, module in list(block.named_modules()):
            if isinstance(module, nn.MultiheadAttention):
                block.set_submodule(name, _SelfAttention(module))
            elif hasattr(module, "in_proj_weight"):
                raise PowerclipError(
                    f"LoRA cannot adapt the attention {type(module).__name__}; train without lora_rank"
                )
            elif hasattr(module, "qkv_bias_separate"):  # else timm's EVA applies the layer's weight, not the layer
                module.qkv_bias_separate = True
    layers = {layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    targets = [name for name, module in model.named_modules() if module in layers]
    trained = [p for p in (model.logit_scale, model.logit_bias) if p is not None and p.requires_grad]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=targets), model, ADAPTER)
    for parameter in trained:
        parameter.requires_grad_(True)


def merge_lora(model: PowerCLIP, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of a model, by the names that it had before ``add_lora``, with the additions merged (in float32)."""
    merged = dict(state)
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            a, b = (at_least_float32(merged.pop(f"{name}.lora_{part}.{ADAPTER}.weight")) for part in "AB")
            base = merged[f"{name}.base_layer.weight"]
            merged[f"{name}.base_layer.weight"] = (base + layer.scaling[ADAPTER] * b @ a).to(base.dtype)
    return {
        name.replace(".base_layer.", ".").replace(".attn.in_proj.", ".attn.in_proj_"): value
        for name, value in merged.items()
    }


class _SelfAttention(nn.Module):
    """open_clip's use of an ``nn.MultiheadAttention``, with a linear layer where that has packed parameters.

    peft's own layer for it changes the weights in every forward pass and subtracts the additions again, which leaves
    rounding errors in them, and makes new parameters, which an average or sharding of the weights does not see.
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        assert packed.batch_first
        self.heads = packed.num_heads
        self.in_proj = nn.Linear(packed.embed_dim, 3 * packed.embed_dim, device="meta")
        self.in_proj.weight, self.in_proj.bias = packed.in_proj_weight, packed.in_proj_bias
        self.out_proj = packed.out_proj

    def forward(
        self, x: Tensor, _key: Tensor, _value: Tensor, *, need_weights: bool, attn_mask: Tensor | None
    ) -> tuple[Tensor, None]:
        """(B, T, width) to the same, and no weights; ``attn_mask`` is (T, T)."""
        B, T, width = x.shape
        q, k, v = self.in_proj(x).view(B, T, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)  # (B, heads, T, width / heads)
        return self.out_proj(x.transpose(1, 2).reshape(B, T, width)), None
