"""The two towers: open_clip's, with average pooling and dense outputs in the joint space.

This is the only module that imports open_clip.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import open_clip
import torch
import torch.nn.functional as F
from open_clip.factory import load_checkpoint
from open_clip.model import set_model_preprocess_cfg
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from open_clip.transformer import TextTransformer, VisionTransformer, text_global_pool
from torch import Tensor, nn

from powerclip.config import PhraseNorm, PhraseUnit, ScoringConfig, TextPool, Tower, from_dict
from powerclip.errors import PowerclipError, did_you_mean, one_of
from powerclip.model.pooling import (
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

    A global embedding is the mean of the dense ones: of all patches, and of all valid tokens.
    """

    def __init__(self, backbone: Any, *, config: dict[str, Any]):
        """Wrap an open_clip model; ``create_model`` does it from a name.

        Args:
            backbone: open_clip's model.
            config: how to build it again, ``text_pool``, ``phrase_norm``, ``phrase_unit`` and ``scoring``.

        Raises:
            PowerclipError: a tower has no dense outputs in the joint space.
        """
        super().__init__()
        _check_towers(backbone)
        self.backbone: Any = backbone
        self.config = config
        self.text_pool: TextPool = config["text_pool"]
        self.phrase_norm: PhraseNorm = config["phrase_norm"]
        self.phrase_unit: PhraseUnit = config.get("phrase_unit", "phrase")
        self.scoring = from_dict(ScoringConfig, config.get("scoring", {}), where="scoring")
        visual = backbone.visual
        timm = isinstance(visual, TimmModel)
        rows, columns = visual.trunk.patch_embed.grid_size if timm else visual.grid_size
        self.grid_size: tuple[int, int] = (int(rows), int(columns))
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.context_length: int = _text_tower(backbone).context_length

    @property
    def logit_scale(self) -> nn.Parameter:
        """() log of the inverse temperature, as in open_clip."""
        return self.backbone.logit_scale  # type: ignore[no-any-return]

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """() bias of the similarities (SigLIP's), None where the model has none."""
        return self.backbone.logit_bias  # type: ignore[no-any-return]

    def encode_patches(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) images to (B, N, D) patch embeddings in the joint space, row-major over the grid."""
        visual: Any = self.backbone.visual
        x: Tensor = self.backbone.forward_intermediates(
            image=images,
            image_indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            image_output_fmt="NLC",
        )["image_intermediates"][0]  # (B, N, width), without class tokens, after the last norm
        if isinstance(visual, TimmModel):
            return visual.head(visual.trunk.fc_norm(x))  # type: ignore[no-any-return]
        return x if visual.proj is None else x @ visual.proj

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) token ids to (B, T, D) token embeddings in the joint space; T at most ``context_length``."""
        text: Any = _text_tower(self.backbone)
        T = tokens.shape[1]
        # open_clip's towers take their full context only; causal attention never looks at the padding behind a token.
        padded = F.pad(tokens, (0, self.context_length - T), value=getattr(text, "pad_id", 0))
        x: Tensor = self.backbone.forward_intermediates(
            text=padded, text_indices=1, normalize_intermediates=True, intermediates_only=True, text_output_fmt="NLC"
        )["text_intermediates"][0][:, :T]  # (B, T, width), after the last norm
        if text.text_projection is None:
            return x
        if isinstance(text.text_projection, nn.Linear):
            return text.text_projection(x)  # type: ignore[no-any-return]
        return x @ text.text_projection  # type: ignore[no-any-return]

    def encode_regions(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Region vectors of images.

        Args:
            images: (B, 3, H, W).
            masks: (B, M, N) bool regions on the patch grid, row-major; an all-False region is absent.

        Returns:
            (B, M, D) float32 unit vectors, zero where absent, and (B, M) bool, True = present.

        Raises:
            ValueError: the masks are not on the model's grid.
        """
        return pool_regions(self.encode_patches(images), masks)

    def encode_phrases(self, tokens: Tensor, leaf_of_token: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """Phrase vectors of captions, or, for a model with ``phrase_unit`` "token", those of single tokens.

        Args:
            tokens: (B, T) int64 token ids.
            leaf_of_token: (B, T) int64: the leaf each token belongs to, -1 for specials and padding.
            spans: (B, K, 2) int64 first and last leaf of each phrase, inclusive; -1, -1 for no phrase.

        Returns:
            (B, K, D) float32 vectors, zero where absent, and (B, K) bool, True = present; K is T for tokens.
        """
        return self.phrases_of(self.encode_tokens(tokens), leaf_of_token, spans)

    def phrases_of(self, dense: Tensor, leaf_of_token: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
        """``encode_phrases`` of (B, T, D) token embeddings that are already there."""
        if self.phrase_unit == "token":
            return pool_tokens(dense, leaf_of_token)
        leaves, leaf_mask = pool_leaves(dense, leaf_of_token, leaves=dense.shape[1])  # (B, L, D), (B, L) with L = T
        return pool_phrases(leaves, leaf_mask, spans, norm=self.phrase_norm)

    def valid_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) bool: True up to the end-of-text token, False for the padding behind it."""
        text: Any = _text_tower(self.backbone)
        pool, eos = _pool_type(text)
        if pool == "argmax":  # end of text is the highest id, and padding (0) is a word's id as well
            end = tokens.argmax(dim=1)
        elif pool == "eos":
            end = torch.eq(tokens, -1 if eos is None else eos).int().argmax(dim=1)
        else:
            return tokens != getattr(text, "pad_id", 0)
        return torch.arange(tokens.shape[1], device=tokens.device) <= end[:, None]

    def pool_text(self, dense: Tensor, tokens: Tensor) -> Tensor:
        """(B, T, D) token embeddings to the (B, D) global text embedding, not normalised."""
        if self.text_pool == "avg":
            return mean_of_valid(dense, self.valid_tokens(tokens))
        pool, eos = _pool_type(_text_tower(self.backbone))
        return text_global_pool(dense, tokens, pool, eos_token_id=eos)  # type: ignore[no-any-return]

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, H, W) images to (B, D): the mean of their patch embeddings."""
        x = self.encode_patches(images).mean(dim=1)
        return normalise(x) if normalize else x

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """(B, T) token ids to (B, D): the mean of the valid tokens' embeddings, or open_clip's own pooling."""
        x = self.pool_text(self.encode_tokens(tokens), tokens)
        return normalise(x) if normalize else x

    def forward(self, batch: Batch) -> Features:
        """Everything the losses need: one image pass serves all regions, one text pass all phrases."""
        patches = self.encode_patches(batch.images)  # (B, N, D)
        dense = self.encode_tokens(batch.tokens)  # (B, T, D)
        regions, region_mask = pool_regions(patches, batch.region_masks)  # (B, M, D), (B, M)
        phrases, phrase_mask = self.phrases_of(dense, batch.leaf_of_token, batch.phrase_spans)  # (B, K, D), (B, K)
        return Features(
            image=normalise(patches.float().mean(dim=1)),
            text=normalise(self.pool_text(dense, batch.tokens).float()),
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
        )

    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of both towers, each tower's first block first."""
        return [block for stack in self._stacks() for block in stack]

    def depth_of(self, name: str) -> int:
        """How many layers lie between a parameter and its tower's output: 0 for the head, one more a block."""
        for stack, prefix in zip(self._stacks(), self._stack_names(), strict=True):
            if name.startswith(prefix):
                return len(stack) - int(name.removeprefix(prefix).split(".")[0])
        early = ("embed", "class_emb", "conv1", "ln_pre", "pos_", "positional", "cls_token", "norm_pre")
        if not any(part in name for part in early):
            return 0
        return 1 + len(self._stacks()[0 if name.startswith("backbone.visual") else 1])

    def tower_parameters(self, tower: Tower) -> list[nn.Parameter]:
        """The parameters of one tower, its projection included."""
        visual = [p for name, p in self.named_parameters() if name.startswith("backbone.visual.")]
        if tower == "image":
            return visual
        shared = {id(p) for p in [*visual, self.logit_scale, self.logit_bias]}
        return [p for p in self.parameters() if id(p) not in shared]

    def _stacks(self) -> list[nn.ModuleList]:
        visual: Any = self.backbone.visual
        image = visual.trunk.blocks if isinstance(visual, TimmModel) else visual.transformer.resblocks
        return [image, _text_tower(self.backbone).transformer.resblocks]

    def _stack_names(self) -> list[str]:
        wanted = {id(stack): position for position, stack in enumerate(self._stacks())}
        found = {wanted[id(m)]: f"{name}." for name, m in self.named_modules() if id(m) in wanted}
        return [found[position] for position in range(len(wanted))]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that take no weight decay."""
        return {f"backbone.{name}" for name in self.backbone.no_weight_decay()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in both towers."""
        self.backbone.set_grad_checkpointing(enable)


