"""Models to export, and the other libraries in a process without powerclip."""

import json
import subprocess
import sys

import numpy as np
import torch
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import powerclip
from powerclip.data.images import decode_image
from powerclip.model import save
from powerclip.scenes import generate
from tests.support.models import TINY


@register_model
def vit_siglip_of_tests(pretrained=False, *, num_classes=0, **options):
    """SigLIP's image tower, small."""
    sizes = {"img_size": 64, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": num_classes}
    return VisionTransformer(**sizes, class_token=False, global_pool="map")


SIGLIP = {
    "embed_dim": 32,
    "custom_text": True,
    "init_logit_bias": -10,
    "vision_cfg": {"timm_model_name": "vit_siglip_of_tests", "image_size": 64, "timm_pool": "map", "timm_proj": "none"},
    "text_cfg": {**TINY["text_cfg"], "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
}

OF_TIMM = {
    **SIGLIP,
    "embed_dim": 192,
    "vision_cfg": {
        "timm_model_name": "vit_tiny_patch16_224",
        "image_size": 224,
        "timm_pool": "map",
        "timm_proj": "none",
    },
}
"""The same with a tower that timm has, which open_clip needs in order to build it."""


def model_to_export(folder, config=TINY, **options):
    """A model folder with every parameter random:
    norms and biases begin as ones and zeros, which would hide mistakes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config-of-test.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = powerclip.create_model(str(folder / "config-of-test.json"), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return save(model, folder / "m")


def word_tokenizer(folder):
    """A small tokenizer of transformers, which pads with 1."""
    words = [
        "<unk>",
        "<pad>",
        "</s>",
        *[
            "a",
            "an",
            "red",
            "green",
            "blue",
            "cube",
            "ball",
            "cone",
            "and",
            "is",
            "of",
            "the",
            "to",
            "left",
            "right",
            "hello",
        ],
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder)
    return str(folder)


def assert_the_same_without_powerclip(cases, code, *, image_size=96):
    """What a program computes of images and captions is what powerclip computes, within the tolerances of the exports.

    ``cases`` are (model folder, exported folder, parity). The program defines ``encode(folder, pictures, captions)``,
    which returns the embeddings of PIL images and of texts as arrays; one process runs it for all.
    """
    scenes = list(generate("test", count=4, seed=5, image_size=image_size))
    captions = [*(scene.caption for scene in scenes[:3]), "Hello, World!"]
    pictures = [decode_image(scene.image) for scene in scenes]
    folder = cases[0][1].parent
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number}.png")
    program = f"""
import json, sys
sys.modules["powerclip"] = None
import numpy as np
from PIL import Image
pictures = [Image.open({str(folder)!r} + f"/{{n}}.png") for n in range(4)]
{code}
for folder in {[str(exported) for _, exported, _ in cases]!r}:
    image, text = (np.asarray(x) for x in encode(folder, pictures, {captions!r}))
    np.savez(folder + "/../" + folder.split("/")[-1] + ".npz", image=image, text=text)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for model, exported, parity in cases:
        ours, preprocess, tokenizer = powerclip.load(model)
        theirs = np.load(exported.parent / f"{exported.name}.npz")
        with torch.no_grad():
            image = ours.encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
            text = ours.encode_text(tokenizer(captions), normalize=True)
        for tower, mine in (("image", image), ("text", text)):
            unit = theirs[tower] / np.linalg.norm(theirs[tower], axis=1, keepdims=True)
            assert np.abs(unit - mine.numpy()).max() <= getattr(parity, f"{tower}_tolerance"), (exported, tower)
