"""Models between two models."""

import json
import shutil

import pytest
import torch

import powerclip
from powerclip import cli
from powerclip.config import EvaluateConfig, ScoringConfig
from powerclip.errors import PowerclipError
from powerclip.evaluate import evaluate_model
from powerclip.interpolate import interpolate
from powerclip.model import save
from tests.support.layouts import webdataset
from tests.support.models import TINY
from tests.support.pretrained import siglip_folder


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Two models with random weights, and their folders."""
    folder = tmp_path_factory.mktemp("ends")
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(powerclip.create_model("tiny"))
        save(models[-1], folder / str(seed))
    return (*models, folder / "0", folder / "1")


def test_every_weight_is_between_and_the_ends_are_the_models(ends):
    a, b, *_ = ends
    first, last = a.state_dict(), b.state_dict()
    for name, value in interpolate(a, b, 0.25).state_dict().items():
        torch.testing.assert_close(value, 0.75 * first[name] + 0.25 * last[name])
    for weight, end in ((0.0, first), (1.0, last)):
        assert all(torch.equal(v, end[k]) for k, v in interpolate(a, b, weight).state_dict().items())


def test_one_command_evaluates_a_few_weights(ends, tmp_path, capsys):
    _, _, a, b = ends
    output = tmp_path / "between"
    argv = ["interpolate", str(a), str(b), "--weights", "0", "0.5", "1", "--output", str(output)]
    assert cli.main([*argv, "--suite", "scenes", "--size", "24"]) == 0
    table = (output / "interpolation.md").read_text()
    header = "| task | metric | 0 | 0.5 | 1 |"
    assert header in table
    assert " 0 " in capsys.readouterr().out
    alone = evaluate_model(str(b), EvaluateConfig(suite=("scenes",), size=24, output=tmp_path / "alone"))
    written = json.loads((output / "weight-1" / "evaluation.json").read_text())
    assert written["tasks"] == alone.tasks
    half = powerclip.load(output / "weight-0.5")[0]
    assert half.config["start"] == f"0.5 of {a} and 0.5 of {b}"
    assert cli.main([*argv[:-1], str(tmp_path / "other"), "--suite", "scens"]) == 2
    assert not (tmp_path / "other").exists()
    assert cli.main([*argv]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"powerclip: {output} was made for another evaluation; name another --output"


@pytest.mark.parametrize("weights", [["0", "1"], ["0.5"]])
def test_the_same_command_continues(weights, ends, tmp_path, monkeypatch, capsys):
    _, _, a, b = ends
    output, saved, evaluated = tmp_path / "between", [], []

    def evaluating(model, config):
        evaluated.append(model)
        if len(evaluated) == len(weights):
            raise KeyboardInterrupt
        return evaluate_model(model, config)

    monkeypatch.setattr("powerclip.interpolate.evaluate_model", evaluating)
    monkeypatch.setattr("powerclip.interpolate.save", lambda model, folder: saved.append(save(model, folder).name))
    argv = ["interpolate", str(a), str(b), "--weights", *weights, "--output", str(output)]
    folders = [output / f"weight-{weight}" for weight in weights] if len(weights) > 1 else [output]
    asked = ["--suite", "scenes", "--size", "8"]
    assert cli.main([*argv, *asked]) == 130
    assert cli.main([*argv, *asked]) == 0
    assert saved == [f".{folder.name}.tmp" for folder in folders]
    assert evaluated == list(map(str, [*folders, folders[-1]]))
    assert cli.main([*argv, *asked]) == 0
    assert len(saved + evaluated) == 2 * len(weights) + 1
    assert all((folder / "evaluation.json").exists() for folder in folders)
    assert cli.main(["interpolate", str(b), str(a), *argv[3:], *asked]) == 2
    said = capsys.readouterr().err
    assert f"{output} was made of other models; name another --output" in said
    other = [*argv[:4], "0.25", *argv[5:], "--suite", "scenes", "--size", "9"]
    assert cli.main(other) == 2
    said = capsys.readouterr().err
    assert f"{output} was made with other weights and for another evaluation; name another --output" in said


def test_a_kill_after_the_model_is_saved_leaves_a_folder_that_continues_or_none(ends, tmp_path, monkeypatch):
    _, _, a, b = ends
    argv = ["interpolate", str(a), str(b), "--weights", "0.5", "--output", str(tmp_path / "m")]

    def stopped(model, folder):
        save(model, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("powerclip.interpolate.save", stopped)
        assert cli.main(argv) == 130
    assert cli.main(argv) == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "SHA256SUMS",
        "config.json",
        "interpolation.json",
        "model.safetensors",
    ]


def test_absent_data_sets_stop_nothing_and_finished_models_are_not_measured_again(ends, tmp_path, monkeypatch):
    _, _, *folders = ends
    webdataset(tmp_path / "data" / "food101", [("red", b"0"), ("blue", b"1")], "cls")
    evaluated = []

    def evaluating(model, config):
        evaluated.append(model)
        return evaluate_model(model, config)

    monkeypatch.setattr("powerclip.interpolate.evaluate_model", evaluating)
    argv = ["interpolate", *map(str, folders), "--weights", "0", "1", "--output", str(tmp_path / "m")]
    argv += ["--data", str(tmp_path / "data"), "--suite", "food101", "sugarcrepe"]
    assert cli.main(argv) == 0
    shutil.rmtree(tmp_path / "data")  # not looked at
    assert cli.main(argv) == 0
    assert len(evaluated) == 2


def test_data_that_are_not_there_leave_nothing_behind(ends, tmp_path, capsys):
    _, b, *folders = ends
    argv = ["interpolate", *map(str, folders), "--weights", "0", "1", "--output", str(tmp_path / "m")]
    nothing = ["--data", str(tmp_path), "--suite", "sugarcrepe", "pets"]
    classes = ["--suite", "classes", "--data", str(tmp_path / "nowhere")]
    for wrong in (["--data", str(tmp_path / "nowhere")], ["--suite", "pairs"], nothing, classes):
        assert cli.main([*argv, *wrong]) == 2
        assert not (tmp_path / "m").exists()
    other = powerclip.create_model("tiny", text_pool="tower")
    save(other, tmp_path / "other")
    assert cli.main([*argv[:2], str(tmp_path / "other"), *argv[3:]]) == 2
    assert not (tmp_path / "m").exists()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    assert cli.main(argv) == 2
    assert f"output {tmp_path / 'm'} exists; remove it" in capsys.readouterr().err


def test_a_single_weight_makes_a_model_folder(ends, tmp_path, capsys):
    a, b, *folders = ends
    argv = ["interpolate", *map(str, folders), "--weight", "0.3", "--output", str(tmp_path / "m")]
    assert cli.main(argv) == 0
    loaded = powerclip.load(tmp_path / "m")[0].state_dict()
    expected = interpolate(a, b, 0.3).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.items())
    assert not (tmp_path / "m" / "evaluation.json").exists()


def test_weights_that_are_nearly_equal_have_folders_and_columns_of_their_own(ends, tmp_path, capsys):
    _, _, *folders = ends
    weights = ["0.12345678", "0.12345679", "1.0", "0.9"]
    argv = ["interpolate", *map(str, folders), "--weights", *weights, "--output", str(tmp_path / "m")]
    assert cli.main([*argv, "--suite", "scenes", "--size", "8"]) == 0
    names = ["0.12345678", "0.12345679", "1", "0.9"]
    assert {path.name for path in (tmp_path / "m").iterdir() if path.is_dir()} == {f"weight-{name}" for name in names}
    assert f"| task | metric | {' | '.join(names)} |" in (tmp_path / "m" / "interpolation.md").read_text()
    starts = [powerclip.load(tmp_path / "m" / f"weight-{name}")[0].config["start"].split()[0] for name in names]
    assert starts == ["0.87654322", "0.87654321", "0", "0.1"]
    again = ["interpolate", *map(str, folders), "--weights", "0.5", "0.50", "--output", str(tmp_path / "twice")]
    assert cli.main(again) == 2
    assert "weights are [0.5, 0.5]; name at least one, and each once" in capsys.readouterr().err
    assert cli.main([*again[:4], "0.5", "1.5", "--output", str(tmp_path / "beyond")]) == 2
    assert "weight is 1.5; it must be between 0" in capsys.readouterr().err
    assert not (tmp_path / "beyond").exists()


def test_settings_for_regions_and_phrases_are_named_where_they_differ(ends, tmp_path, capsys):
    _, b, folder, _ = ends
    settings = {"region_unit": "patch", "phrase_norm": "sum", "scoring": ScoringConfig(subsets="single")}
    other = powerclip.create_model("tiny", **settings)
    other.load_state_dict(b.state_dict())
    save(other, tmp_path / "other")
    argv = ["interpolate", str(folder), str(tmp_path / "other"), "--weight", "0.5", "--output", str(tmp_path / "m")]
    assert cli.main(argv) == 0
    differing = "region_unit is region and patch, phrase_norm is unit and sum, subsets is all and single; what is made"
    said = capsys.readouterr().out
    assert differing in said
    assert f"has those of {tmp_path / 'other'}\n" in said
    made = powerclip.load(tmp_path / "m")[0]
    assert (made.region_unit, made.phrase_norm, made.scoring) == ("patch", "sum", settings["scoring"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quick_gelu": True}, "quick_gelu is False and True"),
        ({"embed_dim": 24}, "embed_dim is 16 and 24"),
        ({"vision_cfg": {**TINY["vision_cfg"], "head_width": 4}}, "vision_cfg.head_width is 8 and 4"),
        ({"text_cfg": {**TINY["text_cfg"], "layers": 2}}, "text_cfg.layers is 1 and 2"),
        ({"text_pool": "tower"}, "text_pool is avg and tower"),
    ],
)
def test_other_models_are_refused_in_one_line(change, message, tmp_path):
    made = []
    for name, changes in (("a", {}), ("b", change)):
        pool = {key: changes[key] for key in changes if key == "text_pool"}
        (tmp_path / f"{name}.json").write_text(
            json.dumps({**TINY, **{k: changes[k] for k in changes if k not in pool}})
        )
        made.append(powerclip.create_model(str(tmp_path / f"{name}.json"), **pool))
    with pytest.raises(PowerclipError, match=f"only models of the same architecture .*{message}") as caught:
        interpolate(*made, 0.5)
    assert "\n" not in str(caught.value)


def test_other_pixels_are_refused_and_settings_of_training_are_not(ends, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({**TINY, "init_logit_scale": 3.0}))
    (tmp_path / "b.json").write_text(json.dumps({**TINY, "vision_cfg": {**TINY["vision_cfg"], "patch_dropout": 0.5}}))
    a, b = (powerclip.create_model(str(tmp_path / f"{name}.json")) for name in "ab")
    interpolate(a, b, 0.5)
    b.backbone.visual.preprocess_cfg["mean"] = [0.5] * 3
    with pytest.raises(PowerclipError, match="preprocess.mean is "):
        interpolate(a, b, 0.5)
    with pytest.raises(ValueError, match=r"weight is 1\.5; it must be between 0"):
        interpolate(a, a, 1.5)


@pytest.mark.parametrize("biased", [0, 1])
def test_a_bias_of_the_logits_that_one_model_has_is_kept(biased, ends, tmp_path):
    models = [*ends[:2]]
    torch.manual_seed(3)
    models[biased] = powerclip.create_model("tiny", init_logit_bias=-3.0)
    middle = interpolate(*models, 0.5)
    expected = (models[0].logit_scale + models[1].logit_scale) / 2
    loaded = powerclip.load(save(middle, tmp_path / "m"))[0]
    assert (loaded.logit_bias, loaded.logit_scale) == (-3.0, expected)
    assert models[1 - biased].logit_bias is None


def test_other_vocabularies_are_refused_and_other_places_are_not(tmp_path):
    siglip_folder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    a, b = (powerclip.load(tmp_path / name)[0] for name in "ab")
    interpolate(a, b, 0.5)
    tokenizer = tmp_path / "b" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["red"], vocabulary["green"] = vocabulary["green"], vocabulary["red"]
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(PowerclipError, match="models of the same vocabulary can be .*/a and .*/b, have different ones"):
        interpolate(a, b, 0.5)
