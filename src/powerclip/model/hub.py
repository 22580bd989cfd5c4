"""Models on disk: a folder of ``model.safetensors`` and ``config.json`` that appears whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from powerclip.errors import PowerclipError
from powerclip.model.towers import PowerCLIP, Tokenizer, Transform, build, make_tokenizer
from powerclip.model.transforms import make_transforms

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def save(model: PowerCLIP, folder: Path | str, *, state: Mapping[str, Tensor] | None = None) -> Path:
    """Write a model folder; one that is already there is replaced once the new one is whole.

    Args:
        model: what to save.
        folder: where.
        state: its weights by name, where they are not to be taken from the model (one that is sharded, say).

    Raises:
        ValueError: the model wraps one of open_clip's whose config is not known.
    """
    if "model" not in model.config:
        raise ValueError(
            "a model from from_open_clip has no config to build it again; save its open_clip model instead"
        )
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = folder.with_name(f".{folder.name}.tmp"), folder.with_name(f".{folder.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    config = {"powerclip": version("powerclip"), **model.config, "scoring": asdict(model.scoring)}
    (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = model.state_dict() if state is None else state
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, str(temporary / WEIGHTS))
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def load(path_or_hub_id: str | Path, *, device: str | torch.device = "cpu") -> tuple[PowerCLIP, Transform, Tokenizer]:
    """Load a model with its image transform and tokenizer, the triple that open_clip-style evaluation expects.

    Args:
        path_or_hub_id: a model folder, a run folder that holds ``model/``, or a Hugging Face hub id.
        device: where the weights go.

    Returns:
        The model in evaluation mode, the transform of a PIL image to (3, H, W), and the tokenizer.

    Raises:
        PowerclipError: there is no model there, or it is not whole.
    """
    folder = _find(path_or_hub_id)
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config.pop("powerclip", None)
        model = build(config)
        model.load_state_dict(load_file(str(folder / WEIGHTS)))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PowerclipError(f"{folder} is not a whole powerclip model: {type(error).__name__}: {reason}") from error
    return model.to(device).eval(), make_transforms(model)[1], make_tokenizer(model)


def _find(path_or_hub_id: str | Path) -> Path:
    path = Path(path_or_hub_id)
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file():
            return folder
    if path.exists() or str(path_or_hub_id).count("/") != 1:
        raise PowerclipError(
            f"no model at {path_or_hub_id}: expected a folder with {CONFIG} and {WEIGHTS}, or a run folder with model/"
        )
    try:
        return Path(snapshot_download(str(path_or_hub_id), allow_patterns=["*.safetensors", "*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PowerclipError(
            f"{path_or_hub_id} is no folder here, and the hub did not give it ({type(error).__name__}: {reason})"
        ) from error
