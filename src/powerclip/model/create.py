"""Models by name, from JSON configs and from open_clip's weights, with their tokenizers."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import load_checkpoint
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import nn

from powerclip.config import PhraseNorm, PhraseUnit, ScoringConfig, TextPool
from powerclip.errors import PowerclipError, did_you_mean, one_of
from powerclip.model.towers import PowerCLIP, Tokenizer


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
        name: a ViT that open_clip knows, "tiny", or the path of a JSON config in open_clip's form.
        pretrained: an open_clip tag or a checkpoint file.
        text_pool: "avg" over valid tokens (the paper), or "argmax", open_clip's own pooling.
        phrase_norm: how a phrase's vector is made from its leaves: "sum", "mean" or "unit" (the direction of the sum).
        phrase_unit: what is aligned with the regions: "phrase" of the parse tree, or "token" (the paper's ablation).
        scoring: how region and phrase vectors become a score in evaluation; the defaults if None.
        **overrides: ``image_size``, ``context_length``, ``init_logit_scale`` (initial log of the inverse temperature)
            and ``init_logit_bias``, in place of the config's values.

    Raises:
        PowerclipError: there is no such model or checkpoint, or a tower has no dense outputs.
        ValueError: an argument is unknown or out of range.
    """
    kept = _kept(text_pool, phrase_norm, phrase_unit, scoring)
    model_config = read_config(name)
    groups = {"image_size": "vision_cfg", "context_length": "text_cfg"}
    for key, value in overrides.items():
        one_of("override", key, (*groups, "init_logit_scale", "init_logit_bias"))
        (model_config[groups[key]] if key in groups else model_config)[key] = value
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
    """Add dense outputs to a model that open_clip has built. Parameters are shared: training one trains the other.

    ``backbone`` is what ``open_clip.create_model`` returns, with ViT towers; the other arguments are ``create_model``'s.

    Raises:
        PowerclipError: a tower has no dense outputs in the joint space.
        ValueError: an argument is out of range.
    """
    return PowerCLIP(backbone, config=_kept(text_pool, phrase_norm, phrase_unit, scoring))


def _kept(
    text_pool: TextPool, phrase_norm: PhraseNorm, phrase_unit: PhraseUnit, scoring: ScoringConfig | None
) -> dict[str, Any]:
    """What a model's config keeps in addition to open_clip's."""
    pooling = {"text_pool": text_pool, "phrase_norm": phrase_norm, "phrase_unit": phrase_unit}
    return {**pooling, "scoring": dataclasses.asdict(scoring or ScoringConfig())}


def build(config: dict[str, Any]) -> PowerCLIP:
    """The model that a ``PowerCLIP.config`` describes, with random weights; a PowerclipError if open_clip cannot."""
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
    preprocess = PreprocessCfg(**{**config.get("preprocess", {}), "size": backbone.visual.image_size})
    set_model_preprocess_cfg(backbone, dataclasses.asdict(preprocess))
    return PowerCLIP(backbone, config=config)


def read_config(name: str) -> dict[str, Any]:
    """The config of a model by name (ours or open_clip's), or from a JSON file; a PowerclipError if it is neither."""
    ours = {path.stem: path for path in (Path(__file__).parent / "configs").glob("*.json")}
    if name not in ours and not name.endswith(".json"):
        config = open_clip.get_model_config(name)  # a copy
        if config is None:
            known = [*ours, *open_clip.list_models()]
            hint = did_you_mean(name, known, otherwise="name a ViT of open_clip, tiny, or a JSON file")
            raise PowerclipError(f"unknown model {name!r}; {hint}")
        return dict(config)
    try:
        config = json.loads(ours.get(name, Path(name)).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PowerclipError(f"cannot read the model config {name}: {error}") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config if isinstance(config, dict) else ())
    if missing:
        raise PowerclipError(f"{name} is not a model config in open_clip's form: it lacks {', '.join(sorted(missing))}")
    return dict(config)


def load_open_clip_weights(model: PowerCLIP, name: str, pretrained: str) -> None:
    """Load an open_clip checkpoint, a file or a tag of a named model, into a model of that architecture.

    Position embeddings are resized to the model's grid and context. No pickled code is run.

    Raises:
        PowerclipError: there is no such file or tag, or the weights do not fit.
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
    options = {"context_length": model.context_length, **text.get("tokenizer_kwargs", {})}
    if "hf_tokenizer_name" in text:
        return open_clip.HFTokenizer(text["hf_tokenizer_name"], **options)  # type: ignore[no-any-return]
    return open_clip.SimpleTokenizer(**options)  # type: ignore[no-any-return]
