"""Weights come with what belongs to them, and a model starts as the pretrained one."""

import dataclasses
import json
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import load_file, save_file

import powerclip
from powerclip.config import ModelConfig, ObjectiveConfig, TrainConfig
from powerclip.errors import PowerclipError
from powerclip.export import export
from powerclip.files import SUMS
from powerclip.model import describe, make_transforms, save, start
from powerclip.model.create import build
from powerclip.model.hub import load_open_clip
from powerclip.phrases import encode_caption, whole_caption_tree
from powerclip.recipes import finetune_open_clip
from powerclip.train.build import build_model
from powerclip.types import Batch
from tests.support.pretrained import (
    FAMILIES,
    SIGLIP_TEXT,
    SMALL,
    config_file,
    inputs,
    local_dir,
    siglip_folder,
    theirs_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.* so that its embeddings mean nothing at first")


@pytest.fixture
def tag(tmp_path, monkeypatch):
    """A function that makes a checkpoint what open_clip downloads, whatever is asked for."""

    def install(theirs):
        torch.save(theirs.state_dict(), tmp_path / "tag.pt")
        monkeypatch.setattr(open_clip, "download_pretrained", lambda *a, **k: str(tmp_path / "tag.pt"))

    return install


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_model_pooled_as_its_tower_is_the_pretrained_model(config, tmp_path):
    theirs = theirs_of(config)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    ours = powerclip.create_model(
        config_file(tmp_path, config),
        pretrained=str(tmp_path / "theirs.pt"),
        image_pool="tower",
        text_pool="tower",
    ).eval()
    images, tokens = inputs(config["vision_cfg"]["image_size"])
    with torch.no_grad():
        for normalize in (False, True):
            expected = theirs.encode_image(images, normalize), theirs.encode_text(tokens, normalize)
            found = ours.encode_image(images, normalize), ours.encode_text(tokens, normalize)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(tokens[:, :12]), ours.encode_text(tokens))
        patches = ours.encode_patches(images)
        assert patches.shape == (2, ours.grid_size[0] * ours.grid_size[1], config["embed_dim"])
        masks = torch.ones(2, 1, patches.shape[1], dtype=torch.bool)
        torch.testing.assert_close(ours.encode_image_and_regions(images, masks)[2], ours.encode_image(images))
        rows = torch.full((2, 16), -1), torch.full((2, 1, 2), -1)
        batch = Batch(images=images, tokens=tokens[:2], leaf_of_token=rows[0], phrase_spans=rows[1], region_masks=masks)
        features = ours(batch)
        expected = theirs.encode_image(images, True), theirs.encode_text(tokens[:2], True)
        torch.testing.assert_close((features.image, features.text), expected, rtol=1e-4, atol=1e-5)
    save(ours, tmp_path / "model")
    loaded = powerclip.load(tmp_path / "model")[0]
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(images), ours.encode_image(images))


def test_of_equal_patches_attention_pooling_gives_what_each_patch_gives():
    config = FAMILIES["SigLIP"]
    theirs = theirs_of(config)
    trunk, images = theirs.visual.trunk, inputs(224)[0]
    dense = powerclip.model.from_open_clip(theirs).encode_patches(images)
    x = trunk.forward_features(images)[:, trunk.num_prefix_tokens :]
    for n in (0, 7, 195):
        torch.testing.assert_close(dense[:, n], trunk.attn_pool(x[:, [n]]), rtol=1e-4, atol=1e-5)


def test_an_average_leaves_the_attention_query_alone(tmp_path):
    name = config_file(tmp_path, FAMILIES["SigLIP"])
    model = powerclip.create_model(name)
    images, tokens = inputs(224)
    (model.encode_image(images).sum() + model.encode_text(tokens).sum()).backward()
    unused = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert unused == {"backbone.logit_scale", "backbone.logit_bias"}
    for global_loss, trained in (("clip", False), ("auto", True)):
        objective = ObjectiveConfig(global_loss=global_loss)
        built = build_model(TrainConfig(model=ModelConfig(name=name), objective=objective, steps=1))
        assert built.logit_bias.requires_grad is trained


