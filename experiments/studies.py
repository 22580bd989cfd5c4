"""The studies: which configs are compared, on which data, with which seeds."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from powerclip.config import EvaluateConfig, ModelConfig, ObjectiveConfig, TrainConfig, load_config
from powerclip.config.values import PhraseUnit, Score
from powerclip.demo import training_scenes, with_segments
from powerclip.evaluate.asked import SCENES_SEED, light_suite
from powerclip.evaluate.run import evaluate_model
from powerclip.recipes import emoji_scenes, scenes_tiny
from powerclip.scenes import evaluation_tasks as scenes_tasks
from powerclip.tasks import Task

sys.path.append(str(Path(__file__).parents[1] / "examples" / "emoji"))

from emoji_packages import obtain
from emoji_scene_tasks import VALIDATION_SEED
from emoji_scene_tasks import evaluation_tasks as emoji_tasks
from emoji_tasks import evaluate
from emoji_world import COLOURED_NAMES, NAMES, STYLES, Drawings, read_drawings, training_shards

OWN_SCORES: Mapping[str, Score] = {"powerclip": "powerset", "filip": "late"}
"""The score that a loss ranks by, by objective; the others rank by products of global embeddings."""

OWN_SCORE = ", own score"
"""Ends the name of a task that is scored so."""


def chosen_by(world: str) -> dict[str, tuple[str, str]]:
    """What a setting is chosen by, on the validation scenes of a world: the mean of these, one of each kind of task."""
    return {
        "name of one": (f"{world}-object", "acc@1"),
        "image to text R@1, own score": (f"{world}-retrieval{OWN_SCORE}", "i2t_R@1"),
        "hard negatives, own score": (f"{world}-hard-negatives{OWN_SCORE}", "macro"),
        "patch that adds most": (f"{world}-grounding", "contribution"),
    }


@dataclass(frozen=True, kw_only=True)
class Part:
    """One set of tables and plots of a study."""

    name: str
    configs: tuple[str, ...]
    against: tuple[str, ...]
    """Configs that the others are compared with, seed by seed."""
    drawn: tuple[str, ...]
    """Configs whose curves are drawn."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """Configs that are trained on the same data in the same order, and evaluated on the same tasks."""

    configs: Mapping[str, TrainConfig]
    seeds: tuple[int, ...]
    make_data: Callable[[Path], Path] | None
    """Makes the training data below a folder, unless they are there,
    and returns their place; None where what is kept was measured on data that are made no more."""
    evaluate: Callable[[Path], object] | None
    """Evaluates a run folder."""
    metrics: tuple[tuple[str, str], ...]
    """Tasks and metrics that the tables show, all those of ``evaluation.json`` being kept."""
    parts: tuple[Part, ...]
    """The tables."""
    page: str = "evidence-details.md"
    """Where they stand, in docs."""
    tasks: Callable[[Path], Sequence[Task]] | None = None
    """The tasks of ``evaluate``, for the runs below a folder (``remeasure.py``)."""
    validation: Callable[[Path], Sequence[Task]] | None = None
    """As ``tasks``, those that a setting is chosen by (``validate.py``)."""
    chosen_by: Mapping[str, tuple[str, str]] = field(default_factory=lambda: chosen_by("scenes"))
    """And the metrics of them whose mean it is chosen by."""
    other_data: Mapping[str, Callable[[Path], Path]] = field(default_factory=dict)
    """As ``make_data``, for the configs that train on the same samples with other annotations."""


def _scenes(output: Path) -> Path:
    return training_scenes(output / "train", count=16384)


def _scenes_of_superpixels(output: Path) -> Path:
    return with_segments(_scenes(output))


GPU_IMAGE_SIZE = 112


def _larger_scenes(output: Path) -> Path:
    return training_scenes(output / "train", count=131_072, image_size=GPU_IMAGE_SIZE)


def _larger_scenes_of_superpixels(output: Path) -> Path:
    return with_segments(_larger_scenes(output))


SCENES_SIZE = 1000
"""Images of each task."""


def _evaluate_scenes(run: Path) -> object:
    return evaluate_model(
        str(run), EvaluateConfig(suite=("scenes",), size=SCENES_SIZE, scores=("global", *own_scores(run)))
    )


def _scenes_tasks(_: Path) -> Sequence[Task]:
    return scenes_tasks(seed=SCENES_SEED, size=SCENES_SIZE, image_size=48)


VALIDATION_SIZE = 500
"""Images of each task that a setting is chosen by; fewer where there are not enough pairs of names."""


def _validation_scenes(_: Path) -> Sequence[Task]:
    return light_suite("scenes", image_size=48, size=VALIDATION_SIZE)


def own_scores(run: Path) -> tuple[Score, ...]:
    """The score that a run's loss ranks by, where it is not the product of global embeddings alone."""
    own = OWN_SCORES.get(load_config(run / "config.yaml").objective.name)
    return (own,) if own else ()


