"""What a model starts from: an architecture alone, or weights with everything that belongs to them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import open_clip
from open_clip.factory import parse_model_name
from open_clip.transform import merge_preprocess_dict
from torch import Tensor

from powerclip.errors import PowerclipError, did_you_mean
from powerclip.files import SUMS, find_damaged, read_json
from powerclip.model.packed import require_weights

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TRANSFORMERS = "in the format of Hugging Face's transformers; name open_clip's version of the model"
OPEN_CLIP_CONFIG = "open_clip_config.json"
INDEX = ".index.json"
"""How the name of a list of weights in several files ends."""
OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
"""Weights in a folder in open_clip's form, the first choice first; without any, a file of another name is."""

TOWERS = {"image_pool": "tower", "text_pool": "tower"}
"""How open_clip's own models pool."""

MEANS = "vector_means"
"""The mean vectors of a centred score, in a model and in what is kept of it."""

KEPT = "powerclip"
"""Key in ``open_clip_config.json`` under which an exported model keeps its own config."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """An architecture, and optionally weights for it."""

    model: dict[str, Any]
    """open_clip's config of the architecture, with the activation that the weights were trained with."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """Mean, standard deviation, interpolation and way of resizing that the weights were trained with."""
    source: str
    """Where it comes from, in words."""
    weights: Path | None = None
    """A checkpoint: one that powerclip saved, or in one of the formats that open_clip reads."""
    state: dict[str, Tensor] | None = None
    """Weights that have been read, by open_clip's names, instead of a checkpoint."""
    pooling: dict[str, str] = field(default_factory=dict)
    """How global embeddings were pooled, by the name of the setting, where the source says so."""
    means: Any = None
    """The mean vectors of a centred score, (2, D), where they are kept apart from the weights."""
    image_size: Any = None
    """The image size of the weights, where that of a timm tower may be another than its default."""


def require_undamaged(folder: Path) -> None:
    """Compare a model's files with the checksums that were written with them; PowerclipError if one differs."""
    if damaged := find_damaged(folder):
        require_weights(folder / damaged)
        raise PowerclipError(
            f"{folder / damaged} is not as it was written: its checksum differs from that in {SUMS}; copy or write the "
            f"model again, or delete {SUMS} if you have changed the file yourself"
        )


def in_one_line(error: Exception) -> str:
    """The kind and the message of an error of another library, which may have many lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def find_start(name: str, pretrained: str | None) -> Start:
    """The start that ``create_model``'s ``name`` and ``pretrained`` describe.

    Raises:
        PowerclipError: there is no such model, tag, file or folder, or it cannot be read.
    """
    kind, place = parse_model_name(name)
    if kind is not None and pretrained is not None:
        raise PowerclipError(
            f"the model {name} brings its own weights; give no pretrained "
            f"(it is {pretrained!r}; in a command: --model.pretrained None)"
        )
    if kind == "hf-hub":
        return _read_hub(name)
    if kind == "local-dir":
        path = Path(place).expanduser()
        if start := _read_folder(path):
            return start
        hint = f"; name the folder: local-dir:{path.parent}" if path.is_file() else ""
        raise PowerclipError(
            f"cannot read the model {name}: expected a folder with {OPEN_CLIP_CONFIG} and weights, or a run or model "
            f"folder of powerclip{hint}"
        )
    if pretrained is None:
        return Start(model=read_config(name), source=f"{name} from scratch")
    path = Path(pretrained.removeprefix("local-dir:")).expanduser()
    if path.is_file():
        if path.suffix.lower() in (".json", ".yaml", ".yml") and not path.name.endswith(INDEX):
            raise PowerclipError(
                f"pretrained {path} holds settings, not weights; name the run or model folder it is in, or a file of "
                "weights"
            )
        if _is_own(path.parent / CONFIG):
            return _read_own(path.parent, path)
        if (path.parent / OPEN_CLIP_CONFIG).is_file():
            return _read_open_clip_file(path)
        return Start(model=read_config(name), source=f"{name} with the weights in {path}", weights=path)
    if start := _read_folder(path):
        return start
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags:
        known = f"tags of {name}: {', '.join(tags)}" if tags else f"{name} has no tags"
        raise PowerclipError(
            f"pretrained {pretrained!r} is neither a file, nor a run or model folder, nor a tag ({known})"
        )
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    try:
        weights = Path(open_clip.download_pretrained(tag))
    except Exception as error:  # of the hub's client or of urllib
        raise PowerclipError(f"cannot download the tag {pretrained} of {name}: {in_one_line(error)}") from error
    return Start(
        model={**read_config(name), "quick_gelu": bool(tag.get("quick_gelu"))},
        preprocess=merge_preprocess_dict({}, tag),
        source=f"{name} with the weights of the tag {pretrained}",
        weights=weights,
        pooling=TOWERS,
    )


def model_folder(path: Path) -> Path | None:
    """The model folder that a path names: itself, or ``model`` in a run folder; None if there is none."""
    return next((folder for folder in (path, path / "model") if (folder / CONFIG).is_file()), None)


def read_config(name: str) -> dict[str, Any]:
    """The config of a model by name (ours or open_clip's), or from a JSON file; a PowerclipError if it is neither."""
    ours = {path.stem: path for path in (Path(__file__).parent / "configs").glob("*.json")}
    if name not in ours and not name.lower().endswith(".json"):
        config = open_clip.get_model_config(name)  # a copy
        if config is None:
            known = [*ours, *open_clip.list_models()]
            hint = did_you_mean(name, known, otherwise="name a ViT of open_clip, tiny, or a JSON file")
            raise PowerclipError(f"unknown model {name!r}; {hint}")
        return dict(config)
    try:
        config = json.loads(ours.get(name, Path(name).expanduser()).read_bytes())
    except (OSError, ValueError) as error:
        raise PowerclipError(f"cannot read the model config {name}: {error}") from error
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config if isinstance(config, dict) else ())
    if missing:
        raise PowerclipError(f"{name} is not a model config in open_clip's form: it lacks {', '.join(sorted(missing))}")
    text = config["text_cfg"]
    tokenizer = text.get("hf_tokenizer_name") if isinstance(text, dict) else None
    if tokenizer and (place := Path(str(tokenizer)).expanduser()).is_dir():
        text["hf_tokenizer_name"] = str(place.resolve())  # the model may be loaded from another folder
    return dict(config)