def test_padding_of_any_kind_is_not_averaged(tmp_path):
    """SigLIP's texts are padded with their end-of-text token, CLIPA's with 0."""
    model = powerclip.create_model(config_file(tmp_path, {**SMALL, "custom_text": True, "text_cfg": SIGLIP_TEXT}))
    tokens = torch.tensor([[5, 6, 1, 1, 1], [5, 6, 7, 8, 9], [5, 6, 7, 8, 1], [5, 0, 0, 0, 0], [5, 6, 6, 0, 0]])
    assert model.valid_tokens(tokens).sum(dim=1).tolist() == [3, 5, 5, 1, 3]


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [("ViT-B-16", "openai"), ("ViT-B-16-quickgelu", "openai"), ("ViT-B-16", "datacomp_xl_s13b_b90k")],
)
def test_a_tag_brings_its_activation(name, pretrained, monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *a, **k: "unused")
    assert start.find_start(name, pretrained).model["quick_gelu"] is (pretrained == "openai")


def test_a_download_that_fails_is_one_line(monkeypatch):
    def download(*arguments, **options):
        raise FileNotFoundError("no\nnetwork")

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    with pytest.raises(
        PowerclipError, match="cannot download the tag openai of ViT-B-16: FileNotFoundError: no network"
    ):
        powerclip.create_model(pretrained="openai")


def test_the_fine_tuning_recipe_starts_as_the_pretrained_model(tag):
    theirs = theirs_of(open_clip.get_model_config("ViT-B-16-quickgelu"))
    tag(theirs)
    model = build_model(finetune_open_clip()).eval()
    images, tokens = inputs(224, length=77)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_image(images), theirs.encode_image(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.encode_text(tokens), theirs.encode_text(tokens), rtol=1e-4, atol=1e-4)
    line = describe(model)
    for part in ("the tag openai", "302 tensors", "QuickGELU", "image_pool tower", "224 x 224", "77 tokens", "0.481/"):
        assert part in line
    assert "QuickGELU and" not in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "pretrained"),
    [
        ("ViT-L-14", "laion2b_s32b_b82k"),
        ("ViT-B-16-SigLIP", "webli"),
        ("MobileCLIP-B", "datacompdr"),
        ("ViT-L-14-CLIPA", "datacomp1b"),
    ],
)
def test_a_tag_brings_its_preprocessing(name, pretrained, monkeypatch):
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *a, **k: "unused")
    found, expected = start.find_start(name, pretrained), open_clip.get_pretrained_cfg(name, pretrained)
    names = ("mean", "std", "interpolation", "resize_mode")
    assert {n: found.preprocess[n] for n in names if n in expected} == {n: expected[n] for n in names if n in expected}
    assert found.preprocess["mean"] != PreprocessCfg().mean


def test_preprocessing_goes_from_the_weights_into_training_and_the_saved_model(tmp_path):
    theirs = theirs_of(SMALL)
    local_dir(tmp_path / "m", theirs, SMALL, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bilinear")
    expected = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "size": (32, 32)}
    for name, pretrained in ((f"local-dir:{tmp_path / 'm'}", None), ("tiny", str(tmp_path / "m"))):
        model = powerclip.create_model(name, pretrained=pretrained)
        assert torch.equal(model.backbone.text_projection, theirs.text_projection)
        assert {**model.backbone.visual.preprocess_cfg, **expected} == model.backbone.visual.preprocess_cfg
        loaded, _, tokenizer = powerclip.load(save(model, tmp_path / "saved"))
        assert loaded.backbone.visual.preprocess_cfg == model.backbone.visual.preprocess_cfg
        assert tokenizer(["a"]).shape == (1, 16)


def test_one_number_is_the_mean_of_all_colours_and_two_are_refused(tmp_path):
    local_dir(tmp_path / "m", theirs_of(SMALL), SMALL, mean=0.5, std=1)
    model = powerclip.create_model(f"local-dir:{tmp_path / 'm'}")
    assert "mean 0.5/0.5/0.5" in describe(model)
    bare = theirs_of(SMALL)
    bare.visual.preprocess_cfg = {"mean": 0.5, "std": 1}
    for found in (model, powerclip.load(save(model, tmp_path / "saved"))[0], powerclip.model.from_open_clip(bare)):
        preprocess = found.backbone.visual.preprocess_cfg
        assert (preprocess["mean"], preprocess["std"]) == ([0.5] * 3, [1] * 3)
    for mean in ([0.5], [0.5] * 2, ["a"] * 3, "abc"):
        with pytest.raises(PowerclipError, match="^mean of the model's preprocessing is .*; it must be one number or"):
            build({**model.config, "preprocess": {"mean": mean}})
        bare.visual.preprocess_cfg = {"mean": mean}
        with pytest.raises(PowerclipError, match="^mean of the model's preprocessing is .*; it must be one number or"):
            powerclip.model.from_open_clip(bare)


