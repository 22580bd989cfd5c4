import dataclasses

import pytest
import yaml

from powerclip.config import ObjectiveConfig, TrainConfig, from_dict, load_config, to_yaml
from powerclip.errors import PowerclipError
from powerclip.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_its_yaml(name, tmp_path):
    config = recipe(name)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    assert config.recipe == name


def test_the_yaml_holds_every_setting():
    written = yaml.safe_load(to_yaml(TrainConfig(steps=1)))
    assert set(written) == {f.name for f in dataclasses.fields(TrainConfig)}
    assert set(written["objective"]) == {f.name for f in dataclasses.fields(ObjectiveConfig)}


def test_leftover_keys_are_refused():
    with pytest.raises(ValueError, match=r"config\.optim has unknown settings lr; known: learning_rate"):
        from_dict(TrainConfig, {"steps": 1, "optim": {"lr": 1.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "many"}, r"config\.steps is 'many'; expected"),
        ({"steps": True}, r"config\.steps is True; expected"),
        ({"steps": 1, "precision": "fp8"}, r"config\.precision is 'fp8'; expected"),
        ({"steps": 1, "batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"steps": 1, "objective": {"tau": -1.0}}, "tau is -1.0; it must be 0 or more"),
        ({"steps": 1, "model": None}, r"config\.model holds NoneType; expected a mapping"),
        ({}, "give steps or epochs, one of them; got steps=None, epochs=None"),
        ({"steps": 1, "epochs": 1}, "give steps or epochs, one of them"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values)


def test_a_file_that_is_not_a_config_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("- a list\n")
    with pytest.raises(ValueError, match="holds list; expected a mapping"):
        load_config(path)


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(PowerclipError, match=r"unknown recipe 'scene_tiny'; did you mean scenes_tiny\?"):
        recipe("scene_tiny")
