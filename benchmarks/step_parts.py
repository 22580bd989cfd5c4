"""Where a training step's time goes: data, forward, alignment, backward, optimizer.

Prints a table of medians. "alignment" is the powerset loss, forward and backward down to the features; "forward" and
"backward" are the towers and CLIP's loss. "data" is the whole cost of a batch when it is read in the same process; with
``--workers`` it is what the trainer still waits for.

    python benchmarks/step_parts.py                                  # the demo's model and batch
    python benchmarks/step_parts.py --model ViT-B-16 --batch-size 16 --image-size 224
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from powerclip.config import DataConfig, ObjectiveConfig
from powerclip.data.loader import open_data
from powerclip.data.shards import write_shards
from powerclip.loss import PowerCLIPLoss
from powerclip.loss.clip import clip_loss
from powerclip.recipes import recipe
from powerclip.scenes import generate
from powerclip.train.build import build_loader, build_model
from powerclip.train.step import Engine

PARTS = ("data", "forward", "alignment", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is timed."""

    model: str = "tiny"
    """Towers."""
    batch_size: int = 64
    """Pairs per step."""
    regions: int = 10
    """M."""
    workers: int = 0
    """Decoding processes."""
    steps: int = 30
    """Steps that count; three more warm up."""
    image_size: int = 64
    """Side of the generated scenes."""
    device: str = "cpu"
    """Where to train."""


def main(options: Options) -> None:
    base = recipe("scenes_tiny")
    config = replace(
        base,
        model=replace(base.model, name=options.model, region_unit="region"),
        objective=ObjectiveConfig(regions=options.regions),
        data=DataConfig(workers=options.workers),
        batch_size=options.batch_size,
        steps=options.steps + 3,
        device=options.device,
    )
    with tempfile.TemporaryDirectory() as folder:
        count = options.batch_size * (options.steps + 3)
        write_shards(generate("train", count=count, seed=0, image_size=options.image_size), Path(folder) / "data")
        torch.manual_seed(0)
        model = build_model(config)
        loader = build_loader(config, model, open_data(Path(folder) / "data"))
        device = torch.device(options.device)
        engine = Engine(config, model, device=device, steps=options.steps + 3, output=Path(folder))
        batches = islice((batch for (batch,) in loader.steps(0)), loader.batches_per_epoch)
        seconds = timed_steps(engine, batches)
    parts = {name: statistics.median(values[3:]) for name, values in seconds.items()}
    total = sum(parts.values())
    table = Table(title=f"{options.model}, {options.batch_size} pairs, M = {options.regions}, {options.device}")
    for name in ("part", "ms per step", "share"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for name in PARTS:
        table.add_row(name, f"{1e3 * parts[name]:.1f}", f"{parts[name] / total:.1%}")
    table.add_row("all", f"{1e3 * total:.1f}", f"{options.batch_size / total:.0f} samples/s")
    Console().print(table)


def timed_steps(engine: Engine, batches) -> dict[str, list[float]]:
    """Seconds of each part, step by step; the engine's own step, split at the features."""
    loss, model = engine.loss, engine.model
    assert isinstance(loss, PowerCLIPLoss)
    seconds: dict[str, list[float]] = defaultdict(list)

    def timed(name: str, work: Callable):
        start = time.perf_counter()
        value = work()
        if engine.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[name].append(time.perf_counter() - start)
        return value

    while (batch := timed("data", lambda: next(batches, None))) is not None:
        batch = batch.to(engine.device)
        model.train()
        engine.optimizer.zero_grad(set_to_none=True)

        def forward(batch=batch):
            features = engine.forward(model, batch)
            return features, clip_loss(features.image, features.text, features.logit_scale)

        features, clip = timed("forward", forward)
        regions, phrases = (value.detach().requires_grad_() for value in (features.regions, features.phrases))

        def alignment(regions=regions, phrases=phrases, features=features):
            (loss.weight * loss.powerset(regions, phrases, features.region_mask, features.phrase_mask)).backward()

        timed("alignment", alignment)

        def backward(clip=clip, features=features, regions=regions, phrases=phrases):
            torch.autograd.backward([clip, features.regions, features.phrases], [None, regions.grad, phrases.grad])

        timed("backward", backward)

        def optimizer():
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            engine.optimizer.step()

        timed("optimizer", optimizer)
    seconds["data"].pop()  # the end of the epoch
    return seconds


if __name__ == "__main__":
    main(tyro.cli(Options))
