"""ONNX, run by onnxruntime without powerclip and torch, from pixels and tokens as preprocess.json says."""

import json
import sys

import onnxruntime
import pytest
import torch
from open_clip.tokenizer import HFTokenizer

import powerclip
from powerclip.errors import PowerclipError
from powerclip.export import export
from powerclip.export.onnx_files import bare_tokenizer
from powerclip.export.tokenizer_files import write_tokenizer
from powerclip.files import write_json
from tests.support.exports import SIGLIP, assert_the_same_without_powerclip, model_to_export, word_tokenizer

PROGRAM = """
sys.modules["torch"] = sys.modules["open_clip"] = None
import onnxruntime
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, Regex

def encode(folder, pictures, captions):
    says = json.load(open(folder + "/preprocess.json"))
    pixels, tokens = says["image"], says["text"]
    (height, width), resample = pixels["size"], {"bicubic": Image.BICUBIC}[pixels["interpolation"]]
    assert pixels["resize_mode"] == "shortest" and all(p.size[0] == p.size[1] for p in pictures) and height == width
    x = np.stack([np.asarray(p.convert("RGB").resize((width, height), resample)) for p in pictures]) / 255
    x = ((x - pixels["mean"]) / pixels["std"]).transpose(0, 3, 1, 2).astype("float32")

    bpe = Tokenizer(models.BPE.from_file(folder + "/vocab.json", folder + "/merges.txt", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    ids = np.full((len(captions), tokens["context_length"]), tokens["padding"], dtype=np.int64)
    for row, caption in zip(ids, captions):
        of = [tokens["start"], *bpe.encode(caption).ids[: len(row) - 2], tokens["end"]]
        row[: len(of)] = of

    def tower(name, **inputs):
        return onnxruntime.InferenceSession(folder + f"/{name}.onnx").run(None, inputs)[0]

    image, text = tower("image", pixel_values=x), tower("text", input_ids=ids)
    assert np.allclose(np.linalg.norm(image, axis=1), 1, atol=1e-6)
    return image, text
"""


@pytest.mark.slow
def test_onnxruntime_computes_the_same_for_any_batch(tmp_path):
    cases = []
    for pool in ("avg", "tower"):
        model = model_to_export(tmp_path / pool, image_pool=pool, text_pool=pool)
        folder, parity = export(str(model), "onnx", output=tmp_path / f"case-{pool}")  # 16 pairs; traced with 2
        cases.append((model, folder, parity))
        says = json.loads((folder / "preprocess.json").read_text())
        assert says["logits"]["scale"] == pytest.approx(powerclip.load(model)[0].logit_scale.exp().item())
    assert_the_same_without_powerclip(cases, PROGRAM)  # 4 pairs


@pytest.mark.slow
def test_a_model_that_no_other_form_can_express(tmp_path):
    model = model_to_export(tmp_path, SIGLIP, image_pool="avg", text_pool="avg")
    folder, _ = export(str(model), "onnx")
    (pixels,) = onnxruntime.InferenceSession(folder / "image.onnx").get_inputs()
    assert pixels.shape == ["batch", 3, 64, 64]
    logits = json.loads((folder / "preprocess.json").read_text())["logits"]
    assert logits["bias"] == pytest.approx(powerclip.load(model)[0].logit_bias.item())
    x = torch.zeros(1, 3, 64, 64)
    assert onnxruntime.InferenceSession(folder / "image.onnx").run(None, {"pixel_values": x.numpy()})[0].shape == (
        1,
        32,
    )


def test_cleaning_before_the_tokenizer_is_said_and_in_its_file_but_for_mojibake_and_html(tmp_path):
    tokenizer = HFTokenizer(word_tokenizer(tmp_path / "words"), context_length=8, clean="canonicalize")
    says = write_tokenizer(tokenizer, tmp_path)
    assert says.keys() == {"cleaning", "tokenizer", "padding"}
    assert "remove ASCII punctuation, lower," in says["cleaning"]
    write_json(tmp_path / "preprocess.json", {"text": {"context_length": 8, **says}})
    captions = ["a red cube", "A red_cube.", "a red, blue ball left of the green cone and the red cube", "a&#32;cube"]
    same = (bare_tokenizer(tmp_path)(captions) == tokenizer(captions)).all(dim=1)
    assert same.tolist() == [True, True, True, False]


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PowerclipError, match=r"needs onnxscript, .* pip install 'powerclip\[onnx\]'"):
        export(str(model_to_export(tmp_path)), "onnx")
