"""The model that comes with powerclip, for ``powerclip explore`` without a run.

    python experiments/shipped_model.py --output runs/shipped      # or: make explorer-model

Trains the demo's recipe on generated scenes, sets the embeddings of tokens that no training caption
has to 0, and writes the rest in half precision into the package. Prints how well phrases are found before and after
that, on scenes of another seed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from powerclip.demo import training_scenes, with_segments
from powerclip.evaluate import evaluate_tasks
from powerclip.explore.subject import SHIPPED
from powerclip.model import PowerCLIP, load, pack, save
from powerclip.recipes import scenes_superpixels
from powerclip.scenes import evaluation_tasks, generate
from powerclip.tasks import Grounding, Retrieval
from powerclip.train import train

EVALUATION_SEED = 20261126


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate, pack, and evaluate again."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--output", type=Path, default=Path("runs/shipped"), help="for data and the run; a finished training is kept"
    )
    parser.add_argument("--steps", type=int, default=scenes_superpixels().steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=16384, help="to train on")
    parser.add_argument("--images", type=int, default=500, help="to evaluate on")
    parser.add_argument("--package", type=Path, default=SHIPPED, help="where the model goes")
    options = parser.parse_args(arguments)
    config = replace(scenes_superpixels(), steps=options.steps, seed=options.seed)
    scenes = with_segments(training_scenes(options.output / "scenes", count=options.scenes))
    train(config, data=scenes, output=options.output / "run", resume=True)
    model, preprocess, tokenizer = load(options.output / "run")
    tasks = [
        task
        for task in evaluation_tasks(seed=EVALUATION_SEED, size=options.images, image_size=model.image_size[0])
        if isinstance(task, Grounding | Retrieval)
    ]
    before = evaluate(model, preprocess, tokenizer, tasks)
    captions = {sample.caption for sample in generate("train", count=options.scenes, seed=0)}
    tokens = tokenizer(sorted(captions)).unique()
    embeddings = next(value for name, value in model.named_parameters() if name.endswith("token_embedding.weight"))
    with torch.no_grad():
        embeddings[~torch.isin(torch.arange(len(embeddings)), tokens)] = 0
    save(model, options.package, state=pack(model.state_dict()))
    after = evaluate(*load(options.package), tasks)
    for task, metrics in after.items():
        for name, value in metrics.items():
            print(f"{task} {name}: {100 * before[task][name]:.1f} before, {100 * value:.1f} as it ships")
    size = sum(path.stat().st_size for path in options.package.iterdir())
    print(f"{options.package}: {size / 1e6:.2f} MB")


def evaluate(model: PowerCLIP, *rest: Any) -> dict[str, dict[str, float]]:
    """The tasks by global embeddings and by the powerset score."""
    return {**evaluate_tasks(model, *rest), **evaluate_tasks(model, *rest, score="powerset")}


if __name__ == "__main__":
    main()
