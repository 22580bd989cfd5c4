"""Models by name, from JSON configs and from open_clip's weights, with their tokenizers."""

import copy
import dataclasses
import functools
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
from powerclip.model.packed import read_weights, require_weights
from powerclip.model.start import TRANSFORMERS, Start, find_start, in_one_line
from powerclip.model.towers import PowerCLIP, Tokenizer

_NOT_ARCHITECTURE = {"patch_dropout", "timm_model_pretrained", "timm_drop", "timm_drop_path", "hf_tokenizer_name"}
"""Settings of open_clip's configs for training, and places."""

TOKENIZER_SETTINGS = ("clean", "context_length", "language", "strip_sep_token", "tokenizer_mode")
"""Settings of a tokenizer that a model's config may have; others could name files, or let code be run."""

ALIGNED = {"region_norm", "region_unit", "phrase_norm", "phrase_unit", "phrase_context"}
"""Settings of a ``PoolingConfig`` that are about regions and phrases."""

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which trainers keep weights in a checkpoint."""

WRAPPING_PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DistributedDataParallel, torch.compile and Lightning put before the name of every weight."""

OWN_PREFIX = "backbone."
"""What the names of a saved model's weights start with: where ``PowerCLIP`` keeps open_clip's model."""


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
    for key, trained in start.pooling.items():
        if kept[key] != trained:
            warnings.warn(
                f"{start.source} was trained with {key} {trained} and starts here with {kept[key]}, so that its "
                f"embeddings mean nothing at first; to keep them, set {key} to {trained} "
                f"(in a command: --model.{key.replace('_', '-')} {trained})",
                stacklevel=2,
            )
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
    arguments.get("vision_cfg", {})["patch_dropout"] = 0.0  # regions need every patch
    try:
        backbone: Any = (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**arguments)
        visual = backbone.visual
        size = visual.image_size
        if start is not None:
            _load_weights(backbone, start, config)
        if isinstance(visual, TimmModel):  # its trunk has a size of its own, that of its weights
            visual.set_input_size(size)
        preprocess = _preprocess(config.get("preprocess", {}), size=size)
    except (TypeError, KeyError, AssertionError, RuntimeError, ValueError, ZeroDivisionError) as error:
        raise PowerclipError(f"open_clip cannot build the model config: {in_one_line(error)}") from error
    set_model_preprocess_cfg(backbone, preprocess)
    return PowerCLIP(backbone, config=config)


def _load_weights(backbone: Any, start: Start, config: dict[str, Any]) -> None:
    """Load a start's weights into open_clip's model, with position embeddings resized to the model's grid and context.

    No pickled code is run. A bias that the weights have and the model lacks is added to it and to the config.

    Raises:
        PowerclipError: the weights are damaged, do not fit or are not finite.
    """
    try:
        if start.image_size is not None and isinstance(backbone.visual, TimmModel):
            backbone.visual.set_input_size(start.image_size)  # a timm tower resizes what it has loaded
        if start.state is not None:
            _load_state(backbone, start.state, config)
        elif start.weights is not None and start.weights.suffix.lower() in (".npz", ".npy"):
            _load_big_vision(backbone, start.weights)
        elif start.weights is not None:
            _load_state(backbone, _read_state(start.weights), config)
    except PowerclipError:
        raise
    except Exception as error:  # readers raise many kinds on damaged files
        reason = in_one_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's message advises to run what the file holds
            held = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"the file holds more than weights{f' ({held[1]})' if held else ''}; save the state_dict alone"
        if "text_model." in str(error) and "vision_model." in str(error):
            reason = f"they are {TRANSFORMERS}"
        raise PowerclipError(f"the weights of {start.source} are damaged or do not fit the model: {reason}") from error
    require_finite(backbone, start.source)


