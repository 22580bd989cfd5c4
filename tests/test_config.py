import ast
import dataclasses
import typing
from pathlib import Path
from typing import Literal

import pytest

import powerclip.config
from powerclip.config import (
    MAX_YAML_BYTES,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ParallelConfig,
    PrepareConfig,
    TrainConfig,
    from_dict,
    load_config,
    to_yaml,
)
from powerclip.errors import PowerclipError
from powerclip.recipes import RECIPES, recipe
from tests.support.memory import more_bytes


@pytest.mark.parametrize("name", RECIPES)
def test_a_config_survives_its_yaml(name, tmp_path):
    config = recipe(name)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    assert config.recipe == name


def another(value, hint):
    """A value of a setting's type that is not its default."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is Literal:
        return next(option for option in options if option != value)
    if options and typing.get_origin(hint) not in (tuple, dict):
        return another(value, options[0])
    others = {int: 77, float: 0.0625, bool: not value, str: "other", tuple[float, ...]: (1.0, 2.5)}
    return {**others, dict[str, float]: {"alt": 1.0, "other": 2.5}}[hint]


def all_changed(config):
    hints = typing.get_type_hints(type(config))
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {
        name: all_changed(value) if dataclasses.is_dataclass(value) else another(value, hints[name])
        for name, value in values.items()
    }
    return type(config)(**{**changed, **({"epochs": None} if "epochs" in changed else {})})


def test_every_setting_survives_its_yaml(tmp_path):
    config = all_changed(TrainConfig(steps=1))
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config(path) == config
    for name, value in vars(TrainConfig(steps=1)).items():
        assert name == "epochs" or getattr(config, name) != value, name


def test_every_setting_says_what_it_is():
    files = Path(powerclip.config.__file__).parent.glob("*.py")
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    classes = [node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)]
    assert {cls.name for cls in classes} >= {name for name in powerclip.config.__all__ if name.endswith("Config")}
    for cls in classes:
        for setting, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            if isinstance(setting, ast.AnnAssign):
                said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                assert said, f"{cls.name}.{setting.target.id} has no docstring"


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"subsets": "single", "normalise_by_regions": False, "form": "softmax"}, []),
        ({"subsets": "single", "zero": "centred"}, []),
        ({"subsets": "single", "zero": 0.3, "form": "sigmoid"}, []),
        ({"subsets": "single", "zero": 0.3}, ["zero"]),
        ({"subsets": "single", "zero": "midpoint", "form": "softmax"}, ["zero"]),
        ({"subsets": "single", "zeta": "calibrated", "method": "exact"}, ["zeta", "method"]),
        ({"method": "exact", "zeta": "calibrated", "samples": 8}, ["zeta"]),
        ({"form": "softmax", "margin": "adaptive", "negatives": "mean"}, ["margin", "negatives"]),
        ({"gradient_ratio": 0.5, "powerset_weight": 50.0}, ["powerset_weight"]),
        ({"powerset_weight": 50.0}, []),
        ({"name": "clip", "subsets": "single", "zeta": "calibrated"}, []),
    ],
)
def test_settings_without_effect_are_named(settings, names):
    found = ObjectiveConfig(**settings).without_effect
    assert [line.split()[0] for line in found] == [f"objective.{name}" for name in names]
    assert all(" has no effect: " in line for line in found)


def test_a_training_that_ends_before_its_loss_starts_says_so():
    late = ObjectiveConfig(weight_start_step=200)
    assert late.starts_too_late(201) == ObjectiveConfig(name="clip", weight_start_step=200).starts_too_late(3) == []
    (line,) = late.starts_too_late(200)
    assert line.startswith("objective.weight_start_step is 200 and training ends after step 200")


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_of_a_recipe_has_an_effect(name):
    assert recipe(name).objective.without_effect == []


def test_leftover_keys_are_refused():
    with pytest.raises(ValueError, match=r"config\.optim has unknown settings lr; known: learning_rate"):
        from_dict(TrainConfig, {"steps": 1, "optim": {"lr": 1.0}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": "many"}, r"config\.steps is 'many'; expected int or None"),
        ({"steps": 1, "data": {"weights": [1, "a"]}}, r"config\.data\.weights is \[1, 'a'\]; expected a list or None"),
        ({"steps": 1, "objective": {"zeta": "auto"}}, r"zeta is 'auto'; expected float or 'calibrated'"),
        ({"steps": True}, r"config\.steps is True; expected"),
        ({"steps": 1, "precision": "fp8"}, r"config\.precision is 'fp8'; expected 'auto', 'fp32', 'bf16'"),
        ({"steps": 1, "batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"steps": 1, "objective": {"tau": -1.0}}, "tau is -1.0; it must be 0 or more"),
        ({"steps": 1, "objective": {"powerset_weight": 0.0}}, "0.0; it must be positive; choose the objective clip"),
        ({"steps": 1, "objective": {"gradient_ratio": 0.0}}, "gradient_ratio is 0.0; it must be positive"),
        ({"steps": 1, "objective": {"weight_warmup_steps": -1}}, "weight_warmup_steps is -1; it must be 0 or more"),
        (
            {"steps": 1, "objective": {"name": "sparc", "sparc_global_weight": 0.0, "sparc_local_weight": 0.0}},
            "SPARC's loss needs one of them",
        ),
        ({"steps": 1, "optim": {"weight_decay": -1.0}}, "weight_decay is -1.0; it must be 0 or more"),
        ({"steps": 1, "optim": {"beta2": 1.0}}, "beta2 is 1.0; it must be 0 or more and less than 1"),
        ({"steps": 1, "optim": {"eps": 0.0}}, "eps is 0.0; it must be positive"),
        (
            {"steps": 1, "optim": {"max_gradient_norm": 0.0}},
            "max_gradient_norm is 0.0; it must be positive; None turns",
        ),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"steps": 2**40}, "steps is 1099511627776; it must be a whole number below 2.40 or None"),
        ({"steps": 1, "evaluation": {"size": 2**40}}, "size is 1099511627776; it must be a whole number below 2.40"),
        (
            {"steps": 1, "checkpoint_every_minutes": float("nan")},
            "checkpoint_every_minutes is nan; it must be a finite number or None",
        ),
        ({"steps": 1, "model": None}, r"config\.model holds NoneType; expected a mapping"),
        (
            {"steps": 1, "model": {"region_unit": "patch"}, "objective": {"region_source": "stored"}},
            "region_unit 'patch' no masks are read; set region_source to 'boxes' or region_unit to 'region'",
        ),
        ({}, "give either steps or epochs; got steps=None, epochs=None"),
        ({"steps": 1, "epochs": 1}, "give either steps or epochs; got steps=1, epochs=1"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(TrainConfig, values)


CONFIGS = (
    *(ModelConfig, ObjectiveConfig, DataConfig, OptimConfig, ParallelConfig),
    *(TrainConfig, PrepareConfig, EvaluateConfig),
)
LISTED = [
    (kind, name) for kind in CONFIGS for name, hint in typing.get_type_hints(kind).items() if "Literal" in str(hint)
]


@pytest.mark.parametrize(("kind", "name"), LISTED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_misspelt_value_is_refused_wherever_the_setting_comes_from(kind, name):
    several = "tuple" in str(typing.get_type_hints(kind)[name])
    given = {"steps": 1} if kind is TrainConfig else {}
    with pytest.raises(ValueError, match=f"{name} is 'nonesuch'; it must be "):
        kind(**given | {name: ("nonesuch",) if several else "nonesuch"})


def test_all_listed_settings_are_tried():
    assert len(LISTED) > 25
    assert {("PrepareConfig", "join"), ("EvaluateConfig", "scores"), ("TrainConfig", "precision")} <= {
        (kind.__name__, name) for kind, name in LISTED
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a list\n", "holds list; expected a mapping"),
        ("steps: [\n", "cannot read .*config.yaml: while parsing"),
        ("model: &a {name: tiny}\nobjective: *a\n", "it has an alias; write the value again in its place"),
        ("a: " + "[" * 5000, "cannot read .*config.yaml: "),
        ("#" * (MAX_YAML_BYTES + 1), f"it is larger than {MAX_YAML_BYTES} bytes"),
    ],
    ids=["list", "syntax", "alias", "depth", "size"],
)
def test_a_file_that_is_not_a_config_is_named(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["[],", "a,", "{a: b},"])
def test_the_largest_file_that_is_read_takes_bounded_memory(value, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: [" + value * ((MAX_YAML_BYTES - 10) // len(value)) + "]")
    with (
        more_bytes() as more,
        pytest.raises(ValueError, match=r"config.yaml.steps is .{300}[.]{3}; expected int or None"),
    ):
        load_config(path)
    assert more[0] < 64 * 2**20


def test_a_config_of_an_earlier_version_that_trained_clip_by_a_weight_of_0_is_clip(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 1\nobjective:\n  name: powerclip\n  powerset_weight: 0.0\n")
    assert load_config(path) == TrainConfig(steps=1).with_objective("clip")


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(PowerclipError, match=r"unknown recipe 'scene_tiny'; did you mean scenes_tiny or emoji_tiny or"):
        recipe("scene_tiny")