def create_model(
    name: str = "ViT-B-16",
    *,
    pretrained: str | None = None,
    text_pool: TextPool = "avg",
    phrase_norm: PhraseNorm = "unit",
    phrase_unit: PhraseUnit = "phrase",
    scoring: ScoringConfig | None = None,
    **overrides: Any,
) -> PowerCLIP:
    """Build a model from scratch, or from the weights of an open_clip checkpoint.

    Args:
        name: a ViT that open_clip knows, "tiny", or the path of a JSON config of open_clip's form.
        pretrained: an open_clip tag or a checkpoint file.
        text_pool: "avg" over valid tokens (the paper), or "argmax", open_clip's own pooling.
        phrase_norm: a phrase from its leaves: "sum", "mean" or "unit".
        phrase_unit: what is aligned with the regions: "phrase" of the parse tree, or "token" (the paper's ablation).
        scoring: how region and phrase vectors become a score, for evaluation; the defaults if None.
        **overrides: ``image_size``, ``context_length``, ``init_logit_scale`` (log of the inverse temperature to start
            from) and ``init_logit_bias``, in place of the config's.

    Raises:
        PowerclipError: no such model or checkpoint, or towers without dense outputs.
        ValueError: an argument is unknown or out of range.
    """
    kept = _kept(text_pool, phrase_norm, phrase_unit, scoring)
    model_config = read_config(name)
    places = {
        "image_size": model_config["vision_cfg"],
        "context_length": model_config["text_cfg"],
        "init_logit_scale": model_config,
        "init_logit_bias": model_config,
    }
    for key, value in overrides.items():
        one_of("override", key, tuple(places))
        places[key][key] = value
    model = build({"model": model_config, **kept})
    if pretrained is not None:
        load_open_clip_weights(model, name, pretrained)
    return model


