"""transformers' form, read by AutoModel and AutoProcessor without powerclip and open_clip."""

import json
import shutil
import string
import sys

import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from transformers import AutoTokenizer, CLIPTokenizer, T5TokenizerFast

import powerclip
from powerclip.errors import PowerclipError
from powerclip.export import export
from powerclip.export.tokenizer_files import write_tokenizer
from powerclip.model import save
from tests.support.exports import SIGLIP, assert_the_same_without_powerclip, model_to_export, word_tokenizer
from tests.support.models import TINY

PROGRAM = """
sys.modules["open_clip"] = None
import torch
from transformers import AutoModel, AutoProcessor

def encode(folder, pictures, captions):
    config = json.load(open(folder + "/config.json"))
    trust = {"trust_remote_code": True} if "auto_map" in config else {}
    model, processor = (auto.from_pretrained(folder, **trust) for auto in (AutoModel, AutoProcessor))
    length = {"padding": "max_length", "max_length": config["text_config"]["max_position_embeddings"],
              "truncation": True}
    with torch.no_grad():
        found = model(**processor(text=captions, images=pictures, return_tensors="pt", **length))
    return found.image_embeds, found.text_embeds
"""
"""The embeddings that its scores are computed of, not those of its other methods, which the parity check takes."""


@pytest.mark.slow
def test_transformers_computes_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))  # code from the folders is copied there
    words = word_tokenizer(tmp_path / "words")
    siglip = {**SIGLIP, "text_cfg": {**SIGLIP["text_cfg"], "vocab_size": 32, "pad_id": 1, "hf_tokenizer_name": words}}
    cases = []
    for number, (config, image_pool, text_pool) in enumerate(
        [
            (TINY, "tower", "tower"),
            ({**TINY, "quick_gelu": True, "custom_text": True}, "tower", "tower"),
            (TINY, "avg", "avg"),
            (TINY, "tower", "avg"),
            (TINY, "avg", "tower"),
            (siglip, "tower", "tower"),
        ]
    ):
        model = model_to_export(tmp_path / f"m{number}", config, image_pool=image_pool, text_pool=text_pool)
        folder, parity = export(str(model), "transformers", output=tmp_path / f"case-{number}")
        assert parity.captions == 0
        kind = json.loads((folder / "config.json").read_text())["model_type"]
        averages = "avg" in (image_pool, text_pool)
        assert kind == ("siglip" if config is siglip else "averaged_clip" if averages else "clip")
        cases.append((model, folder, parity))
    # Not resized: the library resizes on tensors, powerclip as Pillow does.
    assert_the_same_without_powerclip(cases, PROGRAM, image_size=64)


@pytest.mark.parametrize("target", ["open_clip", "hub-folder"])
def test_a_tokenizer_of_transformers_goes_with_the_model(target, tmp_path):
    words = word_tokenizer(tmp_path / "words")
    config = {**TINY, "text_cfg": {**TINY["text_cfg"], "vocab_size": 32, "pad_id": 1, "hf_tokenizer_name": words}}
    config["text_cfg"] |= {"pool_type": "eos", "eos_id": 2}
    model = model_to_export(tmp_path, config, image_pool="tower", text_pool="tower")
    folder, parity = export(str(model), target, output=tmp_path / "out")
    assert parity.captions == 0
    shutil.rmtree(words)
    loaded, _, tokenizer = powerclip.load(folder)
    assert tokenizer(["a red cube </s>"])[0, :5].tolist() == [3, 5, 8, 2, 1]


def test_the_tokenizer_is_clip_s(tmp_path):
    folder, _ = export(str(model_to_export(tmp_path, image_pool="tower", text_pool="tower")), "transformers")
    assert CLIPTokenizer.from_pretrained(folder)("Hello, World!")["input_ids"] == [49406, 3306, 267, 1002, 256, 49407]


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
@pytest.mark.parametrize("kind", ["T5TokenizerFast", "PreTrainedTokenizerFast"])
def test_a_tokenizer_s_file_cleans_texts_as_open_clip_does(kind, clean, tmp_path):
    if kind == "T5TokenizerFast":
        pieces = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581red", "\u2581Red", "\u2581cu", "be", "s", "_", "!"]
        vocabulary = [(piece, -float(i)) for i, piece in enumerate(pieces)]
        T5TokenizerFast(vocab=vocabulary, extra_ids=0).save_pretrained(tmp_path / "words")
    else:
        word_tokenizer(tmp_path / "words")
    tokenizer = HFTokenizer(str(tmp_path / "words"), context_length=12, clean=clean)
    write_tokenizer(tokenizer, tmp_path / "out")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    captions = [
        "red cube",
        "Red  cubes!",
        "red_cube (the ball)",
        "\tA\u3000RED\ncube ",
        "a" + string.punctuation,
        "",
    ]
    found = written(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(found, tokenizer(captions))


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        ({"text_cfg": {**TINY["text_cfg"], "tokenizer_kwargs": {"clean": "canonicalize"}}}, {}, "by canonicalize"),
        ({"text_cfg": {**TINY["text_cfg"], "no_causal_mask": True}}, {}, "attends in both directions"),
        ({"text_cfg": {**TINY["text_cfg"], "pool_type": "last"}}, {"text_pool": "tower"}, "text tower pools by last"),
        ({"vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg"}}, {"image_pool": "tower"}, "pools by avg"),
        ({"vision_cfg": {**TINY["vision_cfg"], "no_ln_pre": True}}, {}, "differ in vision_model.pre_layrnorm.bias"),
        ({"vision_cfg": {**TINY["vision_cfg"], "image_size": [64, 32]}}, {}, "not square"),
        (SIGLIP, {"image_pool": "avg"}, "its image and text embeddings are averages"),
    ],
)
def test_what_it_cannot_express_is_refused_with_the_reason(change, options, reason, tmp_path):
    model = model_to_export(tmp_path, {**TINY, **change}, **options)
    with pytest.raises(
        PowerclipError, match=f"transformers cannot express this model: .*{reason}.*; use --to onnx"
    ) as e:
        export(str(model), "transformers")
    assert "\n" not in str(e.value)
    if "open_clip" in str(e.value):
        export(str(model), "open_clip", output=tmp_path / "other")
    else:
        with pytest.raises(PowerclipError, match="use --to onnx or hub-folder"):
            export(str(model), "open_clip", output=tmp_path / "other")


def test_a_tower_that_only_powerclip_has_is_not_sent_to_open_clip(tmp_path):
    model = save(powerclip.create_model("tiny-local"), tmp_path / "m")
    with pytest.raises(PowerclipError, match=r"are averages; use --to onnx or hub-folder$"):
        export(str(model), "transformers")


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PowerclipError, match=r"needs transformers, .* pip install 'powerclip\[transformers\]'"):
        export(str(model_to_export(tmp_path)), "transformers")
