"""Named runs: one function each, with the command that starts it."""

import dataclasses
from collections.abc import Callable

from powerclip.config import DataConfig, ModelConfig, ObjectiveConfig, OptimConfig, TrainConfig
from powerclip.errors import PowerclipError, did_you_mean


def scenes_tiny() -> TrainConfig:
    """Phrases aligned with patches on the generated scenes, minutes on two cores.

    Every patch is a region, only the best one counts for a phrase and the best phrase for a patch (``subsets`` single),
    and a softmax over these scores has as much gradient as CLIP's loss, both at the pooled unit vectors.
    docs/evidence.md compares it with boxes, with the powerset and with CLIP.
    ``powerclip prepare scenes:train data/scenes && powerclip train --recipe scenes_tiny --data data/scenes
    --output runs/scenes``
    """
    return TrainConfig(
        recipe="scenes_tiny",
        model=ModelConfig(name="tiny-local", region_unit="patch"),
        objective=ObjectiveConfig(
            powerset_weight=1.0, form="softmax", subsets="single", normalise_by_regions=False, gradient_ratio=1.0
        ),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=50, weight_decay=0.1),
        batch_size=64,
        steps=1500,
    )


def scenes_superpixels() -> TrainConfig:
    """The same with segments of the image as regions, which need no labels: the best of docs/evidence.md.

    Each step draws at most 32 of an image's segments at three scales.
    ``powerclip prepare scenes:train data/segments --regions superpixels --replace-regions && powerclip train
    --recipe scenes_superpixels --data data/segments --output runs/segments``
    """
    base = scenes_tiny()
    objective = dataclasses.replace(base.objective, region_source="stored", regions=32)
    model = dataclasses.replace(base.model, region_unit="region")
    return dataclasses.replace(base, recipe="scenes_superpixels", model=model, objective=objective)


def scenes_sparc() -> TrainConfig:
    """The powerset loss beside SPARC's, which also contrasts the tokens of each caption: far better at names.

    Most of the gain is SPARC's (docs/evidence-conv.md), whose contrast of patches and tokens does not count for
    ``gradient_ratio``. Tower, regions and zero are those of ``emoji_scenes``.
    ``powerclip train --recipe scenes_sparc --data data/scenes --output runs/sparc``
    """
    base = emoji_scenes()
    objective = dataclasses.replace(base.objective, global_loss="sparc", sparc_local_weight=2.0)
    return dataclasses.replace(base, recipe="scenes_sparc", objective=objective)


def emoji_tiny() -> TrainConfig:
    """``scenes_tiny`` for 700 steps, on single emoji and their names; see ``examples/emoji``.

    ``powerclip train --recipe emoji_tiny --data SHARDS --output runs/emoji``
    """
    return dataclasses.replace(scenes_tiny(), recipe="emoji_tiny", steps=700)


def emoji_scenes() -> TrainConfig:
    """PowerCLIP-R with the powerset on scenes of two emoji.

    CLIP learns alone for 200 steps; then lambda rises until the powerset loss has half of the gradient of CLIP's, on
    scores less their row and column means, with the zero of similarities midway between matched and unmatched pairs.
    There this is ahead of CLIP in names and grounding (docs/evidence-conv.md); ``scenes_tiny`` on the same data
    retrieves and grounds better (docs/evidence.md).
    ``python examples/emoji/emoji_scenes.py && powerclip train --recipe emoji_scenes --data
    data/emoji-scenes/train-20000-of-240-seed-0 --output runs/emoji-scenes``
    """
    objective = ObjectiveConfig(
        powerset_weight=1.0,
        centre_scores="full",
        zero="midpoint",
        gradient_ratio=0.5,
        weight_start_step=200,
        weight_warmup_steps=300,
    )
    base = scenes_tiny()
    optim = dataclasses.replace(base.optim, learning_rate=2e-3)
    return dataclasses.replace(
        base, recipe="emoji_scenes", model=ModelConfig(name="tiny-conv"), objective=objective, optim=optim
    )


def cc12m_vit_b16() -> TrainConfig:
    """The paper's setting: CC12M, ViT-B/16, 32 epochs, batch 4096, learning rate 1e-3, M = 10, zeta = 0.75.

    ``powerclip train --recipe cc12m_vit_b16 --data data/cc12m --output runs/cc12m_vit_b16``
    """
    return TrainConfig(
        recipe="cc12m_vit_b16",
        model=ModelConfig(name="ViT-B-16"),
        objective=ObjectiveConfig(powerset_weight=0.2, tau=1e-3, zeta=0.75, regions=10),
        data=DataConfig(workers=8),
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=2000, weight_decay=0.2),
        batch_size=4096,
        epochs=32,
        log_every_steps=50,
        checkpoint_every_steps=1000,
    )