def from_open_clip(
    backbone: nn.Module,
    *,
    text_pool: TextPool = "argmax",
    phrase_norm: PhraseNorm = "unit",
    phrase_unit: PhraseUnit = "phrase",
    scoring: ScoringConfig | None = None,
) -> PowerCLIP:
    """Dense outputs for a model that open_clip has built; its parameters are shared, so training one trains the other.

    Args:
        backbone: what ``open_clip.create_model`` returns, with ViT towers.
        text_pool: "argmax" is open_clip's own pooling; "avg" the mean of the valid tokens (the paper).
        phrase_norm: as in ``create_model``.
        phrase_unit: as in ``create_model``.
        scoring: as in ``create_model``.

    Raises:
        PowerclipError: a tower has no dense outputs in the joint space.
    """
    return PowerCLIP(backbone, config=_kept(text_pool, phrase_norm, phrase_unit, scoring))


def _kept(
    text_pool: TextPool, phrase_norm: PhraseNorm, phrase_unit: PhraseUnit, scoring: ScoringConfig | None
) -> dict[str, Any]:
    """What a model's config keeps in addition to open_clip's; checked."""
    one_of("text_pool", text_pool, get_args(TextPool))
    one_of("phrase_norm", phrase_norm, get_args(PhraseNorm))
    one_of("phrase_unit", phrase_unit, get_args(PhraseUnit))
    return {
        "text_pool": text_pool,
        "phrase_norm": phrase_norm,
        "phrase_unit": phrase_unit,
        "scoring": dataclasses.asdict(scoring or ScoringConfig()),
    }


def build(config: dict[str, Any]) -> PowerCLIP:
    """The model of a ``PowerCLIP.config``, with fresh weights.

    Raises:
        PowerclipError: open_clip cannot build it.
    """
    arguments = copy.deepcopy(config["model"])
    custom_text = arguments.pop("custom_text", False)
    text = arguments.get("text_cfg", {})
    if "hf_model_name" in text:
        raise PowerclipError("text towers from Hugging Face are not supported; use a config with open_clip's own")
    arguments.get("vision_cfg", {})["patch_dropout"] = 0.0  # regions need every patch
    try:
        backbone = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)
    except (TypeError, KeyError, AssertionError, RuntimeError, ValueError) as error:
        raise PowerclipError(f"open_clip cannot build the model config: {type(error).__name__}: {error}") from error
    size = backbone.visual.image_size
    set_model_preprocess_cfg(
        backbone, dataclasses.asdict(PreprocessCfg(**{**config.get("preprocess", {}), "size": size}))
    )
    return PowerCLIP(backbone, config=config)


