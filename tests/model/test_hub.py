"""A model is loaded from wherever it is: our folders, open_clip's, a hub;
and called as open_clip's evaluators call it."""

import json
import resource
import shutil
from types import SimpleNamespace

import open_clip
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from open_clip_train import zero_shot
from safetensors.torch import save_file

import powerclip
from powerclip.errors import PowerclipError
from powerclip.files import SUMS
from powerclip.model import create_model, load_open_clip, save
from tests.support.models import TINY


@pytest.fixture
def open_clip_folder(tmp_path):
    """A folder in open_clip's form, with a mean that is not the default."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip.CLIP(**TINY).eval()
    config = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "local-dir:"])
def test_a_folder_of_open_clip_is_loaded_as_its_own_model(prefix, open_clip_folder):
    theirs, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{open_clip_folder}")
    model, ours, tokenizer = powerclip.load(f"{prefix}{open_clip_folder}")
    picture = torch.rand(3, 64, 64)
    images, tokens = torch.stack([picture, 1 - picture]), tokenizer(["a cube", "two balls above a cone"])
    assert torch.equal(
        tokens, open_clip.get_tokenizer(f"local-dir:{open_clip_folder}")(["a cube", "two balls above a cone"])
    )
    assert model.backbone.visual.preprocess_cfg["mean"] == [0.5] * 3
    torch.testing.assert_close(model.encode_image(images), theirs.eval().encode_image(images))
    torch.testing.assert_close(model.encode_text(tokens), theirs.encode_text(tokens))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that puts a folder into the hub's cache under an id; nothing is downloaded."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def put(folder, name):
        cached = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
        return name

    return put


def test_a_hub_id_is_a_model_of_ours_or_of_open_clip(hub, open_clip_folder, tmp_path):
    ours = powerclip.create_model("tiny")
    tokens = powerclip.load(open_clip_folder)[2](["a cube"])
    for folder, name in ((save(ours, tmp_path / "ours"), "someone/ours"), (open_clip_folder, "someone/theirs")):
        loaded, expected = powerclip.load(hub(folder, name))[0], powerclip.load(folder)[0]
        assert torch.equal(loaded.encode_text(tokens), expected.encode_text(tokens))
        assert loaded.text_pool == ("avg" if name == "someone/ours" else "tower")
    with pytest.raises(PowerclipError, match="someone/nothing is not a local folder and could not be downloaded"):
        powerclip.load("someone/nothing")


@given(st.data())
def test_a_flipped_bit_in_a_model_is_noticed_wherever_it_is_loaded(saved_tiny, data):
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    sound = (saved_tiny / name).read_bytes()
    content = bytearray(sound)
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (saved_tiny / name).write_bytes(content)
    message = rf"{name} is not as it was written: its checksum differs from that in SHA256SUMS; copy or write the model"
    for load in (powerclip.load, lambda folder: powerclip.create_model("tiny", pretrained=str(folder))):
        with pytest.raises(PowerclipError, match=message):
            load(saved_tiny)
    (saved_tiny / name).write_bytes(sound)


@pytest.fixture(scope="module")
def saved_tiny(tmp_path_factory):
    return save(powerclip.create_model("tiny"), tmp_path_factory.mktemp("model") / "tiny")


def test_a_model_that_does_not_fit_on_the_disk_is_one_line_with_its_path(tmp_path):
    model, limits = powerclip.create_model("tiny"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"mine/model\.safetensors could not be written \(.*File too large"):
            save(model, tmp_path / "mine")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("listed", ["/dev/zero", "../../../../../dev/zero", "nowhere", "\xff"])
def test_a_list_of_checksums_leads_nowhere_else(listed, tmp_path):
    folder = save(powerclip.create_model("tiny"), tmp_path / "tiny")
    (folder / SUMS).write_text(f"{'0' * 64}  {listed}\n", encoding="latin-1")
    powerclip.load(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_here_is_not_the_models_fault(tmp_path):
    save(create_model("tiny"), tmp_path)
    with pytest.raises(PowerclipError, match="device 'cuda' cannot be used here; use auto, cpu or a GPU that exists"):
        powerclip.load(tmp_path, device="cuda")


def test_a_model_is_loaded_without_checksums_and_with_other_files_beside_it(tmp_path):
    folder = save(powerclip.create_model("tiny"), tmp_path / "tiny")
    (folder / "notes.md").write_text("mine")
    (folder / "evaluation.json").write_text("{}")
    powerclip.load(folder)
    (folder / "config.json").write_text((folder / "config.json").read_text().replace("\n", "\n "))
    with pytest.raises(PowerclipError, match="or delete SHA256SUMS if you have changed the file yourself"):
        powerclip.load(folder)
    (folder / SUMS).unlink()
    powerclip.load(folder)


def test_a_config_of_another_library_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"hidden_size": 512}')
    with pytest.raises(PowerclipError, match="config.json is not of a powerclip model; name a run, or what powerclip"):
        powerclip.load(tmp_path)


def test_open_clip_s_zero_shot_evaluator_takes_the_model(monkeypatch):
    # open_clip 3.3 calls float() on arrays of one element, which NumPy no longer converts
    monkeypatch.setattr(zero_shot, "float", lambda value: value.item(), raising=False)
    torch.manual_seed(0)
    model, tokenizer = powerclip.create_model("tiny").eval(), open_clip.SimpleTokenizer(context_length=32)
    names, templates = ["red", "green", "blue", "pink", "black"], ["a {} cube", "the {} ball"]
    classifier = open_clip.build_zero_shot_classifier(
        model, tokenizer, names, [t.format for t in templates], device="cpu"
    )
    images = torch.rand(12, 3, 64, 64)
    expected = model.encode_image(images, normalize=True) @ classifier
    labels = expected.argmax(dim=1)
    labels[:3] = (labels[:3] + 1) % 5  # a quarter is wrong
    args = SimpleNamespace(device="cpu", precision="fp32", batch_size=4)
    assert zero_shot.run(model, classifier, [(images, labels)], args)[0] == pytest.approx(0.75)
    found = model(text=tokenizer(["a red cube"]))
    assert found.keys() == {"text_features", "logit_scale"}
    assert found["logit_scale"].item() == pytest.approx(1 / 0.07)


@pytest.mark.parametrize("quick", [True, False])
def test_a_model_without_dense_outputs_has_the_activation_of_its_tag(quick, tmp_path, monkeypatch):
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    theirs = open_clip.CLIP(**config, quick_gelu=quick).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pt")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-resnet", config)
    tag = {"url": "", "quick_gelu": True} if quick else {"url": ""}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-resnet", {"mine": tag})
    for place in (open_clip, open_clip.factory):
        monkeypatch.setattr(place, "download_pretrained", lambda *_, **__: str(tmp_path / "weights.pt"))
    model, _, tokenizer = load_open_clip("small-resnet", "mine")
    assert model.config["model"].get("quick_gelu", False) is quick
    tokens = tokenizer(["a red cube"])
    assert torch.equal(model.encode_text(tokens), theirs.encode_text(tokens))
