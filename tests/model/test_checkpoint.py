"""Weights are read whatever wrote them, or refused with the reason."""

import json

import pytest
import torch
from safetensors.torch import save_file

import powerclip
from powerclip.errors import PowerclipError
from powerclip.model import save
from powerclip.model.checkpoint import read_state
from tests.support.pretrained import FAMILIES, SMALL, config_file, local_dir, theirs_of

STATE = theirs_of(SMALL).state_dict()
OTHER = {name: torch.zeros_like(value) for name, value in STATE.items()}


def created(folder, path):
    """The state of the model that a checkpoint makes."""
    options = {"image_pool": "tower", "text_pool": "tower"}
    return powerclip.create_model(config_file(folder, SMALL), pretrained=str(path), **options).backbone.state_dict()


def assert_equal(found, expected=STATE):
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    "content",
    [
        {"n_averaged": torch.tensor(3), **{f"module.{name}": v for name, v in STATE.items()}},
        {"state_dict": {**{f"model.{name}": v for name, v in STATE.items()}, "loss.weight": torch.ones(1)}},
        {"state_dict": {name.replace("visual.", "visual._orig_mod."): v for name, v in STATE.items()}},
        {name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): v for name, v in STATE.items()},
        {f"_orig_mod.{name.replace('blocks.1.', 'blocks.1._fsdp_wrapped_module.')}": v for name, v in STATE.items()},
    ],
    ids=["AveragedModel", "Lightning", "compiled tower", "checkpointed block", "FSDP"],
)
def test_what_is_put_into_names_and_beside_weights_is_taken_off(content, tmp_path):
    torch.save(content, tmp_path / "x.pt")
    assert_equal(created(tmp_path, tmp_path / "x.pt"))


@pytest.mark.parametrize("keys", [("model", "ema"), ("state_dict", "model_ema"), ("state_dict", "state_dict_ema")])
def test_averaged_weights_beside_others_are_mentioned(keys, tmp_path):
    torch.save(dict(zip(keys, (STATE, OTHER), strict=True)), tmp_path / "x.pt")
    with pytest.warns(UserWarning, match=rf"x.pt also holds averaged weights \({keys[1]}\); those of {keys[0]} are"):
        assert_equal(created(tmp_path, tmp_path / "x.pt"))


@pytest.mark.parametrize("name", ["w.pt", "blob", "w.safetensors"])
def test_the_first_bytes_say_what_a_file_is(name, tmp_path):
    save_file(STATE, tmp_path / name)
    assert_equal(read_state(tmp_path / name))
    torch.save(STATE, tmp_path / name)
    assert_equal(read_state(tmp_path / name))
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=False)
    assert_equal(read_state(tmp_path / name))