def _read_state(path: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by open_clip's names, without what trainers wrap around them and their names."""
    require_weights(path)
    pickled = path.suffix.lower() != ".safetensors"
    found: Any = torch.load(path, map_location="cpu", weights_only=True) if pickled else read_weights(path)
    while isinstance(found, Mapping) and (key := next((k for k in WRAPPERS if isinstance(found.get(k), Mapping)), "")):
        found = found[key]
    if not isinstance(found, Mapping) or not found:
        raise ValueError("the file holds no weights")
    state = dict(found)
    while prefix := next((p for p in WRAPPING_PREFIXES if all(str(name).startswith(p) for name in state)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    own = {name.removeprefix(OWN_PREFIX): value for name, value in state.items() if name.startswith(OWN_PREFIX)}
    return own or state


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
    if not state.keys() & (expected.keys() - {"logit_bias"}):
        raise ValueError(f"they have names such as {list(state)[-1]}; expected {next(iter(expected))}")
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


def make_tokenizer(model: PowerCLIP) -> Tokenizer:
    """open_clip's tokenizer for a model: captions to (B, T) int64 ids with T = ``context_length``.

    Code that comes with a tokenizer of Hugging Face's is never run.

    Raises:
        PowerclipError: it is one of Hugging Face's, and transformers is not installed or it cannot be read; the
            config has settings for it that are not among ``TOKENIZER_SETTINGS``; it has ids that the model does not
            know; or the model's ``pool_type`` does not find where its texts end.
    """
    text = model.config["model"]["text_cfg"]
    given = text.get("tokenizer_kwargs") or {}
    if not isinstance(given, Mapping) or given.keys() - TOKENIZER_SETTINGS:
        raise PowerclipError(
            f"tokenizer_kwargs of the model's config is {given!r:.200}; it may hold {', '.join(TOKENIZER_SETTINGS)}"
        )
    options = {"context_length": model.context_length, **given}
    if name := text.get("hf_tokenizer_name"):
        try:
            tokenizer: Any = open_clip.tokenizer.HFTokenizer(name, trust_remote_code=False, **options)
            theirs = tokenizer.tokenizer
            ids, padded = theirs("a")["input_ids"], tokenizer(["a"])
            unseen = {*theirs.all_special_ids} - {theirs.unk_token_id, *padded[0].tolist()}
            highest = max({*theirs.get_vocab().values()} - unseen)
        except ImportError as error:
            raise PowerclipError(
                f"the tokenizer {name} needs transformers, which is not installed; pip install transformers"
            ) from error
        except Exception as error:  # no such folder, no network, ...
            raise PowerclipError(
                f"cannot read the tokenizer {name}, a folder or hub id: {in_one_line(error)}"
            ) from error
        pool = text.get("pool_type", "argmax")
        missed = int(model.valid_tokens(padded).sum()) != len(ids) or (pool == "argmax" and ids[-1] < highest)
        if pool in ("argmax", "eos") and missed:
            raise PowerclipError(
                f"pool_type {pool} does not find where texts end for the tokenizer {name}, so captions would be cut; "
                "in text_cfg of the model's config set pool_type to last, or to eos with eos_id "
                f"{theirs.sep_token_id or theirs.eos_token_id or 'of its end token'}"
            )
    else:
        name = "of CLIP"
        try:
            tokenizer = copy.copy(_clip_tokenizer(**options))  # for this model alone
        except (AssertionError, TypeError) as error:
            raise PowerclipError(
                f"tokenizer_kwargs of the model's config is {given!r:.200}, which the tokenizer of CLIP does not take: "
                f"{in_one_line(error)}"
            ) from error
        highest = tokenizer.vocab_size - 1
    if highest >= model.vocabulary:
        raise PowerclipError(
            f"the tokenizer {name} has ids up to {highest} and the model knows {model.vocabulary} of them; in "
            f"text_cfg of the model's config set vocab_size to {highest + 1} or more"
        )
    return tokenizer  # type: ignore[no-any-return]


@functools.cache
def _clip_tokenizer(**options: Any) -> open_clip.SimpleTokenizer:
    """CLIP's own tokenizer, made once: each time it takes longer than a small model."""
    return open_clip.SimpleTokenizer(**options)