def _emoji_scenes(output: Path, *, names: int = NAMES, coloured: bool = False) -> Path:
    drawings = drawings_in(output.parent, names=names, coloured=coloured)
    return training_shards(drawings, output / "train", count=20_000, coloured=coloured)


def _emoji_of_superpixels(output: Path, *, names: int = NAMES, coloured: bool = False) -> Path:
    return with_segments(_emoji_scenes(output, names=names, coloured=coloured))


def _evaluate_emoji(run: Path, *, names: int = NAMES, coloured: bool = False) -> None:
    tasks = _emoji_tasks(run.parent, names=names, coloured=coloured)
    suite = "coloured-emoji-scenes" if coloured else "emoji-scenes"
    evaluate(run, tasks, suite=suite, scores=("global", *own_scores(run)))


def _emoji_tasks(output: Path, *, names: int = NAMES, coloured: bool = False) -> Sequence[Task]:
    return emoji_tasks(drawings_in(output.parent, names=names, coloured=coloured), coloured=coloured)


def _validation_emoji(output: Path, *, names: int = NAMES, coloured: bool = False) -> Sequence[Task]:
    drawings = drawings_in(output.parent, names=names, coloured=coloured)
    per_name = round(VALIDATION_SIZE / names)
    return emoji_tasks(drawings, seed=VALIDATION_SEED, scenes=VALIDATION_SIZE, per_name=per_name, coloured=coloured)


@cache
def drawings_in(output: Path, *, names: int = NAMES, coloured: bool = False) -> Drawings:
    """The drawings of ``examples/emoji``; their packages are kept below a folder."""
    return read_drawings(obtain(output / "packages", given=None, styles=STYLES), names=names, coloured=coloured)


EMOJI_CONV = (
    *("clip", "clip-tower", "midpoint", "midpoint-3", "alone-softmax", "unit", "centred", "grounded"),
    *("sparc", "sparc-midpoint", "sparc-2-grounded", "patches"),
)


def _emoji_conv_configs() -> dict[str, TrainConfig]:
    """The settings chosen on the generated scenes, on drawings of 240 names."""
    scenes = _conv_configs()
    return {name: scenes[name] for name in EMOJI_CONV}


def _objective(base: TrainConfig, **settings: object) -> TrainConfig:
    return replace(base, objective=replace(base.objective, **settings))


def _tower_pooling(base: TrainConfig) -> TrainConfig:
    """The class token and the end of text, as CLIP pools (and as the paper's baseline does)."""
    return replace(base, model=replace(base.model, image_pool="tower", text_pool="tower"))


def _alone(base: TrainConfig) -> TrainConfig:
    """Phrases that the text tower reads without the rest of their caption."""
    return replace(base, model=replace(base.model, phrase_context="alone"))


def _paper(base: TrainConfig) -> TrainConfig:
    """The paper's text taken literally: phrases are sums of leaves, S is a sum over regions, and lambda is constant."""
    config = replace(base, model=replace(base.model, phrase_norm="sum"))
    return replace(config, objective=ObjectiveConfig(name="powerclip", powerset_weight=0.2, normalise_by_regions=False))


FORMER = "-2e-3"
"""Ends the names of the same configs with the learning rate that all had at first, twice the recipes' of now."""
RATES = {"-5e-4": 5e-4, FORMER: 2e-3, "-4e-3": 4e-3}
"""Learning rates beside the recipes'."""


