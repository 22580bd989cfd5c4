"""Models by name, from JSON configs and from open_clip's weights, with their tokenizers."""

import copy
import dataclasses
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict, load_big_vision_weights
from open_clip.model import (
    CLIPTextCfg,
    CLIPVisionCfg,
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
    set_model_preprocess_cfg,
)
from open_clip.timm_model import TimmModel
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

import powerclip.model.tiny  # noqa: F401  (registers a tower with timm)
from powerclip.config import PoolingConfig, ScoringConfig
from powerclip.config.values import ImagePool, TextPool
from powerclip.errors import PowerclipError, one_of, shown
from powerclip.model.checkpoint import read_state, require_fitting, without_own_names
from powerclip.model.start import MEANS, TOWERS, Start, find_start, in_one_line
from powerclip.model.towers import PowerCLIP

_NOT_ARCHITECTURE = {"patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path", "hf_tokenizer_name"}
"""Settings of open_clip's configs for training, and places."""

ALIGNED = {"region_norm", "region_unit", "phrase_norm", "phrase_unit", "phrase_context"}
"""Settings of a ``PoolingConfig`` that are about regions and phrases."""


def create_model(
    name: str = "ViT-B-16",
    *,
    pretrained: str | None = None,
    image_pool: ImagePool = "avg",
    text_pool: TextPool = "avg",
    scoring: ScoringConfig | None = None,
    **overrides: Any,
) -> PowerCLIP:
    """Build a model from scratch, or from weights and with all that belongs to them.

    What belongs to weights is the activation (QuickGELU or GELU), the mean and standard deviation of the pixels, the
    interpolation and the way of resizing.

    Args:
        name: a ViT that open_clip knows, "tiny", "tiny-conv" or "tiny-local", or the path of a JSON config in
            open_clip's form, without weights; or ``local-dir:FOLDER`` or ``hf-hub:ORGANISATION/NAME``, a model in
            open_clip's form with its weights.
        pretrained: an open_clip tag of the named model, or a checkpoint file for it; or a run folder, model folder or
            ``model.safetensors`` of powerclip, or a folder in open_clip's form or a checkpoint in it, whose
            architecture is used instead of the named one.
        image_pool: the global image embedding: "avg" over the patches (the paper), or "tower", the pooling that the
            tower was trained with (class token, attention pooling, ...).
        text_pool: the same of texts: "avg" over valid tokens (the paper), or "tower" ("argmax" is an older name of it).
        scoring: how region and phrase vectors become a score in evaluation; the defaults if None.
        **overrides: ``region_norm``, ``region_unit``, ``phrase_norm``, ``phrase_unit`` and ``phrase_context``, as in
            ``powerclip.config.PoolingConfig``; and ``image_size``, ``context_length``, ``init_logit_scale`` (initial
            log of the inverse temperature) and ``init_logit_bias``, in place of the config's values; None keeps those.

    Raises:
        PowerclipError: there is no such model or checkpoint, it cannot be read, or a tower has no dense outputs.
        ValueError: an argument is unknown or out of range.
    """
    aligned = {key: overrides.pop(key) for key in ALIGNED & overrides.keys()}
    kept = _kept(scoring, image_pool=image_pool, text_pool=text_pool, **aligned)
    start = find_start(name, pretrained)
    model_config = copy.deepcopy(start.model)
    groups = {"image_size": "vision_cfg", "context_length": "text_cfg"}
    for key, value in overrides.items():
        one_of("override", key, (*groups, "init_logit_scale", "init_logit_bias"))
        if value is not None:
            (model_config[groups[key]] if key in groups else model_config)[key] = value
    config = {"model": model_config, "preprocess": start.preprocess, "start": start.source, **kept}
    return build(config, start=start)


def from_open_clip(
    backbone: nn.Module,
    *,
    image_pool: ImagePool = "tower",
    text_pool: TextPool = "tower",
    scoring: ScoringConfig | None = None,
    **aligned: Any,
) -> PowerCLIP:
    """Add dense outputs to a model that open_clip has built. Parameters are shared: training one trains the other.

    ``backbone`` is what ``open_clip.create_model`` returns, with ViT towers; the other arguments are
    ``create_model``'s. By default, ``encode_image`` and ``encode_text`` equal the backbone's own.

    Raises:
        PowerclipError: a tower has no dense outputs in the joint space, or its mean or std is not one number or three.
        ValueError: an argument is out of range.
    """
    model = PowerCLIP(backbone, config=_kept(scoring, image_pool=image_pool, text_pool=text_pool, **aligned))
    visual = model.backbone.visual
    set_model_preprocess_cfg(backbone, _preprocess(getattr(visual, "preprocess_cfg", {}), size=visual.image_size))
    return model


