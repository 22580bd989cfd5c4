"""A model has the tokenizer that its config describes, wherever the model is."""

import json
import shutil

import open_clip
import pytest
import tokenizers
import torch
import transformers

import powerclip
from powerclip.errors import PowerclipError
from powerclip.export import export
from powerclip.files import SUMS
from powerclip.model import save
from tests.support.pretrained import SMALL, local_dir, siglip_folder, theirs_of

CAPTIONS = ["a Red ring, on the cube!", "ball &amp; cone", "the_cube " * 40]
WORDS = "[PAD] [BOS] [EOS] [UNK] [CLS] [SEP] a red Red ring , on the cube ! ball & cone"
BERT = {"context_length": 12, "vocab_size": 18, "pool_type": "last", "hf_tokenizer_name": "nowhere/bert"}


def bert_folder(folder, **text):
    """A folder in open_clip's form of a small model with a tokenizer like BERT's."""
    config = {**SMALL, "text_cfg": {**SMALL["text_cfg"], "no_causal_mask": True, **BERT, **text}}
    local_dir(folder, theirs_of(config), config)
    vocabulary = {word: number for number, word in enumerate(WORDS.split())}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 4), ("[SEP]", 5)]
    )
    names = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "BOS", "EOS", "UNK", "CLS", "SEP")}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        {},
        {"tokenizer_mode": "clips"},
        {"tokenizer_kwargs": {"strip_sep_token": True}},
        {"tokenizer_kwargs": {"clean": "canonicalize"}},
        {"tokenizer_mode": "clips", "tokenizer_kwargs": {"clean": "lower"}},
        {"hf_tokenizer_name": None, "vocab_size": 49408},
        {"hf_tokenizer_name": None, "vocab_size": 49408, "tokenizer_kwargs": {"clean": "canonicalize"}},
        {"hf_tokenizer_name": None, "vocab_size": 49408, "tokenizer_mode": "clips"},
    ],
)
def test_every_setting_of_a_tokenizer_does_what_it_does_in_open_clip(text, tmp_path):
    folder = bert_folder(tmp_path / "m", **text)
    model, _, tokenizer = powerclip.load(folder)
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(CAPTIONS)
    assert torch.equal(tokenizer(CAPTIONS), theirs)
    again = powerclip.load(save(model, tmp_path / "saved"))[2]
    assert torch.equal(again(CAPTIONS), theirs)


def test_an_average_over_a_text_with_a_token_after_the_padding_is_refused(tmp_path):
    folder = bert_folder(tmp_path / "m", tokenizer_mode="clips")
    model = powerclip.load(folder)[0]
    model.text_pool = "avg"
    with pytest.raises(PowerclipError, match="tokenizer_mode clips .* set text_pool to tower"):
        powerclip.model.make_tokenizer(model)


def test_a_saved_model_brings_its_tokenizer_to_every_place(tmp_path):
    siglip_folder(tmp_path / "start")
    model, _, tokenizer = powerclip.load(tmp_path / "start")
    expected = tokenizer(CAPTIONS)
    saved = save(model, tmp_path / "saved")
    shutil.rmtree(tmp_path / "start")
    save(powerclip.load(saved)[0], tmp_path / "again")
    moved = saved.rename(tmp_path / "moved")
    for folder in (moved, tmp_path / "again"):
        assert json.loads((folder / "config.json").read_text())["model"]["text_cfg"]["hf_tokenizer_name"] == "."
        assert "tokenizer.json" in (folder / SUMS).read_text()
        assert torch.equal(powerclip.load(folder)[2](CAPTIONS), expected)
    start = powerclip.create_model(pretrained=str(moved), image_pool="tower", text_pool="tower")
    assert torch.equal(powerclip.model.make_tokenizer(start)(CAPTIONS), expected)
    export(str(moved), "open_clip", output=tmp_path / "exported")
    assert torch.equal(powerclip.load(tmp_path / "exported")[2](CAPTIONS), expected)


def test_a_tokenizer_that_is_gone_is_one_line_and_stops_no_saving(tmp_path):
    siglip_folder(tmp_path / "start")
    model = powerclip.load(tmp_path / "start")[0]
    (tmp_path / "start").rename(tmp_path / "moved")
    with pytest.warns(UserWarning, match=f"is saved without its tokenizer {tmp_path}/start: "):
        folder = save(model, tmp_path / "saved")
    with pytest.raises(
        PowerclipError, match=f"^{folder} .* tokenizer, {tmp_path}/start, is not there; put it back, or copy its files"
    ) as caught:
        powerclip.load(folder)
    assert "\n" not in str(caught.value)
    for path in (tmp_path / "moved").glob("*token*"):
        shutil.copy(path, folder)
    assert powerclip.load(folder)[2](["red"]).shape == (1, 64)
