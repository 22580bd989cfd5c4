"""Models on disk or on a hub: a folder of ``model.safetensors`` and ``config.json``, written atomically."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from powerclip.devices import find_device
from powerclip.errors import PowerclipError
from powerclip.files import SUMS, atomic_folder, checksums, read_json
from powerclip.model.checkpoint import require_fitting
from powerclip.model.create import build, create_model, require_finite
from powerclip.model.lora import merge_lora
from powerclip.model.packed import read_weights, require_weights
from powerclip.model.start import (
    CONFIG,
    KEPT,
    MEANS,
    OPEN_CLIP_CONFIG,
    TRANSFORMERS,
    WEIGHTS,
    find_start,
    in_one_line,
    model_folder,
    name_tokenizer,
    require_undamaged,
)
from powerclip.model.tokenizer import make_tokenizer, save_tokenizer
from powerclip.model.towers import PowerCLIP, Tokenizer, Transform
from powerclip.model.transforms import make_transforms


def save(model: PowerCLIP, folder: Path | str, *, state: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model folder, with ``state`` in place of the model's own weights if given (of a sharded model, say).

    LoRA's additions are merged. A tokenizer of Hugging Face's that the model has in a folder is saved with it. An
    existing folder is replaced when the new one is complete.

    Raises:
        ValueError: the model comes from ``from_open_clip``, so its open_clip config is not known.
        OSError: the folder cannot be written; what was there stays.
    """
    if "model" not in model.config:
        raise ValueError("a model from from_open_clip has no config to build it from; save its open_clip model instead")
    folder = Path(folder)
    config = {"powerclip": version("powerclip"), **copy.deepcopy(model.config), "scoring": asdict(model.scoring)}
    weights = merge_lora(model, model.state_dict() if state is None else state)
    with atomic_folder(folder) as temporary:
        save_tokenizer(config["model"], temporary)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        try:
            save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary / WEIGHTS)
        except SafetensorError as error:  # its form of an OSError
            raise OSError(f"{folder / WEIGHTS} could not be written ({in_one_line(error)})") from error
        (temporary / SUMS).write_text(checksums(temporary), encoding="utf-8")
    return folder


def load(path_or_hub_id: str | Path, *, device: str | torch.device = "cpu") -> tuple[PowerCLIP, Transform, Tokenizer]:
    """Load a model with its image transform and tokenizer, the triple that open_clip-style evaluation expects.

    Args:
        path_or_hub_id: a model folder, a run folder that holds ``model/``, or a folder in open_clip's form; or a
            Hugging Face hub id of the contents of one. Models of open_clip pool as they were trained to.
        device: where the weights go.

    Returns:
        The model in evaluation mode, the transform of a PIL image to (3, H, W), and the tokenizer.

    Raises:
        PowerclipError: there is no model there, it is damaged, or the device is not here.
    """
    place = find_device(str(device))
    folder, name = _find(str(path_or_hub_id).removeprefix("local-dir:").removeprefix("hf-hub:"))
    try:
        model = _read_open_clip(folder, name) if (folder / OPEN_CLIP_CONFIG).is_file() else _read_own(folder)
        return model.to(place).eval(), make_transforms(model)[1], make_tokenizer(model)
    except PowerclipError as error:
        if str(folder) in str(error):
            raise
        raise PowerclipError(f"{folder} is not a valid powerclip model: {error}") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise PowerclipError(f"{folder} is not a valid powerclip model: {in_one_line(error)}") from error


