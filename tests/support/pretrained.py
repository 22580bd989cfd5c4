"""Small models of every family that open_clip pretrains, made with its own classes."""

import json

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8}
TEXT = {"context_length": 16, "width": 16, "heads": 2, "layers": 2}
SMALL = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP_TEXT = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
TIMM = {"timm_model_name": "vit_tiny_patch16_224", "timm_model_pretrained": False, "image_size": 224}
EVA = {**TIMM, "timm_model_name": "eva02_tiny_patch14_224"}
FAMILIES = {
    "CLIP": SMALL,
    "QuickGELU": {**SMALL, "quick_gelu": True},
    "custom text": {**SMALL, "custom_text": True, "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407}},
    "average": {**SMALL, "vision_cfg": {**VISION, "pool_type": "avg"}},
    "CLIPA": {
        **SMALL,
        "vision_cfg": {**VISION, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        "text_cfg": {**TEXT, "pool_type": "last", "no_causal_mask": True},
    },
    "timm, average": {**SMALL, "vision_cfg": {**TIMM, "timm_pool": "avg", "timm_proj": "linear"}},
    "timm, class token": {
        **SMALL,
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_pool": "token", "timm_proj": None},
    },
    "EVA": {**SMALL, "custom_text": True, "vision_cfg": {**EVA, "timm_pool": "token", "timm_proj": None}},
    "SigLIP": {
        "embed_dim": 192,
        "custom_text": True,
        "init_logit_bias": -10,
        "vision_cfg": {**TIMM, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": SIGLIP_TEXT,
    },
}


def theirs_of(config):
    """open_clip's own model of a config, in evaluation mode, with every parameter random."""
    torch.manual_seed(1)
    arguments = {key: value for key, value in config.items() if key != "custom_text"}
    model = (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip.CLIP)(**arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases begin as ones and zeros, which would hide mistakes
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def config_file(folder, config):
    """The path of a file with a config, as a setting of a model's name takes it."""
    path = folder / "small.json"
    path.write_text(json.dumps(config))
    return str(path)


def inputs(size, length=16):
    """Two images and three captions."""
    torch.manual_seed(2)
    tokens = open_clip.SimpleTokenizer(context_length=length)(["a red cube", "two dogs on a beach, running!", "!"])
    return torch.randn(2, 3, size, size), tokens


def local_dir(folder, theirs, config, **preprocess):
    """A folder in open_clip's form, with a model's weights."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "open_clip_model.safetensors")
