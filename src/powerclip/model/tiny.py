"""The small image tower of the demo, as a model of timm: a vision transformer whose patches are convolutional.

Early convolutions let a transformer learn from few images (Xiao et al., "Early Convolutions Help Transformers See
Better", NeurIPS 2021). The convolutions are normalised over channels, so that no image depends on its batch.
"""

from typing import Any

from timm.layers import LayerNorm2d, PatchEmbed
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem

WIDTH = 96


class ConvPatchEmbed(PatchEmbed):  # type: ignore[misc]
    """Patches of 8 pixels as three convolutions of stride 2."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As timm's ``PatchEmbed``, whose one convolution is replaced."""
        super().__init__(*args, **kwargs)
        self.proj = ConvStem(channels=(WIDTH // 4, WIDTH // 2, WIDTH), padding=1, norm_layer=LayerNorm2d)


@register_model  # type: ignore[untyped-decorator]
def powerclip_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Two blocks of width 96 on patches of 8 pixels; there are no pretrained weights."""
    settings: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 3}
    settings |= {"embed_layer": ConvPatchEmbed, **kwargs, "pretrained_cfg": {"architecture": "powerclip_tiny"}}
    model: VisionTransformer = build_model_with_cfg(VisionTransformer, "powerclip_tiny", pretrained, **settings)
    return model