def load_open_clip(name: str, pretrained: str, *, device: str | torch.device = "cpu") -> tuple[Any, Any, Tokenizer]:
    """Load any model of open_clip by name and tag, or checkpoint file; the triple is ``load``'s.

    The model is a ``PowerCLIP`` that pools as it was trained to, or open_clip's own if it has no dense outputs.

    Raises:
        PowerclipError: there is no such model or tag, or the weights cannot be read.
    """
    place = find_device(str(device))
    try:
        model = create_model(name, pretrained=pretrained, image_pool="tower", text_pool="tower")
        return model.to(place).eval(), make_transforms(model)[1], make_tokenizer(model)
    except PowerclipError as error:
        if name not in open_clip.list_models():  # a folder's config could let open_clip run code
            raise
        try:
            quick = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"))
            theirs, _, transform = open_clip.create_model_and_transforms(
                name, pretrained, device=str(device), force_quick_gelu=quick
            )
            require_finite(theirs, pretrained)
            config = open_clip.get_model_config(name) | ({"quick_gelu": True} if quick else {})
            theirs.config = {"model": config, "preprocess": theirs.visual.preprocess_cfg}
            return theirs.eval(), transform, open_clip.get_tokenizer(name)
        except Exception:  # theirs says less than ours
            raise error from None


def load_any(
    name: str, pretrained: str | None, *, device: str | torch.device = "cpu"
) -> tuple[Any, Transform, Tokenizer]:
    """``load``, or ``load_open_clip`` if there is a tag or checkpoint."""
    return load(name, device=device) if pretrained is None else load_open_clip(name, pretrained, device=device)


def load_for_clip_benchmark(
    model_name: str, pretrained: str = "", cache_dir: str | None = None, device: str | torch.device = "cpu"
) -> tuple[PowerCLIP, Transform, Tokenizer]:
    """``load`` with the arguments of clip_benchmark's loaders; ``model_name`` decides, and two have no effect."""
    return load(model_name, device=device)


def _read_own(folder: Path) -> PowerCLIP:
    require_undamaged(folder)
    config: dict[str, Any] = read_json(folder / CONFIG)
    if "model" not in config:
        if "model_type" in config:
            raise PowerclipError(f"{folder} is {TRANSFORMERS}")
        raise PowerclipError(
            f"{folder / CONFIG} is not of a powerclip model; name a run, or what powerclip export --to hub-folder or "
            "open_clip has written"
        )
    config.pop("powerclip", None)
    name_tokenizer(config["model"], folder)
    model = build(config)
    require_weights(folder / WEIGHTS)
    state = read_weights(folder / WEIGHTS)
    require_fitting(state, model.state_dict())
    model.load_state_dict(state)
    require_finite(model, str(folder / WEIGHTS))
    return model


def _read_open_clip(folder: Path, name: str) -> PowerCLIP:
    """A model in open_clip's form, with its own config if powerclip has exported it."""
    kept = read_json(folder / OPEN_CLIP_CONFIG).get(KEPT)
    if kept is None:
        return create_model(name, image_pool="tower", text_pool="tower")
    start = find_start(name, None)
    kept.pop(MEANS, None)  # the start has them
    return build({**kept, "model": start.model}, start=start)


def _find(path_or_hub_id: str) -> tuple[Path, str]:
    """The folder of a model, after downloading it if need be, and its name for open_clip."""
    path = Path(path_or_hub_id).expanduser()
    if (path / OPEN_CLIP_CONFIG).is_file():
        return path, f"local-dir:{path}"
    if folder := model_folder(path):
        return folder, ""
    if path.exists() or path_or_hub_id.count("/") != 1:
        raise PowerclipError(
            f"no model at {path_or_hub_id}: expected a folder with {CONFIG} and {WEIGHTS}, or with {OPEN_CLIP_CONFIG}, "
            "or a run folder with model/"
        )
    try:
        folder = Path(snapshot_download(path_or_hub_id, allow_patterns=["*.json", "*.txt", "*.model", SUMS]))
        exported = (folder / OPEN_CLIP_CONFIG).is_file()
        if exported and KEPT not in read_json(folder / OPEN_CLIP_CONFIG):
            return folder, f"hf-hub:{path_or_hub_id}"  # open_clip knows where it keeps the weights
        snapshot_download(path_or_hub_id, allow_patterns=["open_clip_model.safetensors" if exported else WEIGHTS])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        raise PowerclipError(
            f"{path_or_hub_id} is not a local folder and could not be downloaded from the hub ({in_one_line(error)})"
        ) from error
    return folder, f"local-dir:{folder}"