def _preprocess(given: Mapping[str, Any], *, size: Any) -> dict[str, Any]:
    """open_clip's settings of preprocessing, or its defaults, with mean and std as three numbers each."""
    settings = dataclasses.asdict(PreprocessCfg(**{**given, "size": size}))
    for name in ("mean", "std"):
        value = settings[name]
        numbers = value if isinstance(value, list | tuple) else [value] * 3
        if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
            raise PowerclipError(
                f"{name} of the model's preprocessing is {shown(value)}; it must be one number or three"
            )
        settings[name] = numbers
    return settings


def _kept(scoring: ScoringConfig | None, **pooling: Any) -> dict[str, Any]:
    """What a model's config keeps in addition to open_clip's."""
    return {**vars(PoolingConfig(**pooling)), "scoring": dataclasses.asdict(scoring or ScoringConfig())}


def build(config: dict[str, Any], *, start: Start | None = None) -> PowerCLIP:
    """The model that a ``PowerCLIP.config`` describes, with random weights or a start's.

    Raises:
        PowerclipError: open_clip cannot build it, the weights are damaged or do not fit, or a tower has no dense
            outputs.
    """
    arguments = copy.deepcopy(config["model"])
    custom_text = arguments.pop("custom_text", False)
    text = arguments.get("text_cfg", {})
    if "hf_model_name" in text:
        raise PowerclipError("text towers from Hugging Face are not supported; use a config with open_clip's own")
    vision = arguments.get("vision_cfg", {})
    vision["patch_dropout"] = 0.0  # regions need every patch
    if (start is None or start.weights or start.state) and vision.get("timm_model_pretrained"):
        vision["timm_model_pretrained"] = config["model"]["vision_cfg"]["timm_model_pretrained"] = False
    try:
        backbone: Any = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)
        visual = backbone.visual
        size = visual.image_size
        means = None if start is None else _load_weights(backbone, start, config)
        if isinstance(visual, TimmModel):  # its trunk has a size of its own, that of its weights
            visual.set_input_size(size)
        preprocess = _preprocess(config.get("preprocess", {}), size=size)
    except (TypeError, KeyError, AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise PowerclipError(f"open_clip cannot build the model config: {in_one_line(error)}") from error
    set_model_preprocess_cfg(backbone, preprocess)
    model = PowerCLIP(backbone, config=config)
    if means is not None and model.vector_means is not None:
        model.vector_means.copy_(means)
    return model


def _load_weights(backbone: Any, start: Start, config: dict[str, Any]) -> Tensor | None:
    """Load a start's weights into open_clip's model, with position embeddings resized to the model's grid and context.

    No pickled code is run. A bias that the weights have and the model lacks is added to it and to the config. Returns
    the mean vectors of a centred score, (2, D), if the start has them. Warns if the weights were trained to pool in
    another way than the config says.

    Raises:
        PowerclipError: the weights are damaged, do not fit or are not finite.
    """
    pooling, means = start.pooling, None if start.means is None else torch.tensor(start.means)
    try:
        if start.image_size is not None and isinstance(backbone.visual, TimmModel):
            backbone.visual.set_input_size(start.image_size)  # a timm tower resizes what it has loaded
        if start.state is not None:
            _load_state(backbone, start.state, config)
        elif start.weights is not None and start.weights.suffix.lower() in (".npz", ".npy"):
            _load_big_vision(backbone, start.weights)
        elif start.weights is not None:
            state = read_state(start.weights)
            means = state.pop(MEANS, means)
            weights = without_own_names(state)
            if weights is state and not pooling:
                pooling = TOWERS
            _load_state(backbone, weights, config)
    except PowerclipError:
        raise
    except Exception as error:  # readers raise many kinds on damaged files
        reason = in_one_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to run what the file holds
            held = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"the file holds more than weights{f' ({held[1]})' if held else ''}; save the state_dict alone"
        raise PowerclipError(f"the weights of {start.source} are damaged or do not fit the model: {reason}") from error
    require_finite(backbone, start.source)
    _warn_of_pooling(pooling, config, start.source)
    return means


def _warn_of_pooling(trained: Mapping[str, str], config: Mapping[str, Any], source: str) -> None:
    """Say where global embeddings are pooled in another way than that which the weights were trained for."""
    vision = config["model"]["vision_cfg"]
    for key, pool in trained.items():
        mean = key == "image_pool" and vision.get("pool_type") == "avg" and not vision.get("final_ln_after_pool")
        if config[key] != pool and not mean:  # of such a tower the two are the same
            warnings.warn(
                f"{source} was trained with {key} {pool} and starts here with {config[key]}, so that its "
                f"embeddings mean nothing at first; to keep them, set {key} to {pool} "
                f"(in a command: --model.{key.replace('_', '-')} {pool})",
                stacklevel=5,
            )


def _load_big_vision(backbone: Any, path: Path) -> None:
    try:
        load_big_vision_weights(backbone, str(path))
    except (AttributeError, LookupError, ValueError) as error:
        raise ValueError(
            f"{path.suffix} files are read as big_vision's weights of SigLIP, for models such as ViT-B-16-SigLIP; "
            "the file or the model is another"
        ) from error


def _load_state(backbone: Any, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Load weights in one of the forms that open_clip reads, as its ``load_checkpoint`` does."""
    state = convert_state_dict(backbone, dict(state))  # MobileCLIP's
    if "positional_embedding" in state and not hasattr(backbone, "positional_embedding"):  # an older form
        state = convert_to_custom_text_state_dict(state)
    if "logit_bias" in state and backbone.logit_bias is None:  # SigLIP's, which the config does not mention
        backbone.logit_bias = nn.Parameter(torch.zeros(()))
        config["model"]["init_logit_bias"] = 0.0
    if backbone.logit_bias is not None:  # SigLIP's loss may start from a model without one
        state = {"logit_bias": backbone.logit_bias.data, **state}
    expected = backbone.state_dict()
    require_fitting(state, expected)
    for name in {"logit_scale", "logit_bias"} & state.keys():
        state[name] = state[name].reshape(expected[name].shape)
    resize_pos_embed(state, backbone)
    resize_text_pos_embed(state, backbone)
    backbone.load_state_dict(state)


def require_finite(model: nn.Module, source: str) -> None:
    """Check weights that were loaded; PowerclipError names the first tensor that holds NaN or infinity."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise PowerclipError(
                f"the weights of {source} are not finite: {name} holds NaN or infinity; take an earlier checkpoint"
            )


def describe(model: PowerCLIP) -> str:
    """A line that says what a model started from, and how it sees images and texts."""
    kinds = {type(module).__name__ for module in model.backbone.modules()}
    activations = " and ".join(sorted(kind for kind in kinds if kind.endswith(("GELU", "SiLU", "GELUTanh"))))
    preprocess = model.backbone.visual.preprocess_cfg
    ranks = [len(parameter) for name, parameter in model.named_parameters() if ".lora_A." in name]
    lora = f", LoRA of rank {ranks[0]} in {len(ranks)} layers" if ranks else ""
    bias = "" if model.logit_bias is None else f", bias {model.logit_bias.item():.4g}"
    mean = "/".join(f"{value:.3g}" for value in preprocess["mean"])
    (height, width), tensors = model.image_size, len(model.state_dict()) - 2 * len(ranks)
    return (
        f"Model: {model.config.get('start', 'unknown')} ({tensors} tensors, {activations}, "
        f"image_pool {model.image_pool}, text_pool {model.text_pool}, "
        f"{height} x {width} pixels {preprocess['interpolation']} {preprocess['resize_mode']}, mean {mean}, "
        f"{model.context_length} tokens, scale {model.logit_scale.exp().item():.4g}{bias}{lora})"
    )


def architecture(model: PowerCLIP) -> dict[str, Any]:
    """What two models must have in common for their weights, and their embeddings, to mean the same, by name."""
    config = model.config.get("model", {})
    visual, text = CLIPVisionCfg(**config.get("vision_cfg", {})), CLIPTextCfg(**config.get("text_cfg", {}))
    return {
        "embed_dim": config.get("embed_dim"),
        "quick_gelu": bool(config.get("quick_gelu")),
        **{f"vision_cfg.{name}": value for name, value in vars(visual).items() if name not in _NOT_ARCHITECTURE},
        **{f"text_cfg.{name}": value for name, value in vars(text).items() if name not in _NOT_ARCHITECTURE},
        "image_pool": model.image_pool,
        "text_pool": model.text_pool,
        **{
            f"preprocess.{name}": tuple(value) if isinstance(value, list) else value  # JSON has no tuples
            for name, value in model.backbone.visual.preprocess_cfg.items()
        },
        **{f"shape of {name}": tuple(value.shape) for name, value in model.state_dict().items()},
    }
