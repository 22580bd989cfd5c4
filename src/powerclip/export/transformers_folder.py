"""transformers' form: its CLIPModel or SiglipModel with a processor,
as ``AutoModel`` and ``AutoProcessor`` read them."""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from powerclip.errors import PowerclipError, needs_extra
from powerclip.export import open_clip_folder
from powerclip.export.parity import Exported
from powerclip.export.tokenizer_files import cleaning_of, is_fast, write_tokenizer
from powerclip.files import read_json, write_json
from powerclip.model import PowerCLIP
from powerclip.model.towers import Tokenizer

IMAGE, TEXT, HEAD = "vision_model.", "text_model.", "vision_model.head."
AUTO_CLASSES = ("AutoModel", "AutoModelForZeroShotImageClassification")
NAMES = (
    (r"^text\.", ""),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^text_projection\.", TEXT + "head."),
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.(?:class_embedding)$", IMAGE + "embeddings.class_embedding"),
    (r"^visual\.(?:positional_embedding|trunk\.pos_embed)$", IMAGE + "embeddings.position_embedding.weight"),
    (r"^visual\.(?:conv1|trunk\.patch_embed\.proj)\.", IMAGE + "embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", IMAGE + "pre_layrnorm."),
    (r"^visual\.(?:ln_post|trunk\.norm)\.", IMAGE + "post_layernorm."),
    (r"^visual\.trunk\.attn_pool\.latent$", IMAGE + "head.probe"),
    (r"^visual\.trunk\.attn_pool\.norm\.", IMAGE + "head.layernorm."),
    (r"^visual\.trunk\.attn_pool\.proj\.", IMAGE + "head.attention.out_proj."),
    (r"^visual\.trunk\.attn_pool\.", HEAD),
    (r"^visual\.(?:transformer\.res|trunk\.)blocks\.", IMAGE + "encoder.layers."),
    (r"^transformer\.resblocks\.", TEXT + "encoder.layers."),
    (r"^token_embedding\.", TEXT + "embeddings.token_embedding."),
    (r"^positional_embedding$", TEXT + "embeddings.position_embedding.weight"),
    (r"^ln_final\.", TEXT + "final_layer_norm."),
    (r"\.(?:ln_|norm)([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"(layers\.\d+)\.attn\.(?:out_)?proj\.", r"\1.self_attn.out_proj."),
)
"""From open_clip's and timm's names of tensors to transformers', in this order."""


def write(model: PowerCLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder. A model that averages brings ``transformers_average.py``, a class for ``trust_remote_code``.

    Raises:
        PowerclipError: transformers is not installed, or has no class that computes the same.
    """
    try:
        _write(model, tokenizer, folder)
    except _RefusedError as reason:
        others = "onnx or hub-folder" if open_clip_folder.refusal(model, tokenizer) else "onnx, open_clip or hub-folder"
        raise PowerclipError(f"transformers cannot express this model: {reason}; use --to {others}") from None


class _RefusedError(Exception):
    """What the library's models lack."""


def _write(model: PowerCLIP, tokenizer: Tokenizer, folder: Path) -> None:
    transformers = _library()
    siglip = isinstance(model.backbone.visual, TimmModel)
    averages = [tower for tower, pool in (("image", model.image_pool), ("text", model.text_pool)) if pool == "avg"]
    config = (_siglip_config if siglip else _clip_config)(model, tokenizer, averages)
    kind = transformers.SiglipModel if siglip else transformers.CLIPModel
    if averages:
        from powerclip.export import transformers_average as average

        shutil.copy(average.__file__, folder)
        kind, file = average.AveragedCLIPModel, Path(average.__file__).stem
        config["auto_map"] = dict.fromkeys(AUTO_CLASSES, f"{file}.{kind.__name__}")
        config["auto_map"]["AutoConfig"] = f"{file}.{kind.config_class.__name__}"
        config["averages"] = averages
    theirs = kind(kind.config_class(**config))
    state, expected = _renamed(model.backbone.state_dict()), theirs.state_dict()
    if not siglip:
        state.pop("logit_bias", None)  # adds the same to all logits, which no softmax sees
    elif "logit_bias" not in state:
        state["logit_bias"] = torch.zeros(1)
    if different := sorted(state.keys() ^ expected.keys()):
        raise _RefusedError(f"its towers and {kind.__name__}'s differ in {', '.join(different[:3])}")
    theirs.load_state_dict({name: value.reshape(expected[name].shape) for name, value in state.items()})
    theirs.save_pretrained(folder)
    write_tokenizer(tokenizer, folder)
    preprocess = model.backbone.visual.preprocess_cfg
    size, whole = model.image_size[0], preprocess["resize_mode"] == "squash"
    images = transformers.CLIPImageProcessor(
        size={"height": size, "width": size} if whole else {"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_center_crop=not whole,
        resample=2 if preprocess["interpolation"] == "bilinear" else 3,  # Pillow's numbers
        image_mean=list(preprocess["mean"]),
        image_std=list(preprocess["std"]),
    )
    processor = transformers.SiglipProcessor if siglip else transformers.CLIPProcessor
    processor(images, _tokenizer(folder, siglip=siglip)).save_pretrained(folder)
    if siglip:  # its text tower also attends to the padding: no mask for it
        settings = folder / "tokenizer_config.json"
        kind_of_all_versions = {"tokenizer_class": "PreTrainedTokenizerFast"}
        write_json(settings, {**read_json(settings), **kind_of_all_versions, "model_input_names": ["input_ids"]})


def read(folder: Path) -> Exported:
    """The model and the processor as ``from_pretrained`` gives them."""
    transformers = _library()
    siglip = read_json(folder / "config.json")["model_type"] == "siglip"
    kind = transformers.SiglipModel if siglip else transformers.CLIPModel
    if (folder / "transformers_average.py").is_file():  # a copy of this module
        from powerclip.export.transformers_average import AveragedCLIPModel

        kind = AveragedCLIPModel
    model, texts = kind.from_pretrained(folder).eval(), _tokenizer(folder, siglip=siglip)
    images = transformers.CLIPImageProcessor.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings

    def pooled(output: Any) -> Tensor:  # what the library gives has changed with its version 5
        found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
        return found

    def tokenize(captions: Sequence[str]) -> Tensor:
        found = texts(list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        ids: Tensor = found["input_ids"]
        if not siglip:
            ids *= found["attention_mask"]  # padding is 0, as in open_clip
        return ids

    return Exported(
        encode_image=lambda x: pooled(model.get_image_features(pixel_values=x)),
        encode_text=lambda x: pooled(model.get_text_features(input_ids=x)),
        preprocess=lambda picture: images(images=picture, return_tensors="pt")["pixel_values"][0],
        tokenizer=tokenize,
    )


def _tokenizer(folder: Path, *, siglip: bool) -> Any:
    """Not the automatic one for CLIP, which would ask whether the code in the folder is trusted."""
    transformers = _library()
    return (transformers.AutoTokenizer if siglip else transformers.CLIPTokenizer).from_pretrained(folder)


def usage(model: PowerCLIP) -> str:
    """How to load it."""
    averages = "avg" in (model.image_pool, model.text_pool)
    trust = ", trust_remote_code=True" if averages else ""
    why = "The embeddings are means, which CLIPModel lacks: `transformers_average.py` in this folder adds them.\n\n"
    return f"""{why if averages else ""}```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("FOLDER"{trust})
processor = AutoProcessor.from_pretrained("FOLDER"{trust})
inputs = processor(text=captions, images=images, padding="max_length", truncation=True, return_tensors="pt")
probabilities = model(**inputs).logits_per_image.softmax(dim=1)
```

open_clip's tokenizers also repair mojibake (ftfy) and unescape HTML in texts; the processor does not."""


def _clip_config(model: PowerCLIP, tokenizer: Tokenizer, averages: Sequence[str]) -> dict[str, Any]:
    config = model.config["model"]
    vision, text = CLIPVisionCfg(**config["vision_cfg"]), CLIPTextCfg(**config["text_cfg"])
    _check(model)
    if "image" not in averages and vision.pool_type != "tok":
        raise _RefusedError(f"its image tower pools by {vision.pool_type}")
    if "text" not in averages and text.pool_type not in ("argmax", "eos"):
        raise _RefusedError(f"its text tower pools by {text.pool_type}")
    if text.no_causal_mask:
        raise _RefusedError("its text tower attends in both directions")
    if not isinstance(tokenizer, open_clip.SimpleTokenizer):
        raise _RefusedError("its tokenizer is not CLIP's")
    if (cleaning := cleaning_of(tokenizer)) != "lower":
        raise _RefusedError(f"its tokenizer cleans texts by {cleaning}, and CLIPTokenizer by lower")
    quick, visual = config.get("quick_gelu", False), model.backbone.visual
    names = {"hidden_act": "quick_gelu", "projection_dim": config["embed_dim"]}
    text_tower = getattr(model.backbone, "text", model.backbone)
    return {
        "projection_dim": config["embed_dim"],
        "vision_config": {
            **_sizes(vision.width, vision.layers, vision.width // vision.head_width, vision.mlp_ratio),
            **names,
            **({} if quick else {"hidden_act": _gelu(vision.act_kwargs)}),
            "layer_norm_eps": visual.ln_post.eps,
            "image_size": model.image_size[0],
            "patch_size": visual.patch_size[0],
        },
        "text_config": {
            **_sizes(text.width, text.layers, text.heads, text.mlp_ratio),
            **names,
            **({} if quick else {"hidden_act": _gelu(text.act_kwargs)}),
            "layer_norm_eps": text_tower.ln_final.eps,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": model.context_length,
            "bos_token_id": tokenizer.sot_token_id,
            "eos_token_id": tokenizer.eot_token_id,
            "pad_token_id": tokenizer.eot_token_id,
        },
    }


def _siglip_config(model: PowerCLIP, tokenizer: Tokenizer, averages: Sequence[str]) -> dict[str, Any]:
    trunk, tower = model.backbone.visual.trunk, getattr(model.backbone, "text", None)
    text = CLIPTextCfg(**model.config["model"]["text_cfg"])
    _check(model)
    if averages:
        raise _RefusedError(f"of a timm tower's model, its {' and '.join(averages)} embeddings are averages")
    if (
        tower is None
        or getattr(trunk, "attn_pool", None) is None
        or text.pool_type != "last"
        or not text.no_causal_mask
    ):
        raise _RefusedError("its image tower is of timm, and it is not a SigLIP model")
    if not hasattr(tokenizer, "tokenizer"):
        raise _RefusedError("it is a SigLIP model with CLIP's tokenizer")
    wrapper: Any = tokenizer
    if wrapper.strip_sep_token or wrapper.tokenizer_mode or not is_fast(wrapper):
        raise _RefusedError("its tokenizer is not a fast one of transformers' alone (strip_sep_token, tokenizer_mode)")
    block = trunk.blocks[0]
    return {
        "vision_config": {
            **_sizes(
                trunk.embed_dim, len(trunk.blocks), block.attn.num_heads, block.mlp.fc1.out_features / trunk.embed_dim
            ),
            "hidden_act": _gelu(vars(block.mlp.act)) if type(block.mlp.act) is nn.GELU else "gelu_pytorch_tanh",
            "layer_norm_eps": trunk.norm.eps,
            "image_size": model.image_size[0],
            "patch_size": trunk.patch_embed.patch_size[0],
        },
        "text_config": {
            **_sizes(text.width, text.layers, text.heads, text.mlp_ratio),
            "hidden_act": _gelu(text.act_kwargs),
            "layer_norm_eps": tower.ln_final.eps,
            "vocab_size": text.vocab_size,
            "max_position_embeddings": model.context_length,
            "projection_size": model.config["model"]["embed_dim"],
            "pad_token_id": tokenizer.tokenizer.pad_token_id,
            "bos_token_id": tokenizer.tokenizer.bos_token_id,
            "eos_token_id": tokenizer.tokenizer.eos_token_id,
        },
    }


def _sizes(width: int, layers: int, heads: int, mlp_ratio: float) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": round(width * mlp_ratio),
    }


def _gelu(options: Mapping[str, Any] | None) -> str:
    return "gelu_pytorch_tanh" if (options or {}).get("approximate") == "tanh" else "gelu"


def _check(model: PowerCLIP) -> None:
    if model.image_size[0] != model.image_size[1]:
        raise _RefusedError(
            f"its images are {model.image_size[0]} x {model.image_size[1]} pixels, which are not square"
        )
    if (mode := model.backbone.visual.preprocess_cfg["resize_mode"]) == "longest":
        raise _RefusedError(f"its images are resized by resize_mode {mode}")


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by transformers' names: projections transposed, queries, keys and values of layers apart."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        if name in ("visual_projection.weight", "text_projection.weight"):
            value = value.T
        if found := re.fullmatch(r"(.*layers\.\d+)\.attn\.(?:in_proj_|qkv\.)(weight|bias)", name):
            parts = zip("qkv", value.chunk(3), strict=True)
            renamed |= {f"{found[1]}.self_attn.{letter}_proj.{found[2]}": part for letter, part in parts}
        elif found := re.fullmatch(rf"{HEAD}(q|kv)\.(weight|bias)", name):
            both = [state[f"visual.trunk.attn_pool.{part}.{found[2]}"] for part in ("q", "kv")]
            renamed[f"{HEAD}attention.in_proj_{found[2]}"] = torch.cat(both)
        else:
            renamed[name] = value
    return renamed


def _library() -> Any:
    with needs_extra("--to transformers", "transformers"):
        import transformers
    transformers.utils.logging.disable_progress_bar()
    return transformers
