"""The door: what is compared on what, what is refused, and what the card says."""

import json

import pytest
import torch
import yaml
from PIL import Image

import powerclip
from powerclip import cli
from powerclip.config import to_yaml
from powerclip.errors import PowerclipError, RunFailedError
from powerclip.evaluate import Evaluation, Origin
from powerclip.export import export, hub_folder
from powerclip.export.parity import Exported, Pairs, compare
from tests.support.exports import model_to_export
from tests.support.images import one_colour
from tests.support.runs import own_data, record_data, tiny_run


@pytest.fixture
def run(tmp_path):
    """A run folder with a model, a config, data and a result, without the training."""
    folder = tmp_path / "photos"
    model_to_export(tmp_path, image_pool="tower", text_pool="tower").rename(tmp_path / "model")
    folder.mkdir()
    (tmp_path / "model").rename(folder / "model")
    record_data(folder, own_data(tmp_path / "pairs", "a teal square", "another", image=one_colour(size=(40, 20))))
    (folder / "config.yaml").write_text(to_yaml(tiny_run(tmp_path)))
    origin = Origin(suite="pairs", data="/d", fingerprint="f", n=2)
    Evaluation(tasks={"retrieval:d": {"i2t_R@1": 0.25}}, measured_on={"retrieval:d": origin}).write(folder)
    return folder


def test_the_command_compares_on_the_run_s_own_data_and_writes_a_card(run, capsys):
    assert cli.main(["export", str(run), "--to", "hub-folder", "--licence", "cc-by-4.0"]) == 0
    printed = capsys.readouterr().out
    assert "image embeddings differ by at most 0.0e+00 (tolerance" in printed
    assert "text embeddings differ by at most 0.0e+00 (tolerance" in printed
    assert f"measured on 2 pairs: {run.parent / 'pairs'}" in printed
    folder = run / "export" / "hub-folder"
    assert {path.name for path in folder.iterdir()} == {"README.md", "SHA256SUMS", "config.json", "model.safetensors"}
    assert torch.equal(powerclip.load(folder)[0].logit_scale, powerclip.load(run)[0].logit_scale)
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "cc-by-4.0"
    assert "# photos\n" in card
    assert "1 pairs in 1 shards: `pairs` (digest `0`)" in card
    assert str(run.parent / "pairs") not in card, "folders of this machine are nobody's business"
    assert "measured on 2 pairs: pairs\n" in card
    assert "recipe: scenes_tiny" in card
    assert "| retrieval:d | i2t_R@1 | 25.0 |" in card
    assert cli.main(["export", str(run), "--to", "hub-folder"]) == 2
    assert "hub-folder exists; remove it, or name another folder" in capsys.readouterr().err


def test_without_data_it_compares_on_scenes_and_says_so(run, tmp_path):
    (run / "data.json").unlink()
    _, parity = export(str(run), "hub-folder", output=tmp_path / "a")
    assert (parity.n, parity.source) == (16, "generated scenes, as no data of the run are at hand")
    _, parity = export(str(run), "hub-folder", output=tmp_path / "b", data=str(tmp_path / "pairs"))
    assert (parity.n, parity.source) == (2, str(tmp_path / "pairs"))
    with pytest.raises(PowerclipError, match="nowhere"):
        export(str(run), "hub-folder", output=tmp_path / "c", data=str(tmp_path / "nowhere"))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_model_that_computes_something_else_is_not_exported(tower, run, monkeypatch, capsys):
    """A shift of a thousandth of one number of one tower's embedding."""
    right = hub_folder.read

    def wrong(folder):
        exported = vars(right(folder))
        encode = exported[f"encode_{tower}"]
        exported[f"encode_{tower}"] = lambda x: encode(x) + torch.eye(16)[0] * encode(x).norm() / 1000
        return Exported(**exported)

    monkeypatch.setattr(hub_folder, "read", wrong)
    assert cli.main(["export", str(run), "--to", "hub-folder"]) == 1
    message = capsys.readouterr().err
    assert "not exported, hub-folder computes something else: image embeddings differ by at most" in message
    assert len(message.strip().splitlines()) == 1
    assert not list((run / "export").iterdir())


def test_what_the_library_cannot_read_is_one_line(run, monkeypatch):
    def unreadable(folder):
        raise KeyError("a\nb")

    monkeypatch.setattr(hub_folder, "read", unreadable)
    with pytest.raises(RunFailedError, match="hub-folder does not take what was exported from .*: KeyError: 'a"):
        export(str(run), "hub-folder")
    assert not list((run / "export").iterdir())


def test_nan_and_half_precision_are_outside_the_tolerance(tmp_path):
    model, preprocess, tokenizer = powerclip.load(model_to_export(tmp_path))
    pairs = Pairs([Image.new("RGB", (70, 90), "teal"), Image.effect_noise((64, 64), 40)], ["a", "b c"], "two")
    images, texts = model.encode_image, model.encode_text

    def holds(encode_image, encode_text):
        exported = Exported(encode_image=encode_image, encode_text=encode_text)
        return compare(model, preprocess, tokenizer, exported, pairs).holds

    assert holds(images, texts)
    assert not holds(lambda x: images(x).bfloat16().float(), texts)
    assert not holds(images, lambda x: texts(x).half().float())
    assert not holds(images, lambda x: texts(x) * float("nan"))


def test_the_default_folder_of_a_hub_model_is_here(run, tmp_path, monkeypatch):
    """A model that is not a folder of this machine has none to put the result into."""
    loaded = powerclip.load(run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("powerclip.export.load", lambda name: loaded)
    folder, _ = export("someone/photos", "hub-folder")
    assert str(folder) == "photos-hub-folder"
    assert json.loads((folder / "config.json").read_text())["text_pool"] == "tower"