def test_a_model_of_open_clip_s_without_preprocessing_has_its_defaults():
    model = powerclip.model.from_open_clip(theirs_of(SMALL))
    assert model.backbone.visual.preprocess_cfg == dataclasses.asdict(PreprocessCfg(size=(32, 32)))
    assert make_transforms(model)[1](Image.new("RGB", (40, 50))).shape == (3, 32, 32)


def test_a_weights_file_in_a_folder_of_open_clip_brings_its_config(tmp_path):
    local_dir(tmp_path / "m", theirs_of(SMALL), {**SMALL, "quick_gelu": True}, mean=[0.5] * 3, interpolation="bilinear")
    torch.save(theirs_of(SMALL).state_dict(), tmp_path / "m" / "epoch_3.pt")
    folder = powerclip.load(tmp_path / "m")[0]
    images, tokens = inputs(32)
    for file in ("open_clip_model.safetensors", "epoch_3.pt"):
        model = powerclip.create_model(pretrained=str(tmp_path / "m" / file), image_pool="tower", text_pool="tower")
        assert model.backbone.visual.preprocess_cfg == folder.backbone.visual.preprocess_cfg
        with torch.no_grad():
            assert torch.equal(model.eval().encode_image(images), folder.encode_image(images))
            assert torch.equal(model.encode_text(tokens), folder.encode_text(tokens))
    (tmp_path / "m" / "open_clip_config.json").write_text("{")
    with pytest.raises(PowerclipError, match=r"cannot read the model .*epoch_3\.pt: ") as caught:
        powerclip.create_model(pretrained=str(tmp_path / "m" / "epoch_3.pt"))
    assert "\n" not in str(caught.value)


def test_a_weights_file_that_powerclip_exported_brings_how_it_pooled(tmp_path):
    own = powerclip.create_model(config_file(tmp_path, SMALL))
    export(str(save(own, tmp_path / "own")), "open_clip", output=tmp_path / "theirs")
    with pytest.warns(UserWarning, match="was trained with image_pool avg and starts here with tower"):
        powerclip.create_model(pretrained=str(tmp_path / "theirs" / "open_clip_model.safetensors"), image_pool="tower")