@pytest.fixture
def shards(tmp_path):
    """A folder in open_clip's form with its weights in two files and an index."""
    folder = tmp_path / "shards"
    local_dir(folder, theirs_of(SMALL), SMALL)
    (folder / "open_clip_model.safetensors").unlink()
    names = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(STATE)}
    for file in sorted(set(names.values())):
        save_file({name: STATE[name] for name in STATE if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder


def test_weights_in_several_files_are_read_by_their_index(shards, tmp_path):
    assert_equal(powerclip.load(shards)[0].backbone.state_dict())
    assert_equal(created(tmp_path, shards))
    assert_equal(created(tmp_path, shards / "model.safetensors.index.json"))
    for name in ("open_clip_config.json", "config.json"):
        (shards / name).unlink(missing_ok=True)
    assert_equal(created(tmp_path, shards / "model.safetensors.index.json"))


def test_damaged_shards_are_one_line(shards, tmp_path):
    index = shards / "model.safetensors.index.json"
    for content, message in (
        ('{"weight_map": {"a": "../x.safetensors"}}', "names files in other folders"),
        ('{"weight_map": {"a": "x.safetensors"}}', "x.safetensors"),
        ("{}", "weight_map"),
    ):
        index.write_text(content)
        with pytest.raises(PowerclipError, match=message) as caught:
            created(tmp_path, index)
        assert "\n" not in str(caught.value)
    with pytest.raises(PowerclipError, match=r"lack .*, \.\.\. \(\d+ tensors\)$"):
        created(tmp_path, shards / "model-00001-of-00002.safetensors")


def test_names_that_are_missing_and_unknown_are_both_said(tmp_path):
    state = {name: value for name, value in STATE.items() if "resblocks.1" not in name} | {
        "extra.weight": torch.ones(1)
    }
    torch.save(state, tmp_path / "x.pt")
    lacking = r"they lack visual\.\S+ visual\.\S+ \.\.\. \(\d+ tensors\) and have, and the model lacks, extra"
    with pytest.raises(PowerclipError, match=lacking):
        created(tmp_path, tmp_path / "x.pt")
    save_file({"text_model.embeddings.x": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(PowerclipError, match="format of Hugging Face's transformers"):
        created(tmp_path, tmp_path / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_floats_are_refused_at_every_door(dtype, tmp_path):
    name = "visual.conv1.weight"
    cast = {**STATE, name: STATE[name].to(dtype)}
    torch.save(cast, tmp_path / "x.pt")
    local_dir(tmp_path / "theirs", theirs_of(SMALL), SMALL)
    save_file(cast, tmp_path / "theirs" / "open_clip_model.safetensors")
    own = save(powerclip.create_model("tiny"), tmp_path / "own")
    (own / "SHA256SUMS").unlink()
    state = powerclip.load(own)[0].state_dict()
    save_file({**state, f"backbone.{name}": state[f"backbone.{name}"].to(dtype)}, own / "model.safetensors")
    for door in (
        lambda: created(tmp_path, tmp_path / "x.pt"),
        lambda: powerclip.load(tmp_path / "theirs"),
        lambda: powerclip.load(own),
        lambda: powerclip.create_model(pretrained=str(own)),
    ):
        with pytest.raises(PowerclipError, match=rf"visual\.conv1\.weight is of {dtype}; expected float32") as caught:
            door()
        assert "\n" not in str(caught.value)


def test_half_precision_is_read(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({name: value.to(dtype) for name, value in STATE.items()}, tmp_path / "x.pt")
        assert_equal(created(tmp_path, tmp_path / "x.pt"), {n: v.to(dtype).float() for n, v in STATE.items()})


def test_a_config_of_another_kind_beside_weights_is_left_alone_or_explained(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    (tmp_path / "config.json").write_text('{"note": "made with \\"powerclip\\"", "powerclip": "no"}')
    assert_equal(created(tmp_path, tmp_path / "x.pt"))
    local_dir(tmp_path / "bare", theirs_of(SMALL), SMALL)
    (tmp_path / "bare" / "open_clip_config.json").write_text(json.dumps(SMALL))
    with pytest.raises(
        PowerclipError, match=r"bare/open_clip_config\.json is not in open_clip's form: it lacks model_c"
    ):
        powerclip.load(tmp_path / "bare")


def test_imagenet_s_weights_are_not_fetched_where_others_are_loaded(tmp_path, monkeypatch):
    config = FAMILIES["timm, class token"]
    local_dir(tmp_path / "m", theirs_of(config), config)
    wished = {**config, "vision_cfg": {**config["vision_cfg"], "timm_model_pretrained": True}}
    (tmp_path / "m" / "open_clip_config.json").write_text(json.dumps({"model_cfg": wished}))
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *a, **k: pytest.fail("it is fetched"))
    folder = save(powerclip.load(tmp_path / "m")[0], tmp_path / "saved")
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model"]["vision_cfg"]["timm_model_pretrained"] is False
    saved["model"] = wished  # of an earlier version
    (folder / "SHA256SUMS").unlink()
    (folder / "config.json").write_text(json.dumps(saved))
    powerclip.load(folder)