def _scenes_configs() -> dict[str, TrainConfig]:
    """What the demo's recipe does, the baselines, and one change each, with each learning rate."""
    configs = _recipe_and_changes()
    return configs | {
        name + suffix: _at_rate(config, rate) for name, config in configs.items() for suffix, rate in RATES.items()
    }


def _at_rate(base: TrainConfig, rate: float) -> TrainConfig:
    return replace(base, optim=replace(base.optim, learning_rate=rate))


def _former(*names: str) -> tuple[str, ...]:
    return tuple(name + FORMER for name in names)


def _recipe_and_changes() -> dict[str, TrainConfig]:
    patches = scenes_tiny()
    boxes = replace(patches, model=ModelConfig(name="tiny-local"))
    powerset = _objective(boxes, subsets="all", normalise_by_regions=True)
    triplet = _objective(boxes, form="triplet", centre_scores="full")
    stored = _objective(boxes, region_source="stored")
    selective = replace(
        patches,
        model=ModelConfig(name="tiny-local", region_norm="image"),
        objective=replace(emoji_scenes().objective, zero="matched"),
    )
    clip = patches.with_objective("clip")  # the other settings say how its regions and phrases are compared
    return {
        "clip": clip,
        "clip-tower": _tower_pooling(clip),
        "patches": patches,
        "boxes": boxes,
        "gold": stored,
        "superpixels": stored,
        "superpixels-32": _objective(stored, regions=32),
        "selective": selective,
        "filip": clip.with_objective("filip"),
        "sparc": clip.with_objective("sparc"),
        "siglip": clip.with_objective("siglip"),
        "superclip": clip.with_objective("superclip"),
        "patches-sparc": _objective(patches, global_loss="sparc"),
        **_longer({"clip": clip, "patches": patches, "superpixels": stored}),
        # As many steps as segments take in CLIP's time.
        "clip-2200": replace(clip, steps=2200),
        "clip-tower-2200": replace(_tower_pooling(clip), steps=2200),
        # What does it in "patches" and "boxes": one change each.
        "patches-all": _objective(patches, subsets="all", normalise_by_regions=True),
        "patches-4": _objective(patches, gradient_ratio=4.0),
        "patches-both": _phrase_unit(patches, "both"),
        "superpixels-both": _phrase_unit(stored, "both"),
        "superpixels-32-both": _phrase_unit(_objective(stored, regions=32), "both"),
        "patches-tokens": _phrase_unit(patches, "token"),
        "superpixels-tokens": _phrase_unit(stored, "token"),
        "boxes-5": _objective(boxes, regions=5),
        "boxes-20": _objective(boxes, regions=20),
        "boxes-05": _objective(boxes, gradient_ratio=0.5),
        "boxes-2": _objective(boxes, gradient_ratio=2.0),
        "boxes-t2r": _objective(boxes, direction="t2r"),
        "boxes-r2t": _objective(boxes, direction="r2t"),
        "superpixels-t2r": _objective(stored, direction="t2r"),
        "boxes-triplet": triplet,
        "boxes-margin-1": _objective(triplet, margin=1.0),
        # The powerset, on other regions too, and what only its aggregators have.
        "boxes-all": powerset,
        "superpixels-all": _objective(powerset, region_source="stored"),
        "boxes-all-tau": _objective(powerset, tau=0.1),
        "boxes-all-zeta": _objective(powerset, zeta=0.25),
        "boxes-all-calibrated": _objective(powerset, zeta="calibrated"),
        "boxes-all-activations": _objective(powerset, t1_activation="relu", t2_activation="sign"),
        # And in "selective".
        "selective-midpoint": _objective(selective, zero="midpoint"),
        "selective-unit": replace(selective, model=replace(selective.model, region_norm="unit")),
    }


def _phrase_unit(base: TrainConfig, unit: PhraseUnit) -> TrainConfig:
    return replace(base, model=replace(base.model, phrase_unit=unit))