def test_a_tokenizer_in_a_relative_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    siglip_folder(tmp_path / "toks")
    config = json.loads((tmp_path / "toks" / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = "toks"
    monkeypatch.chdir(tmp_path)
    model = powerclip.create_model(config_file(tmp_path, config))
    monkeypatch.chdir("/")
    assert powerclip.load(save(model, tmp_path / "saved"))[2](["red"]).shape == (1, 64)


def test_a_folder_of_open_clip_is_read_or_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    local_dir(tmp_path / "other", theirs_of(SMALL), {**SMALL, "embed_dim": 16})
    (tmp_path / "no-config").mkdir()
    (tmp_path / "no-config" / "model.safetensors").write_bytes(b"")
    for folder, message in [
        ("nowhere", "expected a folder with open_clip_config.json and weights, or a run or model folder of powerclip$"),
        ("empty", "expected a folder with"),
        ("no-weights", "expected weights next to open_clip_config.json, a .safetensors"),
        ("no-config", "expected a folder with"),
        ("other/open_clip_model.safetensors", "; name the folder: local-dir:.*/other$"),
        ("other", "size mismatch"),
    ]:
        with pytest.raises(PowerclipError, match=f"/{folder}.*{message}") as caught:
            powerclip.create_model(f"local-dir:{tmp_path / folder}")
        assert "\n" not in str(caught.value)
    with pytest.raises(PowerclipError, match="brings its own weights; give no pretrained .it is 'openai'"):
        powerclip.create_model(f"local-dir:{tmp_path / 'other'}", pretrained="openai")


@pytest.mark.parametrize("own", [False, True])
def test_a_folder_is_a_start_by_either_setting(own, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = theirs_of(SMALL).text_projection
    local_dir(tmp_path / "m", theirs_of(SMALL), SMALL)
    if own:
        save(powerclip.create_model("local-dir:~/m"), tmp_path / "run" / "model")
    folder = "run" if own else "m"
    save_file(theirs_of(SMALL).state_dict(), tmp_path / "bare.safetensors")
    for path in (f"~/{folder}", f"local-dir:~/{folder}", Path("~") / folder):
        assert torch.equal(powerclip.load(path)[0].backbone.text_projection, expected)
    for name, pretrained in (
        (f"local-dir:~/{folder}", None),
        (config_file(tmp_path, SMALL).replace(str(tmp_path), "~"), "~/bare.safetensors"),
        ("tiny", f"~/{folder}"),
        ("tiny", f"local-dir:~/{folder}"),
    ):
        model = powerclip.create_model(name, pretrained=pretrained)
        assert torch.equal(model.backbone.text_projection, expected)


def test_of_several_weights_in_a_folder_those_that_open_clip_takes_are_read(tmp_path, monkeypatch):
    local_dir(tmp_path / "m", theirs_of(SMALL), SMALL)
    files = ["a.bin", "b.pth", "c.safetensors", "model.pth", "model.safetensors"]
    files += ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin"]
    for name in files:
        (tmp_path / "m" / name).touch()
    monkeypatch.setattr(start, "_read_open_clip_file", lambda path: start.Start(model={}, source="", weights=path))
    for _ in files:
        found = start.find_start(f"local-dir:{tmp_path / 'm'}", None).weights
        assert str(found) == open_clip.factory._find_checkpoint_in_dir(tmp_path / "m")
        found.unlink()
    with pytest.raises(PowerclipError, match="expected weights next to"):
        start.find_start(f"local-dir:{tmp_path / 'm'}", None)


def test_what_belongs_to_a_run_and_is_no_start_says_what_is(tmp_path):
    run = tmp_path / "run"
    step = run / "checkpoints" / "step-00000003"
    step.mkdir(parents=True)
    (run / "config.yaml").touch()
    for given in (run, step):
        with pytest.raises(
            PowerclipError, match=f"^the run {run} has no model yet; finish it with --resume auto, then"
        ):
            powerclip.create_model("tiny", pretrained=str(given))
    save(powerclip.create_model("tiny"), run / "model")
    with pytest.raises(PowerclipError, match=f"^{step} is not a model, but a part of the run {run}; name the run$"):
        powerclip.create_model("tiny", pretrained=str(step))
    for file in (run / "config.yaml", run / "model" / "config.json"):
        with pytest.raises(PowerclipError, match=f"{file} holds settings, not weights; name the run or model folder"):
            powerclip.create_model("tiny", pretrained=str(file))


@pytest.mark.parametrize("family", ["QuickGELU", "EVA", "SigLIP"])
def test_an_own_model_is_a_start_at_any_size(family, tmp_path):
    own = powerclip.create_model(config_file(tmp_path, FAMILIES[family]), image_pool="tower").eval()
    own.config["preprocess"] = {"mean": [0.5] * 3}
    save(own, tmp_path / "run" / "model")
    images, tokens = inputs(FAMILIES[family]["vision_cfg"]["image_size"])
    weights = tmp_path / "run" / "model" / "model.safetensors"
    for place in (tmp_path / "run", weights.parent, weights):
        model = powerclip.create_model("tiny", pretrained=str(place), image_pool="tower").eval()
        assert torch.equal(model.encode_image(images), own.encode_image(images))
        assert torch.equal(model.encode_text(tokens), own.encode_text(tokens))
        assert model.backbone.visual.preprocess_cfg["mean"] == [0.5] * 3
    size = 2 * images.shape[-1]
    model = powerclip.create_model(
        pretrained=str(weights.parent), image_pool="tower", image_size=size, context_length=20
    )
    assert model.grid_size == tuple(2 * n for n in own.grid_size)
    assert model.context_length == 20
    assert model.encode_patches(torch.randn(1, 3, size, size)).shape[1] == 4 * own.grid_size[0] * own.grid_size[1]
    save(model, tmp_path / "larger")
    again = powerclip.create_model(pretrained=str(tmp_path / "larger"), image_pool="tower")
    assert again.image_size == (size, size)
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_copied_weights_file_needs_only_the_name_of_its_architecture(tmp_path):
    own = powerclip.create_model("tiny")
    state = load_file(save(own, tmp_path / "model") / "model.safetensors")
    save_file(state, tmp_path / "copy.safetensors")
    model = powerclip.create_model("tiny", pretrained=str(tmp_path / "copy.safetensors"), init_logit_bias=-3.0)
    assert torch.equal(model.backbone.text_projection, own.backbone.text_projection)
    assert model.logit_bias == -3.0
    with pytest.raises(PowerclipError, match="the weights of ViT-B-16 with .*do not fit the model"):
        powerclip.create_model(pretrained=str(tmp_path / "copy.safetensors"))


def test_open_clip_s_weights_fit_another_size(tmp_path):
    torch.save(theirs_of(SMALL).state_dict(), tmp_path / "theirs.pt")
    settings = ModelConfig(
        name=config_file(tmp_path, SMALL), pretrained=str(tmp_path / "theirs.pt"), image_size=64, context_length=24
    )
    model = build_model(TrainConfig(model=settings, steps=1))
    assert (model.grid_size, model.image_size, model.context_length) == ((8, 8), (64, 64), 24)
    assert model.backbone.visual.preprocess_cfg["size"] == (64, 64)


def test_a_damaged_or_foreign_weights_file_is_one_line(tmp_path):
    save_file({"a": torch.zeros(5000)}, tmp_path / "other.safetensors")
    complete = (tmp_path / "other.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(complete[:900])
    (tmp_path / "long.safetensors").write_bytes(struct.pack("<Q", 1 << 40) + complete[8:])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "empty.npz").write_bytes(b"")
    torch.save([1], tmp_path / "list.pt")
    torch.save({}, tmp_path / "nothing.pt")
    torch.save({"state_dict": None}, tmp_path / "none.pt")
    torch.save({"x": 3}, tmp_path / "number.pt")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for path in files:
        with pytest.raises(PowerclipError, match=f"{path.name} are damaged or do not fit the model: ") as caught:
            powerclip.create_model("tiny", pretrained=str(path))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600
    transformers = {"text_model.embeddings.x": torch.zeros(1), "vision_model.embeddings.x": torch.zeros(1)}
    save_file({**transformers, "logit_scale": torch.zeros(())}, tmp_path / "hf.safetensors")
    with pytest.raises(PowerclipError, match="format of Hugging Face's transformers"):
        powerclip.create_model("tiny", pretrained=str(tmp_path / "hf.safetensors"))


def test_what_is_often_in_the_place_of_weights_is_called_what_it_is(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:  # as torch.jit.save writes
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl"):
            archive.writestr(f"script/{name}", b"")
    (tmp_path / "page.pt").write_bytes(b"\n<!DOCTYPE html><title>404</title>")
    (tmp_path / "page.safetensors").write_bytes(b"<html>404</html>")
    (tmp_path / "pointer.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    torch.save({"args": tmp_path, "visual.proj": torch.zeros(1)}, tmp_path / "pickle.pt")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name, message in {
        "script.pt": "script.pt is a TorchScript archive, whose code is not run; of a model of OpenAI's give the tag",
        "page.pt": "page.pt is a web page instead of weights; download the file itself$",
        "page.safetensors": "page.safetensors is a web page",
        "pointer.pt": "pointer.pt is a pointer of Git LFS to weights that are not here; fetch them with git lfs pull$",
        "pickle.pt": r"the file holds more than weights \(pathlib\..*PosixPath\); save the state_dict alone$",
        "other.npz": "npz files are read as big_vision's weights of SigLIP, for models such as ViT-B-16-SigLIP; the fi",
    }.items():
        with pytest.raises(PowerclipError, match=message) as caught:
            powerclip.create_model("tiny", pretrained=str(tmp_path / name))
        assert "\n" not in str(caught.value)
    folder = save(powerclip.create_model("tiny"), tmp_path / "cloned")
    (tmp_path / "pointer.pt").replace(folder / "model.safetensors")
    with pytest.raises(PowerclipError, match="model.safetensors is a pointer of Git LFS"):
        powerclip.load(folder)


def test_suffixes_in_any_case_byte_order_marks_and_a_prefix_are_accepted(tmp_path):
    theirs = theirs_of(SMALL)
    folder = tmp_path / "theirs"
    local_dir(folder, theirs, SMALL)
    config = folder / "open_clip_config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")
    weights = (folder / "open_clip_model.safetensors").rename(tmp_path / "W.SAFETENSORS")
    (tmp_path / "x.JSON").write_text(json.dumps(SMALL), encoding="utf-8-sig")
    mine = powerclip.create_model(str(tmp_path / "x.JSON"), pretrained=str(weights))
    weights.rename(folder / "open_clip_model.safetensors")
    found = [mine, powerclip.create_model(f"local-dir:{folder}")]
    found.append(powerclip.create_model("tiny", pretrained=f"local-dir:{folder}"))
    for model in found:
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in model.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        ("module.", "state_dict"),
        ("_orig_mod.", None),
        ("module._orig_mod.", "model"),
        ("_orig_mod.module.", "model_state_dict"),
        ("model.", "state_dict"),
        ("", "module"),
    ],
)
def test_what_trainers_put_around_weights_is_taken_off(prefix, key, tmp_path):
    state = theirs_of(SMALL).state_dict()
    wrapped = {prefix + name: value for name, value in state.items()}
    torch.save({"epoch": 3, key: wrapped} if key else wrapped, tmp_path / "wrapped.pt")
    model = powerclip.create_model(config_file(tmp_path, SMALL), pretrained=str(tmp_path / "wrapped.pt"))
    assert all(torch.equal(value, state[name]) for name, value in model.backbone.state_dict().items())


def test_weights_with_a_bias_bring_it_and_keep_it(tmp_path):
    torch.save({**theirs_of(SMALL).state_dict(), "logit_bias": torch.tensor([-5.0])}, tmp_path / "biased.pt")
    model = powerclip.create_model(config_file(tmp_path, SMALL), pretrained=str(tmp_path / "biased.pt"))
    assert powerclip.load(save(model, tmp_path / "saved"))[0].logit_bias == model.logit_bias == -5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "the file holds no weights"),
        ({"clip.visual.proj": torch.zeros(1)}, "they have names such as clip.visual.proj; expected positional_embed"),
    ],
)
def test_a_file_without_the_model_s_weights_says_so(content, message, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    for bias in (None, -3.0):
        with pytest.raises(PowerclipError, match=message):
            powerclip.create_model("tiny", pretrained=str(tmp_path / "x.pt"), init_logit_bias=bias)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named_wherever_they_are_loaded(value, tmp_path, monkeypatch):
    model = powerclip.create_model("tiny")
    with torch.no_grad():
        model.backbone.visual.proj[3, 2] = value
    folder = save(model, tmp_path / "model")
    torch.save(model.backbone.state_dict(), tmp_path / "theirs.pt")
    monkeypatch.setattr(open_clip, "list_models", lambda: ["tiny"])  # as if open_clip had it, too
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *a, **k: (model.backbone, None, None))
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: None)
    for load in (
        lambda: powerclip.load(folder),
        lambda: powerclip.create_model(pretrained=str(folder)),
        lambda: load_open_clip("tiny", str(tmp_path / "theirs.pt")),
    ):
        with pytest.raises(PowerclipError, match=r"are not finite: (backbone\.)?visual\.proj holds NaN or infinity"):
            load()