def read_config(name: str) -> dict[str, Any]:
    """A model config by name, ours or open_clip's, or from a JSON file.

    Raises:
        PowerclipError: there is none of that name, or the file is not one.
    """
    ours = files("powerclip.model") / "configs"
    names = {Path(entry.name).stem for entry in ours.iterdir() if entry.name.endswith(".json")}
    if name in names:
        return json.loads((ours / f"{name}.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    if name.endswith(".json"):
        return _read_config_file(Path(name))
    config = open_clip.get_model_config(name)
    if config is None:
        known = [*names, *open_clip.list_models()]
        hint = did_you_mean(name, known, otherwise="name a ViT of open_clip, tiny, or a JSON file")
        raise PowerclipError(f"unknown model {name!r}; {hint}")
    return copy.deepcopy(config)


def _read_config_file(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PowerclipError(f"cannot read the model config {path}: {error}") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config if isinstance(config, dict) else ())
    if missing:
        raise PowerclipError(f"{path} is no model config of open_clip's form: it lacks {', '.join(sorted(missing))}")
    return config  # type: ignore[no-any-return]


def load_open_clip_weights(model: PowerCLIP, name: str, pretrained: str) -> None:
    """Load an open_clip checkpoint, a file or a tag of a named model, into a model of that architecture.

    Position embeddings are resized to the model's grid and context. No pickled code is run.

    Raises:
        PowerclipError: no such file or tag, or weights that do not fit.
    """
    path = Path(pretrained)
    if not path.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        if pretrained not in tags:
            known = f"tags of {name}: {', '.join(tags)}" if tags else f"{name} has no tags"
            raise PowerclipError(f"pretrained {pretrained!r} is neither a file nor a tag ({known})")
        path = Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, pretrained)))
    try:
        load_checkpoint(model.backbone, str(path), weights_only=True)
    except (RuntimeError, KeyError, ValueError, StopIteration, pickle.UnpicklingError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PowerclipError(f"the weights in {path} do not fit {name}: {reason}") from error


def make_tokenizer(model: PowerCLIP) -> Tokenizer:
    """open_clip's tokenizer for a model: captions to (B, T) int64 ids with T = ``context_length``."""
    text = model.config["model"]["text_cfg"]
    options = text.get("tokenizer_kwargs", {})
    if "hf_tokenizer_name" in text:
        return open_clip.HFTokenizer(  # type: ignore[no-any-return]
            text["hf_tokenizer_name"], context_length=model.context_length, **options
        )
    return open_clip.SimpleTokenizer(context_length=model.context_length, **options)  # type: ignore[no-any-return]


def _text_tower(backbone: Any) -> Any:
    """open_clip keeps the text tower in ``text``, or (its older form) spread over the model itself."""
    return backbone.text if isinstance(backbone, open_clip.CustomTextCLIP) else backbone


def _pool_type(text: Any) -> tuple[str, int | None]:
    if isinstance(text, TextTransformer):
        return text.pool_type, getattr(text, "eos_id", None)
    return text.text_pool_type, getattr(text, "text_eos_id", None)


def _check_towers(backbone: Any) -> None:
    visual = backbone.visual
    if isinstance(visual, TimmModel):
        trunk = visual.trunk
        dense = hasattr(trunk, "num_prefix_tokens") and hasattr(trunk, "fc_norm") and hasattr(trunk, "patch_embed")
        if not dense or getattr(trunk, "attn_pool", None) is not None:
            raise PowerclipError(
                f"the image tower {type(trunk).__name__} has no patch tokens in the joint space; use a ViT without "
                "attention pooling"
            )
    elif not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        raise PowerclipError(
            f"the image tower {type(visual).__name__} has no patch tokens in the joint space; use a ViT without "
            "attention pooling"
        )
    text = _text_tower(backbone)
    if isinstance(text, TextTransformer) and text.cls_emb is not None:
        raise PowerclipError("text towers with an appended class token (CoCa) have no dense outputs in the joint space")
