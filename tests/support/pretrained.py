"""Small models of every family that open_clip pretrains, made with its own classes."""

import json

import open_clip
import tokenizers
import torch
import transformers
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
    "relative positions": {
        **SMALL,
        "vision_cfg": {
            **TIMM,
            "timm_model_name": "vit_relpos_small_patch16_224",
            "timm_pool": "avg",
            "timm_proj": "linear",
        },
    },
    "ViTamin": {
        **SMALL,
        "custom_text": True,
        "vision_cfg": {**TIMM, "timm_model_name": "vitamin_small_224", "timm_pool": "", "timm_proj": "linear"},
    },
    "PE": {
        **SMALL,
        "embed_dim": 512,
        "custom_text": True,
        "vision_cfg": {
            "timm_model_name": "vit_pe_core_tiny_patch16_384",
            "timm_model_pretrained": False,
            "image_size": 384,
            "timm_pool": "map",
            "timm_proj": None,
        },
    },
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


TOKENIZER = open_clip.SimpleTokenizer()


def inputs(size, length=16):
    """Two images and three captions."""
    torch.manual_seed(2)
    tokens = TOKENIZER(["a red cube", "two dogs on a beach, running!", "!"], context_length=length)
    return torch.randn(2, 3, size, size), tokens


def local_dir(folder, theirs, config, **preprocess):
    """A folder in open_clip's form, with a model's weights."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file({k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "open_clip_model.safetensors")


WORDS = "a an and of on the to above below left right big small red green blue yellow cube ball cone star ring"


def siglip_folder(folder, *, logit_scale=4.77, logit_bias=-12.9):
    """A folder in open_clip's form of a small SigLIP, with its tokenizer; its scale is above CLIP's limit of 100."""
    vocabulary = {"<unk>": 0, "</s>": 1, **{word: i for i, word in enumerate(WORDS.split(), 2)}}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    text = {
        **SIGLIP_TEXT,
        "context_length": 64,
        "vocab_size": len(vocabulary),
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    config = {**FAMILIES["SigLIP"], "text_cfg": text}
    theirs = theirs_of(config)
    with torch.no_grad():
        theirs.logit_scale.fill_(logit_scale)
        theirs.logit_bias.fill_(logit_bias)
    named = {**config, "text_cfg": {**text, "hf_tokenizer_name": "nowhere/siglip"}}
    local_dir(folder, theirs, named, mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize_mode="squash")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    fast.save_pretrained(folder)
    return theirs
