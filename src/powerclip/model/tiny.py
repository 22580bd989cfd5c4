"""The small image towers of the demo, as models of timm: vision transformers whose patches are convolutional.

Early convolutions let a transformer learn from few images (Xiao et al., "Early Convolutions Help Transformers See
Better", NeurIPS 2021). The convolutions are normalised over channels, so that no image depends on its batch.
"""

from typing import Any

from timm.layers import LayerNorm2d, PatchEmbed
from timm.models import build_model_with_cfg, register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import Tensor, nn

WIDTH = 96


class ConvPatchEmbed(PatchEmbed):  # type: ignore[misc]
    """Patches of 8 pixels as three convolutions of stride 2, each patch seeing 15 by 15 pixels."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As timm's ``PatchEmbed``, whose one convolution is replaced."""
        super().__init__(*args, **kwargs)
        self.proj: nn.Module = _WholePatches(
            channels=(WIDTH // 4, WIDTH // 2, WIDTH), padding=1, norm_layer=LayerNorm2d
        )


class _WholePatches(ConvStem):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, WIDTH, H // 8, W // 8): what is left over at the right and below is not seen."""
        rows, columns = (side // 8 * 8 for side in x.shape[-2:])
        return super().forward(x[..., :rows, :columns])  # type: ignore[no-any-return]


class WideConvPatchEmbed(ConvPatchEmbed):
    """The same, and a convolution over neighbouring patches: each sees 31 by 31 pixels, an object of the scenes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As ``ConvPatchEmbed``."""
        super().__init__(*args, **kwargs)
        self.proj = nn.Sequential(self.proj, _Neighbours())


class _Neighbours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            LayerNorm2d(WIDTH), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.GELU(), nn.Conv2d(WIDTH, WIDTH, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, WIDTH, rows, columns) to the same shape."""
        return x + self.layers(x)  # type: ignore[no-any-return]


@register_model  # type: ignore[untyped-decorator]
def powerclip_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Two blocks of width 96 on patches of 8 pixels; there are no pretrained weights."""
    return _tower("powerclip_tiny", pretrained, depth=2, embed_layer=ConvPatchEmbed, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def powerclip_tiny_local(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """One block on patches that see an object each: less of what a patch says is about the rest of the image."""
    return _tower("powerclip_tiny_local", pretrained, depth=1, embed_layer=WideConvPatchEmbed, **kwargs)


def _tower(name: str, pretrained: bool, **settings: Any) -> VisionTransformer:
    defaults: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": WIDTH, "num_heads": 3}
    settings = defaults | settings | {"pretrained_cfg": {"architecture": name}}
    model: VisionTransformer = build_model_with_cfg(VisionTransformer, name, pretrained, **settings)
    return model