def _is_own(config: Path) -> bool:
    """Whether a file is the config of a model that powerclip saved, a damaged one, too."""
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    try:
        return '"powerclip"' in text and "model" in json.loads(text)
    except ValueError:
        return True


def _read_own(folder: Path, weights: Path) -> Start:
    """A model that powerclip saved: architecture and preprocessing are its own."""
    require_undamaged(folder)
    try:
        config = read_json(folder / CONFIG)
        if "model_type" in config:
            raise PowerclipError(f"{folder} is {TRANSFORMERS}")
        model, preprocess = dict(config["model"]), dict(config.get("preprocess", {}))
        image_size = model["vision_cfg"]["image_size"]
        name_tokenizer(model, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PowerclipError(f"{folder} is not a valid powerclip model: {in_one_line(error)}") from error
    return Start(
        model=model,
        preprocess=preprocess,
        source=str(weights),
        weights=weights,
        pooling=_pooling(config),
        image_size=image_size,
    )


def _pooling(config: dict[str, Any]) -> dict[str, str]:
    """``image_pool`` and ``text_pool`` of a model that powerclip saved or exported."""
    pools = {key: str(config[key]) for key in ("image_pool", "text_pool") if key in config}
    return {key: "tower" if pool == "argmax" else pool for key, pool in pools.items()}  # its older name


def _read_folder(path: Path) -> Start | None:
    """The model in a folder in open_clip's form, or in a run or model folder of powerclip; None if it is neither."""
    if (path / OPEN_CLIP_CONFIG).is_file():
        require_undamaged(path)
        return replace(_read_open_clip_file(_open_clip_weights(path)), source=f"local-dir:{path}")
    if folder := model_folder(path):
        return _read_own(folder, folder / WEIGHTS)
    for run in (path, *path.parents[:2]) if path.is_dir() else ():  # of a checkpoint the run is the second parent
        if (run / "config.yaml").is_file() and (run / "checkpoints").is_dir():
            if model_folder(run):
                raise PowerclipError(f"{path} is not a model, but a part of the run {run}; name the run")
            raise PowerclipError(f"the run {run} has no model yet; finish it with --resume auto, then name {run}")
    return None


def _open_clip_weights(folder: Path) -> Path:
    """The file of weights that open_clip reads in a folder."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin", ".pth")]
    known = [folder / name for name in OPEN_CLIP_WEIGHTS if folder / name in found]
    known = known or sorted(folder.glob(f"*{INDEX}"))
    if not found:
        raise PowerclipError(
            f"cannot read the model {folder}: expected weights next to {OPEN_CLIP_CONFIG}, a .safetensors, .bin or "
            ".pth file"
        )
    return known[0] if known else min(found, key=lambda path: path.suffix != ".safetensors")


def _read_hub(name: str) -> Start:
    """A model with config and weights in open_clip's form on the hub: ``hf-hub:ORGANISATION/NAME``."""
    try:
        theirs, model = open_clip.create_model(name, require_pretrained=True), open_clip.get_model_config(name)
    except Exception as error:  # missing, damaged, no network, ...
        hint = "without a network, name a folder: local-dir:FOLDER"
        raise PowerclipError(f"cannot read the model {name}: {in_one_line(error)}; {hint}") from error
    return Start(
        model=model,
        preprocess=theirs.visual.preprocess_cfg,
        source=name,
        state=theirs.state_dict(),
        pooling=TOWERS,
    )


def _read_open_clip_file(weights: Path) -> Start:
    """A checkpoint next to the config of its model in open_clip's form."""
    try:
        theirs = read_json(weights.parent / OPEN_CLIP_CONFIG)
        if "model_cfg" not in theirs:
            raise PowerclipError(
                f"{weights.parent / OPEN_CLIP_CONFIG} is not in open_clip's form: it lacks model_cfg, the key that the "
                "model's config is under"
            )
        kept = theirs.get(KEPT, {})
        model = kept.get("model") or theirs["model_cfg"]
        name_tokenizer(model, weights.parent)
        preprocess = merge_preprocess_dict({}, theirs.get("preprocess_cfg", {}))
        pooling = _pooling(kept) or TOWERS
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise PowerclipError(f"cannot read the model {weights}: {in_one_line(error)}") from error
    return Start(
        model=model,
        preprocess=preprocess,
        source=str(weights),
        weights=weights,
        pooling=pooling,
        means=kept.get(MEANS),
    )


def name_tokenizer(model: dict[str, Any], folder: Path) -> None:
    """Let a model's config name the folder as its tokenizer if that is in it, or should be."""
    text = model["text_cfg"]
    name = text.get("hf_tokenizer_name")
    if name == "." or (name and (folder / "tokenizer_config.json").is_file()):
        text["hf_tokenizer_name"] = str(folder.resolve())
