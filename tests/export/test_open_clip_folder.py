"""open_clip's form, read by open_clip without powerclip."""

import json

import open_clip
import pytest
import torch

import powerclip
from powerclip.config import ScoringConfig
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.export import export, open_clip_folder
from powerclip.model import save
from tests.support.exports import OF_TIMM, assert_the_same_without_powerclip, model_to_export
from tests.support.models import TINY

PROGRAM = """
from pathlib import Path
import open_clip, torch

def encode(folder, pictures, captions):
    if Path(folder, "open_clip_average.py").exists():
        sys.path.insert(0, folder)
        from open_clip_average import load
        model, preprocess, tokenizer = load(folder)
    else:
        model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + folder)
        tokenizer = open_clip.get_tokenizer("local-dir:" + folder)
    with torch.no_grad():
        pixels = torch.stack([preprocess(picture) for picture in pictures])
        return model.eval().encode_image(pixels), model(text=tokenizer(captions))[1]
"""
CLIPA = {
    **TINY,
    "custom_text": True,
    "vision_cfg": {**TINY["vision_cfg"], "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
}


CASES = [
    (TINY, "avg", "avg"),
    (TINY, "avg", "tower"),
    ({**TINY, "quick_gelu": True}, "tower", "tower"),
    (CLIPA, "avg", "avg"),
    (CLIPA, "tower", "tower"),
    (OF_TIMM, "tower", "tower"),
]


@pytest.mark.slow
def test_open_clip_computes_the_same(tmp_path):
    cases = []
    for number, (config, image_pool, text_pool) in enumerate(CASES):
        model = model_to_export(tmp_path / f"m{number}", config, image_pool=image_pool, text_pool=text_pool)
        folder, parity = export(str(model), "open_clip", output=tmp_path / f"case-{number}")
        assert (parity.captions, round(parity.pixels)) == (0, 0)
        assert (folder / "open_clip_average.py").exists() == (text_pool == "avg")
        cases.append((model, folder, parity))
    assert_the_same_without_powerclip(cases, PROGRAM)


@pytest.mark.parametrize("case", [0, 4])
def test_powerclip_reads_it_as_the_model_that_it_was(case, tmp_path):
    config, image_pool, text_pool = CASES[case]
    model = model_to_export(tmp_path, config, image_pool=image_pool, text_pool=text_pool)
    folder, _ = export(str(model), "open_clip")
    assert folder == model / "export" / "open_clip"
    again, original = powerclip.load(folder)[0], powerclip.load(model)[0]
    assert (again.image_pool, again.text_pool, again.scoring) == (image_pool, text_pool, original.scoring)
    state = again.state_dict()
    for name, value in original.state_dict().items():
        assert torch.equal(value, state[name])
    start = powerclip.create_model(f"local-dir:{folder}", image_pool=image_pool, text_pool=text_pool)
    tokens = open_clip.SimpleTokenizer(context_length=24)(["a red cube"])
    assert torch.equal(start.eval().encode_text(tokens), original.encode_text(tokens))


def test_open_clip_alone_gives_every_token_of_averages_and_no_wrong_embedding(tmp_path):
    folder, _ = export(str(model_to_export(tmp_path)), "open_clip")
    model = open_clip.create_model(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    assert model.encode_text(tokenizer(["a", "b"])).shape == (2, 24, 16)


def test_an_average_that_it_cannot_express_names_another_target(tmp_path):
    model = model_to_export(tmp_path, OF_TIMM, image_pool="avg", text_pool="tower")
    with pytest.raises(PowerclipError, match=r"no average of a timm tower's .*use --to onnx or hub-folder"):
        export(str(model), "open_clip")
    assert not list((model / "export").iterdir())


def test_a_tower_that_only_powerclip_has_names_another_target(tmp_path):
    model = save(powerclip.create_model("tiny-conv", image_pool="tower", text_pool="tower"), tmp_path / "m")
    with pytest.raises(
        PowerclipError, match=r"the image tower powerclip_tiny is not one of timm.*use --to onnx or hub-"
    ):
        export(str(model), "open_clip")


@pytest.mark.parametrize("target", ["open_clip", "hub-folder"])
def test_the_means_of_a_centred_score_go_with_the_model(target, tmp_path):
    folder = model_to_export(tmp_path, scoring=ScoringConfig(zero="centred"))
    model = powerclip.load(folder)[0]
    torch.nn.init.normal_(model.vector_means)
    save(model, folder)
    exported, _ = export(str(folder), target)
    for path in (folder, exported):
        start = {"pretrained": str(path), "scoring": model.scoring}
        for found in (powerclip.load(path)[0], powerclip.create_model(**start)):
            assert torch.equal(found.vector_means, model.vector_means)
        again = save(powerclip.load(path)[0], tmp_path / "again")
        assert "vector_means" not in json.loads((again / "config.json").read_text())
        assert powerclip.create_model(pretrained=str(path)).vector_means is None


def test_an_export_that_loses_a_buffer_is_refused(tmp_path, monkeypatch):
    folder = model_to_export(tmp_path, scoring=ScoringConfig(zero="centred"))
    monkeypatch.setattr(open_clip_folder, "MEANS", "other_name")
    model = powerclip.load(folder)[0]
    torch.nn.init.normal_(model.vector_means)
    save(model, folder)
    with pytest.raises(RunFailedError, match="vector_means is not the original's"):
        export(str(folder), "open_clip")


def test_a_tower_that_open_clip_builds_at_one_size_names_another_target(tmp_path):
    model = model_to_export(tmp_path, OF_TIMM, image_pool="tower", text_pool="tower", image_size=64)
    with pytest.raises(
        PowerclipError, match=r"vit_tiny_patch16_224 for 224 x 224 pixels only, .* are 64 x 64; use --to onnx or hub-fo"
    ):
        export(str(model), "open_clip")