def test_a_folder_of_transformers_and_a_hub_without_a_network_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]}))
    save_file({"logit_scale": torch.zeros(())}, tmp_path / "model.safetensors")
    with pytest.raises(PowerclipError, match="is in the format of Hugging Face's transformers; name open_clip's"):
        powerclip.create_model(pretrained=str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        PowerclipError, match="the model hf-hub:no/model: .*; without a network, name a folder"
    ) as caught:
        powerclip.create_model("hf-hub:no/model")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    siglip_folder(tmp_path / "siglip")
    model = powerclip.create_model(f"local-dir:{tmp_path / 'siglip'}")
    (tmp_path / "empty").mkdir()
    model.config["model"]["text_cfg"]["hf_tokenizer_name"] = str(tmp_path / "empty")
    with pytest.raises(PowerclipError, match="cannot read the tokenizer .*empty, a folder or hub id: ") as caught:
        powerclip.model.make_tokenizer(model)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(PowerclipError, match="needs transformers, which is not installed; pip install transformers"):
        powerclip.model.make_tokenizer(model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pool_type": "argmax"},
            "pool_type argmax does not find where texts end .*toks, .* to last, or to eos with eos_id 1$",
        ),
        ({"pool_type": "eos", "eos_id": 7}, "pool_type eos does not find where texts end .*or to eos with eos_id 1$"),
        (
            {"vocab_size": 20, "pool_type": "last"},
            r"toks has ids up to \d+ and the model knows 20 of them; .* set vocab_size to \d+ or more",
        ),
        (
            {"vocab_size": 20, "hf_tokenizer_name": None},
            "the tokenizer of CLIP has ids up to 49407 and the model knows 20",
        ),
        ({"pool_type": "eos", "eos_id": 1}, None),
    ],
)
def test_a_tokenizer_that_does_not_fit_the_model_is_refused(settings, message, tmp_path, monkeypatch):
    siglip_folder(tmp_path / "toks")
    monkeypatch.chdir(tmp_path)
    text = {**SMALL["text_cfg"], "hf_tokenizer_name": "toks", **settings}
    model = powerclip.create_model(config_file(tmp_path, {**SMALL, "text_cfg": text}))
    if message is None:
        tokens = powerclip.model.make_tokenizer(model)(["a ring on the cube", "red"])
        assert model.valid_tokens(tokens).sum(dim=1).tolist() == [6, 2]
        return
    with pytest.raises(PowerclipError, match=message):
        powerclip.model.make_tokenizer(model)