def _gpu_configs() -> dict[str, TrainConfig]:
    """Eight times the samples in larger images and batches, with a ViT-S; sized for a GPU, not run on one yet."""
    scenes = _scenes_configs()
    return {
        name: replace(
            scenes[name],
            model=replace(scenes[name].model, name="ViT-S-16", image_size=GPU_IMAGE_SIZE),
            optim=replace(scenes[name].optim, warmup_steps=100),
            data=replace(scenes[name].data, workers=12),
            batch_size=1024,
            steps=768,
        )
        for name in ("clip", "clip-tower", "patches", "superpixels", "superpixels-32", "superpixels-32-both")
    }


def _longer(configs: Mapping[str, TrainConfig], *, steps: int = 6000) -> dict[str, TrainConfig]:
    """The same with more steps: four times as many, for those of 1500."""
    return {f"{name}-longer": replace(config, steps=steps) for name, config in configs.items()}


START = Path("runs", "experiments", "scenes", "clip-tower-seed-0", "model")
"""What the study ``finetune`` starts from: made by ``run.py scenes --only clip-tower --seeds 0``."""


def _conv_configs() -> dict[str, TrainConfig]:
    """What was tried with the tower tiny-conv and regions of unit length."""
    recipe = _at_rate(scenes_tiny(), RATES[FORMER])
    unit = replace(recipe, model=ModelConfig(name="tiny-conv"), objective=ObjectiveConfig(name="powerclip"))
    centred = _objective(
        unit, powerset_weight=1.0, centre_scores="full", weight_start_step=200, weight_warmup_steps=300
    )
    clip = centred.with_objective("clip")  # which uses none of the other settings
    midpoint = _objective(centred, centre_scores="none", zero="midpoint", powerset_weight=3.0)
    return {
        "clip": clip,
        "clip-tower": _tower_pooling(clip),
        # The powerset loss with unit phrases and S / M, as the settings' defaults have it,
        # and the paper's text literally.
        "unit": unit,
        "paper": _paper(unit),
        # What may put the zero of similarities and of scores where subsets choose, and how strongly it acts.
        "centred": centred,
        "centred-3": _objective(centred, powerset_weight=3.0),
        "midpoint": _objective(centred, centre_scores="none", zero="midpoint"),
        "midpoint-3": midpoint,
        "grounded": _objective(centred, zero="midpoint", gradient_ratio=0.5),
        "grounded-025": _objective(centred, zero="midpoint", gradient_ratio=0.25),
        "sparc-midpoint": _objective(midpoint, global_loss="sparc", powerset_weight=1.5),  # as 3 beside half of CLIP's
        "sparc-2-grounded": _objective(
            centred, zero="midpoint", gradient_ratio=0.5, global_loss="sparc", sparc_local_weight=2.0
        ),
        "zero-04": _objective(centred, zero=0.4, gradient_ratio=0.5),
        # The recipe scenes_tiny but for its tower and learning rate.
        "patches": replace(recipe, model=ModelConfig(name="tiny-conv", region_unit="patch")),
        # Phrases as texts of their own.
        "alone-grounded": _alone(_objective(centred, zero="midpoint", gradient_ratio=0.5)),
        "alone-softmax": _alone(_objective(unit, powerset_weight=0.5, form="softmax")),
        # CLIP's own pooling beside the powerset loss.
        "tower-unit-1": _tower_pooling(_objective(unit, powerset_weight=1.0)),
        "tower-midpoint": _tower_pooling(_objective(centred, centre_scores="none", zero="midpoint")),
        "tower-softmax": _tower_pooling(_objective(unit, powerset_weight=0.5, form="softmax")),
        # Other objectives.
        "siglip": clip.with_objective("siglip"),
        "filip": clip.with_objective("filip"),
        "sparc": clip.with_objective("sparc"),
        "superclip": clip.with_objective("superclip"),
        # What does it in "midpoint-3": one change each.
        "midpoint-10": _objective(midpoint, powerset_weight=10.0),
        "midpoint-3-gold": _objective(midpoint, region_source="stored"),
        "midpoint-3-superpixels": _objective(midpoint, region_source="stored"),
        "midpoint-3-single": _objective(midpoint, subsets="single"),
        "midpoint-3-tokens": _phrase_unit(midpoint, "token"),
        "midpoint-3-t2r": _objective(midpoint, direction="t2r"),
        "midpoint-3-r2t": _objective(midpoint, direction="r2t"),
        "midpoint-3-at-once": _objective(midpoint, weight_start_step=0, weight_warmup_steps=0),
        "midpoint-3-tower": _tower_pooling(midpoint),
        "no-zero-3": _objective(midpoint, zero="none"),
        "no-triplet-3": _objective(midpoint, form="softmax"),
    }


