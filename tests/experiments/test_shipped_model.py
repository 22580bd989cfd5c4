"""The model that comes with powerclip can be made by its command, and is what the package holds."""

import sys
from pathlib import Path

import pytest
import torch

import powerclip
from powerclip.explore.subject import SHIPPED
from powerclip.recipes import scenes_superpixels

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import shipped_model


def test_the_shipped_model_is_small_and_loads():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 8e6
    model, preprocess, tokenizer = powerclip.load(SHIPPED)
    recipe = scenes_superpixels()
    assert (model.scoring, model.region_unit) == (recipe.objective.scoring, recipe.model.region_unit)
    embeddings = model.state_dict()["backbone.text.token_embedding.weight"]
    known = embeddings.any(dim=1)
    assert 50 < known.sum() < 1000
    assert known[tokenizer(["a red umbrella left of a blue cat"])[0].unique()].all()


@pytest.mark.slow
def test_its_command_makes_one(tmp_path, capsys):
    made, run = tmp_path / "package", tmp_path / "run"
    options = ["--steps", "2", "--scenes", "128", "--images", "16", "--output", str(run), "--package", str(made)]
    shipped_model.main(options)
    said = capsys.readouterr().out
    assert "scenes-grounding patch: " in said
    trained, packed = (powerclip.load(folder)[0].state_dict() for folder in (run / "run", made))
    for name, value in trained.items():
        expected = value.half().to(value.dtype)
        if name.endswith("token_embedding.weight"):
            present = packed[name].any(dim=1)
            assert 50 < present.sum() < 1000
            expected[~present] = 0
        assert torch.equal(packed[name], expected)