CODE = """import pathlib
pathlib.Path(__file__).with_name("ran").touch()
from transformers import PreTrainedTokenizerFast as Own
"""


@pytest.mark.parametrize("where", ["tokenizer_kwargs", "tokenizer_config.json", "both"])
def test_no_code_of_a_tokenizer_is_run(where, tmp_path):
    folder = tmp_path / "siglip"
    siglip_folder(folder)
    (folder / "own.py").write_text(CODE)
    named = {"hf_tokenizer_name": str(folder)}
    if where != "tokenizer_config.json":
        named["tokenizer_kwargs"] = {"trust_remote_code": True}
    if where != "tokenizer_kwargs":
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= named
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "model").mkdir()
    own = {"model": config["model_cfg"], "image_pool": "tower", "text_pool": "tower", "phrase_norm": "unit"}
    for read in (
        lambda: powerclip.load(folder),
        lambda: load_open_clip(f"local-dir:{folder}", str(folder / "open_clip_model.safetensors")),
        lambda: powerclip.model.make_tokenizer(build({**own, "phrase_unit": "phrase", "phrase_context": "caption"})),
    ):
        try:
            read()
        except PowerclipError as error:
            message = str(error)
            assert "\n" not in message
        else:
            assert where == "tokenizer_config.json", "it is refused, or read without its code"
    if where != "tokenizer_config.json":
        assert "tokenizer_kwargs of the model's config is {'trust_remote_code': True}; it may hold clean," in message
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize("settings", [{"clean": "thoroughly"}, {"language": "en"}])
def test_settings_that_clip_s_tokenizer_does_not_have_are_named(settings, tmp_path):
    model = powerclip.create_model("tiny")
    model.config["model"]["text_cfg"]["tokenizer_kwargs"] = settings
    with pytest.raises(PowerclipError, match=f"tokenizer_kwargs .*{next(iter(settings))}.* CLIP does not take"):
        powerclip.model.make_tokenizer(model)