def _finetune_configs() -> dict[str, TrainConfig]:
    """A CLIP with its own pooling, trained on symbols, goes on with coloured emoji: CLIP's loss, and others."""
    recipe = scenes_tiny()
    start = ModelConfig(name="tiny-local", pretrained=str(START), image_pool="tower", text_pool="tower")
    optim = replace(recipe.optim, learning_rate=3e-4)
    boxes = replace(recipe, model=start, optim=optim, steps=750)
    clip, segments = boxes.with_objective("clip"), _objective(boxes, region_source="stored")
    compared = {"clip": clip, "superpixels": segments, "superpixels-32": _objective(segments, regions=32)}
    return {
        **compared,
        "paper": replace(boxes, objective=ObjectiveConfig()),
        "boxes": boxes,
        **_longer(compared, steps=2250),
    }


SEGMENTS = tuple(name for name in _scenes_configs() | _finetune_configs() if name.startswith("superpixels"))
"""The configs that train on segments of the image."""
SCENES_METRICS = (
    ("scenes-object", "acc@1"),
    ("scenes-colour-object", "acc@1"),
    ("scenes-colour-object-unseen", "acc@1"),
    ("scenes-retrieval", "i2t_R@1"),
    ("scenes-retrieval", "t2i_R@1"),
    ("scenes-retrieval-unseen", "i2t_R@1"),
    ("scenes-retrieval-unseen", "t2i_R@1"),
    ("scenes-hard-negatives", "replace_obj"),
    ("scenes-hard-negatives", "replace_att"),
    ("scenes-hard-negatives", "add_obj"),
    ("scenes-hard-negatives", "add_att"),
    ("scenes-hard-negatives", "swap_att"),
    ("scenes-hard-negatives", "replace_rel"),
    ("scenes-hard-negatives", "macro"),
    ("scenes-quadruples", "group"),
    ("scenes-grounding", "patch"),
    ("scenes-grounding", "contribution"),
    ("scenes-grounding", "patch_last"),
    ("scenes-grounding", "contribution_last"),
    ("scenes-grounding", "region"),
    ("scenes-grounding", "precision"),
    ("scenes-grounding", "recall"),
)
SCENES_OWN = tuple(
    (task + OWN_SCORE, metric)
    for task, metric in (
        ("scenes-object", "acc@1"),
        ("scenes-retrieval", "i2t_R@1"),
        ("scenes-retrieval", "t2i_R@1"),
        ("scenes-retrieval-unseen", "i2t_R@1"),
        ("scenes-retrieval-unseen", "t2i_R@1"),
        ("scenes-hard-negatives", "add_obj"),
        ("scenes-hard-negatives", "add_att"),
        ("scenes-hard-negatives", "swap_att"),
        ("scenes-hard-negatives", "replace_rel"),
        ("scenes-hard-negatives", "macro"),
        ("scenes-quadruples", "group"),
    )
)
EMOJI_METRICS = tuple(
    (f"emoji-{task}{suffix}", metric)
    for task, metric, suffixes in (
        ("object", "acc@1", ("", "-new-style")),
        ("retrieval", "i2t_R@1", ("", "-new-style", "-unseen")),
        ("retrieval", "t2i_R@1", ("", "-new-style", "-unseen")),
        ("hard-negatives", "macro", ("", "-new-style", "-unseen")),
        ("grounding", "patch", ("", "-new-style", "-unseen")),
        ("grounding", "contribution", ("", "-new-style", "-unseen")),
        ("grounding", "patch_last", ("", "-new-style", "-unseen")),
        ("grounding", "contribution_last", ("", "-new-style", "-unseen")),
        ("grounding", "region", ("", "-new-style", "-unseen")),
    )
    for suffix in suffixes
)
EMOJI_OWN = tuple(
    (f"emoji-{task}{suffix}{OWN_SCORE}", metric)
    for task, metric in (
        ("object", "acc@1"),
        ("retrieval", "i2t_R@1"),
        ("retrieval", "t2i_R@1"),
        ("hard-negatives", "macro"),
    )
    for suffix in ("", "-new-style", "-unseen")
    if (task, suffix) != ("object", "-unseen")
)
COLOURED_METRICS = (
    *((f"coloured-{task}", metric) for task, metric in EMOJI_METRICS),
    *(
        (f"coloured-emoji-{task}{suffix}", metric)
        for task, metric in (
            ("colour-object", "acc@1"),
            ("hard-negatives", "swap_att"),
            ("hard-negatives", "replace_rel"),
        )
        for suffix in ("", "-new-style", "-unseen")
        if (task, suffix) != ("colour-object", "-unseen")
    ),
)
COLOURED_OWN = tuple(
    (f"coloured-emoji-{task}{suffix}{OWN_SCORE}", metric)
    for task, metric in (
        ("object", "acc@1"),
        ("colour-object", "acc@1"),
        ("retrieval", "i2t_R@1"),
        ("retrieval", "t2i_R@1"),
        ("hard-negatives", "macro"),
        ("hard-negatives", "swap_att"),
        ("hard-negatives", "replace_rel"),
        ("hard-negatives", "swap_obj"),
    )
    for suffix in ("", "-new-style", "-unseen")
    if (task.endswith("object"), suffix) != (True, "-unseen")
)
ABLATION = (
    *("midpoint", "midpoint-10", "midpoint-3-gold", "midpoint-3-superpixels", "midpoint-3-single"),
    *("midpoint-3-tokens", "midpoint-3-t2r", "midpoint-3-r2t", "midpoint-3-at-once", "midpoint-3-tower"),
    *("no-zero-3", "no-triplet-3"),
)
"""Each with one change of "midpoint-3"."""
MAIN = (
    *("clip", "clip-tower", "superpixels-32", "patches", "boxes", "superpixels", "superpixels-both"),
    *("superpixels-32-both", "filip"),
)
"""What is compared in all worlds: CLIP, the demo's recipe, other regions and fewer segments, words beside phrases, and
PowerCLIP's nearest relative."""
SCENES_ABLATION = (
    *("boxes", "boxes-5", "boxes-20", "boxes-05", "boxes-2", "boxes-t2r", "boxes-r2t"),
    *("boxes-triplet", "boxes-margin-1", "superpixels", "superpixels-t2r", "superpixels-both", "superpixels-tokens"),
    *("superpixels-32", "superpixels-32-both", "patches", "patches-4", "patches-tokens", "patches-both"),
)
"""One change each, of "boxes", "superpixels" or "patches"."""
POWERSET = (
    *("boxes", "boxes-all", "boxes-all-tau", "boxes-all-zeta", "boxes-all-calibrated", "boxes-all-activations"),
    *("patches-all", "superpixels-all"),
)
FORMER_ABLATION = (
    *("boxes", "boxes-5", "boxes-t2r", "boxes-r2t", "boxes-triplet", "superpixels", "superpixels-both"),
    *("superpixels-32", "patches", "patches-4", "patches-both"),
)
FORMER_POWERSET = ("boxes", "boxes-all", "patches-all", "superpixels-all")
"""What of them was run with the former learning rate."""
BASELINES = ("clip", "siglip", "superclip", "sparc", "filip")
"""Other losses on the same tower, which pools by averages."""
FORMER_LONGER = Part(
    name="longer",
    configs=_former("clip", "clip-longer", "patches", "patches-longer", "superpixels", "superpixels-longer"),
    against=_former("clip-longer"),
    drawn=(),
)