def cc12m_vit_b16_literal() -> TrainConfig:
    """The same with the paper's text taken literally: phrases are sums of their words, S is a sum over the regions.

    Unit phrases and S / M were better wherever both were tried (docs/LOG.md).
    ``powerclip train --recipe cc12m_vit_b16_literal --data data/cc12m --output runs/literal``
    """
    paper = cc12m_vit_b16()
    return dataclasses.replace(
        paper,
        recipe="cc12m_vit_b16_literal",
        model=dataclasses.replace(paper.model, phrase_norm="sum"),
        objective=dataclasses.replace(paper.objective, normalise_by_regions=False),
    )


def cc12m_vit_b16_sam() -> TrainConfig:
    """PowerCLIP-S: the same with regions that SAM proposed; each step draws at most ten of an image's masks.

    ``powerclip prepare cc12m/ data/cc12m_sam --regions sam:facebook/sam-vit-huge && powerclip train
    --recipe cc12m_vit_b16_sam --data data/cc12m_sam --output runs/cc12m_vit_b16_sam``
    """
    paper = cc12m_vit_b16()
    objective = dataclasses.replace(paper.objective, region_source="stored")
    return dataclasses.replace(paper, recipe="cc12m_vit_b16_sam", objective=objective)


def cc12m_vit_b16_single() -> TrainConfig:
    """What helps at the size of docs/evidence.md, at the paper's: single boxes, a softmax, and CLIP's gradient.

    The loss of ``scenes_tiny`` over ten random boxes of an image instead of its 196 patches, which take longer
    (docs/training.md). It has not been run at this size. For masks that ``prepare`` has proposed add
    ``--objective.region-source stored``.
    ``powerclip train --recipe cc12m_vit_b16_single --data data/cc12m --output runs/cc12m_vit_b16_single``
    """
    paper = cc12m_vit_b16()
    objective = dataclasses.replace(scenes_tiny().objective, regions=paper.objective.regions)
    return dataclasses.replace(paper, recipe="cc12m_vit_b16_single", objective=objective)


def cc3m_vit_s16() -> TrainConfig:
    """The same kind of run at the size of one node: CC3M, ViT-S/16, 32 epochs, batch 1024.

    ``torchrun --nproc-per-node 8 -m powerclip.cli train --recipe cc3m_vit_s16 --data data/cc3m --output runs/cc3m``
    """
    model, optim = ModelConfig(name="ViT-S-16"), OptimConfig(learning_rate=5e-4, warmup_steps=1000, weight_decay=0.2)
    return dataclasses.replace(cc12m_vit_b16(), recipe="cc3m_vit_s16", model=model, optim=optim, batch_size=1024)


def finetune_open_clip() -> TrainConfig:
    """Fine-tune OpenAI's ViT-B/16 with powerset alignment: its own pooling, low rates that decay by layer.

    ``powerclip train --recipe finetune_open_clip --data data/mine --output runs/finetuned``; for other weights add
    ``--model.name`` and ``--model.pretrained`` (a tag of open_clip, a checkpoint file, or a run of your own).
    """
    return TrainConfig(
        recipe="finetune_open_clip",
        model=ModelConfig(name="ViT-B-16", pretrained="openai", image_pool="tower", text_pool="tower"),
        data=DataConfig(workers=4),
        optim=OptimConfig(learning_rate=1e-5, warmup_steps=50, weight_decay=0.1, layer_decay=0.75),
        batch_size=256,
        epochs=5,
        ema_decay=0.999,
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    function.__name__: function
    for function in (
        scenes_tiny,
        scenes_superpixels,
        scenes_sparc,
        emoji_tiny,
        emoji_scenes,
        cc12m_vit_b16,
        cc12m_vit_b16_literal,
        cc12m_vit_b16_sam,
        cc12m_vit_b16_single,
        cc3m_vit_s16,
        finetune_open_clip,
    )
}


def recipe(name: str) -> TrainConfig:
    """The config of a named recipe; PowerclipError if there is none of that name."""
    if name not in RECIPES:
        known = f"recipes: {', '.join(RECIPES)}"
        raise PowerclipError(f"unknown recipe {name!r}; {did_you_mean(name, RECIPES, otherwise=known)}")
    return RECIPES[name]()