GEMMA = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"redcubs\u2581", "re", "red", "\u2581c"]
T5 = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581red", "\u2581cu", "be", "s"]


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("T5TokenizerFast", {"vocab": [(piece, -float(i)) for i, piece in enumerate(T5)], "extra_ids": 0}, T5[4:]),
        (
            "GemmaTokenizerFast",
            {
                "vocab": {piece: i for i, piece in enumerate(GEMMA)},
                "merges": [("r", "e"), ("re", "d"), ("\u2581", "c")],
            },
            ["red", "\u2581c", *"ubes"],
        ),
    ],
)
def test_siglip_s_tokenizers_tokenize(kind, settings, words, tmp_path):
    """The classes that the releases of SigLIP and of SigLIP 2 name, with a small vocabulary."""
    siglip_folder(tmp_path / "siglip")
    getattr(transformers, kind)(**settings).save_pretrained(tmp_path / "siglip")
    model, _, tokenizer = powerclip.load(tmp_path / "siglip")
    theirs = tokenizer.tokenizer
    assert type(theirs).__name__ in (kind, kind.removesuffix("Fast"))
    tokens = tokenizer(["Red  cubes!"])
    assert tokens.shape == (1, 64)
    found = theirs.convert_ids_to_tokens(tokens[0].tolist())
    assert [word for word in found if word not in (theirs.eos_token, theirs.bos_token, theirs.pad_token)] == words
    assert torch.isfinite(model.encode_text(tokens)).all()
    encoded = encode_caption("red cubes", whole_caption_tree("red cubes"), tokenizer, context_length=64)
    first = found.index(words[0])
    assert encoded.leaf_of_token[first : first + len(words)].tolist() == [0] + [1] * (len(words) - 1)