def _main(*more: str) -> Part:
    drawn = ("clip", "patches", "superpixels", "superpixels-32")
    return Part(name="main", configs=(*MAIN, *more), against=("clip", "clip-tower"), drawn=drawn)


def _former_main(*more: str) -> Part:
    """The same with the former learning rate."""
    configs = _former(*(name for name in MAIN if not name.endswith("-both")), *more)
    return Part(name="former", configs=configs, against=_former("clip", "clip-tower"), drawn=())


STUDIES: dict[str, Study] = {
    "scenes": Study(
        configs=_scenes_configs(),
        seeds=(0, 1, 2, 3, 4),
        make_data=_scenes,
        other_data=dict.fromkeys(SEGMENTS, _scenes_of_superpixels),
        evaluate=_evaluate_scenes,
        tasks=_scenes_tasks,
        validation=_validation_scenes,
        metrics=SCENES_METRICS + SCENES_OWN,
        parts=(
            _main("gold"),
            Part(name="baselines", configs=(*BASELINES, "patches", "superpixels"), against=("superpixels",), drawn=()),
            Part(
                name="fairness",
                configs=(
                    *(name + rate for name in ("clip", "clip-tower", "superpixels") for rate in ("", *RATES)),
                    *("clip-2200", "clip-tower-2200"),
                ),
                against=(),
                drawn=(),
            ),
            Part(
                name="ablation",
                configs=SCENES_ABLATION,
                against=("boxes",),
                drawn=("boxes", "boxes-t2r", "boxes-r2t"),
            ),
            Part(name="powerset", configs=POWERSET, against=("boxes",), drawn=("boxes", "boxes-all")),
            _former_main("gold"),
            FORMER_LONGER,
            Part(
                name="former-baselines",
                configs=_former(*BASELINES, "patches", "superpixels", "patches-sparc"),
                against=_former("patches"),
                drawn=(),
            ),
            Part(name="former-ablation", configs=_former(*FORMER_ABLATION), against=_former("boxes"), drawn=()),
            Part(name="former-powerset", configs=_former(*FORMER_POWERSET), against=_former("boxes"), drawn=()),
            Part(
                name="selective",
                configs=_former("clip", "selective", "selective-midpoint", "selective-unit"),
                against=_former("clip"),
                drawn=_former("clip", "selective", "selective-midpoint", "selective-unit"),
            ),
        ),
    ),
    "emoji": Study(
        configs=_scenes_configs(),
        seeds=(0, 1, 2, 3, 4),
        make_data=_emoji_scenes,
        other_data=dict.fromkeys(SEGMENTS, _emoji_of_superpixels),
        evaluate=_evaluate_emoji,
        tasks=_emoji_tasks,
        validation=_validation_emoji,
        chosen_by=chosen_by("emoji"),
        metrics=EMOJI_METRICS + EMOJI_OWN,
        parts=(_main(), _former_main("patches-sparc"), FORMER_LONGER),
    ),
    "emoji-coloured": Study(
        configs=_scenes_configs(),
        seeds=(0, 1, 2, 3, 4),
        make_data=partial(_emoji_scenes, names=COLOURED_NAMES, coloured=True),
        other_data=dict.fromkeys(SEGMENTS, partial(_emoji_of_superpixels, names=COLOURED_NAMES, coloured=True)),
        evaluate=partial(_evaluate_emoji, names=COLOURED_NAMES, coloured=True),
        tasks=partial(_emoji_tasks, names=COLOURED_NAMES, coloured=True),
        validation=partial(_validation_emoji, names=COLOURED_NAMES, coloured=True),
        chosen_by=chosen_by("coloured-emoji"),
        metrics=COLOURED_METRICS + COLOURED_OWN,
        parts=(_main("clip-2200", "clip-tower-2200", "superpixels-tokens"), _former_main("clip-2200")),
    ),
    "finetune": Study(
        configs=_finetune_configs(),
        seeds=(0, 1, 2),
        make_data=partial(_emoji_scenes, names=COLOURED_NAMES, coloured=True),
        other_data=dict.fromkeys(SEGMENTS, partial(_emoji_of_superpixels, names=COLOURED_NAMES, coloured=True)),
        evaluate=partial(_evaluate_emoji, names=COLOURED_NAMES, coloured=True),
        tasks=partial(_emoji_tasks, names=COLOURED_NAMES, coloured=True),
        metrics=COLOURED_METRICS + COLOURED_OWN,
        parts=(
            Part(
                name="main",
                configs=("clip", "paper", "boxes", "superpixels", "superpixels-32"),
                against=("clip",),
                drawn=(),
            ),
            Part(
                name="longer",
                configs=("clip-longer", "superpixels-longer", "superpixels-32-longer"),
                against=("clip-longer",),
                drawn=(),
            ),
        ),
    ),
    "emoji-coloured-240": Study(
        configs=_scenes_configs(),
        seeds=(0, 1, 2, 3, 4),
        make_data=partial(_emoji_scenes, coloured=True),
        other_data=dict.fromkeys(SEGMENTS, partial(_emoji_of_superpixels, coloured=True)),
        evaluate=partial(_evaluate_emoji, coloured=True),
        metrics=COLOURED_METRICS + COLOURED_OWN,
        parts=(_former_main(),),
    ),
    "scenes-conv": Study(
        configs=_conv_configs(),
        seeds=(0, 1, 2, 3, 4),
        make_data=_scenes,
        page="evidence-conv.md",
        other_data={"midpoint-3-superpixels": _scenes_of_superpixels},
        evaluate=_evaluate_scenes,
        metrics=SCENES_METRICS,
        parts=(
            Part(
                name="main",
                configs=("clip", "clip-tower", "midpoint-3", "grounded", "sparc", "sparc-2-grounded", "patches"),
                against=("clip", "clip-tower"),
                drawn=("clip", "midpoint-3", "grounded", "sparc-2-grounded"),
            ),
            Part(
                name="sparc",
                configs=("sparc", "sparc-midpoint", "sparc-2-grounded"),
                against=("sparc",),
                drawn=(),
            ),
            Part(
                name="baselines",
                configs=("clip", "siglip", "filip", "sparc", "superclip", "paper"),
                against=("clip",),
                drawn=(),
            ),
            Part(
                name="ablation",
                configs=("midpoint-3", *ABLATION),
                against=("midpoint-3",),
                drawn=("midpoint-3", "no-zero-3", "midpoint-3-single"),
            ),
        ),
    ),
    "shapes": Study(
        configs=_conv_configs(),
        seeds=(0, 1, 2),
        make_data=None,
        evaluate=None,
        metrics=SCENES_METRICS,
        page="evidence-shapes.md",
        parts=(
            Part(
                name="main",
                configs=("clip", "clip-tower", "unit", "centred", "midpoint-3", "grounded"),
                against=("clip", "clip-tower"),
                drawn=("clip", "unit", "centred", "grounded"),
            ),
            Part(
                name="zero",
                configs=("centred", "centred-3", "midpoint", "midpoint-3", "grounded", "grounded-025", "zero-04"),
                against=("centred",),
                drawn=("centred", "grounded", "zero-04"),
            ),
            Part(
                name="alone",
                configs=("clip", "grounded", "alone-grounded", "alone-softmax"),
                against=("clip", "grounded"),
                drawn=("grounded", "alone-grounded", "alone-softmax"),
            ),
            Part(
                name="tower",
                configs=("clip-tower", "tower-unit-1", "tower-midpoint", "tower-softmax"),
                against=("clip-tower",),
                drawn=("tower-unit-1", "tower-midpoint", "tower-softmax"),
            ),
        ),
    ),
    "emoji-conv": Study(
        configs=_emoji_conv_configs(),
        seeds=(0, 1, 2, 3, 4),
        page="evidence-conv.md",
        make_data=_emoji_scenes,
        evaluate=_evaluate_emoji,
        metrics=EMOJI_METRICS,
        parts=(
            Part(
                name="main",
                configs=EMOJI_CONV,
                against=("clip", "clip-tower"),
                drawn=("clip", "midpoint-3", "grounded", "sparc-2-grounded"),
            ),
            Part(name="sparc", configs=("sparc", "sparc-2-grounded"), against=("sparc",), drawn=()),
        ),
    ),
    "scenes-gpu": Study(
        configs=_gpu_configs(),
        seeds=(0, 1, 2),
        make_data=_larger_scenes,
        other_data=dict.fromkeys(SEGMENTS, _larger_scenes_of_superpixels),
        evaluate=_evaluate_scenes,
        metrics=SCENES_METRICS + SCENES_OWN,
        parts=(replace(_main(), configs=tuple(_gpu_configs())),),
    ),
}
"""By name."""
