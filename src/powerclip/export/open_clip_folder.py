"""open_clip's form: ``open_clip_config.json`` and ``open_clip_model.safetensors``."""

import copy
import dataclasses
import shutil
from pathlib import Path

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from timm.models import model_entrypoint

import powerclip
from powerclip.errors import PowerclipError
from powerclip.export import open_clip_average
from powerclip.export.parity import Exported
from powerclip.files import write_json
from powerclip.model import PowerCLIP
from powerclip.model.start import KEPT, MEANS, OPEN_CLIP_CONFIG
from powerclip.model.towers import Tokenizer


def write(model: PowerCLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder, which also keeps powerclip's config for ``powerclip.load``.

    The mean of the patches is open_clip's ``pool_type`` "avg": projection and mean commute. For texts it has no mean:
    its ``pool_type`` "none" gives all tokens, and ``open_clip_average.py`` in the folder averages them.

    Raises:
        PowerclipError: open_clip has no such tower, or no pooling that gives the same.
    """
    if reason := refusal(model, tokenizer):
        raise PowerclipError(f"{reason}; use --to onnx or hub-folder")
    config = copy.deepcopy(model.config["model"])
    if model.image_pool == "avg":
        config["vision_cfg"] |= {"pool_type": "avg", "final_ln_after_pool": False}
    if model.text_pool == "avg":
        config["text_cfg"]["pool_type"] = "none"
        shutil.copy(open_clip_average.__file__, folder)
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
    kept = {**model.config, "scoring": dataclasses.asdict(model.scoring)}
    if model.vector_means is not None:
        kept[MEANS] = model.vector_means.tolist()
    preprocess = model.backbone.visual.preprocess_cfg
    write_json(folder / OPEN_CLIP_CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess, KEPT: kept})
    state = {name: value.contiguous() for name, value in model.backbone.state_dict().items()}
    save_file(state, folder / HF_SAFE_WEIGHTS_NAME)


def refusal(model: PowerCLIP, tokenizer: Tokenizer) -> str:
    """Why open_clip cannot express a model; empty if it can."""
    name = model.config["model"]["vision_cfg"].get("timm_model_name")
    if name is not None and not model_entrypoint(name).__module__.startswith("timm."):
        return f"the image tower {name} is not one of timm's, as open_clip needs"
    if name is not None and _is_resized(model):
        height, width = model.backbone.visual.trunk.default_cfg["input_size"][1:]
        return (
            f"open_clip builds the image tower {name} for {height} x {width} pixels only, and this model's images are "
            f"{model.image_size[0]} x {model.image_size[1]}"
        )
    if model.image_pool == "avg" and isinstance(model.backbone.visual, TimmModel):
        return "open_clip has no average of a timm tower's normalised patches (image_pool avg)"
    if model.text_pool == "avg" and not isinstance(tokenizer, open_clip.SimpleTokenizer):
        return "open_clip has no average of tokens, and the file that adds it knows CLIP's tokenizer only"
    return ""


def _is_resized(model: PowerCLIP) -> bool:
    """Whether open_clip's model of the same config has tensors of other shapes."""
    config = copy.deepcopy(model.config["model"])
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    config["vision_cfg"]["timm_model_pretrained"] = False
    with torch.device("meta"):
        theirs = kind(**config).state_dict()
    return any(theirs[name].shape != value.shape for name, value in model.backbone.state_dict().items())


def read(folder: Path) -> Exported:
    """The model as open_clip builds it, or as the file in the folder does with its help; buffers as powerclip does."""
    buffers = dict(powerclip.load(folder)[0].named_buffers())
    if (folder / Path(open_clip_average.__file__).name).is_file():
        return Exported.of(*open_clip_average.load(folder), buffers=buffers)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", require_pretrained=True)
    return Exported.of(model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"), buffers=buffers)


def usage(model: PowerCLIP) -> str:
    """How to load it."""
    if model.text_pool == "avg":
        return """The text embedding is the mean over the tokens, which open_clip's own classes lack: loaded by
open_clip alone, the model gives the embedding of every token. The file `open_clip_average.py` in this folder, which
needs only open_clip, averages them:

```python
from open_clip_average import load

model, preprocess, tokenizer = load("FOLDER")
```"""
    return """```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")  # or hf-hub:ORGANISATION/NAME
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")
```"""