def test_images_smaller_than_a_patch_are_refused():
    with pytest.raises(PowerclipError, match="images of 4 x 4 pixels are smaller than a patch"):
        powerclip.create_model("tiny", image_size=4)


def test_a_damaged_own_folder_is_one_line(tmp_path):
    (save(powerclip.create_model("tiny"), tmp_path / "model") / SUMS).unlink()
    for content in ("{", "[]", '{"model": {"embed_dim": 3}}', '{"model": 3}'):
        (tmp_path / "model" / "config.json").write_text(content)
        with pytest.raises(PowerclipError, match="not a valid powerclip model") as caught:
            powerclip.create_model(pretrained=str(tmp_path))
        assert "\n" not in str(caught.value)


def test_argmax_is_an_older_name():
    assert ModelConfig(text_pool="argmax") == ModelConfig(text_pool="tower")
    assert powerclip.create_model("tiny", text_pool="argmax").text_pool == "tower"
    with pytest.raises(ValueError, match="image_pool is 'max'; it must be one of avg, tower"):
        powerclip.create_model("tiny", image_pool="max")


@pytest.mark.parametrize("exported", [False, True])
def test_a_start_that_pooled_otherwise_is_said(exported, tmp_path):
    model = powerclip.create_model(config_file(tmp_path, SMALL), text_pool="tower")
    save(model, tmp_path / "model")
    given = {"name": "ViT-B-16", "pretrained": str(tmp_path / "model")}
    if exported:
        export(str(tmp_path / "model"), "open_clip", output=tmp_path / "theirs")
        given = {"name": f"local-dir:{tmp_path / 'theirs'}"}
    with pytest.warns(
        UserWarning, match="was trained with image_pool avg and starts here with tower, .* set image_pool"
    ):
        powerclip.create_model(**given, image_pool="tower", text_pool="tower")
    with warnings.catch_warnings(action="error"):
        powerclip.create_model(**given, text_pool="tower")  # as it was


@pytest.mark.parametrize("door", ["local-dir", "folder", "file", "bare file", "tag"])
def test_every_start_with_open_clip_s_weights_says_that_averages_are_not_its_pooling(door, tag, tmp_path):
    local_dir(tmp_path / "m", theirs_of(SMALL), SMALL)
    name = config_file(tmp_path, SMALL)
    given = {
        "local-dir": {"name": f"local-dir:{tmp_path / 'm'}"},
        "folder": {"pretrained": str(tmp_path / "m")},
        "file": {"pretrained": str(tmp_path / "m" / "open_clip_model.safetensors")},
        "bare file": {"name": name, "pretrained": str(tmp_path / "tag.pt")},
        "tag": {"name": "ViT-B-32", "pretrained": "openai"},
    }[door]
    tag(theirs_of(open_clip.get_model_config("ViT-B-32") if door == "tag" else SMALL))
    with pytest.warns(UserWarning, match="was trained with image_pool tower and starts here with avg, .*image_pool to"):
        powerclip.create_model(**given, text_pool="tower")
    with warnings.catch_warnings(action="error"):
        powerclip.create_model(**given, image_pool="tower", text_pool="tower")


def test_an_average_that_the_tower_itself_takes_is_no_other_pooling(tmp_path):
    local_dir(tmp_path / "m", theirs_of(FAMILIES["average"]), FAMILIES["average"])
    own = powerclip.create_model("tiny")
    save_file(load_file(save(own, tmp_path / "own") / "model.safetensors"), tmp_path / "copy.safetensors")
    with warnings.catch_warnings(action="error"):
        powerclip.create_model(f"local-dir:{tmp_path / 'm'}", text_pool="tower")
        powerclip.create_model("tiny", pretrained=str(tmp_path / "copy.safetensors"))
