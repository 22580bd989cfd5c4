"""The two towers: open_clip's, with average pooling, and region and phrase vectors from their dense outputs."""

import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from powerclip.config import PoolingConfig, ScoringConfig, from_dict
from powerclip.config.values import Tower
from powerclip.errors import PowerclipError
from powerclip.model.alone import PackedPhrases, pack_phrases
from powerclip.model.pooling import (
    at_least_float32,
    caption_ids,
    mean_of_valid,
    normalise,
    pool_leaves,
    pool_phrases,
    pool_regions,
    pool_tokens,
)
from powerclip.types import Batch, Features

Transform = Callable[..., Any]
Tokenizer = Callable[..., Tensor]


class PowerCLIP(nn.Module):
    """An image tower and a text tower with dense outputs in one space (Kawamura et al., CVPR 2026).

    A global embedding is the mean of the dense ones, of all patches and of all valid tokens, or the tower's own.
    """

    def __init__(self, backbone: Any, *, config: dict[str, Any]):
        """Wrap an open_clip model; ``create_model`` builds one by name.

        Args:
            backbone: open_clip's model.
            config: what is saved with the weights: the settings of ``PoolingConfig``, and ``scoring``; for models that
                can be saved also ``model``, open_clip's config.

        Raises:
            PowerclipError: a tower has no dense outputs in the joint space.
            ValueError: a value in the config is not valid.
        """
        super().__init__()
        _check_towers(backbone)
        self.backbone: Any = backbone
        self.config = config
        pooling = PoolingConfig(**{f.name: config[f.name] for f in fields(PoolingConfig) if f.name in config})
        self.image_pool, self.text_pool = pooling.image_pool, pooling.text_pool
        self.region_norm, self.region_unit = pooling.region_norm, pooling.region_unit
        self.phrase_norm, self.phrase_unit = pooling.phrase_norm, pooling.phrase_unit
        self.phrase_context = pooling.phrase_context
        pool = getattr(backbone.visual.trunk, "attn_pool", None) if isinstance(backbone.visual, TimmModel) else None
        if pool is not None and self.image_pool == "avg":  # the mean does not ask where the tower would look
            for parameter in (pool.latent, *pool.q.parameters(), *pool.q_norm.parameters(), *pool.k_norm.parameters()):
                parameter.requires_grad_(False)
        self.scoring = from_dict(ScoringConfig, config.get("scoring", {}), where="scoring")
        self.vector_means: Tensor | None
        centred = self.scoring.zero == "centred" and "model" in config
        self.register_buffer("vector_means", torch.zeros(2, self.embed_dim) if centred else None)
        visual = backbone.visual
        timm = isinstance(visual, TimmModel)
        rows, columns = visual.trunk.patch_embed.grid_size if timm else visual.grid_size
        self.grid_size: tuple[int, int] = (int(rows), int(columns))
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.context_length: int = _text_tower(backbone).context_length
        if 0 in self.grid_size:
            raise PowerclipError(
                f"images of {self.image_size[0]} x {self.image_size[1]} pixels are smaller than a patch"
            )

    @property
    def embed_dim(self) -> int:
        """D, the dimension of the joint space, of a model that can be saved."""
        return int(self.config["model"]["embed_dim"])

    @property
    def logit_scale(self) -> nn.Parameter:
        """() log of the inverse temperature, as in open_clip."""
        return self.backbone.logit_scale  # type: ignore[no-any-return]

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """() bias of the similarities (SigLIP's); None if the model has none."""
        return self.backbone.logit_bias  # type: ignore[no-any-return]

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the text tower knows."""
        return int(_text_tower(self.backbone).token_embedding.num_embeddings)

    def encode_patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, N, D) patch embeddings in the joint space, row-major over the grid.

        A tower that was trained with attention pooling gives what its head gives of each patch alone.
        """
        return self._encode_patches(images, pool=False)[0]

    def _encode_patches(self, images: Tensor, *, pool: bool = True) -> tuple[Tensor, Tensor]:
        """(B, N, D) patch embeddings and, unless ``pool`` is False, the (B, D) global ones, from one pass."""
        height, width = self.image_size
        if not isinstance(images, Tensor) or images.shape[1:] != (3, height, width) or not images.is_floating_point():
            raise ValueError(
                f"expected images as a (B, 3, {height}, {width}) float tensor, as the model's preprocess makes them; "
                f"got {_shown(images)}"
            )
        visual: Any = self.backbone.visual
        tower = pool and self.image_pool == "tower"
        found = visual.forward_intermediates(
            images, indices=1, normalize_intermediates=True, intermediates_only=not tower, output_fmt="NLC"
        )
        x: Tensor = found["image_intermediates"][0]  # (B, N, width), without class tokens, after the last norm
        if isinstance(visual, TimmModel):
            if getattr(visual.trunk, "attn_pool", None) is not None:
                x = _attention_pool_of_each(visual.trunk.attn_pool, x)
            x = visual.head(visual.trunk.head(visual.trunk.head_drop(visual.trunk.fc_norm(x))))
        else:
            x = _projected(x, visual.proj)  # (B, N, D)
        return x, found["image_features"] if tower else at_least_float32(x).mean(dim=1)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, D) token embeddings in the joint space; T at most ``context_length``."""
        return self._encode_tokens(tokens)[0]

    def _encode_tokens(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) token embeddings and the (B, D) global ones, not normalised."""
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"expected captions as (B, T) token ids, as the model's tokenizer makes them; got {_shown(tokens)}"
            )
        text: Any = _text_tower(self.backbone)
        if (T := tokens.shape[1]) > self.context_length:
            raise ValueError(f"expected at most {self.context_length} tokens a caption; got {T}")
        pool, eos = _pool_type(text)
        if pool == "last" or text.attn_mask is None or getattr(text, "use_pad_mask", False):
            # What follows a token matters to it, or the last of the context is pooled: pad as the tokenizer does.
            tokens = F.pad(tokens, (0, self.context_length - T), value=getattr(text, "pad_id", 0))
            x: Tensor = self.backbone.forward_intermediates(
                text=tokens, text_indices=1, normalize_intermediates=True, intermediates_only=True
            )["text_intermediates"][0]  # (B, context, width), after the last norm
        else:
            x = text.token_embedding(tokens).to(text.transformer.get_cast_dtype())
            x = x + text.positional_embedding[:T].to(x.dtype)
            x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:T, :T]))  # (B, T, width)
        dense = _projected(x[:, :T], text.text_projection)  # (B, T, D)
        if self.text_pool == "avg":
            return dense, mean_of_valid(dense, self.valid_tokens(tokens[:, :T]))
        return dense, _projected(text_global_pool(x, tokens, pool, eos_token_id=eos), text.text_projection)

    def _encode_packed(self, packed: PackedPhrases) -> Tensor:
        """(B, P, D) token embeddings of phrases that do not see each other."""
        text: Any = _text_tower(self.backbone)
        visible = packed.visible if text.attn_mask is None else packed.visible.tril()
        x = text.token_embedding(packed.tokens).to(text.transformer.get_cast_dtype())
        x = x + text.positional_embedding[packed.positions].to(x.dtype)
        mask = torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill_(~visible, -torch.inf)
        heads = text.transformer.resblocks[0].attn.num_heads
        x = text.ln_final(text.transformer(x, attn_mask=mask.repeat_interleave(heads, dim=0)))
        return _projected(x, text.text_projection)

    def encode_regions(self, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Region vectors of images.

        Args:
            images: (B, 3, H, W).
            masks: (B, M, N) bool regions on the patch grid, row-major; an all-False region is absent. None: each patch.

        Returns:
            (B, M, D) float32 vectors, of unit length if ``region_norm`` is "unit", zero where absent, and (B, M) bool,
            True = present.

        Raises:
            ValueError: the masks are not on the model's grid.
        """
        return pool_regions(self.encode_patches(images), masks, norm=self.region_norm)

    def encode_image_and_regions(self, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """``encode_regions`` and ``encode_image`` in one pass: (B, M, D), (B, M) bool and (B, D)."""
        patches, pooled = self._encode_patches(images)
        return (*pool_regions(patches, masks, norm=self.region_norm), _embedding(pooled, False, patches.dtype))

    def encode_phrases(self, tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Phrase vectors of captions, for a model with ``phrase_unit`` "token" those of single tokens, or both.

        Args:
            tokens: (B, T) int64 token ids.
            leaf_of_token: (B, T) int64: the leaf each token belongs to, -1 for specials and padding.
            spans: (B, K, 2) int64 first and last leaf of each phrase, inclusive; -1, -1 for no phrase.

        Returns:
            (B, K, D) float32 vectors, zero where absent, and (B, K) bool, True = present; K is T for tokens; of
            "both" the phrases come first, then T tokens.

        Raises:
            ValueError: the shapes do not fit each other.
        """
        _check_phrases(tokens, leaf_of_token, spans)
        if self.phrase_context == "alone":
            return self._phrases_alone(tokens, leaf_of_token, spans)
        return self._pool_phrases(self.encode_tokens(tokens), leaf_of_token, spans)

    def _phrases_alone(self, tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """``encode_phrases``, each phrase read as a text of its own."""
        if not len(tokens):  # there is no longest caption
            return self._pool_phrases(self.encode_tokens(tokens), leaf_of_token, spans)
        packed = pack_phrases(tokens, leaf_of_token, spans)
        return self._pool_phrases(self._encode_packed(packed), packed.leaf_of_token, packed.spans)

    def _pool_phrases(self, dense: Tensor, leaf_of_token: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Phrase vectors from token embeddings (B, T, D)."""
        if self.phrase_unit == "token":
            return pool_tokens(dense, leaf_of_token)
        leaves, leaf_mask = pool_leaves(dense, leaf_of_token, leaves=dense.shape[1])  # (B, L, D), (B, L) with L = T
        phrases, present = pool_phrases(leaves, leaf_mask, spans, norm=self.phrase_norm)
        if self.phrase_unit == "phrase":
            return phrases, present
        tokens, token_present = pool_tokens(dense, leaf_of_token)
        return torch.cat([phrases, tokens], dim=1), torch.cat([present, token_present], dim=1)

    def valid_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) bool: True up to the end-of-text token, False for the padding after it."""
        text: Any = _text_tower(self.backbone)
        pool, eos = _pool_type(text)
        if pool == "argmax":  # the end of text has the highest id; the padding has 0, which is also the id of a word
            end = tokens.argmax(dim=1)
        elif pool == "eos":
            end = torch.eq(tokens, -1 if eos is None else eos).int().argmax(dim=1)
        else:  # the padding is a run of one id; unless it is the tower's own, its first is the end of the text
            last = tokens[:, -1]
            positions = torch.arange(tokens.shape[1], device=tokens.device)
            before = torch.where(tokens == last[:, None], -1, positions).amax(dim=1)  # of the run
            end = before + 1 - (last == getattr(text, "pad_id", 0)).long()
        return torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) images to (B, D): the mean of their patch embeddings or the tower's pooling, in their dtype."""
        patches, pooled = self._encode_patches(images)
        return _embedding(pooled, normalize, patches.dtype)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(B, T) token ids to (B, D): the mean of the valid tokens, or the tower's own pooling."""
        dense, pooled = self._encode_tokens(tokens)
        return _embedding(pooled, normalize, dense.dtype)

    def forward(
        self, batch: Batch | Tensor | None = None, text: Tensor | None = None, *, image: Tensor | None = None
    ) -> Features | dict[str, Tensor]:
        """Everything the losses need, from one pass over the images and one over the captions.

        Called as an open_clip model, with ``image`` (B, 3, H, W) or ``text`` (B, T) or both, by name or in this order,
        it answers as one with ``output_dict``: ``image_features`` and ``text_features`` (B, D) of unit length,
        ``logit_scale`` (not its log).
        """
        if isinstance(batch, Tensor):
            batch, image = None, batch
        if batch is None:
            found = {"logit_scale": self.logit_scale.exp()}
            found |= {} if self.logit_bias is None else {"logit_bias": self.logit_bias}
            found |= {} if image is None else {"image_features": self.encode_image(image, normalize=True)}
            return found | ({} if text is None else {"text_features": self.encode_text(text, normalize=True)})
        _check_phrases(batch.tokens, batch.leaf_of_token, batch.phrase_spans)
        patches, image = self._encode_patches(batch.images)  # (B, N, D), (B, D)
        dense, text = self._encode_tokens(batch.tokens)  # (B, T, D), (B, D)
        masks = None if self.region_unit == "patch" else batch.region_masks
        regions, region_mask = pool_regions(patches, masks, norm=self.region_norm)  # (B, M, D), (B, M)
        if self.phrase_context == "alone":
            phrases, phrase_mask = self._phrases_alone(batch.tokens, batch.leaf_of_token, batch.phrase_spans)
        else:
            phrases, phrase_mask = self._pool_phrases(dense, batch.leaf_of_token, batch.phrase_spans)
        return Features(
            image=normalise(at_least_float32(image)),
            text=normalise(at_least_float32(text)),
            regions=regions,
            region_mask=region_mask,
            phrases=phrases,
            phrase_mask=phrase_mask,
            logit_scale=self.logit_scale.exp(),
            caption_ids=caption_ids(batch.tokens),
            logit_bias=self.logit_bias,
            patches=patches,
            tokens=dense,
            token_mask=self.valid_tokens(batch.tokens),
            token_ids=batch.tokens,
        )

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of both towers, each tower's first block first."""
        return [block for stack in self._stacks() for block in stack]

    def depth_of(self, name: str) -> int:
        """How many layers are between a parameter and its tower's output: 0 for the head, one more for each block."""
        layers = len(self._stacks()[0 if name.startswith("backbone.visual.") else 1])
        if block := re.search(r"\.(?:res)?blocks\.(\d+)\.", name):
            return layers - int(block[1])
        early = ("embed", "class_emb", "conv1", "ln_pre", "pos_", "positional", "cls_token", "norm_pre")
        return 1 + layers if any(part in name for part in early) else 0

    def tower_parameters(self, tower: Tower) -> list[nn.Parameter]:
        """The parameters of one tower, its projection included."""
        shared = ("backbone.logit_scale", "backbone.logit_bias")
        parameters = [(name, p) for name, p in self.named_parameters() if name not in shared]
        return [p for name, p in parameters if name.startswith("backbone.visual.") == (tower == "image")]

    def _stacks(self) -> list[nn.ModuleList]:
        visual: Any = self.backbone.visual
        image = visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks
        return [image, _text_tower(self.backbone).transformer.resblocks]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in both towers."""
        self.backbone.set_grad_checkpointing(enable)


def _shown(given: object) -> str:
    """What came in place of a tensor of another kind."""
    return f"{tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else f"a {type(given).__name__}"


def _check_phrases(tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> None:
    """Of (B, T) tokens there must be (B, T) leaves and (B, K, 2) spans."""
    if leaf_of_token.shape != tokens.shape or spans.ndim != 3 or spans.shape[::2] != (len(tokens), 2):
        raise ValueError(
            f"tokens, leaf_of_token and spans have shapes {tuple(tokens.shape)}, {tuple(leaf_of_token.shape)} and "
            f"{tuple(spans.shape)}; expected (B, T), (B, T) and (B, K, 2)"
        )


def _embedding(x: Tensor, normalize: bool, dtype: torch.dtype) -> Tensor:
    """Normalised in float32, also of a model in half precision."""
    return (normalise(at_least_float32(x)) if normalize else x).to(dtype)


def _projected(x: Tensor, projection: nn.Linear | Tensor | None) -> Tensor:
    """(..., width) to (..., D) by a tower's projection, which open_clip keeps in several forms."""
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _text_tower(backbone: Any) -> Any:
    """The module that has the text tower's parts: ``text``, or in open_clip's older form the model itself."""
    return backbone.text if isinstance(backbone, open_clip.CustomTextCLIP) else backbone


def _pool_type(text: Any) -> tuple[str, int | None]:
    if isinstance(text, TextTransformer):
        return text.pool_type, getattr(text, "eos_id", None)
    return text.text_pool_type, getattr(text, "text_eos_id", None)


def _attention_pool_of_each(pool: Any, x: Tensor) -> Tensor:
    """(B, N, width) patches to what attention pooling gives of each alone: with one key, attention is its value."""
    value = pool.kv(x).chunk(2, dim=-1)[1]  # (B, N, width)
    x = pool.proj_drop(pool.proj(value))
    return x if pool.mlp is None else x + pool.mlp(pool.norm(x))


def _check_towers(backbone: Any) -> None:
    if not hasattr(backbone, "visual"):
        raise PowerclipError(
            f"{type(backbone).__name__} is not a model of open_clip; of one that is wrapped (DistributedDataParallel, "
            "say) give .module"
        )
    tower = backbone.visual
    if isinstance(tower, TimmModel):
        tower = tower.trunk
        dense = all(hasattr(tower, name) for name in ("num_prefix_tokens", "fc_norm", "patch_embed"))
        pool = getattr(tower, "attn_pool", None)
        dense &= pool is None or (
            isinstance(pool, AttentionPoolLatent) and pool.latent_len == 1 and pool.pos_embed is None
        )
    else:
        dense = isinstance(tower, VisionTransformer) and tower.attn_pool is None
    if not dense:
        raise PowerclipError(
            f"the image tower {type(tower).__name__} has no patch tokens in the joint space; use a ViT that pools by "
            "class token, average or one attention query"
        )
    text = _text_tower(backbone)
    if isinstance(text, TextTransformer) and text.cls_emb is not None:
        raise PowerclipError("text towers with an appended class token (CoCa) have no dense outputs in the joint space")
